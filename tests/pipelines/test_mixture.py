"""The corpus section of recipes: a source, several as one, or a mixture; what is refused, and a run to the mixture."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from modeling.errors import ConfigError
from pipelines import Pipeline, run
from pipelines.config import find_recipe, resolve, validate
from pipelines.recipes.corpora import ComponentSettings
from tasks.clean import Clean
from tasks.corpus_reader import read_batches
from tasks.imported import ImportTokenizer
from tasks.ingest import Ingest
from tasks.mix import Component, Mix

YAML = Path(__file__).resolve().parents[2] / "docs" / "data" / "mixture.yaml"
TWO = ["corpus.a=a.txt", "corpus.b.source=b.jsonl"]


def built(*words: str, recipe: str = "bert", file: str | None = None) -> Any:
    """The `Pretrain` stage of a recipe."""
    found = find_recipe(recipe)
    return found.build(resolve(found, words, file)).targets[0]


def corpus(*words: str, recipe: str = "bert", file: str | None = None) -> Any:
    """The corpus that the examples are made of."""
    return built(*words, recipe=recipe, file=file).examples.corpus


def test_one_source_is_read_and_cleaned_and_nothing_else() -> None:
    assert corpus("corpus=a.txt", "clean=none") == Ingest(source="a.txt")
    assert corpus("corpus=a.txt") == Clean(corpus=Ingest(source="a.txt"))
    assert corpus("corpus=[a.txt,b.txt]", "clean=none") == Ingest(source=("a.txt", "b.txt"))
    assert corpus("corpus.a=a.txt", "clean=none", "ingest.documents=line") == Ingest(source="a.txt", documents="line")
    assert [step.kind for step in corpus("corpus=a.txt", "clean=[pii,{kind: length, min_chars: 3}]").steps] == [
        "pii",
        "length",
    ]
    assert corpus("corpus=a.txt", "clean.kind=pii", "clean.action=drop") == Clean(
        corpus=Ingest(source="a.txt"), steps=({"kind": "pii", "action": "drop"},)
    )


def test_without_held_out_text_there_is_no_baseline_to_measure() -> None:
    def stages(*words: str) -> set[str]:
        found = find_recipe("bert")
        return {task.stage for task in found.build(resolve(found, words)).roots()}

    assert "baseline" in stages("corpus=a.txt") & stages(*TWO, "corpus.a.ingest.validation_share=0")
    assert "baseline" not in stages("corpus=a.txt", "ingest.validation_share=0")


def test_quickstart_and_bert_clean_by_the_standard_list() -> None:
    for recipe in ("quickstart", "bert"):
        assert resolve(find_recipe(recipe), ["corpus=a.txt"]).clean == "standard"  # type: ignore[attr-defined]


def test_components_are_mixed() -> None:
    mix = corpus(*TWO, "corpus.b.epochs=2", "corpus.b.category=x", "clean=none", "mix.seed=3")
    assert isinstance(mix, Mix) and mix.seed == 3
    assert mix.components == (Component(name="a"), Component(name="b", epochs=2, category="x"))
    assert [stage.source for stage in mix.corpora] == ["a.txt", "b.jsonl"]
    assert [stage.name for stage in mix.corpora] == ["ingest-a", "ingest-b"]
    as_list = corpus(
        "corpus=[{source: a.txt}, {source: b.jsonl, name: b, epochs: 2, category: x}]", "clean=none", "mix.seed=3"
    )
    assert as_list == mix  # the name of a file stands for a name
    alone = corpus("corpus.a.source=a.txt", "corpus.a.epochs=2", "clean=none")
    assert isinstance(alone, Mix) and len(alone.corpora) == 1


def test_a_component_has_its_own_reading_and_cleaning() -> None:
    words = ["corpus.b.ingest.text_field=body", "corpus.b.clean=[pii]", "corpus.a.clean=none", "ingest.documents=line"]
    # a source alone may be followed by its settings
    a, b = corpus(*TWO, *words).corpora
    assert isinstance(a, Ingest) and a.documents == "line" and a.text_field == "text"
    assert isinstance(b, Clean) and [step.kind for step in b.steps] == ["pii"]
    assert (b.corpus.text_field, b.corpus.documents, b.name) == ("body", "line", "clean-b")


def test_quotas_in_tokens_take_the_tokenizer_of_the_unweighted_mixture() -> None:
    stage = built(*TWO, "corpus.b.tokens=1000", "clean=none")
    mix = stage.examples.corpus
    assert mix.tokenizer is stage.tokenizer
    natural = stage.tokenizer.corpus
    assert natural.components == (Component(name="a"), Component(name="b")) and natural.tokenizer is None
    total = built(*TWO, "mix.total_tokens=1000", "clean=none").examples.corpus
    assert total.tokenizer is not None and total.total_tokens == 1000
    weighted = built(*TWO, "corpus.a.weight=1", "corpus.b.weight=2")
    assert weighted.tokenizer.corpus == weighted.examples.corpus and weighted.examples.corpus.tokenizer is None


def test_decontamination_sees_the_runs_own_tasks_that_read_files(tmp_path: Path) -> None:
    words = ["corpus=a.txt", "clean=web", f"downstream_dir={tmp_path}"]
    clean = corpus(*words, "downstream=[cola,docs-library]")
    assert [data.task for data in clean.evaluation] == ["cola"]
    assert "decontaminate" in [step.kind for step in clean.steps]
    alone = corpus(*words, "downstream=[docs-library]")
    assert alone.evaluation == () and "decontaminate" not in [step.kind for step in alone.steps]
    assert corpus(*words[:1], "downstream=[cola]").evaluation == ()  # nothing looks, so the key does not hold it


def test_labels_from_the_corpus_come_from_the_part_that_has_them() -> None:
    found = find_recipe("bert")
    words = ["corpus.docs=installed-docs", "corpus.b=b.txt", "downstream=[docs-library]", "finetune.seeds=1"]
    pipeline = found.build(resolve(found, words))
    score = next(task for task in pipeline.targets if task.name.startswith("score-docs-library"))
    assert score.dataset.corpus.name == "clean-docs"


def test_a_config_survives_being_recorded() -> None:
    found = find_recipe("bert")
    config = resolve(found, [*TWO, "corpus.b.ingest.text_field=x", "corpus.b.clean=[unicode]", "ingest.documents=line"])
    again = validate(type(config), json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config and found.build(again).targets[0] == found.build(config).targets[0]


def test_the_example_of_the_docs_is_a_pipeline() -> None:
    mix = corpus("clean=none", "mix.seed=1", file=str(YAML))
    shown = [(one.name, one.category, one.epochs) for one in mix.components]
    assert shown == [
        ("wikipedia", "encyclopedia", 2),
        ("books", "books", None),
        ("plays", "books", 0.5),
        ("web", "web", None),
    ]
    changed = corpus("corpus.books.epochs=3", "clean=[unicode]", file=str(YAML))
    assert changed.components[1].epochs == 3 and changed.corpora[1].corpus.text_field == "body"


def test_near_duplicates_are_looked_for_in_all_components_together() -> None:
    mix = corpus(*TWO, "corpus.b.epochs=2")
    (clean,) = mix.corpora
    assert [step.kind for step in clean.steps] == ["near-duplicates"]
    union = clean.corpus
    assert union.order == "concatenated" and [one.epochs for one in union.components] == [None, None]
    assert [[step.kind for step in part.steps] for part in union.corpora] == [["unicode", "control-characters"]] * 2
    assert [one.epochs for one in mix.components] == [None, 2] and mix.order == "interleaved"
    counted = built(*TWO, "corpus.b.tokens=9")
    assert counted.tokenizer.corpus == clean
    alone = corpus(*TWO, "clean=[near-duplicates]").corpora[0].corpus
    assert [part.source for part in alone.corpora] == ["a.txt", "b.jsonl"]
    for other in (
        "corpus.a.clean=none",
        "corpus.a.clean=[unicode]",
        "corpus.a.clean=[{kind: near-duplicates, threshold: 0.9}]",
    ):
        assert len(corpus(*TWO, other).corpora) == 2, other


def test_a_components_name_comes_from_its_source() -> None:
    sources = ["data/Wiki-2018.jsonl.gz", "s3://bucket/a/books.parquet", ("x.txt", "y.txt"), "installed-docs", "dir/"]
    names = [ComponentSettings(source=source).label for source in sources]
    assert names == ["wiki-2018", "books", "x", "installed-docs", "dir"]


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    stage = built("corpus=a.txt", f"tokenizer_from={tmp_path}", "tokenizer_from.pattern=gpt2", "clean=none")
    tokenizer = stage.examples.tokenizer
    assert isinstance(tokenizer, ImportTokenizer) and tokenizer.corpus == Ingest(source="a.txt")
    assert (tokenizer.source, tokenizer.pattern) == (str(tmp_path), "gpt2")


def test_the_tokenizers_recipe_compares_on_the_corpus() -> None:
    found = find_recipe("tokenizers")
    (stage,) = found.build(resolve(found, [*TWO, "clean=none", "compare.vocab_sizes=[300,500]"])).targets
    assert stage.produces == "tokenizer-comparison" and stage.vocab_sizes == (300, 500)
    assert isinstance(stage.corpus, Mix)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["corpus.a.weight=2"], "component 'a' has no source"),
        (["corpus.a.source=a.txt", "corpus.a.epoch=2"], "component 'a': unknown key 'epoch'; did you mean 'epochs'"),
        (["corpus.a.source=a.txt", "corpus.a.ingest.text_feld=x"], "did you mean 'text_field'"),
        (["corpus.a.source=a.txt", "corpus.a.weight=-1"], "component 'a': weight: Input should be greater than 0"),
        (["corpus.a.source=a.txt", "corpus.a.weight=1", "corpus.a.epochs=1"], "'a' has weight and epochs"),
        ([*TWO, "corpus.b.weight=1"], "some components have a weight, 'a' not"),
        (["corpus=[{source: a.txt}, {source: x/a.txt}]"], "two components are named 'a'"),
        (["corpus=x.txt", "corpus.a.source=a.txt"], "corpus is 'x.txt' and also has components"),
        (["corpus=a.txt", "clean=webb"], "no list of cleaning steps is called 'webb'"),
        (["corpus=a.txt", "clean=[unicod]"], "did you mean 'unicode'"),
        (["corpus=a.txt", "clean.knd=pii"], "a cleaning step has no kind"),
        (["corpus=a.txt", "clean=web", "clean.min_chars=3"], "clean is 'web' and also has settings of a step"),
        (["corpus=a.txt", "clean=[{kind: c4, min_sentencs: 1}]"], "did you mean 'min_sentences'"),
        (["corpus=a.txt", "clean=[decontaminate]"], "needs to know what is evaluated"),
        ([*TWO, "mix.temperature=2", "corpus.b.epochs=2"], "temperature=2"),
        (["corpus=3"], "corpus"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    found = find_recipe("bert")
    with pytest.raises((UserError, ConfigError)) as raised:
        found.build(resolve(found, words))
    assert message in str(raised.value)
    assert "literal[" not in str(raised.value)  # the union's other half is not the user's matter


@pytest.mark.slow
def test_quotas_in_tokens_to_a_models_end_and_tokenizers_to_their_report(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = ["river", "mountain", "house", "letter", "winter", "paper", "stone", "window"]
    for name in "ab":
        lines = [f"{name}{n}. " + " ".join(rng.choices(words, k=25)) + "." for n in range(150)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    corpora = [f"corpus.{n}={tmp_path}/{n}.txt" for n in "ab"]
    corpora += ["ingest.documents=line", "ingest.validation_share=0.2"]
    settings = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline"}
    gpt2 = find_recipe("gpt2")
    tiny = ["tokenizer.vocab_size=400", "examples.length_tokens=32", "pretrain.steps=2", "pretrain.batch_size=4"]
    tiny += ["pretrain.precision=fp32", "placement.workers=1", "corpus.a.tokens=2500"]
    first = run(gpt2.build(resolve(gpt2, [*corpora, *tiny])), recipe="gpt2", **settings)
    assert first.state == "done", first.record and first.record.status
    a, b = json.loads((first.path("mix") / "corpus.json").read_text())["components"]
    assert abs(a["effective_tokens"] - 2500) < 60 and b["effective_tokens"] == b["tokens"]
    compare = find_recipe("tokenizers")
    words = [*corpora, "compare.vocab_sizes=[300,400]", "compare.kinds=[bpe,wordpiece]"]
    second = run(compare.build(resolve(compare, words)), recipe="tokenizers", **settings)
    assert second.state == "done", second.record and second.record.status
    report = (tmp_path / "store" / second.record.folder / "report.html").read_text()
    assert "Tokenizers side by side" in report and "bytes per token by vocabulary size" in report


def test_a_mixture_runs_and_a_component_alone_is_made_again(tmp_path: Path) -> None:
    """Three components through reading, cleaning and mixing; another weight makes the mixture again and no part."""
    rng = random.Random(0)
    words = ["river", "mountain", "house", "letter", "winter", "paper", "stone", "window"]
    for name, count in (("a", 200), ("b", 100), ("c", 60)):
        lines = [f"{name}{n} " + " ".join(rng.choices(words, k=30)) for n in range(count)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    common = [f"corpus.{n}.source={tmp_path}/{n}.txt" for n in "abc"] + ["ingest.documents=line"]
    found = find_recipe("bert")

    shared = " ".join(rng.choices(words, k=60))
    for name in "abc":  # the same but for a word, so near duplicates, in whatever split each falls
        with (tmp_path / f"{name}.txt").open("a") as file:
            file.write(f"{shared} {name}\n")

    def made(*more: str) -> Any:
        mix = found.build(resolve(found, [*common, *more])).targets[0].examples.corpus
        return run(Pipeline(mix), store=str(tmp_path / "store"), tracking="off", address="inline", recipe="mix")

    first = made("corpus.b.epochs=2")
    assert first.state == "done", first.record and first.record.status
    sources = Counter(
        source
        for batch in read_batches(first.path("mix"), "train", ("source",))
        for source in batch.column(0).to_pylist()
    )
    facts = json.loads((first.path("mix") / "corpus.json").read_text())
    assert {row["name"]: row["effective_documents"] for row in facts["components"]} == dict(sources)
    every = [
        text
        for split in ("train", "validation")
        for batch in read_batches(first.path("mix"), split, ("text", "id"))
        for text, id_ in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if "#" not in id_
    ]
    assert sum(text.startswith(shared) for text in every) == 1 and len(every) > 300
    second = made("corpus.b.epochs=3")
    states = {name: entry["state"] for name, entry in second.record.status["stages"].items()}
    assert states == {f"{stage}-{n}": "cached" for n in "abc" for stage in ("ingest", "clean")} | {
        "union": "cached",
        "clean-union": "cached",
        "mix": "done",
    }
    report = (tmp_path / "store" / second.record.folder / "report.html").read_text()
    assert "Composition" in report and "3 epochs" in report and "Cleaning: clean-a" in report
