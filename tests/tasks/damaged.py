"""Valid source files of every format and compression, and damage to them by a generator that repeats itself."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import signal
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import BadData
from tests.tasks.reading import read, texts

SECONDS_PER_FILE = 20  # far above what a file of some KB takes, on any machine

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def sound(seed: int = 0) -> dict[str, bytes]:
    """{format: a small valid file}, with numbers, nulls, nesting, quotes and characters of several bytes."""
    rng = random.Random(seed)
    rows = [
        {
            "id": f"d{i}",
            "text": f'{t} – naïve "quoted", 中文',
            "n": i,
            "score": i / 7,
            "tags": ["a", None],
            "s": {"x": t},
        }
        for i, t in enumerate(texts(40, seed))
    ]
    rng.shuffle(rows)
    table = pa.Table.from_pylist(rows)
    flat = [{key: str(row[key]) for key in ("id", "text", "n")} for row in rows]
    return {
        "text": "\n\n".join(row["text"] for row in rows).encode(),
        "jsonl": "".join(json.dumps(row, ensure_ascii=row["n"] % 2 == 0) + "\n" for row in rows).encode(),
        "csv": _csv(flat),
        "tsv": ("id\ttext\tn\n" + "".join("\t".join(row.values()) + "\n" for row in flat)).encode(),
        "parquet": _parquet(table),
        "arrow": _arrow(table, pa.ipc.new_file),
        "arrow-stream": _arrow(table, pa.ipc.new_stream),
        "warc": _warc(rows),
    }  # fmt: skip


def _csv(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=15)
    return out.getvalue()


def _arrow(table: pa.Table, opened: Any) -> bytes:
    out = io.BytesIO()
    with opened(out, table.schema) as file:
        file.write_table(table, max_chunksize=15)
    return out.getvalue()


def _warc(rows: list[dict[str, Any]]) -> bytes:
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=False)
    for number, row in enumerate(rows[:12]):
        page = f"<html><head><title>{number}</title></head><body><p>{row['text']}</p></body></html>".encode()
        headers = [("Content-Type", "text/html; charset=utf-8")]
        if number % 3 == 1:
            headers, page = [*headers, ("Content-Encoding", "gzip")], gzip.compress(page, mtime=0)
        if number % 3 == 2:
            headers, page = [*headers, ("Transfer-Encoding", "chunked")], b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page)
        http = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
        kind = "conversion" if number % 4 == 3 else "response"
        writer.write_record(
            writer.create_warc_record(
                f"http://example.org/{number}",
                kind,
                payload=io.BytesIO(row["text"].encode() if kind == "conversion" else page),
                http_headers=http if kind == "response" else None,
                warc_headers_dict={
                    "WARC-Date": "2026-01-02T03:04:05Z",
                    "WARC-Record-ID": f"<urn:uuid:00000000-0000-4000-8000-{number:012d}>",
                },
            )
        )
    return out.getvalue()


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four of: bits flipped, bytes set, a cut, an insertion, a block doubled, removed, or moved."""
    for _ in range(rng.randint(1, 4)):
        if not data:
            return rng.randbytes(rng.randint(0, 9))
        at, size = rng.randrange(len(data)), rng.randint(1, max(1, len(data) // 8))
        kind = rng.randrange(8)
        block = data[at : at + size]
        if kind == 0:
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            run = rng.randint(1, 8)
            data = data[:at] + rng.choice([b"\0", b"\xff", b"\x80", b"\n", b'"']) * run + data[at + run :]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data = data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:]
        elif kind == 4:
            data = data[:at] + block + data[at:]
        elif kind == 5:
            data = data[:at] + data[at + size :]
        elif kind == 6:
            to = rng.randrange(len(data))
            data = data[:to] + block + data[to + len(block) :]
        else:
            data = data[:at] + rng.randbytes(min(4, len(data) - at)) + data[at + 4 :]
    return data


def read_damaged(folder: Path, count: int, seed: int) -> Counter[str]:
    """Read `count` damaged files, formats and compressions in turn; {format compression outcome: how many}.

    Half of the damage to a compressed file is done before it is compressed, so that it reaches the format.

    Raises:
        AssertionError: a reading ended in neither documents nor BadData, or took longer than it may; names the file.
    """
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    files = sound()
    kinds = [(kind, pack) for kind in files for pack in PACKED if not (kind == "parquet" and pack)]

    def late(_: int, __: types.FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS_PER_FILE} s")

    before = signal.signal(signal.SIGALRM, late)
    try:
        for number in range(count):
            kind, pack = kinds[number % len(kinds)]
            data = files[kind]
            inside = not pack or rng.random() < 0.5
            data = PACKED[pack](damage(data, rng)) if inside else damage(PACKED[pack](data), rng)
            path = folder / f"{kind}{pack}"
            path.write_bytes(data)
            options = rng.choice([
                {}, {"max_bad_records": 1000}, {"max_bad_records": 1000, "invalid_utf8": "skip"},
                {"max_bad_records": 1000, "invalid_utf8": "replace"},
            ])  # fmt: skip
            signal.alarm(SECONDS_PER_FILE)
            try:
                documents, _counts = read(kind.split("-")[0], path, **options)
                assert all(isinstance(row["text"], str) and row["text"].strip() and row["id"] for row in documents)
                found[f"{kind} {pack or 'plain'} read"] += 1
            except BadData as error:
                assert error.message and error.remedy, f"file {number}: no message"
                found[f"{kind} {pack or 'plain'} BadData"] += 1
            except Exception as error:
                path.rename(folder / f"failed-{number}-{path.name}")
                raise AssertionError(f"file {number} of seed {seed}, {path.name}, {options}: {error!r}") from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return found
