"""SentencePiece models as tokenizer.json: the same ids on nasty texts, the same normalisation, or a refusal."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece as spm

from cluster.errors import BadData
from tasks.tokenizers.charsmap import form_of, rules
from tasks.tokenizers.foreign import PROBES
from tests.tasks.test_tokenizer_import import LINES, TEXTS, ids, imported


def trained(path: Path, **fields: Any) -> spm.SentencePieceProcessor:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        **{"vocab_size": 600, "hard_vocab_limit": False, "minloglevel": 3, **fields},
    )
    path.write_bytes(model.getvalue())
    return spm.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "unigram"},
        {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf", "split_by_whitespace": False},
        {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"},
        {"model_type": "unigram", "user_defined_symbols": ["(", "!", "cat"], "add_dummy_prefix": False},
        {"model_type": "bpe", "remove_extra_whitespaces": False, "normalization_rule_name": "nfkc"},
        # Llama's settings, and Gemma's
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "allow_whitespace_only_pieces": True,
        },
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["\n\n", "<sym>", "▁▁", "▁▁▁"],
        },
        {"model_type": "char", "normalization_rule_name": "identity"},
    ],
    ids=lambda fields: "-".join(str(v) for v in fields.values())[:40],
)
def test_sentencepiece_gives_its_own_ids(fields: dict[str, Any], tmp_path: Path) -> None:
    original = trained(tmp_path / "spiece.model", **fields)
    tokenizer, info, _ = imported(tmp_path / "spiece.model", tmp_path / "out")
    for text in (*PROBES, *LINES[::7], "cat(cat)! a!b", "X\u0301 А\u0301 İI", "  \u3000 ", "\n\n\n  \n", "東京x" * 30):
        assert ids(tokenizer, text) == original.encode(text), text
        assert tokenizer.decode(ids(tokenizer, text)) == original.decode(
            [n for n in original.encode(text) if n != original.unk_id()]
        )
    assert info["vocab_size"] == tokenizer.get_vocab_size() == original.get_piece_size()
    assert (info["special_tokens"]["unk"], info["special_tokens"]["bos"], info["special_tokens"]["eos"]) == (0, 1, 2)
    assert info["format"] == "sentencepiece" and info["examples"][0]["word"] == "hat"


def test_text_that_spells_a_control_symbol_is_text_also_without_its_letters(tmp_path: Path) -> None:
    """As in T5's vocabulary, which has no `<`."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3), model_writer=model, vocab_size=80, hard_vocab_limit=False, minloglevel=3
    )
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "spiece.model").write_bytes(model.getvalue())
    config = {"extra_ids": 3, "tokenizer_class": "T5Tokenizer", "eos_token": "</s>"}
    (tmp_path / "t5" / "tokenizer_config.json").write_text(json.dumps(config))
    original = spm.SentencePieceProcessor(model_proto=model.getvalue())
    assert original.piece_to_id("<") == original.unk_id()
    tokenizer, info, context = imported(tmp_path / "t5", tmp_path / "out")
    for text in ("a </s> b", "<s>", "the <extra_id_0> cat"):
        assert ids(tokenizer, text) == original.encode(text)
    assert not [line for line in context.logged if "warning" in line]
    size = original.get_piece_size()
    assert [tokenizer.token_to_id(f"<extra_id_{n}>") for n in range(3)] == [size + 2, size + 1, size]
    assert info["sentinels"] == 3 and info["vocab_size"] == size + 3
    assert tokenizer.encode("the cat").tokens[-1] == "</s>", "T5's frame"


@pytest.mark.parametrize("name", ["nfkc", "nmt_nfkc_cf"])
def test_normalisation_rules_are_read_as_sentencepiece_reads_them(name: str, tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    original = trained(tmp_path / "m.model", normalization_rule_name=name)
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString((tmp_path / "m.model").read_bytes())
    found = rules(proto.normalizer_spec.precompiled_charsmap)
    some = itertools.islice(found.items(), 0, None, 997)
    assert len(found) > 200_000
    for key, value in some:
        # with letters around it: what the processor strips and folds at the ends is not the rules'
        assert original.normalize(f"x{key}y") == f"▁x{value}y".replace(" ", "▁").replace("▁▁▁", "▁").replace("▁▁", "▁")
    form = form_of(found)
    assert form is not None and form.name == "NFKC"
    assert form.kept == ({"～": "～", "İ": "İ"} if name == "nmt_nfkc_cf" else {})
    assert form.lower == name.endswith("_cf")


def test_rules_of_ones_own_are_kept(tmp_path: Path) -> None:
    """A file of rules: few of several characters are written out, and no Unicode form is applied."""
    (tmp_path / "rules.tsv").write_text("63 61 74\t64 6F 67\n41\t61\n")  # cat -> dog, A -> a
    original = trained(tmp_path / "m.model", normalization_rule_tsv=str(tmp_path / "rules.tsv"))
    tokenizer, _, _ = imported(tmp_path / "m.model", tmp_path / "out")
    for text in ("the cat sAt", "ﬁne cat", "A\u0301", *LINES[:20]):
        assert ids(tokenizer, text) == original.encode(text)
    assert ids(tokenizer, "the cat") == ids(tokenizer, "the dog")


def test_models_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    trained(tmp_path / "suffix.model", treat_whitespace_as_suffix=True)
    with pytest.raises(BadData, match="suffix.model is a model whose spaces follow"):
        imported(tmp_path / "suffix.model", tmp_path / "a")
    trained(tmp_path / "word.model", model_type="word")
    with pytest.raises(BadData, match="a model of words"):
        imported(tmp_path / "word.model", tmp_path / "b")
    (tmp_path / "broken.model").write_bytes(b"\x0a\xff\xff\xff\xff\x01")
    with pytest.raises(BadData, match="broken.model: not a SentencePiece model"):
        imported(tmp_path / "broken.model", tmp_path / "c")
    # spaces are stripped at both ends of a whole text; symbols that cut it first make that impossible
    trained(tmp_path / "symbols.model", model_type="bpe", user_defined_symbols=["<x>"])
    with pytest.raises(BadData, match="gives other ids than the original library: '<x> a<x>b"):
        imported(tmp_path / "symbols.model", tmp_path / "d")
