"""WARC and WET: records to documents, charsets, damage counted, and pages to readable text."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from cluster.errors import BadData
from tasks.ingest import format_of
from tasks.sources.html_text import decode_page, read_page
from tests.tasks.reading import read

PAGE = """<!DOCTYPE html><html><head><title>The  title</title><style>p{color:red}</style></head><body>
<nav><a href="/">Home</a> <a href="/b">Menu</a></nav><!-- a comment -->
<h1>Heading</h1><p>First <b>bold</b>
   words.</p><script>if (a < b) { run("<p>") }</script>
<ul><li>one</li><li>two</li></ul><table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>
<div>left<br>right</div><template><p>hidden</p></template><pre>x = 1
    y = 2</pre><p hidden>not shown</p><p>caf&eacute; &amp; co</p><footer>Imprint</footer></body></html>"""
TEXT = "Heading\n\nFirst bold words.\n\none\ntwo\n\na\tb\nc\td\n\nleft\nright\n\nx = 1\n    y = 2\n\ncafé & co"


def archive(records: list[dict[str, Any]], packed: bool = True) -> bytes:
    """A WARC file of {type, url, body, and for responses: content_type, status, headers}."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=packed)
    out.write(b"")
    for record in records:
        kind, body = record.get("type", "response"), record["body"]
        http = None
        if kind == "response":
            headers = [("Content-Type", record.get("content_type", "text/html")), *record.get("headers", [])]
            http = StatusAndHeaders(record.get("status", "200 OK"), headers, protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(
                record.get("url", "http://example.org/"),
                kind,
                payload=io.BytesIO(body),
                http_headers=http,
                warc_content_type="text/plain" if kind == "conversion" else "",
                warc_headers_dict={"WARC-Date": "2026-01-02T03:04:05Z"},
            )
        )
    return out.getvalue()


def test_a_page_becomes_readable_text() -> None:
    assert read_page(PAGE) == ("The title", TEXT)
    assert read_page("") == ("", "") and read_page("<p>") == ("", "") and read_page("plain").text == "plain"
    assert read_page("<div>" * 1500 + "deep" + "</div>" * 1500).text == "deep"


@pytest.mark.parametrize(
    ("raw", "header", "expected"),
    [
        ("é".encode(), "", "é"),
        ("é".encode("cp1252"), "", "é"),
        ("“é”".encode("cp1252"), "text/html; charset=ISO-8859-1", "“é”"),
        ("日本".encode("shift_jis"), "text/html; charset=Shift_JIS", "日本"),
        (b'<meta charset="koi8-r">' + "да".encode("koi8-r"), "text/html", '<meta charset="koi8-r">да'),
        (b"<meta charset=utf-16>\xc3\xa9", "", "<meta charset=utf-16>é"),
        (b"\xff\xfe" + "é".encode("utf-16-le"), "charset=utf-8", "é"),
        (b"\xc3\xa9", "charset=no-such", "é"),
        (b"\xc3\xa9", "charset=hex", "é"),
    ],
)
def test_charsets(raw: bytes, header: str, expected: str) -> None:
    assert decode_page(raw, header) == (expected, False)
    assert decode_page(b"a\xffb", "charset=utf-8") == ("a\ufffdb", True)


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_responses_and_conversions(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(PAGE.encode())
    chunked = b"5\r\n<p>ab\r\n3\r\nc d\r\n0\r\n\r\n"
    records = [
        {"type": "warcinfo", "body": b"software: test\r\n", "url": None},
        {"url": "http://example.org/a", "body": PAGE.encode()},
        {"url": "http://example.org/gz", "body": packed, "headers": [("Content-Encoding", "gzip")]},
        {"url": "http://example.org/ch", "body": chunked, "headers": [("Transfer-Encoding", "chunked")]},
        {"url": "http://example.org/404", "body": b"<p>gone", "status": "404 Not Found"},
        {"url": "http://example.org/i.png", "body": b"\x89PNG", "content_type": "image/png"},
        {"url": "http://example.org/nothing", "body": b"<script>x</script>"},
        {"type": "conversion", "url": "http://example.org/wet", "body": "naïve\r\nWARC/1.0 is a format\n".encode()},
    ]
    (tmp_path / name).write_bytes(archive(records, packed=name.endswith("gz")))
    assert format_of(str(tmp_path / name)) == "warc"
    found, counts = read("warc", tmp_path / name)
    assert [(d["id"].rsplit("/", 1)[1], d["text"]) for d in found] == [
        ("a", TEXT),
        ("gz", TEXT),
        ("ch", "abc d"),
        ("wet", "naïve\r\nWARC/1.0 is a format\n"),
    ]
    assert json.loads(found[0]["meta"]) == {"date": "2026-01-02T03:04:05Z", "title": "The title"}
    assert counts.skipped == {
        "WARC record of type warcinfo": 1,
        "HTTP status other than 2xx": 1,
        "page that is not HTML": 1,
        "page without text": 1,
    }


def test_damaged_records_are_counted_and_reading_goes_on(tmp_path: Path) -> None:
    one = archive([{"url": "http://example.org/1", "body": b"<p>one"}], packed=False)
    two = archive([{"url": "http://example.org/2", "body": b"<p>two"}], packed=False)
    broken = two.replace(b"Content-Length: ", b"Content-Length: x", 1)
    (tmp_path / "a.warc").write_bytes(one + broken + two)
    with pytest.raises(BadData, match="a.warc:2: WARC record without a valid Content-Length"):
        read("warc", tmp_path / "a.warc")
    found, counts = read("warc", tmp_path / "a.warc", max_bad_records=5)
    assert [d["text"] for d in found] == ["one", "two"] and counts.bad == 2  # the header, and the block left behind


def test_files_that_end_early_or_are_no_archive(tmp_path: Path) -> None:
    data = archive([{"body": PAGE.encode()}] * 3, packed=False)
    for cut in (20, 200, len(data) // 2, len(data) - 100):
        (tmp_path / "a.warc").write_bytes(data[:cut])
        with pytest.raises(BadData, match="ends inside its record"):
            read("warc", tmp_path / "a.warc", max_bad_records=9)
    (tmp_path / "a.warc").write_text("this is text\n")
    with pytest.raises(BadData, match="not a WARC file"):
        read("warc", tmp_path / "a.warc", max_bad_records=9)
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(BadData) as caught:
        read("text", tmp_path / "a.txt")
    assert "format=warc" in caught.value.remedy
