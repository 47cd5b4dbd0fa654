"""A large file read in pieces gives the documents, ids, places and counts of the same file read as a whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import BadData
from cluster.files import listing
from tasks.sources import SOURCES
from tasks.sources.base import ReadOptions
from tests.tasks.reading import read, small_parts, texts

LINES = [
    line.encode()
    for line in (
        "",
        " ",
        "a b",
        "naïve…",
        "\x00",
        "<|endoftext|>",
        " = Title = ",
        " = = In = = ",
        "w " * 20,
        "x\r",
        "\xa0",
    )
] + [b"caf\xe9", b" = \xe9 = "]
SEVERAL = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(kind: str, path: Path, **options: Any) -> Any:
    """What a user sees of a reading: documents and counts, or the message."""
    try:
        found, counts = read(kind, path, **options)
    except BadData as error:
        return error.message.split("; more of the file")[0]
    rows = [(d["id"], d["text"], d["meta"]) for d in found]
    return rows, counts.skipped, counts.repaired, counts.bad_at


@SEVERAL
@given(
    lines=st.lists(st.sampled_from(LINES), max_size=40),
    rule=st.sampled_from(["auto", "blank-line", "line"]),
    part=st.integers(5, 120),
    block=st.integers(1, 40),
    ends=st.sampled_from([b"", b"\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    policy=st.sampled_from(["replace", "skip"]),
)
def test_text(
    tmp_path: Path, lines: list[bytes], rule: str, part: int, block: int, ends: bytes, mark: bytes, policy: str
) -> None:
    data = mark + b"\n".join(lines) + ends
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "z").mkdir(exist_ok=True)
    (tmp_path / "z" / "a.txt").write_bytes(gzip.compress(data))
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch, part, block)
        patch.setattr("tasks.sources.text.GATHERED_CHARS", 30)
        options = {"documents": rule, "min_document_chars": 0, "invalid_utf8": policy, "max_bad_records": 99}
        assert outcome("text", tmp_path / "a.txt", **options) == outcome("text", tmp_path / "z" / "a.txt", **options)


@SEVERAL
@given(
    rows=st.lists(
        st.sampled_from(
            [
                b'{"text": "a b c"}',
                b'{"text": "word", "id": "mine"}',
                b'{"text": "caf\xe9"}',
                b'{"text": "\xc3\xa9t\xc3\xa9"}\r',
                b'{"text": ',
                b"",
                b'{"other": 1}',
                b'{"text": "' + b"long " * 30 + b'"}',
            ]
        ),
        max_size=25,
    ),
    policy=st.sampled_from(["replace", "skip", "error"]),
    part=st.integers(5, 120),
    block=st.integers(1, 40),
)
def test_jsonl(tmp_path: Path, rows: list[bytes], policy: str, part: int, block: int) -> None:
    data = b"\n".join(rows)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "z").mkdir(exist_ok=True)
    (tmp_path / "z" / "a.jsonl").write_bytes(gzip.compress(data))
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch, part, block)
        options = {"invalid_utf8": policy, "max_bad_records": 0 if policy == "error" else 99}
        pieces, whole = (outcome("jsonl", tmp_path / name / "a.jsonl", **options) for name in (".", "z"))
        if policy == "error" and isinstance(whole, str):
            # each names its first trouble; in pieces, only the piece with it was looked at for more
            assert isinstance(pieces, str)
        else:
            assert pieces == whole


def test_an_error_in_a_late_piece_names_the_line_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps({"text": t}) for t in texts(300)]
    rows[250] = rows[250][:9]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    small_parts(monkeypatch, 2000)
    with pytest.raises(BadData, match=r"a\.jsonl:251: not valid JSON"):
        read("jsonl", tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_bytes("\n\n".join(texts(300)).encode() + b"\n\ncaf\xe9\n")
    with pytest.raises(BadData, match=r"a\.txt: 1 line is not valid UTF-8 \(line 601;"):
        read("text", tmp_path / "a.txt", documents="blank-line")


def test_tsv_pieces_share_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texts(200)
    (tmp_path / "a.tsv").write_text("n\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(rows)))
    small_parts(monkeypatch, 1500)
    parts = list(SOURCES.load("tsv")().parts(listing(str(tmp_path / "a.tsv")), ReadOptions()))
    found, _ = read("tsv", tmp_path / "a.tsv")
    assert len(parts) > 5 and [d["text"] for d in found] == rows
    assert found[150]["id"] == "a.tsv:152" and json.loads(found[150]["meta"]) == {"n": "150"}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_are_cut_by_row_groups_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rows = texts(500)
    table = pa.table({"text": rows, "n": range(500), "unused": [[1.0] * 8] * 500})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=30)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=30)
    small_parts(monkeypatch, 20_000)
    parts = list(SOURCES.load(kind)().parts(listing(str(path)), ReadOptions()))
    found, _ = read(kind, path)
    assert len(parts) > 3 and sum(part.size for part in parts) == path.stat().st_size
    assert [d["text"] for d in found] == rows
    assert [d["id"] for d in found] == [f"a.{kind}:{i + 1}" for i in range(500)]


def test_small_files_are_bundled_in_order(tmp_path: Path) -> None:
    for number, text in enumerate(texts(300)):
        (tmp_path / f"{number:03d}.txt").write_text(text)
    parts = list(SOURCES.load("text")().parts(listing(str(tmp_path)), ReadOptions()))
    found, _ = read("text", tmp_path)
    assert [len(part.at) for part in parts] == [256, 44]
    assert [d["text"] for d in found] == texts(300) and found[299]["id"] == "299.txt:1"


def test_the_default_parts_cut_a_large_file(tmp_path: Path) -> None:
    line = json.dumps({"text": "word " * 2000}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * (34_000_000 // len(line)))
    parts = list(SOURCES.load("jsonl")().parts(listing(str(tmp_path / "a.jsonl")), ReadOptions()))
    assert [part.continues for part in parts] == [False, True, True]
