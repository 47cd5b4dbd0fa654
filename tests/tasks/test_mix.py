"""Mix: the table's figures, which documents are taken, their order, and each mistake by its message."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import ray
from pydantic import ValidationError

from cluster.errors import BadConfig, BadData
from tasks.base import Artifact, Runtime, Task
from tasks.corpus_reader import corpus_facts, read_batches
from tasks.corpus_writer import Shards
from tasks.mix import Component, Mix
from tasks.mix_documents import Count
from tasks.sources.batches import split_draw
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import FolderContext, digests, run_stage

WORDS = ["river", "mountain", "house", "letter", "winter", "paper", "stone", "window", "garden", "music"]


class MixContext(FolderContext):
    """A context whose field `corpora` holds several folders."""

    def __init__(self, out: Path, corpora: Sequence[Path], inputs: Mapping[str, Path], runtime: Runtime) -> None:
        super().__init__(out, runtime, inputs)
        self.corpora = corpora

    def inputs(self, field: str) -> list[Artifact]:
        return [Artifact(key=field, kind=field, path=p, config={}, metrics={}, inputs={}) for p in self.corpora]


class Given(Task):
    """A stage that stands for a corpus; never run."""

    produces: ClassVar[str] = "corpus"
    part: str = ""


class GivenTokenizer(Task):
    """A stage that stands for a tokenizer; never run."""

    produces: ClassVar[str] = "tokenizer"


def lines(count: int, seed: int, words: tuple[int, int] = (5, 40)) -> list[str]:
    rng = random.Random(seed)
    return [f"{seed}-{n} " + " ".join(rng.choices(WORDS, k=rng.randint(*words))) for n in range(count)]


def corpus(folder: Path, texts: list[str], validation_share: float = 0.1) -> Path:
    """A corpus artifact, split as `Ingest` splits."""
    folder.mkdir()
    writer = Shards(folder)
    for start in range(0, len(texts), 50):
        some = texts[start : start + 50]
        held = [split_draw(text.encode()) < validation_share * 2**64 for text in some]
        ids = [f"{start + n}" for n in range(len(some))]
        columns = {"id": ids, "text": some, "source": ["file"] * len(some), "meta": ["{}"] * len(some)}
        writer.write(pa.table({**columns, "validation": held}))
    writer.close()
    facts = {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "characters": sum(map(len, texts)),
        "words": sum(len(text.split()) for text in texts),
        "splits": writer.splits,
    }
    (folder / "corpus.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three corpora, about 4 : 2 : 1 in bytes."""
    folder = tmp_path_factory.mktemp("parts")
    return [corpus(folder / f"c{n}", lines(count, n)) for n, count in enumerate((1600, 800, 400))]


def mix(out: Path, folders: Sequence[Path], components: Sequence[Component], **settings: Any) -> Path:
    tokenizer, scratch = settings.pop("tokenizer_folder", None), settings.pop("scratch", None)
    task = Mix(
        corpora=tuple(Given(part=str(n)) for n in range(len(folders))),
        components=tuple(components),
        tokenizer=GivenTokenizer() if tokenizer else None,
        **settings,
    )
    context = MixContext(out, folders, {"tokenizer": tokenizer} if tokenizer else {}, task.runtime)
    if scratch:
        shutil.copytree(scratch, context.scratch, dirs_exist_ok=True)
    task.run(context)
    return out


def named(*settings: dict[str, Any]) -> list[Component]:
    return [Component(name=name, **each) for name, each in zip("abc", settings, strict=False)]


def rows(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return [r for b in read_batches(folder, split, ("id", "text", "source", "meta")) for r in b.to_pylist()]


def table(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in corpus_facts(folder)["components"]}


def test_natural_sizes_give_every_document_once(parts: list[Path], tmp_path: Path) -> None:
    out = mix(tmp_path / "m", parts, named({}, {}, {}))
    for split in ("train", "validation"):
        own = [(name, row["text"]) for name, part in zip("abc", parts, strict=True) for row in rows(part, split)]
        assert sorted((row["source"], row["text"]) for row in rows(out, split)) == sorted(own)
    facts = corpus_facts(out)
    inputs = [corpus_facts(part) for part in parts]
    for name in ("documents", "bytes", "characters", "words"):
        assert facts[name] == sum(each[name] for each in inputs), name
    assert [row["epochs"] for row in facts["components"]] == [1, 1, 1]
    assert sum(row["weight"] for row in facts["components"]) == pytest.approx(1, abs=1e-5)


def test_epochs_repeat_all_and_a_part(parts: list[Path], tmp_path: Path) -> None:
    out = mix(tmp_path / "m", parts, named({"epochs": 2.25}, {"epochs": 0.5}, {}))
    copies = Counter((row["source"], row["id"].partition("#")[0]) for row in rows(out))
    numbers = {name: Counter(n for (source, _), n in copies.items() if source == name) for name in "abc"}
    ids = [row["id"] for row in rows(out) if row["source"] == "a"]
    assert len(set(ids)) == len(ids) and any(each.endswith("#3") for each in ids)
    assert set(numbers["a"]) == {2, 3} and numbers["a"][3] / numbers["a"].total() == pytest.approx(0.25, abs=0.04)
    assert set(numbers["b"]) == {1} and numbers["b"].total() / len(rows(parts[1])) == pytest.approx(0.5, abs=0.06)
    assert set(numbers["c"]) == {1}
    held = Counter(row["source"] for row in rows(out, "validation"))
    whole = [len(rows(part, "validation")) for part in parts]
    assert held["a"] == whole[0] and held["c"] == whole[2]  # repeated in training, once here
    assert 0 < held["b"] < whole[1]
    facts = table(out)
    assert facts["a"]["effective_bytes"] == sum(len(r["text"].encode()) for r in rows(out) if r["source"] == "a")
    assert facts["a"]["epochs"] == pytest.approx(2.25, abs=0.04)


def test_a_part_of_an_epoch_is_one_of_each_split(parts: list[Path], tmp_path: Path) -> None:
    """Of a tenth that is held out, as of the rest: chosen by the number that the split was drawn by, all of it was."""
    out = mix(tmp_path / "m", parts[:1], named({"epochs": 0.1}))
    for split in ("train", "validation"):
        share = len(rows(out, split)) / (count := len(rows(parts[0], split)))
        assert abs(share - 0.1) < 4 * (0.1 * 0.9 / count) ** 0.5, split  # four standard deviations


def test_weights_are_met_to_a_document(parts: list[Path], tmp_path: Path) -> None:
    out = mix(tmp_path / "m", parts, named({"weight": 1}, {"weight": 1}, {"weight": 2}), total_bytes=160_000)
    facts = table(out)
    longest = max(len(row["text"]) for row in rows(out))
    for name, share in zip("abc", (0.25, 0.25, 0.5), strict=True):
        assert abs(facts[name]["effective_bytes"] - share * 160_000) <= longest
        assert facts[name]["weight"] == pytest.approx(share, abs=0.01)
    assert facts["c"]["epochs"] > 1 > facts["a"]["epochs"]


def test_every_stretch_has_the_proportions(parts: list[Path], tmp_path: Path) -> None:
    """After any number of documents, no component is more than two documents off its share."""
    out = mix(tmp_path / "m", parts, named({"weight": 1}, {"weight": 3}, {"weight": 2}), total_bytes=150_000)
    facts, seen, longest = table(out), Counter[str](), 0
    for row in rows(out):
        seen[row["source"]] += len(row["text"].encode())
        longest = max(longest, len(row["text"].encode()))
        for name in "abc":
            assert abs(seen[name] - seen.total() * facts[name]["weight"]) <= 2 * longest


def test_temperature_raises_the_small_ones(parts: list[Path], tmp_path: Path) -> None:
    plain, warm = (
        table(mix(tmp_path / f"m{t}", parts, named({}, {}, {}), temperature=t, total_bytes=150_000)) for t in (1, 2)
    )
    sizes = [row["bytes"] for row in plain.values()]
    for row, size in zip(warm.values(), sizes, strict=True):
        assert row["weight"] == pytest.approx(size**0.5 / sum(n**0.5 for n in sizes), abs=0.005)
    assert warm["c"]["weight"] > plain["c"]["weight"] == pytest.approx(sizes[2] / sum(sizes), abs=0.005)


def test_a_choice_stands_when_documents_and_components_are_added(tmp_path: Path) -> None:
    texts = lines(600, 7)
    few, more = corpus(tmp_path / "few", texts[:300]), corpus(tmp_path / "more", texts)
    other = corpus(tmp_path / "other", lines(100, 8))
    half = {"epochs": 0.5}
    small = {r["text"] for r in rows(mix(tmp_path / "m1", [few], named(half)))}
    large = {r["text"] for r in rows(mix(tmp_path / "m2", [more, other], named(half, {}))) if r["source"] == "a"}
    assert small < large and {t for t in large if t in texts[:300]} == small
    reseeded = {r["text"] for r in rows(mix(tmp_path / "m3", [few], named(half), seed=1))}
    assert reseeded != small and reseeded & small


def test_token_quotas_count_the_tokenizers_tokens(parts: list[Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    run_stage(TrainTokenizer(corpus=Given(), vocab_size=200), tmp_path / "tok", corpus=parts[0])
    made = Tokenizer.from_file(str(tmp_path / "tok" / "tokenizer.json"))

    def count(texts: list[str]) -> int:
        return sum(len(e.ids) for e in made.encode_batch(texts, add_special_tokens=False))

    out = mix(tmp_path / "m", parts, named({"tokens": 9000}, {"tokens": 5000}, {}), tokenizer_folder=tmp_path / "tok")
    facts = table(out)
    for name, part in zip("abc", parts, strict=True):
        own = [r["text"] for r in rows(out) if r["source"] == name]
        assert facts[name]["effective_tokens"] == count(own)
        assert facts[name]["tokens"] == count([r["text"] for r in rows(part)])
    assert facts["a"]["effective_tokens"] == pytest.approx(9000, abs=60)
    assert facts["b"]["effective_tokens"] == pytest.approx(5000, abs=60)
    assert facts["c"]["epochs"] == 1
    assert corpus_facts(out)["unit"] == "tokens"


def test_what_one_component_holds_out_is_not_learnt_from_another(tmp_path: Path) -> None:
    """The same texts split by other shares: those in b's validation split leave a's training split."""
    texts = lines(300, 3)
    a = corpus(tmp_path / "a", texts, validation_share=0.02)
    b = corpus(tmp_path / "b", texts, validation_share=0.3)
    out = mix(tmp_path / "m", [a, b], named({"epochs": 2}, {}))
    train, held = ({r["text"] for r in rows(out, split)} for split in ("train", "validation"))
    assert held and not train & held
    left_out = corpus_facts(out)["skipped"]["text held out by a component"]
    assert left_out == len({r["text"] for r in rows(a)} & {r["text"] for r in rows(b, "validation")}) > 0
    assert table(out)["a"]["documents"] == len(rows(a)) - left_out


def test_the_same_bytes_again_and_over_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import corpus_writer

    monkeypatch.setattr(corpus_writer, "ROW_GROUP_BYTES", 3000)
    monkeypatch.setattr(corpus_writer, "SHARD_BYTES", 9000)
    folders = [corpus(tmp_path / f"c{n}", lines(count, n)) for n, count in enumerate((300, 200))]
    monkeypatch.undo()
    assert len(list(folders[0].glob("train-*.parquet"))) > 2
    settings = named({"epochs": 1.5}, {"epochs": 0.7})
    one, other = (mix(tmp_path / name, folders, settings) for name in ("m1", "m2"))
    assert digests(one) == digests(other)
    seen = [row["source"] for row in rows(one)]
    assert seen[:40].count("b") > 2 and seen[-40:].count("b") > 2  # spread over the whole, not one after another


def test_components_of_one_corpus_are_told_by_their_source(parts: list[Path], tmp_path: Path) -> None:
    union = mix(tmp_path / "u", parts, named({}, {}, {}), order="concatenated")
    assert [row["source"] for row in rows(union)] == sorted(row["source"] for row in rows(union))
    settings = named({"epochs": 1.5}, {"epochs": 0.4}, {"epochs": 3})
    direct, told = mix(tmp_path / "m1", parts, settings), mix(tmp_path / "m2", [union], settings)
    assert rows(told) == rows(direct) and rows(told, "validation") == rows(direct, "validation")
    assert corpus_facts(told) == corpus_facts(direct)
    with pytest.raises(BadData, match="'d' has no training text"):
        mix(tmp_path / "m3", [union], [*settings, Component(name="d")])


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def test_workers_and_an_interruption_do_not_change_the_bytes(
    cluster: None, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = named({"weight": 1}, {"weight": 2}, {"weight": 1})
    made = [
        mix(tmp_path / f"w{workers}", parts, settings, total_bytes=150_000, runtime=Runtime(workers=workers))
        for workers in (1, 2)
    ]

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Shards, "close", broken)  # measured, mixed, and then gone
        mix(tmp_path / "again", parts, settings, total_bytes=150_000)
    left = sorted(path.name for path in (tmp_path / "again-scratch").iterdir())
    assert left == [f"{split}-{n:03d}" for split in ("train", "validation") for n in range(3)]
    ray.shutdown()  # and taken up by one process
    monkeypatch.setattr(Count, "rows", broken)  # nothing is measured twice
    made.append(mix(tmp_path / "third", parts, settings, total_bytes=150_000, scratch=tmp_path / "again-scratch"))
    assert digests(made[0]) == digests(made[1]) == digests(made[2])


class TestMistakes:
    """Each by its message."""

    @pytest.mark.parametrize(
        ("settings", "more", "message"),
        [
            ([{"weight": 1, "epochs": 2}], {}, "'a' has weight and epochs"),
            ([{"weight": 1}, {}], {}, "some components have a weight, 'b' not"),
            ([{"weight": 1}, {"epochs": 2}], {}, "some components have a weight, 'b' not"),
            ([{"epochs": 5}], {}, "epochs=5, most_epochs is 4"),
            ([{"tokens": 10}], {}, "needs a tokenizer"),
            ([{}], {"total_tokens": 10}, "needs a tokenizer"),
            ([{"epochs": 2}], {"total_bytes": 10}, "total_bytes is given, and components with epochs"),
            ([{"weight": 2}], {"temperature": 2}, "temperature=2 with components that have weight"),
            ([{}], {"total_bytes": 1, "total_tokens": 1}, "both given"),
            ([{}], {"total_bytes": 1, "tokenizer": GivenTokenizer()}, "shares are of tokens"),
        ],
    )
    def test_settings(self, settings: list[dict[str, Any]], more: dict[str, Any], message: str) -> None:
        corpora = tuple(Given(part=str(n)) for n in range(len(settings)))
        with pytest.raises(BadConfig) as raised:
            Mix(corpora=corpora, components=tuple(named(*settings)), **more)
        assert message in str(raised.value)

    def test_names_and_numbers(self) -> None:
        with pytest.raises(BadConfig, match="two components are named 'a'"):
            Mix(corpora=(Given(), Given(part="2")), components=(Component(name="a"), Component(name="a")))
        with pytest.raises(BadConfig, match="1 components for 2 corpora"):
            Mix(corpora=(Given(), Given(part="2")), components=(Component(name="a"),))
        for wrong in ({"weight": 0}, {"weight": -1}, {"weight": float("nan")}, {"epochs": 0}, {"tokens": 0}):
            with pytest.raises(ValidationError, match="greater than 0|finite number"):
                Component(name="a", **wrong)

    def test_too_much_repetition_says_what_would_fit(self, parts: list[Path], tmp_path: Path) -> None:
        weights = named({"weight": 1}, {"weight": 1}, {"weight": 98})
        with pytest.raises(BadData, match="'c' has 98.0% of .* epochs of its") as raised:
            mix(tmp_path / "m", parts, weights)
        most = int(raised.value.remedy.split("at most ")[1].split(", give")[0].replace(",", ""))
        facts = table(mix(tmp_path / "m2", parts, weights, total_bytes=most))
        assert facts["c"]["epochs"] == pytest.approx(4, abs=0.01)

    def test_a_share_below_a_document(self, parts: list[Path], tmp_path: Path) -> None:
        with pytest.raises(BadData, match="'a' is 0.1 bytes.*less than a document|less than a document"):
            mix(tmp_path / "m", parts, named({"weight": 1e-6}, {"weight": 1}, {"weight": 1}), total_bytes=100_000)

    def test_a_component_without_training_text(self, parts: list[Path], tmp_path: Path) -> None:
        texts = [row["text"] for row in rows(parts[0], "validation")]
        same = corpus(tmp_path / "same", texts, validation_share=0.0)
        with pytest.raises(BadData, match="'b' has no training text of its own"):
            mix(tmp_path / "m", [parts[0], same], named({}, {}))
