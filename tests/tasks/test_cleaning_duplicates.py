"""exact-duplicates and duplicate-paragraphs: what goes, what stays, and what must not change the outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Cancelled
from tasks.base import Runtime
from tasks.cleaning.base import Verdict
from tasks.cleaning.exact import ExactDuplicates
from tasks.cleaning.exchange import PARTITION_BITS, exchange
from tasks.cleaning.paragraphs import DuplicateParagraphs, without
from tasks.cleaning.settings_corpus import DuplicateParagraphsSettings, ExactDuplicatesSettings
from tests.tasks.compared import compared, kept
from tests.tasks.stage import FolderContext


def exact(texts: list[str], **values: Any) -> list[Verdict]:
    verdicts, facts = compared(ExactDuplicates(ExactDuplicatesSettings(**values)), texts)
    assert facts == {"duplicates": len(texts) - len(kept(verdicts))}
    return verdicts


def paragraphs(texts: list[str], **values: Any) -> list[Verdict]:
    return compared(DuplicateParagraphs(DuplicateParagraphsSettings(**{"min_chars": 5, **values})), texts)[0]


# ---------------------------------------------------------------- documents

NAMES = ["A b.", "A  b.\n", "a b.", "A b", "A b.", "other"]


@pytest.mark.parametrize(
    ("values", "stay"),
    [
        ({}, [0, 2, 3, 5]),
        ({"fold_white_space": False}, [0, 1, 2, 3, 5]),
        ({"fold_case": True}, [0, 3, 5]),
        ({"fold_punctuation": True}, [0, 2, 5]),
        ({"fold_case": True, "fold_punctuation": True}, [0, 5]),
    ],
)
def test_what_is_equal(values: dict[str, Any], stay: list[int]) -> None:
    verdicts = exact(NAMES, **values)
    assert [n for n, verdict in enumerate(verdicts) if verdict.text is not None] == stay
    assert all(verdict.text == NAMES[n] for n, verdict in enumerate(verdicts) if n in stay)
    assert {verdict.reason for verdict in verdicts} == {"", "exact duplicate"}


def test_a_corpus_without_duplicates_and_an_empty_one() -> None:
    assert kept(exact(["a", "b", ""])) == ["a", "b", ""]
    assert exact([]) == []


DRAWN = st.lists(st.sampled_from(["a b", "a  b", "c", "", " ", "ü", "x y z"]), max_size=12)


@given(DRAWN, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_and_repetition_do_not_matter(texts: list[str], random: Any) -> None:
    def shown(texts: list[str]) -> list[str]:
        return sorted(" ".join(text.split()) for text in texts)

    once = kept(exact(texts))
    assert shown(once) == sorted({" ".join(text.split()) for text in texts})
    assert shown(kept(exact(random.sample(texts, len(texts))))) == shown(once)
    assert kept(exact(once)) == once
    assert kept(exact([*texts, *texts])) == once  # documents that come after never push one out


# ---------------------------------------------------------------- paragraphs


def test_later_paragraphs_go_and_the_first_stays() -> None:
    texts = [
        "one one one\nshort one\n\ntail",
        "new text here\nsome  more\n one  one one",
        "one one one\n\none one one\n" + "z" * 80,
    ]
    verdicts = paragraphs(texts)
    assert [v.text for v in verdicts] == [texts[0], "new text here\nsome  more", "z" * 80]
    assert [dict(v.counts) for v in verdicts] == [{}, {"paragraph": 1}, {"paragraph": 2}]
    assert [v.reason for v in verdicts] == ["", *["has paragraphs seen before"] * 2]


def test_short_paragraphs_stay() -> None:
    texts = ["abcd\nabcd\nlonger one", "abcd\nsomething else", "longer one\nabcd\nnot seen before"]
    assert [v.text for v in paragraphs(texts)] == [*texts[:2], "abcd\nnot seen before"]


def test_blank_lines_between_paragraphs() -> None:
    texts = [
        "first line\nsecond line\n\nnext paragraph",
        "new and long text\n \n\nfirst line\nsecond  line\n\nend of all of it",
    ]
    verdicts = paragraphs(texts, separator="blank-line")
    assert [v.text for v in verdicts] == [texts[0], "new and long text\n \n\nend of all of it"]
    assert paragraphs(texts)[1].text == "new and long text\n \n\nend of all of it"


def test_what_a_dropped_document_had_first_stays_in_the_next() -> None:
    texts = ["seen before, at length", "seen before, at length\nnever seen", "never seen\nand more text that is new"]
    verdicts = paragraphs(texts)
    assert [v.text for v in verdicts] == [texts[0], None, texts[2]]
    assert verdicts[1].reason == "mostly paragraphs seen before"
    lenient = paragraphs(texts, max_removed_share=1.0)
    assert [v.text for v in lenient] == [texts[0], "never seen", "and more text that is new"]


def test_nothing_left_is_dropped_whatever_the_share() -> None:
    assert [v.text for v in paragraphs(["paragraph", "paragraph\nparagraph"], max_removed_share=1.0)] == [
        "paragraph",
        None,
    ]


LINES = st.lists(
    st.sampled_from(["paragraph one", "paragraph two", "tiny", "", "paragraph three is longer"]), max_size=5
)


@given(
    st.lists(LINES.map("\n".join), max_size=8),
    st.sampled_from([0.3, 0.5, 1.0]),
    st.sampled_from(["line", "blank-line"]),
)
@settings(max_examples=60, deadline=None)
def test_no_paragraph_is_lost_or_left_twice(texts: list[str], share: float, separator: str) -> None:
    values = {"max_removed_share": share, "separator": separator}
    once = kept(paragraphs(texts, **values))
    assert kept(paragraphs(once, **values)) == once
    if separator == "line":
        long = [line for text in once for line in text.split("\n") if len(line) >= 5]
        assert len(long) == len(set(long))
        given_ = {line for text in texts for line in text.split("\n") if len(line) >= 5}
        # what only dropped documents had is gone with them; without a limit nothing is
        assert set(long) == given_ if share == 1.0 else set(long) <= given_


@given(st.lists(LINES.map("\n".join), max_size=6), st.lists(LINES.map("\n".join), max_size=6))
@settings(max_examples=20, deadline=None)
def test_documents_that_come_after_change_nothing(texts: list[str], more: list[str]) -> None:
    assert paragraphs(texts + more)[: len(texts)] == paragraphs(texts)


def test_without() -> None:
    assert without("a\n\nb\nc", {1}, "line") == "a\n\nc"
    assert without("a\n\nb\nc", {0, 2}, "line") == "b"
    assert without("a\nb", {0, 1}, "line") == ""


# ---------------------------------------------------------------- the exchange


def test_rows_with_equal_keys_meet_once(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 2**64, 200, dtype=np.uint64)
    tables = [pa.table({"key": draw.choice(keys, n), "row": np.arange(n)}) for n in (1, 500, 3000)]
    ctx = FolderContext(tmp_path / "out", Runtime(), {})
    found = list(exchange(ctx, iter(tables), lambda table: table, lambda rows: rows, ctx.work / "new"))
    assert 2 <= len(found) <= 1 << PARTITION_BITS
    assert sum(len(table) for table in found) == 3501
    seen = [set(table.column("key").to_pylist()) for table in found]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert list(ctx.work.iterdir()) == []


def test_an_exchange_that_is_left_early_closes_its_files(tmp_path: Path) -> None:
    tables = [pa.table({"key": np.random.default_rng(0).integers(0, 2**64, 99, dtype=np.uint64)})]
    ctx = FolderContext(tmp_path / "out", Runtime(), {})
    found = exchange(ctx, tables, lambda table: table, lambda rows: rows, ctx.work / "new")
    assert len(next(found)) > 0
    found.close()


def test_an_exchange_stops_when_asked_to(tmp_path: Path) -> None:
    class Stopped(FolderContext):
        def cancelled(self) -> bool:
            return True

    tables = [pa.table({"key": np.random.default_rng(0).integers(0, 2**64, 99, dtype=np.uint64)})]
    ctx = Stopped(tmp_path / "out", Runtime(), {})
    with pytest.raises(Cancelled):
        next(exchange(ctx, tables, lambda table: table, lambda rows: rows, ctx.work / "new"))
    assert list(ctx.work.iterdir()) == []
