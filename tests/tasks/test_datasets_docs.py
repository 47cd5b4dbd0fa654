"""Tasks that label a corpus of docstrings, on a corpus written by hand in the corpus artifact's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import BadConfig, BadData
from tasks.base import Task
from tasks.datasets import LabelledData, read_rows
from tasks.downstream.docs_library import mask_names
from tasks.downstream.docs_order import corrupt
from tasks.downstream.docs_text import prose, text_key
from tasks.downstream.docs_types import bare_type
from tasks.downstream.spec import Row
from tests.tasks.stage import digests, run_stage

LIBRARIES = ("numpy", "pandas", "ray", "scipy", "torch")
TOPICS = dict(zip(LIBRARIES, ("shape", "row", "actor", "root", "gradient"), strict=True))
NOUNS = ("array", "frame", "cluster", "matrix", "tensor", "index", "column", "worker", "kernel", "value")
VERBS = ("computes", "returns", "removes", "joins", "splits", "moves", "counts")


class SomeCorpus(Task):
    produces: ClassVar[str] = "corpus"


def document(library: str, number: int) -> dict[str, str]:
    noun, verb, other = NOUNS[number % 10], VERBS[number % 7], NOUNS[(number * 3 + 1) % 10]
    text = (
        f"This function of {library} {verb} the {TOPICS[library]} number {number} of a given {other} without any copy. "
        f"It also {VERBS[number % 5]} every {other} that the caller has passed to it before.\n\n"
        f"Parameters\nfirst : {noun}_like\n    The {TOPICS[library]} {number} to look at.\n"
        "second : int, optional\n    How often.\n"
        f"third : dict of str\n    Further names for the {TOPICS[library]} {number} of the {other}."
    )
    parameters = [
        {"name": "first", "type": f"{noun}_like"},
        {"name": "second", "type": "int, optional"},
        {"name": "third", "type": "dict of str"},
    ]
    meta = {"library": library, "module": f"{library}.m{number}", "object": f"f{number}", "parameters": parameters}
    return {"id": f"{library}:m{number}:f{number}", "text": text, "source": library, "meta": json.dumps(meta)}


def letters(number: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in str(number))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = {"train": range(40), "validation": range(40, 55)}
    for split, numbers in rows.items():
        found = [document(library, n) for library in LIBRARIES for n in numbers]
        for row in found:  # the letters alone make texts the same, so numbers would not tell them apart
            number = int(row["id"].rsplit("f", 1)[1])
            row["text"] = row["text"].replace(str(number), letters(number))
        if split == "validation":
            found += [{**document("numpy", 3), "id": "again", "text": _train_text(3)}]  # stands on both sides
        pq.write_table(pa.Table.from_pylist(found), folder / f"{split}-00000.parquet")
    return folder


def _train_text(number: int) -> str:
    return document("numpy", number)["text"].replace(str(number), letters(number))


def data(task: str, corpus: Path, out: Path, **fields: int) -> Path:
    return run_stage(LabelledData(task=task, corpus=SomeCorpus(), **fields), out, corpus=corpus).out


TASKS = ("docs-library", "docs-parameter-type", "docs-acceptability")


@pytest.mark.parametrize("task", TASKS)
def test_no_text_on_both_sides_and_the_same_bytes_again(task: str, corpus: Path, tmp_path: Path) -> None:
    one, two = (data(task, corpus, tmp_path / name) for name in ("one", "two"))
    assert digests(one) == digests(two)
    column = "text_b" if task == "docs-parameter-type" else "text_a"

    def texts(split: str) -> list[str]:
        keys = [text_key(getattr(row, column)) for row in read_rows(one / f"{split}.parquet")]
        # A corrupted sentence keeps its words: compare those.
        return [" ".join(sorted(key.split())) for key in keys] if task == "docs-acceptability" else keys

    assert set(texts("train")).isdisjoint(texts("validation")) and len(texts("validation")) > 10
    assert "again" not in {row.id for row in read_rows(one / "validation.parquet")}
    assert len({row.id for row in read_rows(one / "train.parquet")}) == len(texts("train"))


def test_library_names_are_masked(corpus: Path, tmp_path: Path) -> None:
    folder = data("docs-library", corpus, tmp_path / "out", train_examples=20)
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["labels"] == list(LIBRARIES) and facts["kind"] == "classification"
    rows = read_rows(folder / "train.parquet")
    assert sorted(row.label for row in rows) == sorted(float(n) for n in range(5) for _ in range(4))
    assert all("of library" in row.text_a and f" {row.id.split(':')[0]} " not in row.text_a for row in rows)
    assert all(facts["labels"][int(row.label or 0)] == row.id.split(":")[0] for row in rows)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Uses numpy.linalg.norm here", "Uses library here"),
        ("NumPy's arrays, np.ndarray", "library arrays, library"),
        ("an array in a tray", "an array in a tray"),  # "ray" is a part of other words
        ("Ray's RayCluster and ray_get, ray.init()", "library library and library_get, library()"),
        ("PyTorch, torch.nn and TorchScript", "library, library and library"),
        ("scikit-learn, sklearn.svm", "library, library"),
    ],
)
def test_names_in_every_form(text: str, expected: str) -> None:
    mask = mask_names(("numpy", "ray", "torch", "scikit-learn"))
    assert mask.sub("library", text) == expected


def test_parameter_questions_have_their_answer_in_the_context(corpus: Path, tmp_path: Path) -> None:
    folder = data("docs-parameter-type", corpus, tmp_path / "out")
    rows = read_rows(folder / "train.parquet") + read_rows(folder / "validation.parquet")
    asked = set()
    for row in rows:
        start, answer, context = row.answer_starts[0], row.answers[0], row.text_b or ""
        assert context[start : start + len(answer)] == answer and len(context) <= 160
        name = row.text_a.removeprefix("What type is parameter ").removesuffix("?")
        asked.add(name)
        assert context[:start].endswith(f"{name} : ")
    assert asked == {"first", "second", "third"}


@pytest.mark.parametrize(
    ("stated", "bare"),
    [
        ("int, optional", "int"),
        ("int or None, optional (default=None)", "int or None"),
        ("bool, default: True", "bool"),
        ("{'a', 'b'}, default 'a'", "{'a', 'b'}"),
        ("array-like of shape (n,), default=None", "array-like of shape (n,)"),
        ("str, *optional*, defaults to None", "str"),
        ("defaultdict", "defaultdict"),
        ("dict", "dict"),
    ],
)
def test_bare_types(stated: str, bare: str) -> None:
    assert bare_type(stated) == bare


def test_half_of_the_sentences_are_out_of_order(corpus: Path, tmp_path: Path) -> None:
    rows = read_rows(data("docs-acceptability", corpus, tmp_path / "out") / "train.parquet")
    wrong = [row for row in rows if row.label == 0]
    assert 0.3 < len(wrong) / len(rows) < 0.7
    assert all(row.text_a == row.text_a.lower() and not row.text_a.endswith(".") for row in rows)


def test_corrupting_keeps_the_words_and_both_ends() -> None:
    text = "every worker of the cluster holds a copy of the table"
    found = corrupt(Row("id", text, label=1.0), seed=0)
    assert found.label == 0 and found.text_a != text
    words, moved = text.split(), found.text_a.split()
    assert sorted(words) == sorted(moved) and (words[0], words[-1]) == (moved[0], moved[-1])
    assert found == corrupt(Row("id", text, label=1.0), seed=0) != corrupt(Row("id", text, label=1.0), seed=1)


def test_prose_leaves_lists_and_titles_out() -> None:
    text = "One line\nand another one of text.\n\nNotes\nThe part that stands below it.\n\n- a list of items.\n\nArgs:"
    assert list(prose(text)) == ["One line and another one of text.", "The part that stands below it."]


def test_another_corpus_is_refused_by_name(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        table = pa.table({"id": ["a"], "text": ["Some text."], "source": ["s"], "meta": ["{}"]})
        pq.write_table(table, tmp_path / f"{split}-00000.parquet")
    with pytest.raises(BadData, match="meta has no library, module, object"):
        data("docs-library", tmp_path, tmp_path / "out")


def test_a_directory_is_of_no_use_to_a_corpus_task() -> None:
    with pytest.raises(BadConfig, match="directory is of no use"):
        LabelledData(task="docs-library", corpus=SomeCorpus(), directory="x").external()
    with pytest.raises(BadConfig, match="corpus is of no use"):
        LabelledData(task="cola", corpus=SomeCorpus(), directory="x").external()
