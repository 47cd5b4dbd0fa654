"""PII: what is found, what only looks like it, and what a report shows of it. All of it made up."""

from __future__ import annotations

import time

import pytest

from tests.tasks.cleaned import left, step, verdict

# Made of pieces, so that this file holds nothing that a scan for secrets takes for one.
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
GITHUB = "ghp" + "_" + "a1B2" * 9
HUB = "hf" + "_" + "AbCd" * 9
PEM = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEow\nIBAA\n-----END RSA PRIVATE " + "KEY-----"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9" + "." + "eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0" + "." + "dozjgNryP4J3jVmNHl0w5N"


def test_the_docstrings_example() -> None:
    found = verdict("pii", "Write to ann@example.org or call +49 30 1234567.")
    assert found.text == "Write to <EMAIL> or call <PHONE>."
    assert found.counts == {"e-mail address": 1, "phone number": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first.last+tag@sub.example.co.uk, x@y.io.", "<EMAIL>, <EMAIL>."),
        ("mailto:a_b@example.com)", "mailto:<EMAIL>)"),
        ("8.8.8.8 and 1.1.1.1:53", "<IP> and <IP>:53"),
        ("2001:4860:4860::8888 2a00:1450:4001:081b:0000:0000:0000:200e", "<IP> <IP>"),
        ("(212) 555-0123, 212-555-0123, 212.555.0123, +1 212 555 0123", "<PHONE>, <PHONE>, <PHONE>, <PHONE>"),
        ("Tel.: 030 1234567, Fax: 030/1234568", "Tel.: <PHONE>, Fax: <PHONE>"),
        ("+44 (0)20 7946 0958", "<PHONE>"),
        ("Phone: (030) 123 45 67; tel. 0301234567, hotel. 5", "Phone: <PHONE>; tel. <PHONE>, hotel. 5"),
        ("4111 1111 1111 1111, 378282246310005, 5555-5555-5555-4444", "<CARD>, <CARD>, <CARD>"),
        ("DE89 3704 0044 0532 0130 00, GB82WEST12345698765432.", "<IBAN>, <IBAN>."),
        ("NO93 8601 1117 947 XY", "<IBAN> XY"),
        (f"key={AWS} {GITHUB} {HUB}", "key=<KEY> <KEY> <KEY>"),
        (f"Bearer {JWT}", "Bearer <KEY>"),
        (f"before\n{PEM}\nafter", "before\n<KEY>\nafter"),
        ("sk" + "-proj-" + "Ab3d" * 8, "<KEY>"),
    ],
)
def test_found(text: str, expected: str) -> None:
    assert left("pii", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "@handle, a@b, user @ example.com",
        "127.0.0.1, 192.168.0.1, 10.1.2.3, 999.1.1.1, version 1.2.3.4.5, 3.14.15",
        "12:30:45, ::1, fe80::1, std::vector, a::b::c, 1:2:3:4:5:6",
        "1990-1995, 2,000–2,500, +5, +3.5 %, ISBN 978-0-306-40615-7, 555-1234",
        "2018-03-03, 10.1000/182, 123-456-789",
        "4111 1111 1111 1112, 1234 5678 9012 3456, 0000 0000 0000 0000",  # no checksum, no issuer
        "DE89 3704 0044 0532 0130 01, AB12 3456 7890 1234",
        "risk-averse task-based sk-8 gh_pages AKIA AKIA123 hf_model",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_not_found(text: str) -> None:
    assert verdict("pii", text).text is text


def test_kinds_and_action() -> None:
    text = "ann@example.org 8.8.8.8"
    assert left("pii", text, find=("ip",)) == "ann@example.org <IP>"
    found = verdict("pii", text, action="drop")
    assert found.text is None and found.reason == "has an e-mail address"
    assert found.counts == {"e-mail address": 1, "IP address": 1}
    assert verdict("pii", "no data", action="drop").text == "no data"
    assert left("pii", left("pii", text) or "") == "<EMAIL> <IP>", "done once is done"


def test_a_sample_shows_shapes_only() -> None:
    assert step("pii").shown("Ask ann@example.org.") == "Ask a••@•••••••.•••."


def test_no_pattern_takes_more_than_linear_time() -> None:
    """Texts made to confuse: none takes seconds. A hundred times this would still pass on a slow machine."""
    long = [
        "a." * 100_000 + "@",
        "1-" * 100_000,
        "+1 " * 70_000,
        "(212) 555-" * 20_000,
        "AB12 " * 40_000,
        ":" * 200_000,
    ]
    long += ["eyJ" + "a" * 200_000, "1.1.1." * 30_000, "a@" * 100_000, "4111-" * 40_000, "sk-" + "a-" * 100_000]
    began = time.process_time()
    step("pii").clean(long)
    assert time.process_time() - began < 60
