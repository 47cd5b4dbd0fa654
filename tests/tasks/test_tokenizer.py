"""Tokenizers: the same bytes in every process, special tokens, figures, and texts that look like special tokens."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase

from cluster.errors import BadConfig, BadData
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.objectives import OBJECTIVES
from tasks.objectives.settings import parse
from tasks.tokenizer import ROLES_OF, TOKENIZERS, TrainTokenizer, sentinel_ids
from tasks.tokenizer_figures import EXAMPLES
from tasks.tokenizers.base import TokenizerSettings
from tasks.tokenizers.sample import CorpusSample, blocks, count_letters, count_words
from tasks.tokenizers.unigram import known_words, settled
from tasks.vocabulary import vocabulary_of
from tests.tasks.stage import FolderContext, digests, run_stage

CORPUS = Ingest(source="corpus.txt")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings of a few standard modules: real words, some accents, the names of special tokens."""
    import argparse
    import decimal
    import statistics
    import typing

    docs = [
        doc
        for module in (argparse, decimal, statistics, typing, json, subprocess)
        for value in vars(module).values()
        for each in (value, *(vars(value).values() if isinstance(value, type) else ()))
        if isinstance(doc := getattr(each, "__doc__", None), str) and len(doc) > 80
    ]
    docs.append("Café naïve Zürich façade. A [MASK] or <mask> or [SEP] in a text is text.")
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in docs))
    task = Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.1)
    return run_stage(task, folder / "out").out


def train(corpus: Path, out: Path, **fields: object) -> tuple[Tokenizer, dict, FolderContext]:
    context = run_stage(TrainTokenizer(corpus=CORPUS, **fields), out, corpus=corpus)
    info = json.loads((out / "tokenizer-info.json").read_text())
    return Tokenizer.from_file(str(out / "tokenizer.json")), info, context


def test_wordpiece(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, context = train(corpus, tmp_path / "t", vocab_size=1000)
    assert info["vocab_size"] == tokenizer.get_vocab_size() == 1000 and not context.logged
    assert info["special_tokens"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
    assert info["kind"] == "wordpiece"
    assert 1 < info["fertility_tokens_per_word"] < 4 and 2 < info["bytes_per_token"] < 6
    assert 0 <= info["unk_rate"] < 0.01 and 0.3 < info["whole_word_share"] < 1
    encoded = tokenizer.encode("The value, returned", "of it")
    assert encoded.tokens[0] == "[CLS]" and encoded.tokens[-1] == "[SEP]" and encoded.type_ids[-1] == 1
    assert tokenizer.decode(encoded.ids) == "the value, returned of it"
    assert tokenizer.encode("[MASK]", add_special_tokens=False).ids == [4]
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    assert [i for _, i in vocabulary] == list(range(1000))
    added = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    assert added == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "continuations are ordinary tokens"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe-words", "unigram-bert"])
@pytest.mark.parametrize(("letters", "vocab_size"), [(26, 300), (3000, 16_000)])
def test_the_letters_of_a_text_are_known(kind: str, letters: int, vocab_size: int) -> None:
    """Of a small vocabulary as of a script with thousands: a sixteenth, or 1,000, would leave words unknown."""
    first = ord("a") if letters == 26 else 0x4E00
    draw = random.Random(0)
    chances = [1 / (rank + 3) for rank in range(letters)]  # Zipf's
    drawn = draw.choices(range(first, first + letters), chances, k=40_000)
    words = ["".join(map(chr, drawn[at : at + 4])) for at in range(0, len(drawn), 4)]
    settings = TokenizerSettings(vocab_size, lowercase=True, min_frequency=2)
    tokenizer = TOKENIZERS.load(kind)([" ".join(words)] * 3, settings)
    ids = tokenizer.encode(" ".join(words), add_special_tokens=False).ids
    assert tokenizer.get_vocab_size() <= vocab_size
    assert ids.count(1) <= 0.001 * len(drawn), "each of a letter beyond 99.9 %"


def test_case_can_be_kept(corpus: Path, tmp_path: Path) -> None:
    tokenizer, _, _ = train(corpus, tmp_path / "t", vocab_size=1000, lowercase=False)
    assert tokenizer.decode(tokenizer.encode("The Return").ids) == "The Return"


def test_byte_bpe_is_lossless(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind="bpe", vocab_size=600)
    assert info["special_tokens"] == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4, "bos": 0, "eos": 2}
    assert info["unk_rate"] == 0 and info["lowercase"] is False
    for text in ("A value, of  two spaces\n", "Zürich 東京 🙂\0"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    before, after = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("The", " is"))
    masked = tokenizer.encode("The <mask> is", add_special_tokens=False).ids
    assert masked == [*before, 4, *after], "a mask takes the space before it, RoBERTa's does"


def test_gpt2_ends_texts_with_one_token(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind="gpt2", vocab_size=600)
    assert info["vocab_size"] == 600
    assert info["special_tokens"] == {"pad": 599, "unk": 598, "bos": 598, "eos": 598}
    assert tokenizer.encode("a b").ids == tokenizer.encode("a b", add_special_tokens=False).ids
    assert tokenizer.id_to_token(0) == "!" and tokenizer.id_to_token(255) == "Ń", "GPT-2's order of the bytes"
    text = "A value, of  two spaces\nZürich 東京 🙂\0"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text and info["unk_rate"] == 0


def test_words_end_in_gpt1s_bpe(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind="bpe-words", vocab_size=700)
    assert info["lowercase"] is True
    assert info["special_tokens"] == dict(pad=0, unk=1, cls=2, sep=4, bos=2, eos=4, delimiter=3)
    found = tokenizer.encode("The values, returned", "of it")
    assert found.tokens[0] == "<s>" and found.tokens[-1] == "</s>" and found.tokens.count("<delimiter>") == 1
    # every word ends in one piece with the mark, and in no other place
    words = [t for t in found.tokens if t not in ("<s>", "</s>", "<delimiter>")]
    assert "".join(words) == "the</w>values</w>,</w>returned</w>of</w>it</w>"
    assert tokenizer.decode(found.ids) == "the values , returned of it"
    assert sorted(tokenizer.get_vocab().values()) == list(range(700))
    assert [t.content for t in tokenizer.get_added_tokens_decoder().values()] == [
        "<pad>",
        "<unk>",
        "<s>",
        "<delimiter>",
        "</s>",
    ]


def test_t5s_sentinels_are_the_last_ids_descending(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, context = train(corpus, tmp_path / "t", kind="unigram", vocab_size=800)
    assert info["vocab_size"] == tokenizer.get_vocab_size() == 800 and not context.logged
    assert info["special_tokens"] == {"pad": 0, "unk": 2, "sep": 1, "bos": 1, "eos": 1} and info["lowercase"] is False
    assert sentinel_ids(tokenizer) == list(range(799, 699, -1)) and info["sentinels"] == 100
    found = tokenizer.encode("The values  of\nit.", "Not here")
    assert found.tokens.count("</s>") == 2 and found.tokens[-1] == "</s>" and found.tokens[0].startswith("▁")
    assert tokenizer.decode(found.ids) == "The values of it. Not here"
    assert 2 in tokenizer.encode("東").ids, "a letter outside the alphabet is unknown"
    few, info, _ = train(corpus, tmp_path / "few", kind="unigram", vocab_size=800, sentinels=3)
    assert sentinel_ids(few) == [799, 798, 797] and few.get_vocab_size() == 800


def test_unigram_for_encoders(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind="unigram-bert", vocab_size=800)
    assert info["special_tokens"] == dict(pad=0, unk=1, cls=2, sep=3, mask=4, bos=2, eos=3)
    found = tokenizer.encode("The Café", "naïve")
    assert found.tokens[0] == "[CLS]" and found.tokens[-1] == "[SEP]" and found.type_ids[-1] == 1
    assert tokenizer.decode(found.ids) == "the cafe naive"
    kept, info, _ = train(corpus, tmp_path / "kept", kind="unigram-bert", vocab_size=800, lowercase=False)
    assert kept.decode(kept.encode("The Return").ids) == "The Return" and info["sentinels"] == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_roles_are_known_before_training(corpus: Path, tmp_path: Path, kind: str) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind=kind, vocab_size=700)
    found = {*info["special_tokens"], *(["sentinels"] if info["sentinels"] else [])}
    assert found == set(ROLES_OF[kind]) == set(TrainTokenizer(corpus=CORPUS, kind=kind).roles)
    assert "sentinels" not in TrainTokenizer(corpus=CORPUS, kind=kind, sentinels=0).roles
    added = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    assert {tokenizer.id_to_token(i) for i in info["special_tokens"].values()} <= added


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_kinds_without_learning_serve_every_objective(corpus: Path, tmp_path: Path, kind: str) -> None:
    needed = {role for name in OBJECTIVES for role in parse({"kind": name}).needs}
    assert needed | {"delimiter"} <= set(ROLES_OF[kind]) and "sentinels" in needed
    tokenizer = TrainTokenizer(corpus=CORPUS, kind=kind)
    for name in OBJECTIVES:
        MakeExamples(corpus=CORPUS, tokenizer=tokenizer, objective=parse({"kind": name}))
    out = train(corpus, tmp_path / "t", kind=kind)[2].out
    task = MakeExamples(corpus=CORPUS, tokenizer=tokenizer, objective=parse({"kind": "span-corruption"}))
    assert run_stage(task, tmp_path / "e", corpus=corpus, tokenizer=out).metrics["train_sequences"] > 100


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_that_spells_a_special_token_is_text(corpus: Path, tmp_path: Path, kind: str) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind=kind, vocab_size=700)
    special = {i for i, t in tokenizer.get_added_tokens_decoder().items()} - {info["special_tokens"]["unk"]}
    text = " ".join(t.content for t in tokenizer.get_added_tokens_decoder().values())
    tokenizer.encode_special_tokens = True
    assert not special & set(tokenizer.encode(text, add_special_tokens=False).ids)


def test_unigram_pieces_are_settled() -> None:
    """The last digits of a logarithm are gone, and ties are in the order of their texts."""
    one = [("ba", -2.00001), ("ab", -2.00001 - 1e-12), ("c", -3.0)]
    two = [("c", -3.0), ("ab", -2.00001 + 2e-12), ("ba", -2.00001)]
    assert settled(one) == settled(two) == [("ab", -2.0), ("ba", -2.0), ("c", -3.0)]


def test_words_that_unigram_learns_from() -> None:
    words = {"aéb": 3, "ab": 2, "é": 5, "a" * 2500: 1}
    assert known_words(words, "ab") == [("a", 3), ("a" * 500, 1), ("a" * 1000, 2), ("ab", 2), ("b", 3)]


def test_bytes_are_byt5s(corpus: Path, tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    tokenizer, info, context = train(corpus, tmp_path / "t", kind="bytes", vocab_size=362)
    assert info["vocab_size"] == 362 and info["unk_rate"] == 0 and info["bytes_per_token"] == 1 and not context.logged
    roles = dict(pad=0, unk=2, cls=259, sep=1, mask=260, bos=259, eos=1, delimiter=261)
    assert info["special_tokens"] == roles and info["sentinels"] == 100
    assert sentinel_ids(tokenizer) == list(range(361, 261, -1))
    text = "A value, of  two spaces\n\tZürich 東京 🙂\0\x7f\xad"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == [byte + 3 for byte in text.encode()]
    assert ids == ByT5Tokenizer(extra_ids=0)(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("a", "b").tokens == ["<s>", "a", "</s>", "</s>", "b", "</s>"]
    more = train(corpus, tmp_path / "more", kind="bytes", vocab_size=1000)[2]
    assert more.logged == ["a vocabulary of bytes has 362 tokens, not the 1,000 of vocab_size"]


def test_characters_up_to_a_coverage(corpus: Path, tmp_path: Path) -> None:
    tokenizer, info, _ = train(corpus, tmp_path / "t", kind="characters", vocab_size=300, sentinels=2)
    text = "The value,  of é\nit"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(text) and ids.count(2) == 1 and tokenizer.encode("é").ids[1] == 2
    assert tokenizer.decode([n for n in ids if n != 2]) == text.replace("é", "")
    assert tokenizer.id_to_token(3) == "▁", "the most frequent one is the space"
    unk_rate = info["unk_rate"]
    assert 0 < unk_rate < 0.003
    assert sentinel_ids(tokenizer) == [info["vocab_size"] - 1, info["vocab_size"] - 2]
    starts = vocabulary_of(tokenizer.to_str(), info["special_tokens"]).starts_word
    assert starts[3] and not starts[4:].all()
    every, info, _ = train(corpus, tmp_path / "all", kind="characters", vocab_size=300, sentinels=0, coverage=1.0)
    assert info["vocab_size"] > tokenizer.get_vocab_size() - 2 and 2 not in every.encode("Café naïve Zürich").ids
    few, info, _ = train(corpus, tmp_path / "few", kind="characters", vocab_size=64, sentinels=0)
    assert info["vocab_size"] == 64 and info["unk_rate"] > unk_rate


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_the_info_says(corpus: Path, tmp_path: Path, kind: str) -> None:
    tokenizer, info, context = train(corpus, tmp_path / "t", kind=kind, vocab_size=900)
    assert [(e["class"], e["word"]) for e in info["examples"]] == list(EXAMPLES)
    marks = str.maketrans("", "", "#▁Ġ")
    for example in info["examples"]:
        cut = "".join(example["pieces"]).replace("</w>", "").translate(marks)
        assert cut.lower() == example["word"].lower() or "unk" in cut.lower()
    assert info["examples"][0]["pieces"] == tokenizer.encode(" hat", add_special_tokens=False).tokens
    figures = {"fertility_tokens_per_word", "bytes_per_token", "unk_rate", "whole_word_share", "vocab_size"}
    assert set(context.metrics) == figures and info["measured_on"] == "validation"
    assert context.timings["megabytes_per_second"] > 0


def test_same_bytes_in_every_process_and_on_any_number_of_threads(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "for name in sorted(os.environ, reverse=sys.argv[3] == '4'):  # in another order each time\n"
        "    os.environ[name] = os.environ.pop(name)\n"
        "from tasks.tokenizer import TOKENIZERS\n"
        "from tests.tasks.test_tokenizer import train\n"
        "for kind in TOKENIZERS:\n"
        "    train(Path(sys.argv[1]), Path(sys.argv[2]) / kind, kind=kind, vocab_size=700)"
    )
    found = []
    for threads in ("1", "2", "4"):
        out = tmp_path / threads
        out.mkdir()
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONHASHSEED": threads,
        }
        command = [sys.executable, "-c", code, str(corpus), str(out), threads]
        subprocess.run(command, check=True, env=environment)
        found.append(digests(out))
    assert len(found[0]) == 2 * len(TOKENIZERS) and found[0] == found[1] == found[2]


def test_a_sample_is_drawn_by_hash(corpus: Path, tmp_path: Path) -> None:
    found = [digests(train(corpus, tmp_path / str(i), vocab_size=500, sample_bytes=20_000)[2].out) for i in range(2)]
    assert found[0] == found[1]


def test_counting_in_workers_gives_the_same_tokenizer(corpus: Path, tmp_path: Path) -> None:
    import ray

    here = digests(train(corpus, tmp_path / "here", kind="unigram", vocab_size=500, sample_bytes=100_000)[2].out)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        there = digests(train(corpus, tmp_path / "ray", kind="unigram", vocab_size=500, sample_bytes=100_000)[2].out)
    finally:
        ray.shutdown()
    assert here == there


def test_a_sample_of_one_long_text_has_its_size(tmp_path: Path) -> None:
    text = " ".join(f"word{n} and" for n in range(200_000))
    (tmp_path / "book.txt").write_text(text)
    task = Ingest(source=str(tmp_path / "book.txt"), documents="file", validation_share=0)
    folder = run_stage(task, tmp_path / "corpus").out
    drawn = list(CorpusSample(folder, len(text) // 4))
    assert 0.1 < sum(map(len, drawn)) / len(text) < 0.4 and max(map(len, drawn)) <= 1 << 16
    assert "".join(CorpusSample(folder, len(text))) == text
    whole = CorpusSample(folder, len(text))
    assert count_letters(whole)["w"] == 200_000
    assert count_words(whole, Lowercase())["and"] == 200_000, "blocks are cut between words"
    assert list(blocks("x" * 70_000)) == ["x" * 65_536, "x" * 4_464]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_more_vocabulary_than_the_text_can_give(corpus: Path, tmp_path: Path, kind: str) -> None:
    tokenizer, info, context = train(corpus, tmp_path / "t", kind=kind, vocab_size=100_000)
    assert sorted(tokenizer.get_vocab().values()) == list(range(info["vocab_size"]))
    assert info["vocab_size"] == tokenizer.get_vocab_size() < 100_000 == info["requested_vocab_size"]
    assert context.logged == [
        f"a vocabulary of bytes has {info['vocab_size']} tokens, not the 100,000 of vocab_size"
        if kind == "bytes"
        else f"warning: the text gives {info['vocab_size']:,} tokens, not the 100,000 of vocab_size"
    ]


def test_bad_settings(corpus: Path, tmp_path: Path) -> None:
    for kind, least in (("bpe", 261), ("gpt2", 258), ("unigram", 164), ("bytes", 362), ("characters", 107)):
        with pytest.raises(BadConfig, match=f"at least {least}"):
            TrainTokenizer(corpus=CORPUS, kind=kind, vocab_size=100)
    for kind in ("wordpiece", "bpe-words", "unigram", "unigram-bert", "characters"):
        with pytest.raises(BadData, match="no characters to learn"):
            TOKENIZERS.load(kind)(["", ""] if kind == "characters" else [" ", ""], TokenizerSettings(200, True, 2))
    with pytest.raises(ValidationError, match="did you mean 'wordpiece'"):
        TrainTokenizer(corpus=CORPUS, kind="wordpeice")
