"""Encoding by parts: the ids of whole texts, for every kind of tokenizer, whatever the text and what is remembered."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from tasks import encoding
from tasks.encoding import _NASTY, Encoder
from tasks.encoding_bytes import byte_words
from tasks.encoding_rules import _PATTERNS, LETTER, rule_of
from tasks.tokenizer import TOKENIZERS
from tasks.tokenizers.base import TokenizerSettings
from tasks.vocabulary import load_tokenizer

TEXTS = [
    "The quick brown fox, it's said, didn't jump over 12345 lazy dogs (in 1999).\nHe'll see: \"we're\" fine!",
    "Ein Wort über Größe — “quoted” text… и слово в русском тексте, 世界 and naïve café.\n\n  Indented;  two spaces.\t",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z A B C [MASK] <mask> </s> ## ' . , / - _ = 0 1 2 3",
] * 4
KINDS = {
    "wordpiece": "bert",
    "bpe": "byte-level",
    "gpt2": "byte-level",
    "bpe-words": "bert",
    "unigram": "words",
    "unigram-bert": "words",
    "characters": "metaspace",
    "bytes": "byte-level",
}
VARIANTS = {
    "prefix-space": "byte-level",
    "nfc": "byte-level",
    "cased": "bert",
    "metaspace-always": "metaspace",
    "metaspace-first": "metaspace",
    "matched": "byte-level",
    "padding": "bert",
    "digits-apart": None,
    "hidden": None,
    **{f"pattern-{number}": "byte-level" for number in range(len(_PATTERNS))},
}


@lru_cache
def spelled(name: str) -> str:
    """The `tokenizer.json` of a kind, or of a variant of one."""
    if name in KINDS:
        tokenizer = TOKENIZERS.load(name)(TEXTS, TokenizerSettings(400, True, 2, 3))
        return tokenizer.to_str()
    of = {"cased": "wordpiece", "padding": "wordpiece", "metaspace-always": "unigram", "metaspace-first": "unigram"}
    tokenizer = Tokenizer.from_str(spelled(of.get(name, "gpt2")))
    if name == "prefix-space":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif name == "nfc":
        tokenizer.normalizer = normalizers.NFC()
    elif name == "cased":
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False)
    elif name.startswith("metaspace"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=name.removeprefix("metaspace-"))
    elif name == "matched":
        tokenizer.add_tokens([AddedToken("  ", normalized=False), AddedToken("the", lstrip=True, normalized=False)])
    elif name == "padding":
        tokenizer.enable_padding(length=9)
        tokenizer.enable_truncation(5)
    elif name == "digits-apart":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif name == "hidden":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_tokens([AddedToken("e\u0301 a", normalized=True)])
    else:
        pattern = list(_PATTERNS)[int(name.removeprefix("pattern-"))].replace(r"\s+$", r"\s++\z")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return tokenizer.to_str()


@lru_cache(maxsize=64)
def encoder(name: str) -> Encoder:
    return Encoder(spelled(name))


def whole(name: str, texts: list[str]) -> list[list[int]]:
    made = load_tokenizer(spelled(name)).encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in made]


def by_parts(made: Encoder, texts: list[str], kind: Any = None) -> list[list[int]]:
    ids, ends = made.encode(pa.array(texts, kind or pa.string()))
    assert len(ends) == len(texts) and ids.dtype == made.dtype
    begins = [0, *ends.tolist()]
    assert begins[-1] == len(ids)
    return [ids[begin:end].tolist() for begin, end in zip(begins, begins[1:], strict=False)]


atoms = st.sampled_from([*_NASTY, *" \n.'aé5", "\n ", " \n"])
texts_of = st.lists(
    st.one_of(st.lists(atoms, max_size=14).map("".join), st.text(max_size=12), st.sampled_from(TEXTS)), max_size=5
)


@pytest.mark.parametrize("name", [*KINDS, *VARIANTS])
@settings(max_examples=80, deadline=None)
@given(texts=texts_of)
def test_ids_are_those_of_whole_texts(name: str, texts: list[str]) -> None:
    assert by_parts(encoder(name), texts) == whole(name, texts)


@pytest.mark.parametrize(("name", "family"), [*KINDS.items(), *VARIANTS.items()])
def test_families_are_recognised_and_pass_the_probe(name: str, family: str | None) -> None:
    """A rule that fails the probe would only be slow, so it must be seen here."""
    rule = encoder(name).rule
    assert (rule and rule.family) == family


def test_a_rule_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rule_of(json.loads(spelled("gpt2")))
    assert right is not None
    monkeypatch.setattr(encoding, "rule_of", lambda _: right._replace(cuts=lambda before, at, after: (at & LETTER) > 0))
    made = Encoder(spelled("gpt2"))
    assert made.rule is None
    assert by_parts(made, TEXTS) == whole("gpt2", TEXTS)


@pytest.mark.parametrize("name", ["gpt2", "wordpiece", "unigram", "matched"])
def test_windows_and_what_is_forgotten_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(TEXTS), "", "x" * 300, "世" * 100, *TEXTS[:3], " " * 70, "\n\n a" * 40, ""]
    expected = whole(name, texts)
    for window, most in ((7, 1 << 19), (64, 5), (1 << 20, 40), (200, 1)):
        monkeypatch.setattr(encoding, "WINDOW_BYTES", window)
        monkeypatch.setattr(encoding, "MOST_PARTS", most)
        made = Encoder(spelled(name))
        assert by_parts(made, texts) == expected
        assert by_parts(made, texts) == expected, "from what is remembered"
        assert len(made._known) <= most
    monkeypatch.setattr(encoding, "MOST_BYTES", 20)
    made = Encoder(spelled(name))
    assert by_parts(made, texts) == expected and made._size <= 20


def test_arrays_of_any_kind() -> None:
    """Large strings, slices, no text at all."""
    made = encoder("bpe")
    expected = whole("bpe", TEXTS)
    assert by_parts(made, TEXTS, pa.large_string()) == expected
    ids, ends = made.encode(pa.array(TEXTS).slice(2, 3))
    assert ids.tolist() == sum(expected[2:5], []) and ends[-1] == len(ids)
    for texts in ([], ["", ""]):
        ids, ends = made.encode(pa.array(texts, pa.string()))
        assert not len(ids) and ends.tolist() == [0] * len(texts)


def test_special_tokens_are_text() -> None:
    """Also where they begin or end a part."""
    for name, content in (("bpe", "<mask>"), ("wordpiece", "[MASK]"), ("gpt2", "<|endoftext|>"), ("unigram", "</s>")):
        tokenizer = load_tokenizer(spelled(name))
        ids = by_parts(encoder(name), [f"a {content} b{content}", content])
        assert tokenizer.token_to_id(content) not in sum(ids, [])


def test_ids_beyond_sixteen_bits() -> None:
    spec = json.loads(spelled("gpt2"))
    spec["model"]["vocab"] = {token: i if i < 300 else i + 70_000 for token, i in spec["model"]["vocab"].items()}
    for number, token in enumerate(spec["added_tokens"]):
        token["id"] = 90_000 + number
    made = Encoder(json.dumps(spec))
    assert made.dtype == np.uint32
    ids = made.encode(pa.array(TEXTS)).ids
    assert ids.max() > 70_000
    expected = Tokenizer.from_str(json.dumps(spec)).encode_batch_fast(TEXTS, add_special_tokens=False)
    assert ids.tolist() == sum((each.ids for each in expected), [])


@pytest.mark.parametrize(("name", "used"), [("gpt2", True), ("bpe", True), ("bytes", False), ("prefix-space", False)])
def test_whose_words_tiktoken_encodes(name: str, used: bool) -> None:
    assert (encoder(name)._words is not None) == used


def test_merges_that_tiktoken_would_make_otherwise() -> None:
    """Ranks that are not the ids' order; a token that its own merges do not reach."""
    spec = json.loads(spelled("gpt2"))
    assert byte_words(spec, True) is not None
    merges = spec["model"]["merges"]
    assert byte_words(spec | {"model": spec["model"] | {"merges": [merges[1], merges[0], *merges[2:]]}}, True) is None
    letters = {chr(token) for token in range(ord("a"), ord("e"))}
    assert letters <= set(spec["model"]["vocab"])
    vocabulary = {token: i for token, i in spec["model"]["vocab"].items() if len(token) == 1}
    made = [("c", "d"), ("b", "c"), ("bc", "d")]  # "bcd" is b + cd, never bc + d
    model = {**spec["model"], "merges": made}
    model["vocab"] = vocabulary | {"".join(pair): 1000 + n for n, pair in enumerate(made)}
    assert byte_words(spec | {"model": model}, True) is None
    model["merges"] = [*made[:2], ("b", "cd")]
    assert byte_words(spec | {"model": model}, True) is not None
