"""GLUE's files in each published layout, with the traps of the real ones, in files of a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import BadConfig, BadData
from tasks.base import Runtime
from tasks.datasets import LabelledData, needs_corpus, read_rows
from tasks.downstream import DOWNSTREAM
from tasks.downstream.spec import Row, Splits, choose, hold_out
from tests.tasks.stage import FolderContext, digests, run_stage


def write(folder: Path, **files: str) -> None:
    """Files by name, `__` for the dot: dev__tsv="…"."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_bytes(text.encode())


def read(task: str, folder: Path) -> Splits:
    return DOWNSTREAM.load(task).read(str(folder))[0]


def short(rows: list[Row]) -> list[tuple[str, str | None, float | None]]:
    return [(row.text_a, row.text_b, row.label) for row in rows]


@pytest.mark.parametrize("folder", ["CoLA", "cola"])
def test_cola_has_no_header_and_maybe_no_newline_at_the_end(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder, train__tsv='gj04\t1\t\tOne "quoted.\ngj04\t0\t*\tTwo.', dev__tsv="x\t1\t\tThree.\n")
    splits = read("cola", tmp_path)
    assert short(splits["train"]) == [('One "quoted.', None, 1), ("Two.", None, 0)]
    assert short(splits["validation"]) == [("Three.", None, 1)]


def test_cola_raw_joins_both_dev_files(tmp_path: Path) -> None:
    write(
        tmp_path / "CoLA",
        in_domain_train__tsv="a\t1\t\tOne.\n",
        in_domain_dev__tsv="a\t1\t\tIn.\n",
        out_of_domain_dev__tsv="b\t0\t*\tOut.",
    )
    splits = read("cola", tmp_path)
    assert [row.text_a for row in splits["validation"]] == ["In.", "Out."]
    assert [row.id for row in splits["validation"]] == ["validation-0", "validation-1"]


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    write(
        tmp_path / "SST-2",
        train__tsv="sentence\tlabel\r\na\x0cb\u2028c\u0085d \t1\r\n",
        dev__tsv="sentence\tlabel\nx\t0\n\n",
    )
    splits = read("sst2", tmp_path)
    assert short(splits["train"]) == [("a\x0cb\u2028c\u0085d ", None, 1)]
    assert short(splits["validation"]) == [("x", None, 0)]


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "SST2", "sst_2", "Sst-2"])
def test_folder_names_in_any_form(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder, train__tsv="sentence\tlabel\nx\t1\n", dev__tsv="sentence\tlabel\ny\t0\n")
    assert len(read("sst2", tmp_path)["train"]) == 1


def test_the_directory_may_be_the_task_s_own(tmp_path: Path) -> None:
    write(tmp_path / "downloads", train__tsv="sentence\tlabel\nx\t1\n", dev__tsv="sentence\tlabel\ny\t0\n")
    assert len(read("sst2", tmp_path / "downloads")["validation"]) == 1


MRPC_HEAD = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def test_mrpc_has_a_byte_order_mark_and_no_quoting(tmp_path: Path) -> None:
    rows = "".join(f'{n % 2}\t{n}\t{n}\t"Opens {n} but never closes\tSays ""so"" {n}\n' for n in range(60))
    test = MRPC_HEAD + '1\t1\t2\tA "b\tC\n'
    write(tmp_path / "MRPC", msr_paraphrase_train__txt=MRPC_HEAD + rows, msr_paraphrase_test__txt=test)
    splits, notes = DOWNSTREAM.load("mrpc").read(str(tmp_path))
    assert short(splits["test"]) == [('A "b', "C", 1)]
    together = sorted(splits["train"] + splits["validation"], key=lambda row: int(row.id.split("-")[1]))
    assert [row.id for row in together] == [f"train-{n}" for n in range(60)]
    assert short(together)[3] == ('"Opens 3 but never closes', 'Says ""so"" 3', 1)
    assert 0 < len(splits["validation"]) < 20 and "10%" in notes["held_out"]


def test_mrpc_as_glue_cuts_it(tmp_path: Path) -> None:
    write(tmp_path / "MRPC", train__tsv=MRPC_HEAD + "1\t1\t2\tA\tB\n", dev__tsv=MRPC_HEAD + "0\t1\t2\tC\tD\n")
    splits = read("mrpc", tmp_path)
    assert short(splits["train"]) == [("A", "B", 1)] and short(splits["validation"]) == [("C", "D", 0)]


def test_sts_rows_may_carry_two_columns_more(tmp_path: Path) -> None:
    plain = "main\tMSRvid\t2012\t0001\t5.000\tA plane.\tAn air plane.\n"
    longer = 'main\tnews\t2015\t2\t0.250\tHe said "no.\tNo.\thttp://a\thttp://b\n'
    write(tmp_path / "STS-B", **{"sts-train__csv": plain + longer, "sts-dev__csv": longer, "sts-test__csv": plain})
    splits = read("stsb", tmp_path)
    assert short(splits["train"]) == [("A plane.", "An air plane.", 5.0), ('He said "no.', "No.", 0.25)]
    assert set(splits) == {"train", "validation", "test"}


def test_stsb_of_glue(tmp_path: Path) -> None:
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    row = "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA\tB\t3.8\n"
    write(tmp_path / "STS-B", train__tsv=head + row, dev__tsv=head + row)
    assert short(read("stsb", tmp_path)["validation"]) == [("A", "B", 3.8)]


def test_wnli_part_two_has_no_header(tmp_path: Path) -> None:
    head = "index\tsentence1\tsentence2\tlabel\n"
    write(tmp_path / "WNLI", train__tsv=head + "1\tA\tB\t1\n", val__tsv="0\tC\tD\t0\n", dev__tsv=head + "0\tE\tF\t0\n")
    assert short(read("wnli", tmp_path)["train"]) == [("A", "B", 1), ("C", "D", 0)]


def test_qnli_with_dev_alone_is_split_by_sentence(tmp_path: Path) -> None:
    rows = "".join(f"{n}\tQuestion {n}?\tSentence {n // 3}.\t{'not_' * (n % 2)}entailment\n" for n in range(150))
    write(tmp_path / "QNLI", dev__tsv="index\tquestion\tsentence\tlabel\n" + rows)
    splits, notes = DOWNSTREAM.load("qnli").read(str(tmp_path))
    sides = [{row.text_b for row in splits[split]} for split in ("train", "validation")]
    assert sides[0].isdisjoint(sides[1]) and all(sides) and "20%" in notes["held_out"]
    assert splits["train"][0].label in (0.0, 1.0)


def test_mnli_of_glue_has_other_columns_in_dev(tmp_path: Path) -> None:
    before = "index\tpromptID\tpairID\tgenre\tp1\tp2\tp3\tp4\tsentence1\tsentence2\tlabel1\t"
    row = "0\t1\t2\tfiction\t(\t)\t(\t)\tA {}\tB\tneutral\t"
    many = "label2\tlabel3\tlabel4\tlabel5\tgold_label\n"
    write(
        tmp_path / "MNLI",
        train__tsv=before + "gold_label\n" + row.format(1) + "neutral\n",
        dev_matched__tsv=before
        + many
        + row.format(2)
        + "a\tb\tc\td\tcontradiction\n"
        + row.format(3)
        + "a\tb\tc\td\t-\n",
        dev_mismatched__tsv=before + many + row.format(4) + "a\tb\tc\td\tentailment\n",
    )
    splits, notes = DOWNSTREAM.load("mnli").read(str(tmp_path))
    assert short(splits["train"]) == [("A 1", "B", 1)] and short(splits["validation"]) == [("A 2", "B", 2)]
    assert short(splits["validation_mismatched"]) == [("A 4", "B", 0)] and notes["skipped"] == 1


def test_mnli_sample(tmp_path: Path) -> None:
    rows = "".join(f"neutral\tPremise {n // 2}\tHypothesis {n}\n" for n in range(80))
    write(tmp_path / "MNLI-sample", mnli_matched__tsv=rows, mnli_mismatched__tsv=rows)
    splits = read("mnli", tmp_path)
    assert len(splits["validation_mismatched"]) == 80 == len(splits["train"]) + len(splits["validation"])


def test_qqp_drops_its_broken_lines(tmp_path: Path) -> None:
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write(tmp_path / "QQP", train__tsv=head + "1\t1\t2\tA\tB\t1\n2\t3\tbroken\n", dev__tsv=head + "1\t1\t2\tC\tD\t0\n")
    splits, notes = DOWNSTREAM.load("qqp").read(str(tmp_path))
    assert short(splits["train"]) == [("A", "B", 1)] and notes["skipped"] == 1


@pytest.mark.parametrize("place", ["sst2/{}-00000-of-00001.parquet", "SST-2/{}/0000.parquet", "sst2/data/{}.parquet"])
def test_the_hub_s_parquet(tmp_path: Path, place: str) -> None:
    for split, sentence in (("train", "x"), ("validation", "y"), ("test", "z")):
        path = tmp_path / place.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        label = -1 if split == "test" else 1
        pq.write_table(pa.table({"sentence": [sentence], "label": [label], "idx": pa.array([0], pa.int32())}), path)
    splits = read("sst2", tmp_path)
    assert short(splits["train"]) == [("x", None, 1)] and set(splits) == {"train", "validation"}


def test_the_hub_s_mnli_has_two_validation_splits(tmp_path: Path) -> None:
    (tmp_path / "mnli").mkdir()
    for split in ("train", "validation_matched", "validation_mismatched"):
        table = pa.table({"premise": [split], "hypothesis": ["h"], "label": [2], "idx": [0]})
        pq.write_table(table, tmp_path / "mnli" / f"{split}-00000-of-00001.parquet")
    splits = read("mnli", tmp_path)
    assert splits["validation"][0].text_a == "validation_matched" and len(splits["validation_mismatched"]) == 1


def test_missing_data_names_the_place_and_the_layouts(tmp_path: Path) -> None:
    write(tmp_path / "RTE", notes__txt="")
    with pytest.raises(BadConfig) as error:
        LabelledData(task="rte", directory=str(tmp_path)).external()
    text = str(error.value)
    assert all(part in text for part in ("'rte'", str(tmp_path), "RTE/notes.txt", "train.tsv, dev.tsv", "Parquet"))
    with pytest.raises(BadConfig, match="does not exist"):
        LabelledData(task="rte", directory=str(tmp_path / "no")).external()
    with pytest.raises(BadConfig, match="directory is empty"):
        LabelledData(task="rte").external()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\tA\tB\tmaybe\n", "line 2: label 'maybe', expected one of entailment, not_entailment"),
        ("0\tA\n", "line 2: 2 tab-separated fields, expected at least 4"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, message: str) -> None:
    head = "index\tsentence1\tsentence2\tlabel\n"
    write(tmp_path / "RTE", train__tsv=head + line, dev__tsv=head + line)
    with pytest.raises(BadData, match=f"train.tsv, {message}"):
        read("rte", tmp_path)


def test_bad_bytes_are_named(tmp_path: Path) -> None:
    write(tmp_path / "CoLA", dev__tsv="a\t1\t\tOne.\n")
    (tmp_path / "CoLA" / "train.tsv").write_bytes(b"a\t1\t\tOne.\na\t1\t\t\xff\n")
    with pytest.raises(BadData, match="train.tsv, line 2: not UTF-8"):
        read("cola", tmp_path)


def glue(folder: Path, rows: int = 40) -> Path:
    lines = "".join(f"sentence {n}\t{n % 2}\n" for n in range(rows))
    write(folder / "SST-2", train__tsv="sentence\tlabel\n" + lines, dev__tsv="sentence\tlabel\nlast\t1\n")
    return folder


def test_an_artifact_is_the_same_bytes_again(tmp_path: Path) -> None:
    task = LabelledData(task="sst2", directory=str(glue(tmp_path / "glue")), train_examples=10, seed=3)
    one, two = (run_stage(task, tmp_path / name) for name in ("one", "two"))
    assert digests(one.out) == digests(two.out)
    facts = json.loads((one.out / "dataset.json").read_text())
    assert facts["splits"] == {"train": 10, "validation": 1} and facts["available"]["train"] == 40
    assert facts["published"]["BERT-base (test)"] == 0.935 and facts["labels"] == ["negative", "positive"]
    names = pq.read_table(one.out / "train.parquet").column_names
    assert names == ["id", "text_a", "text_b", "label", "answers", "answer_starts"]


def test_fewer_rows_are_a_part_of_more_and_the_seed_decides(tmp_path: Path) -> None:
    folder = str(glue(tmp_path / "glue"))

    def rows(count: int, seed: int) -> list[str]:
        context = FolderContext(tmp_path / f"{count}-{seed}", Runtime(), {})
        LabelledData(task="sst2", directory=folder, train_examples=count, seed=seed).run(context)
        return [row.id for row in read_rows(context.out / "train.parquet")]

    assert rows(5, 0) == rows(12, 0)[:5] != rows(5, 1)
    assert sorted(rows(0, 0)) == sorted(f"train-{n}" for n in range(40))


def test_balanced_choice_takes_as_many_of_each() -> None:
    rows = [Row(str(n), "t", label=float(n % 10 == 0)) for n in range(100)]
    assert sum(row.label == 1 for row in choose(rows, 16, 0, balanced=True)) == 8
    assert sum(row.label == 1 for row in choose(rows, 60, 0, balanced=True)) == 10  # there are no more


def test_hold_out_keeps_equal_texts_together() -> None:
    rows = [Row(str(n), f"text {n // 5}") for n in range(500)]
    kept, held = hold_out(rows, 0.2)
    assert {r.text_a for r in kept}.isdisjoint({r.text_a for r in held}) and 50 < len(held) < 150


def test_fingerprints_hold_names_and_contents_only(tmp_path: Path) -> None:
    one, two = glue(tmp_path / "one"), glue(tmp_path / "elsewhere" / "two")
    facts = [LabelledData(task="sst2", directory=str(folder)).external() for folder in (one, two)]
    assert facts[0] == facts[1] and str(tmp_path) not in json.dumps(facts)
    write(two / "SST-2", dev__tsv="sentence\tlabel\nother\t1\n")
    assert LabelledData(task="sst2", directory=str(two)).external() != facts[0]


def test_which_tasks_need_a_corpus() -> None:
    assert needs_corpus("docs-library") and not needs_corpus("cola")
    with pytest.raises(BadConfig, match="corpus is not given"):
        LabelledData(task="docs-library").external()
