"""Rules on quality: C4, Gopher, repetition, length, language, each at its threshold."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.cleaning.language import Identifier
from tasks.cleaning.repetition import repeated_chars, repeated_ngrams, top_chars, words_of
from tests.tasks.cleaned import left, reasons, step, verdict
from tests.tasks.corpora import prose

SENTENCE = "The river rose above the old bridge in the night."


def words(count: int, seed: int = 0) -> list[str]:
    """Different words, with the stop words that a text has."""
    rng = random.Random(seed)
    return ["the", "of", *(f"w{i:x}{rng.choice('abcdef')}rd" for i in range(count - 2))]


# ---------------------------------------------------------------- C4


def test_the_docstrings_example_of_c4() -> None:
    found = verdict("c4", "Home About\nThis line is a sentence[1].\nSo is this one, too. It has more.")
    assert found.text == "This line is a sentence.\nSo is this one, too. It has more."
    assert found.counts == {"citation marks": 1, "lines without a terminal mark": 1}


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("Five words are quite enough.", True),
        ("Four words are not.", False),
        ("A line with no mark at its end", False),
        ("A line that ends in an ellipsis...", False),
        ('He said that it "ends in quotes"', True),
        ("Does this line stay, I wonder?", True),
        ("Please enable Javascript to see this page.", False),
        ("Read our privacy policy before you go on.", False),
        (f"A word of {'x' * 1001} characters is no word.", False),
        (f"A word of {'x' * 1000} characters is still one.", True),
        ("   White space around a line goes.  ", True),
        ("spaces          do          not count.", False),
    ],
)
def test_lines_of_c4(line: str, stays: bool) -> None:
    text = "\n".join([SENTENCE] * 3)
    assert left("c4", f"{text}\n{line}") == (f"{text}\n{line.strip()}" if stays else text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{SENTENCE}\n{SENTENCE}", "fewer than 3 sentences"),
        (f"{SENTENCE} {SENTENCE} {SENTENCE}", ""),
        (f"{SENTENCE}\nIt weighed 3.14 kg at example.com, he said.", "fewer than 3 sentences"),
        (f"{SENTENCE}\n{SENTENCE}\n{SENTENCE}\nvoid f() {{", "has a curly bracket"),
        (f"{SENTENCE}\n{SENTENCE}\n{SENTENCE}\nLorem ipsum dolor", "has lorem ipsum"),
    ],
)
def test_documents_of_c4(text: str, reason: str) -> None:
    assert reasons("c4", [text]) == [reason]


def test_options_of_c4(tmp_path: Path) -> None:
    text = f"Heading\n\n{SENTENCE}"
    assert left("c4", text, terminal_marks="", min_line_words=0, min_sentences=0) == text
    assert left("c4", f"{SENTENCE} {{", curly_brackets=False, terminal_marks="", min_sentences=0) == f"{SENTENCE} {{"
    bad = tmp_path / "words.txt"
    bad.write_text("darn\nblue moon\n")
    three = " ".join([SENTENCE] * 3)
    texts = [f"{three} Darn it all, he said.", f"{three} A blue moon rose.", f"{three} Darning socks."]
    assert reasons("c4", texts, bad_words_file=str(bad)) == ["has a word of bad_words_file"] * 2 + [""]
    with pytest.raises(BadConfig, match="bad_words_file"):
        step("c4", bad_words_file=str(tmp_path / "gone.txt"))


# ---------------------------------------------------------------- Gopher


def test_the_docstrings_example_of_gopher() -> None:
    found = reasons("gopher", ["the end of it all", "# # # of the"], min_words=3, min_mean_word_chars=1)
    assert found == ["", "more '#' than 0.1 a word"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ".join(words(50)), ""),
        (" ".join(words(49)), "fewer than 50 words"),
        (" ".join(words(100_001)), "more than 100,000 words"),
        (" ".join(["the", "of", *["ab"] * 60]), "words shorter than 3 on average"),
        (" ".join(["the", "of", *["abcdefghijkl"] * 60]), "words longer than 10 on average"),
        (" ".join([*words(90), *["#tag"] * 10]), ""),
        (" ".join([*words(90), *["##tag"] * 10]), "more '#' than 0.1 a word"),
        (" ".join([*words(90), *["so..."] * 6, *["so…"] * 5]), "more ellipses than 0.1 a word"),
        ("\n".join(f"• {a} {b}" for a, b in zip(words(60)[::2], words(60)[1::2], strict=True)), "bullet"),
        ("\n".join([*(" ".join(words(20, n)) for n in range(7)), *["and so on…"] * 3]), ""),
        ("\n".join([*(" ".join(words(20, n)) for n in range(6)), *["and so on…"] * 3]), "ellipsis"),
        (" ".join([*words(80), *["12:30"] * 20]), ""),
        (" ".join([*words(80), *["12:30"] * 21]), "fewer than 80% of words with a letter"),
        (" ".join(words(60)[1:]), "fewer than 2 stop words"),
        (" ".join(["(The", "OF,", *words(60)[2:]]), ""),
    ],
)
def test_gopher_at_its_thresholds(text: str, reason: str) -> None:
    assert reason in reasons("gopher", [text])[0] and bool(reason) == bool(reasons("gopher", [text])[0])


# ---------------------------------------------------------------- repetition


def test_the_docstrings_example_of_repetition() -> None:
    loose = {"top_ngram_chars": (1, 1, 1)}
    assert reasons("gopher-repetition", ["a b c d e a b c d e"], **loose) == [
        "more than 15% of characters in repeated 5-grams"
    ]


def shares(texts: list[str]) -> dict[int, list[int]]:
    """{n: characters of each text in its top n-gram, or in n-grams that came before}, all texts at once."""
    found = words_of(texts)
    made = {n: [0] * len(texts) for n in range(2, 11)}
    for n, repeats in repeated_ngrams(found, 10):
        made[n] = (top_chars if n < 5 else repeated_chars)(found, n, repeats, len(texts)).tolist()
    return made


def by_definition(text: str, n: int) -> int:
    """The same of one text and one n."""
    found = text.split()
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    if n < 5:
        most = max(Counter(grams).values(), default=0)
        return max((most * len("".join(g)) for g, count in Counter(grams).items() if count == most > 1), default=0)
    covered: set[int] = set()
    for i, gram in enumerate(grams):
        if gram in grams[:i]:
            covered |= set(range(i, i + n))
    return sum(len(found[i]) for i in covered)


def test_ngram_shares_by_hand() -> None:
    made = shares(["a bb ccc a bb dddd", "x " * 12, "one two"])
    assert made[2] == [2 * 3, 11 * 2, 0]  # overlapping ones count each, as published: more than there is
    assert made[3] == [0, 10 * 3, 0]
    assert made[5] == [0, 11, 0]  # all but the first word are in a later 5-gram


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ééé", "dddd"]), max_size=30).map(" ".join), max_size=5))
def test_ngram_shares_agree_with_the_definition(texts: list[str]) -> None:
    assert shares(texts) == {n: [by_definition(text, n) for text in texts] for n in range(2, 11)}


def test_documents_are_judged_one_by_one() -> None:
    rng = random.Random(5)
    texts = ["", " ", "\u3000x ", "one two"]
    for _ in range(120):
        vocabulary = [f"{rng.choice('xyz') * rng.randint(1, 9)}{i}" for i in range(rng.choice([8, 40, 400]))]
        made = rng.choices(vocabulary, k=rng.randint(1, 200))
        for _ in range(rng.randrange(4)):
            at, size = rng.randrange(len(made)), rng.randint(2, 15)
            made += made[at : at + size]
        texts.append(" ".join(made))
    assert shares(texts) == {n: [by_definition(text, n) for text in texts] for n in range(2, 11)}
    together = reasons("gopher-repetition", texts)
    assert 20 < sum(map(bool, together)) < 115
    assert together == [reason for text in texts for reason in reasons("gopher-repetition", [text])]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (prose(3, 60), ""),
        ("\n".join([*(prose(n, 3) for n in range(7)), *["Same old line here."] * 5]), "30% of lines"),
        (
            "\n".join([*(prose(n, 3) for n in range(6)), prose(0, 3), prose(1, 3)]),
            "20% of characters in repeated lines",
        ),
        (
            "\n\n".join([*(f"{prose(n, 3)}\nline {n} of {n}" for n in range(7)), *["Ends\nwith this."] * 5]),
            "30% of paragraphs",
        ),
    ],
)
def test_lines_and_paragraphs(text: str, reason: str) -> None:
    loose = {"top_ngram_chars": (1, 1, 1), "duplicate_ngram_chars": (1, 1, 1, 1, 1, 1)}
    if "paragraphs" in reason:
        loose |= {"duplicate_lines": 1, "duplicate_line_chars": 1}
    (found,) = reasons("gopher-repetition", [text], **loose)
    assert reason in found and bool(reason) == bool(found)


# ---------------------------------------------------------------- length


def test_length() -> None:
    texts = ["short", "one two three", "x" * 21]
    assert reasons("length", texts, min_chars=6) == ["fewer than 6 characters", "", ""]
    assert reasons("length", texts, min_chars=0, max_chars=20) == ["", "", "more than 20 characters"]
    assert reasons("length", texts, min_chars=0, min_words=2) == ["fewer than 2 words", "", "fewer than 2 words"]
    assert reasons("length", texts, min_chars=0, max_words=2) == ["", "more than 2 words", ""]


# ---------------------------------------------------------------- language

MANY = [
    ("en", "The quick brown fox jumps over the lazy dog, and nobody in the village saw it."),
    ("de", "Der schnelle braune Fuchs springt über den faulen Hund, und niemand hat es gesehen."),
    ("fr", "Le vif renard brun saute par-dessus le chien paresseux, et personne ne l'a vu."),
    ("ru", "Быстрая коричневая лиса прыгает через ленивую собаку, и никто этого не видел."),
    ("ja", "素早い茶色の狐がのろまな犬を飛び越えたが、誰もそれを見ていなかった。"),
    ("en", "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG, AND NOBODY IN THE VILLAGE SAW IT."),
]


def test_languages() -> None:
    texts = [text for _, text in MANY]
    found = step("language").clean(texts)
    assert [v.reason for v in found] == ["", "language: de", "language: fr", "language: ru", "language: ja", ""]
    assert [tuple(v.counts) for v in found] == [(language,) for language, _ in MANY]
    assert reasons("language", ["", "12 345 6", *texts], languages=("de", "fr"))[:5] == [
        "language unsure", "language unsure", "language: en", "", "",
    ]  # fmt: skip
    assert reasons("language", [texts[2]], candidates=("en", "de"), min_probability=0)[0] in ("", "language: de")


def test_the_middle_of_a_document_counts() -> None:
    german = " ".join([MANY[1][1]] * 20)
    assert reasons("language", [f"{MANY[0][1]} {german}"]) != [""]


def test_many_at_once_are_told_as_the_library_tells_them() -> None:
    identifier = Identifier()
    texts = [text for _, text in MANY] + [prose(n, 2)[: n * 7] for n in range(20)] + ["", "é", "Ω" * 99]
    found = identifier.classify(texts)
    for text, (language, probability) in zip(texts, found, strict=True):
        expected = identifier.model.classify(text)
        assert language == expected[0]
        assert probability == pytest.approx(expected[1], abs=1e-4)  # sums of float32 in another order
    assert [identifier.classify([text])[0][0] for text in texts] == [language for language, _ in found]


def test_unknown_languages_are_told() -> None:
    with pytest.raises(BadConfig, match="languages: xx not known"):
        step("language", languages=("xx",))
    with pytest.raises(BadConfig, match="candidates: .*xx"):
        step("language", candidates=("en", "xx"))
