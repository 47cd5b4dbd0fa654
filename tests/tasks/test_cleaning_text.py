"""Repairs: Unicode, control characters, boilerplate lines."""

from __future__ import annotations

import unicodedata

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.cleaning.characters import runs_beyond_ascii, unusual
from tests.tasks.cleaned import left, step, verdict

# ---------------------------------------------------------------- unicode


def test_the_docstrings_example() -> None:
    found = verdict("unicode", "The caf\u00c3\u00a9 isn\u00e2\u20ac\u2122t open &amp; free")
    assert found.text == "The café isn’t open & free"
    assert found.reason == "mojibake repaired" and found.counts == {"lines with mojibake repaired": 1}


@pytest.mark.parametrize(
    "original", ["Zürich – ‘naïve’ Straße", "Привет, мир", "日本語のテキスト", "Ελλάδα", "déjà vu…"]
)
def test_mojibake_of_many_scripts_is_undone(original: str) -> None:
    broken = original.encode().decode("cp1252", "ignore") if original[0] == "d" else original.encode().decode("latin-1")
    assert left("unicode", f"first line\n{broken}\nlast") == f"first line\n{original}\nlast"


@pytest.mark.parametrize(
    "text", ["Zürich – ‘naïve’ Straße, çà et là", "Привет, мир", "日本語、テキスト", "Ђорђе", "na\u00efve"]
)
def test_sound_text_is_left_alone(text: str) -> None:
    assert verdict("unicode", text).text is text


def test_html_escapes() -> None:
    assert left("unicode", "A &lt;b&gt; &amp;lt; &eacute;") == "A <b> < é"
    assert left("unicode", "<p>A &lt;b&gt;</p>") == "<p>A &lt;b&gt;</p>", "HTML keeps its escapes"
    assert left("unicode", "<p>A &lt;", unescape_html="always") == "<p>A <"
    assert left("unicode", "A &lt;", unescape_html="never") == "A &lt;"
    assert left("unicode", "AT&T; R&D; this&not that") == "AT&T; R&D; this&not that"


def test_options() -> None:
    text = "ﬁne “quotes” ＡＢＣ，e\u0301 ²"
    assert left("unicode", text) == "fine “quotes” ＡＢＣ，é ²"
    assert left("unicode", text, fold_width=True) == "fine “quotes” ABC,é ²"
    assert left("unicode", text, straight_quotes=True) == 'fine "quotes" ＡＢＣ，é ²'
    assert left("unicode", text, split_ligatures=False, normalization="none") == text
    assert left("unicode", text, normalization="NFKC") == "fine “quotes” ABC,é 2"
    assert left("unicode", "caf\u00c3\u00a9", fix_encoding=False) == "caf\u00c3\u00a9"


# characters of every kind that ftfy's patterns speak of, next to each other in all ways
_TRICKY = "aA .?\u00c3\u00a9\u00c2\u00a0\u00e2\u20ac\u2122œŒ\u0152\x85\x9d×²³√±вЂГўВ°Ñ¿¡«»ï¿½ﬁ\u0301"
_TRICKY += "é中あ한Ђђ\ufffd\u00ad\t&;<#x41"
_PIECES = ["&amp;", "Ã©", "â€™", "ГўВЂВ", "Ð¿Ñ€", "е", " ", "\n", "word", "é", "“", "”", "–"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(_TRICKY), max_size=12), st.lists(st.sampled_from(_PIECES), max_size=8))
def test_the_glance_misses_nothing_that_ftfy_would_repair(tricky: str, pieces: list[str]) -> None:
    text = tricky + "".join(pieces)
    unicode = step("unicode")
    config = unicode.config._replace(unescape_html="<" not in text)
    expected = "\n".join(ftfy.fix_text(line, config) for line in text.split("\n"))
    assert unicode.clean([text])[0].text == expected
    assert unicodedata.is_normalized("NFC", expected)


def test_rare_characters_are_found() -> None:
    assert unusual("na\u00efve \x07\n\t!") == "\u00ef\x07"
    assert runs_beyond_ascii("naïve “naïveté”") == {"ï", "“", "é”"}
    assert runs_beyond_ascii("plain") == set()


# ---------------------------------------------------------------- control characters

FLAG = "🏴\U000e0067\U000e0062\U000e0065\U000e007f"  # a black flag, with a region spelled in tag characters


def test_the_docstrings_example_of_control_characters() -> None:
    found = verdict("control-characters", "Zero\u200bwidth,\xa0no-break\r\n\x1b[1mbold\x1b[0m")
    assert found.text == "Zerowidth, no-break\nbold"
    assert found.counts == {"zero-width character": 1, "space": 1, "line end": 1, "terminal escape": 2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeffBOM and NUL\x00", "BOM and NUL"),
        ("a\rb\r\nc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("a\u2003b\u3000c\u202fd", "a b c d"),
        ("hy\xadphen \u202eevil\u202c \u2066x\u2069", "hyphen evil x"),
        ("a\x80\x9f\x1c\ufffe\ufdd0b", "ab"),
        ("tabs\tand\nlines stay", "tabs\tand\nlines stay"),
        ("می\u200cخواهم क्\u200dष 👩\u200d💻 lo\u200dose", "می\u200cخواهم क्\u200dष 👩\u200d💻 loose"),
        (f"{FLAG} flag, hidden\U000e0041\U000e0042", f"{FLAG} flag, hidden"),
        ("\x1b[31;1mred\x1b[0m \x1b", "red "),
    ],
)  # fmt: skip
def test_control_characters(text: str, expected: str) -> None:
    found = verdict("control-characters", text)
    assert found.text == expected
    assert bool(found.reason) == bool(found.counts) == (text != expected)
    assert left("control-characters", expected) == expected, "done once is done"


def test_options_of_control_characters() -> None:
    assert left("control-characters", "a\xa0b", unify_spaces=False) == "a\xa0b"
    assert left("control-characters", "می\u200cخواهم", keep_joiners=False) == "میخواهم"


# ---------------------------------------------------------------- boilerplate


def test_the_docstrings_example_of_boilerplate() -> None:
    found = verdict("boilerplate", "Home | News | Contact\nThe river rose.\nShare on Facebook\n***")
    assert found.text == "The river rose."
    assert found.counts == {
        "menu lines": 1, "calls to share, sign in or subscribe": 1, "lines without a word at an end": 1,
    }  # fmt: skip


PAGE = """Home
About us

News
Sign up
Contact

The river rose above the bridge in the night, and nobody slept.

Read more
Facebook changed its privacy policy in 2012, and few noticed at all.
Part 4: Terms and conditions of service for all of us here.
Privacy Policy
We use cookies to make this page work. By continuing you accept them.
© 2021 The River Post
- - -
"""


def test_a_page_is_left_with_its_text() -> None:
    assert left("boilerplate", PAGE) == (
        "The river rose above the bridge in the night, and nobody slept.\n\n"
        "Facebook changed its privacy policy in 2012, and few noticed at all.\n"
        "Part 4: Terms and conditions of service for all of us here."
    )


@pytest.mark.parametrize(
    "text",
    [
        "44/876\n\nAn album.",
        "1984\nA novel.",
        "Rice\nBeans\nCorn\nWheat\nare what they eat.",  # a list, but no menu
        "To be or not to be,\nthat is the question.",
        "The two sides (home/away) met and/or tied.",
        "We use cookies " + "in a long line on how the web remembers who came " * 4,
    ],
)
def test_text_that_only_looks_like_boilerplate_stays(text: str) -> None:
    assert verdict("boilerplate", text).text is text


def test_options_of_boilerplate() -> None:
    assert left("boilerplate", "One.\nOur sponsor today.\nTwo.", phrases=("OUR SPONSOR",)) == "One.\nTwo."
    assert left("boilerplate", "***\nText.", trim_ends=False) == "***\nText."
    menu = "Home\nNews\nAbout\nLogin\nText."
    assert left("boilerplate", menu) == "Text." and left("boilerplate", menu, navigation_lines=0) == menu
    assert left("boilerplate", menu, navigation_lines=5) == menu
