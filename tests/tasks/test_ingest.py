"""Ingest: formats, documents, splits, duplicates, byte identity, and each kind of bad input by its message."""

from __future__ import annotations

import bz2
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cluster.errors import BadConfig, BadData
from tasks.corpus_reader import read_batches
from tasks.ingest import Ingest
from tests.tasks.stage import FolderContext, digests, run_stage

WORDS = [
    "the",
    "of",
    "and",
    "corpus",
    "model",
    "token",
    "layer",
    "weight",
    "gradient",
    "language",
    "document",
    "sentence",
    "river",
    "mountain",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(count)]


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def documents(folder: Path, split: str = "") -> list[dict[str, Any]]:
    return [
        row
        for each in ([split] if split else ["train", "validation"])
        for batch in read_batches(folder, each, ("id", "text", "source", "meta"))
        for row in batch.to_pylist()
    ]


def ingest(tmp_path: Path, source: Any, **fields: Any) -> tuple[list[dict[str, Any]], FolderContext]:
    fields = {"validation_share": 0.0, "source": str(source)} | fields
    context = run_stage(Ingest(**fields), tmp_path / f"out-{len(list(tmp_path.iterdir()))}")
    return documents(context.out), context


def fails(tmp_path: Path, source: Any, **fields: Any) -> BadData:
    with pytest.raises(BadData) as caught:
        ingest(tmp_path, source, **fields)
    return caught.value


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    rows = [{"text": t, "id": f"d{i}", "title": f"T{i}"} for i, t in enumerate(texts(50))]
    table = pa.Table.from_pylist(rows)
    jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.ndjson.bz2").write_bytes(bz2.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.csv").write_text(
        "id,text,title\n" + "".join(f'{r["id"]},"{r["text"]}",{r["title"]}\n' for r in rows)
    )
    (tmp_path / "a.tsv").write_text(
        "id\ttext\ttitle\n" + "".join("\t".join((r["id"], r["text"], r["title"])) + "\n" for r in rows)
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=7)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as file:
        file.write_table(table)
    for name in ("a.jsonl", "a.jsonl.gz", "a.ndjson.bz2", "a.csv", "a.tsv", "a.parquet", "a.arrow", "stream.arrow"):
        found, _ = ingest(tmp_path, tmp_path / name)
        assert [(d["id"], d["text"]) for d in found] == [(r["id"], r["text"]) for r in rows], name
        assert json.loads(found[3]["meta"]) == {"title": "T3"} and found[3]["source"] == name


def test_facts(tmp_path: Path) -> None:
    rows = [
        {"text": "naïve words here"},
        {"text": "naïve words here"},
        {"text": "  "},
        {"text": "x"},
        {"text": "y" * 99},
    ]
    jsonl(tmp_path / "a.jsonl", rows)
    _, context = ingest(tmp_path, tmp_path / "a.jsonl", min_document_chars=3, max_document_chars=50)
    facts = json.loads((context.out / "corpus.json").read_text())
    assert facts["documents"] == 1 and facts["duplicates"] == 1 and facts["words"] == 3
    assert facts["bytes"] == 17 and facts["characters"] == 16
    assert facts["sources"] == {"a.jsonl": {"documents": 1, "bytes": 17}}
    assert facts["skipped"] == {
        "empty": 1,
        "shorter than min_document_chars": 1,
        "longer than max_document_chars": 1,
    }
    assert facts["splits"]["train"] == {"documents": 1, "bytes": 17, "shards": 1}
    kept, _ = ingest(tmp_path, tmp_path / "a.jsonl", duplicates="keep")
    assert len(kept) == 4


def test_running_again_elsewhere_gives_the_same_bytes(tmp_path: Path) -> None:
    outs = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        source = jsonl(tmp_path / place / "a.jsonl", [{"text": t} for t in texts(300)])
        task = Ingest(source=str(source), validation_share=0.2)
        outs.append((digests(run_stage(task, tmp_path / place / "out").out), task.external()))
    assert outs[0] == outs[1]


def test_the_split_stays_when_documents_are_added(tmp_path: Path) -> None:
    few = jsonl(tmp_path / "few.jsonl", [{"text": t} for t in texts(400)])
    many = jsonl(tmp_path / "many.jsonl", [{"text": t} for t in texts(400, seed=1) + texts(400)])
    held = []
    for source in (few, many):
        _, context = ingest(tmp_path, source, validation_share=0.1)
        held.append({d["text"] for d in documents(context.out, "validation")})
    assert 20 < len(held[0]) < 65  # 40 expected, standard deviation 6
    assert held[0] == held[1] & set(texts(400))


def test_large_text_goes_into_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.corpus_writer.SHARD_BYTES", 20_000)
    monkeypatch.setattr("tasks.corpus_writer.ROW_GROUP_BYTES", 5_000)
    monkeypatch.setattr("tasks.sources.batches.BATCH_BYTES", 1_000)
    every = texts(500)
    source = jsonl(tmp_path / "a.jsonl", [{"text": t} for t in every])
    found, context = ingest(tmp_path, source)
    assert [d["text"] for d in found] == every
    facts = json.loads((context.out / "corpus.json").read_text())
    assert facts["splits"]["train"]["shards"] == len(list(context.out.glob("train-*.parquet"))) > 2


# ---------------------------------------------------------------- plain text


def test_a_play_is_gathered_into_passages(tmp_path: Path) -> None:
    speeches = [f"Speaker {i}:\n{t}" for i, t in enumerate(texts(200))]
    (tmp_path / "play.txt").write_text("\n\n".join(speeches) + "\n")
    found, _ = ingest(tmp_path, tmp_path / "play.txt")
    assert "\n\n".join(d["text"] for d in found) == "\n\n".join(speeches)
    assert all(len(d["text"]) >= 2000 for d in found[:-1])
    assert all(d["text"].startswith("Speaker") for d in found)
    lines = (tmp_path / "play.txt").read_text().split("\n")
    assert all(lines[int(d["id"].split(":")[1]) - 1] == d["text"].split("\n")[0] for d in found)


def test_wikitext_is_split_at_its_articles(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(
        " \n = Robert Boulter = \n \n Robert is an actor . \n \n = = Career = = \n \n He had a role . \n \n"
        " = Du Fu = \n \n Du Fu was a poet . \n"
    )
    found, _ = ingest(tmp_path, tmp_path / "wiki.txt")
    assert [d["text"].split("\n")[0] for d in found] == ["= Robert Boulter =", "= Du Fu ="]
    assert "He had a role" in found[0]["text"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("auto", ["a b\nc\n\nd e"]),
        ("blank-line", ["a b\nc", "d e"]),
        ("line", ["a b", "c", "d e"]),
        ("file", ["a b\nc\n\nd e"]),
    ],
)
def test_rules_for_documents(tmp_path: Path, rule: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa b\r\nc\r\n\r\n\r\nd e\r\n")
    found, _ = ingest(tmp_path, tmp_path / "a.txt", documents=rule)
    assert [d["text"] for d in found] == expected


def test_end_of_text_lines_separate_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\nstill one\n<|endoftext|>\ntwo\n")
    assert [d["text"] for d in ingest(tmp_path, tmp_path / "a.txt")[0]] == ["one\n\nstill one", "two"]


# ---------------------------------------------------------------- what goes wrong


def test_bad_sources_are_found_when_the_plan_is_made(tmp_path: Path) -> None:
    jsonl(tmp_path / "corpus.jsonl", [{"text": "x"}])
    with pytest.raises(BadConfig, match=r"corpus\.jsonl"):
        Ingest(source=str(tmp_path / "corpsu.jsonl")).external()
    with pytest.raises(BadConfig, match="installed-docs"):
        Ingest(source="instaled-docs")
    with pytest.raises(BadConfig, match="no such file: corpus/"):
        Ingest(source="corpus/")
    (tmp_path / "corpus").write_text("x")
    with pytest.raises(BadConfig, match="text, jsonl, csv"):
        Ingest(source=str(tmp_path / "corpus"))
    with pytest.raises(ValidationError, match="jsonl"):
        Ingest(source="corpus.jsonl", format="jsnl")
    with pytest.raises(ValidationError):
        Ingest(source=3)


def test_a_folder_or_glob_tells_its_format_by_its_files(tmp_path: Path) -> None:
    here = tmp_path / "data.txt"
    here.mkdir()
    jsonl(here / "part-0.jsonl", [{"text": "x"}])
    for name in ("_SUCCESS", ".part-0.crc", "LICENSE"):
        (here / name).write_text("")
    assert [Ingest(source=f"{here}{more}").format for more in ("", "/", "/*", "/part-*")] == ["jsonl"] * 4
    (here / "README.md").write_text("What this is.")  # would make a text of it all, JSON and braces
    for source in (f"{here}", f"{here}/*", f"{here}/README.md,{here}/part-0.jsonl"):
        with pytest.raises(BadConfig, match=r"README\.md is text, part-0\.jsonl is jsonl") as caught:
            Ingest(source=source)
        assert "FOLDER/*.jsonl" in caught.value.remedy
    assert Ingest(source=str(here), format="text").format == "text"
    assert Ingest(source=f"{here}/*.jsonl").format == "jsonl"


def test_no_file_beside_the_installed_docs_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="installed-docs beside files"):
        Ingest(source=("installed-docs", "mine.txt"))
    with pytest.raises(BadConfig, match=r"reads no files, and source names mine\.txt"):
        Ingest(source="mine.txt", format="installed-docs")


def test_auto_and_the_named_format_are_one_stage(tmp_path: Path) -> None:
    assert Ingest(source="a.jsonl.gz") == Ingest(source="a.jsonl.gz", format="jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": " "}\n'])
def test_empty_corpus(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert "the corpus is empty" in fails(tmp_path, tmp_path / "a.jsonl").message


def test_truncated_gzip(tmp_path: Path) -> None:
    data = gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts(3000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    message = fails(tmp_path, tmp_path / "a.jsonl.gz").message
    assert "a.jsonl.gz" in message and "gzip stream is broken or cut off after" in message


def test_broken_json_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": t}) for t in texts(10)]
    lines[6] = lines[6][:20]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    error = fails(tmp_path, tmp_path / "a.jsonl")
    assert error.message.startswith("a.jsonl:7: not valid JSON") and "max_bad_records" in error.remedy
    found, context = ingest(tmp_path, tmp_path / "a.jsonl", max_bad_records=1)
    assert len(found) == 9 and any("a.jsonl:7" in line for line in context.logged)
    assert sum(json.loads((context.out / "corpus.json").read_text())["skipped"].values()) == 1


def test_bad_records_of_all_files_count_together(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "good one"}\n[1]\n')
    ingest(tmp_path, tmp_path / "*.jsonl", max_bad_records=3)
    error = fails(tmp_path, tmp_path / "*.jsonl", max_bad_records=2)
    assert "more than 2 bad records" in error.message and "c.jsonl:2" in error.message


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_missing_field_names_the_nearest(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "1", "txt": "words"}]
    file = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        jsonl(file, rows)
    elif suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("id,txt\n1,words\n".replace(",", "\t" if suffix == "tsv" else ","))
    error = fails(tmp_path, file)
    assert "'text'" in error.message and "did you mean 'txt'?" in error.remedy
    assert len(ingest(tmp_path, file, text_field="txt")[0]) == 1


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": "b"}])
def test_text_of_another_type(tmp_path: Path, value: Any) -> None:
    assert "expected a string" in fails(tmp_path, jsonl(tmp_path / "a.jsonl", [{"text": value}])).message


def test_invalid_utf8_policies(tmp_path: Path) -> None:
    lines = [json.dumps({"text": t}).encode() for t in texts(12)]
    for bad in (2, 5, 9):
        lines[bad] = b'{"text": "caf\xe9 au lait"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    error = fails(tmp_path, tmp_path / "a.jsonl")
    assert "3 lines are not valid UTF-8 (line 3, 6, 10); policy: invalid_utf8=error" in error.message
    assert "invalid_utf8=replace" in error.remedy
    found, context = ingest(tmp_path, tmp_path / "a.jsonl", invalid_utf8="replace")
    assert found[2]["text"] == "caf\ufffd au lait"
    assert json.loads((context.out / "corpus.json").read_text())["repaired"] == {"invalid UTF-8": 3}
    assert len(ingest(tmp_path, tmp_path / "a.jsonl", invalid_utf8="skip", max_bad_records=3)[0]) == 9
    assert "more than 2 bad" in fails(tmp_path, tmp_path / "a.jsonl", invalid_utf8="skip", max_bad_records=2).message


def test_odd_json_strings_survive(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "half \\ud83d pair"}\n{"text": "nul \\u0000 here", "id": 7}\n')
    found, _ = ingest(tmp_path, tmp_path / "a.jsonl")
    assert found[0]["text"] == "half ? pair" and found[1]["id"] == "7"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_of_another_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_text("this is text")
    assert f"a.{suffix}: not a readable" in fails(tmp_path, tmp_path / f"a.{suffix}").message


def test_rows_with_too_many_fields(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tlabel\ngood\t1\nbad\t1\t2\n")
    assert "a.tsv:3: 3 fields, expected 2" in fails(tmp_path, tmp_path / "a.tsv").message
    (tmp_path / "q.csv").write_text('text,n\n"two\nlines",1\n')
    assert ingest(tmp_path, tmp_path / "q.csv")[0][0]["text"] == "two\nlines"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "arrow"])
def test_columns_that_are_not_what_was_asked_for(tmp_path: Path, suffix: str) -> None:
    """Of two columns of one name the last was read; a misspelt id was none."""

    def table(*names: str) -> Path:
        path = tmp_path / f"a.{suffix}"
        columns = pa.table([["x y"], ["z"]], names=list(names))
        if suffix == "parquet":
            pq.write_table(columns, path)
        elif suffix == "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, columns.schema) as file:
                file.write_table(columns)
        else:
            path.write_text("\n".join({"csv": ",", "tsv": "\t"}[suffix].join(row) for row in (names, ("x y", "z"))))
        return path

    assert f"a.{suffix}: 2 columns are named 'text'" in fails(tmp_path, table("text", "text")).message
    assert "2 columns are named 'id'" in fails(tmp_path, table("id", "id"), text_field="id", id_field="id").message
    error = fails(tmp_path, table("text", "doc_id"), id_field="docid")
    assert "no column 'docid'" in error.message and "did you mean 'doc_id'?" in error.remedy
    assert error.remedy.endswith("set id_field=NAME")
    assert ingest(tmp_path, table("text", "doc_id"), id_field="doc_id")[0][0]["id"] == "z"
    assert ingest(tmp_path, table("text", "other"))[0][0]["id"] == f"a.{suffix}:{2 if suffix in ('csv', 'tsv') else 1}"


def test_settings_that_could_give_no_document() -> None:
    with pytest.raises(BadConfig, match="text_field=' , ' names no field"):
        Ingest(source="a.jsonl", text_field=" , ")
    with pytest.raises(BadConfig, match="min_document_chars=20 is above max_document_chars=10"):
        Ingest(source="a.jsonl", min_document_chars=20, max_document_chars=10)


def test_importing_the_task_is_cheap() -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'numpy', 'pyarrow', 'ray', 'tokenizers', 'fsspec'}"
    code = f"import sys, tasks.ingest, tasks.tokenizer, tasks.examples; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
