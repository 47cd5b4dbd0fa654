"""ImportTokenizer: other libraries' files become tokenizer.json with the same ids, or are refused."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import Tokenizer

from cluster.errors import BadConfig, BadData
from modeling.errors import ConfigError
from tasks.imported import ImportTokenizer
from tasks.ingest import Ingest
from tasks.tokenizers import from_tiktoken
from tasks.tokenizers.characters import spelled
from tasks.tokenizers.foreign import PROBES
from tasks.tokenizers.from_vocabulary import GPT2_PATTERN
from tests.tasks.stage import FolderContext, digests, run_stage

WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran", "to", "other", "cats", "while", "birds"),
    *("sang", "of", "summer", "rain", "over", "quiet", "towns"),
]
LINES = [" ".join(WORDS[n % 7 :: 1 + n % 3]) + f" {n}, isn't it? (Yes: {n * 7}!)" for n in range(200)]
TEXTS = [*LINES, *(probe for probe in PROBES if probe), "<s> </s> <extra_id_0> [MASK]"]


def imported(source: Path | str, out: Path, **fields: Any) -> tuple[Tokenizer, dict[str, Any], FolderContext]:
    context = run_stage(ImportTokenizer(source=str(source), **fields), out)
    info = json.loads((out / "tokenizer-info.json").read_text())
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer, info, context


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


# ---------------------------------------------------------------- byte-level BPE


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Byte-pair ranks learnt from the texts, by tiktoken's own educational trainer."""
    from tiktoken._educational import bpe_train

    return dict(bpe_train(data="\n".join([*LINES[:40], *PROBES]), vocab_size=500, pat_str=GPT2_PATTERN, visualise=None))


def gpt2_files(folder: Path, ranks: dict[bytes, int], extra: dict[str, int], shift: int = 0) -> Path:
    """vocab.json and merges.txt; ids are the ranks and `shift`."""
    folder.mkdir()
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = bpe_parts(ranks, token, rank)
            merges.append(" ".join("".join(map(spelled, part)) for part in parts))
    vocabulary = {"".join(map(spelled, token)): rank + shift for token, rank in ranks.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary | extra))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def bpe_parts(ranks: dict[bytes, int], token: bytes, limit: int) -> list[bytes]:
    """The two parts a token was merged of: merging goes on as long as ranks are below its own."""
    parts = [bytes([value]) for value in token]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda n: ranks.get(parts[n] + parts[n + 1], limit))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def test_gpt2s_files(ranks: dict[bytes, int], tmp_path: Path) -> None:
    source = gpt2_files(tmp_path / "gpt2", ranks, {"<|endoftext|>": 500})
    original = tiktoken.Encoding("t", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    tokenizer, info, _ = imported(source, tmp_path / "out")
    for text in (*PROBES, *LINES[::5]):
        assert ids(tokenizer, text) == original.encode_ordinary(text)
        assert tokenizer.decode(ids(tokenizer, text)) == text
    assert info["special_tokens"] == {"pad": 500, "cls": 500, "sep": 500, "bos": 500, "eos": 500}
    assert (info["kind"], info["format"], info["vocab_size"]) == ("bpe", "gpt2", 501)

    # the older names of the same files
    other = tmp_path / "openai"
    other.mkdir()
    shutil.copy(source / "vocab.json", other / "encoder.json")
    shutil.copy(source / "merges.txt", other / "vocab.bpe")
    again = imported(other, tmp_path / "again")[2]
    assert digests(again.out) == digests(tmp_path / "out")


def test_robertas_ids_are_not_in_the_order_of_merges(ranks: dict[bytes, int], tmp_path: Path) -> None:
    first = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    source = gpt2_files(tmp_path / "roberta", ranks, {**first, "<mask>": 504}, shift=4)
    tokenizer, info, _ = imported(source, tmp_path / "out")
    assert info["special_tokens"] == dict(pad=1, unk=3, cls=0, sep=2, mask=504, bos=0, eos=2)
    assert tokenizer.encode("the").ids == [0, *ids(tokenizer, "the"), 2]
    tokenizer.encode_special_tokens = False
    assert ids(tokenizer, "a <mask>") == [*ids(tokenizer, "a"), 504]


def test_damaged_gpt2_files_are_named(ranks: dict[bytes, int], tmp_path: Path) -> None:
    source = gpt2_files(tmp_path / "gpt2", ranks, {})
    merges = (source / "merges.txt").read_text()
    (source / "merges.txt").write_text(merges + "zz qq\n")
    with pytest.raises(BadData, match=r"merges.txt, line \d+: 'zz qq' is no merge"):
        imported(source, tmp_path / "a")
    (source / "merges.txt").write_text(merges)
    (source / "vocab.json").write_text('{"a</w>": 0, "b</w>": 1}')
    with pytest.raises(BadData, match="256 of the 256 bytes are not in the vocabulary.*as GPT-1's"):
        imported(source, tmp_path / "b")
    (source / "vocab.json").write_text('{"a": 0, "b": 0}')
    with pytest.raises(BadData, match="each id once"):
        imported(source, tmp_path / "c")


# ---------------------------------------------------------------- tiktoken


def rank_file(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_tiktokens_rank_files_with_each_pattern(name: str, ranks: dict[bytes, int], tmp_path: Path) -> None:
    pattern = from_tiktoken.encoding(name).pattern
    original = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    source = rank_file(tmp_path / "mine.tiktoken", ranks)
    by_name, _, _ = imported(source, tmp_path / "name", pattern=name)
    spelled_out, info, _ = imported(source, tmp_path / "pattern", pattern=pattern, added_tokens={"eos": "<|end|>"})
    for text in (*PROBES, *LINES[::5], "12345678 1234\n\n \n x", "WHAT'S it'S\r\n\r\n", "a  \n"):
        assert ids(by_name, text) == ids(spelled_out, text) == original.encode_ordinary(text), text
        assert by_name.decode(ids(by_name, text)) == text
    assert info["special_tokens"]["eos"] == 500 and info["vocab_size"] == 501
    assert by_name.get_vocab_size() == 500, "a pattern brings no tokens"
    (tmp_path / "named").mkdir()
    own = imported(rank_file(tmp_path / "named" / f"{name}.tiktoken", ranks), tmp_path / "own")[0]
    assert own.token_to_id("<|endoftext|>") == from_tiktoken.encoding(name).special_tokens["<|endoftext|>"]
    assert ids(own, LINES[0]) == ids(by_name, LINES[0])


def test_a_rank_file_alone_does_not_say_how_words_are_cut(ranks: dict[bytes, int], tmp_path: Path) -> None:
    source = rank_file(tmp_path / "mine.tiktoken", ranks)
    with pytest.raises(BadConfig, match=r"does not say how text is cut[\s\S]*cl100k_base"):
        imported(source, tmp_path / "a")
    with pytest.raises(BadConfig, match="pattern: .* cannot be used"):
        imported(source, tmp_path / "b", pattern="(")
    less = {token: rank for token, rank in ranks.items() if token != b"A"}
    with pytest.raises(BadData, match="lacks 1 of the 256 bytes"):
        imported(rank_file(tmp_path / "less.tiktoken", less), tmp_path / "c", pattern="gpt2")
    (tmp_path / "broken.tiktoken").write_text("QQ== 0\nno base64!\n")
    with pytest.raises(BadData, match="broken.tiktoken, line 2: b'no base64!'"):
        imported(tmp_path / "broken.tiktoken", tmp_path / "d", pattern="gpt2")


def test_a_model_file_may_be_tiktokens(ranks: dict[bytes, int], tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    rank_file(tmp_path / "llama" / "tokenizer.model", ranks)
    tokens = {str(500 + n): {"content": t} for n, t in enumerate(["<|begin_of_text|>", "<|end_of_text|>"])}
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    task = ImportTokenizer(source=str(tmp_path / "llama"), pattern="cl100k_base")
    assert task.format == "tiktoken"
    info = imported(tmp_path / "llama", tmp_path / "out", pattern="cl100k_base")[1]
    assert info["special_tokens"] == dict(pad=501, cls=500, sep=501, bos=500, eos=501)


def test_encodings_by_name_come_from_the_cache_alone(
    ranks: dict[bytes, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    with pytest.raises(BadConfig, match=r"r50k_base.tiktoken is not in tiktoken's cache[\s\S]*get_encoding"):
        ImportTokenizer(source="tiktoken:r50k_base").external()
    with pytest.raises(BadConfig, match="knows no encoding 'r51k'"):
        ImportTokenizer(source="tiktoken:r51k").external()
    found = from_tiktoken.encoding("r50k_base")
    assert found.special_tokens == {"<|endoftext|>": 50256}
    rank_file(found.cached["r50k_base.tiktoken"], ranks)
    tokenizer, info, _ = imported("tiktoken:r50k_base", tmp_path / "out")
    assert info["special_tokens"]["eos"] == 50256 and info["vocab_size"] == 50257
    assert tokenizer.decode(ids(tokenizer, "the cat's mat")) == "the cat's mat"
    source = gpt2_files(tmp_path / "gpt2", ranks, {"<|endoftext|>": 500})
    for name, path in from_tiktoken.encoding("gpt2").cached.items():
        shutil.copy(source / ("vocab.json" if name == "encoder.json" else "merges.txt"), path)
    assert imported("tiktoken:gpt2", tmp_path / "named")[1]["format"] == "gpt2"
    assert set(from_tiktoken.encoding("o200k_harmony").cached) == {"o200k_base.tiktoken"}
    assert from_tiktoken.encoding("o200k_harmony").special_tokens["<|call|>"] == 200012


def test_patterns_are_translated() -> None:
    assert from_tiktoken.oniguruma(r"\p{N}{1,3}+|\s++$|[^a$]{2}+") == r"(?>\p{N}{1,3})|\s++\z|(?>[^a$]{2})"
    assert from_tiktoken.oniguruma(r"(?:ab|[c\]]){2,}+x\$\{1}+") == r"(?>(?:ab|[c\]]){2,})x\$\{1}+"
    assert from_tiktoken.oniguruma(r"(?i:'s|'t)?a{2}") == r"(?i:'s|'t)?a{2}"


# ---------------------------------------------------------------- WordPiece


def vocabulary_file(folder: Path, cased: bool) -> Path:
    folder.mkdir()
    letters = sorted({c for text in TEXTS for c in (text if cased else text.lower()) if not c.isspace()})
    pieces = [*WORDS, "un", "##aff", "##able", "##s", "The", "café"] if cased else [*WORDS, "##s", "cafe"]
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pieces, *("##" + c for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(lines)) + "\n")
    return folder


@pytest.mark.parametrize("cased", [True, False])
def test_berts_vocab_txt(cased: bool, tmp_path: Path) -> None:
    source = vocabulary_file(tmp_path / "bert", cased)
    tokenizer, info, _ = imported(source, tmp_path / "out")
    assert info["lowercase"] is not cased, "found by the pieces' letters"
    assert info["special_tokens"] == dict(pad=0, unk=1, cls=2, sep=3, mask=4, bos=2, eos=3)
    found = tokenizer.encode("The mats", "unaffable")
    assert found.tokens[0] == "[CLS]" and found.tokens[-1] == "[SEP]" and found.type_ids[-1] == 1
    assert ("The" in found.tokens) == cased and "##s" in found.tokens
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": cased}))
    assert imported(source, tmp_path / "said")[1]["lowercase"] is cased
    assert imported(source, tmp_path / "given", lowercase=not cased)[1]["lowercase"] is not cased


def test_damaged_vocab_txt(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\ncat\nthe\n")
    with pytest.raises(BadData, match="vocab.txt, line 4: 'the' stands in line 2 already"):
        imported(tmp_path / "vocab.txt", tmp_path / "a")
    (tmp_path / "vocab.txt").write_text("the\n")
    with pytest.raises(BadData, match=r"has no \[UNK\] among its 1 lines"):
        imported(tmp_path / "vocab.txt", tmp_path / "b")


# ---------------------------------------------------------------- what all formats share


@pytest.fixture
def gpt2(ranks: dict[bytes, int], tmp_path: Path) -> Iterator[Path]:
    yield gpt2_files(tmp_path / "plain", ranks, {"<|endoftext|>": 500})


def test_roles_are_given_and_added(gpt2: Path, tmp_path: Path) -> None:
    fields = {
        "special_tokens": {"cls": "<|endoftext|>"},
        "added_tokens": {"pad": "<pad>", "mask": "<mask>", "delimiter": "<delimiter>"},
        "sentinels": 2,
    }
    tokenizer, info, _ = imported(gpt2, tmp_path / "out", **fields)
    roles = info["special_tokens"]
    assert (roles["cls"], roles["pad"], roles["mask"], roles["delimiter"]) == (500, 501, 502, 503)
    assert tokenizer.token_to_id("<extra_id_0>") == 505 and info["sentinels"] == 2 and info["vocab_size"] == 506
    assert all(n < 500 for n in ids(tokenizer, "<pad> <mask> <extra_id_0> <|endoftext|>"))
    # the same again from what came out, now a tokenizer.json of Triptych's
    again, second, _ = imported(tmp_path / "out", tmp_path / "again")
    assert second["special_tokens"] == roles and again.to_str() == tokenizer.to_str()
    more = imported(tmp_path / "out", tmp_path / "more", added_tokens={"sep": "<sep>"})[1]
    assert more["special_tokens"] == roles | {"sep": 506} and more["vocab_size"] == 507
    with pytest.raises(ConfigError, match="special_tokens.eos: the vocabulary has no token '<|endoftex|>'; did you"):
        imported(gpt2, tmp_path / "a", special_tokens={"eos": "<|endoftex|>"})
    with pytest.raises(BadConfig, match="no role 'end'"):
        ImportTokenizer(source=str(gpt2), special_tokens={"end": "x"})
    with pytest.raises(BadConfig, match="stands in special_tokens and in added_tokens"):
        ImportTokenizer(source=str(gpt2), special_tokens={"pad": "x"}, added_tokens={"pad": "y"})


def test_figures_where_a_corpus_is_given(gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(LINES))
    corpus = run_stage(Ingest(source=str(tmp_path / "corpus.txt"), documents="line"), tmp_path / "corpus").out
    task = ImportTokenizer(source=str(gpt2), corpus=Ingest(source="corpus.txt"))
    context = run_stage(task, tmp_path / "out", corpus=corpus)
    info = json.loads((tmp_path / "out" / "tokenizer-info.json").read_text())
    assert info["unk_rate"] == 0 and 1 < info["fertility_tokens_per_word"] < 5
    assert context.metrics["bytes_per_token"] == info["bytes_per_token"] > 1


def test_the_format_is_part_of_the_key_and_the_place_is_not(gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("no part of it")
    first, second = ImportTokenizer(source=str(gpt2)), ImportTokenizer(source=str(tmp_path / "moved"))
    assert first.format == second.format == "gpt2" and first.external() == second.external()
    with pytest.raises(BadConfig, match=r"has no vocab.txt[\s\S]*it holds: merges.txt, vocab.json"):
        ImportTokenizer(source=str(gpt2), format="wordpiece").external()
    names = [file["name"] for file in first.external()["files"]]
    assert names == ["vocab.json", "merges.txt"]
    assert hashlib.blake2b((gpt2 / "vocab.json").read_bytes(), digest_size=20).hexdigest() in str(first.external())
