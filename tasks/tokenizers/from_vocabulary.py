"""The files of OpenAI's GPT-2 (a vocabulary and its merges) and of Google's BERT (a list of pieces)."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import BadData
from tasks.tokenizers.characters import spelled
from tasks.tokenizers.foreign import Foreign, Options, numbered, special

BYTE_OF = {spelled(value): value for value in range(256)}
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""GPT-2's words, as tiktoken writes them."""
_BRACKETED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ANGLED = ("<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>")


def read_gpt2(files: Mapping[str, Path], options: Options) -> Foreign:
    """`vocab.json` and `merges.txt` (or `encoder.json` and `vocab.bpe`): byte-level BPE, tried against tiktoken.

    Raises:
        BadData: a file is damaged, a merge makes a token that the vocabulary lacks, or it is not over bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = _vocabulary(next(path for name, path in files.items() if name.endswith(".json")))
    merges = _merges(next(path for name, path in files.items() if not name.endswith(".json")), vocabulary)
    vocabulary |= numbered(max(vocabulary.values()) + 1, options.added, vocabulary)
    prefix = bool(options.settings.get("add_prefix_space", False))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if {"<s>", "</s>"} <= set(vocabulary):  # RoBERTa's and BART's frame
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[(t, vocabulary[t]) for t in ("<s>", "</s>")],
        )
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special(tokenizer, [*_ANGLED, *(token for token, _ in options.added)])
    return Foreign(tokenizer, {}, _tiktoken_ids(vocabulary, merges, prefix))


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        ids = sorted(found.values())
        if ids != sorted(set(ids)) or not all(isinstance(n, int) and n >= 0 for n in ids) or not ids:
            raise ValueError("expected {token: id}, each id once")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadData(f"{path.name}: not a vocabulary: {error}", "fetch the file again") from None
    lacking = [symbol for symbol in BYTE_OF if symbol not in found]
    if lacking:
        ends = any(token.endswith("</w>") for token in found)
        raise BadData(
            f"{path.name}: {len(lacking)} of the 256 bytes are not in the vocabulary, as {lacking[0]!r}"
            + (": its words end in </w>, as GPT-1's" if ends else ""),
            "only byte-level vocabularies are read from these files; name a tokenizer.json",
        )
    return dict(found)


def _merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise BadData(f"{path.name}: not readable: {error}", "fetch the file again") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or any(part not in vocabulary for part in (*pair, "".join(pair))):
            raise BadData(
                f"{path.name}, line {number}: {line!r} is no merge of two tokens of the vocabulary into a third",
                "the files belong to different tokenizers, or one is damaged",
            )
        merges.append((pair[0], pair[1]))
    return merges


def _tiktoken_ids(
    vocabulary: Mapping[str, int], merges: list[tuple[str, str]], prefix: bool
) -> Callable[[str], list[int]]:
    """Ids by tiktoken, whose ranks are the merges' places, whatever the ids are."""
    import tiktoken

    tokens = [bytes([value]) for value in BYTE_OF.values()]
    tokens += [bytes(BYTE_OF[c] for c in left + right) for left, right in merges]
    ranks = {token: rank for rank, token in reversed(list(enumerate(tokens)))}
    encoding = tiktoken.Encoding("probe", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    by_bytes = {bytes(BYTE_OF[c] for c in t): n for t, n in vocabulary.items() if all(c in BYTE_OF for c in t)}

    def ids(text: str) -> list[int]:
        text = f" {text}" if prefix and text and not text[0].isspace() else text
        return [by_bytes[tokens[rank]] for rank in encoding.encode_ordinary(text)]

    return ids


def read_wordpiece(files: Mapping[str, Path], options: Options) -> Foreign:
    """`vocab.txt`: a piece a line, `##` continues a word; tried against BERT's own Python code.

    Whether text is lower-cased is `options.lowercase`, or `do_lower_case` of tokenizer_config.json, or so where no
    piece has a capital letter.

    Raises:
        BadData: a piece stands twice, or there is no [UNK].
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    (path,) = files.values()
    vocabulary = _pieces(path)
    vocabulary |= numbered(len(vocabulary), options.added, vocabulary)
    lower = options.lowercase
    lower = options.settings.get("do_lower_case") if lower is None else lower
    if lower is None:
        lower = not any(c.isupper() for piece in vocabulary if piece[:1] not in "[<" for c in piece)
    accents = options.settings.get("strip_accents")
    chinese = bool(options.settings.get("tokenize_chinese_chars", True))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lower, strip_accents=accents, handle_chinese_chars=chinese
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special(tokenizer, [*_BRACKETED, *(token for token, _ in options.added)])
    if {"[CLS]", "[SEP]"} <= set(vocabulary):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")],
        )
    return Foreign(tokenizer, {}, _bert_ids(vocabulary, bool(lower), accents, chinese))


def _pieces(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise BadData(f"{path.name}: not readable: {error}", "fetch the file again") from None
    pieces = [line.rstrip("\r") for line in (lines[:-1] if lines and not lines[-1] else lines)]
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if first.setdefault(piece, number) != number:
            raise BadData(f"{path.name}, line {number + 1}: {piece!r} stands in line {first[piece] + 1} already")
    if "[UNK]" not in first:
        raise BadData(f"{path.name}: has no [UNK] among its {len(first):,} lines, so it is no BERT vocabulary")
    return first


def _bert_ids(
    vocabulary: Mapping[str, int], lower: bool, accents: bool | None, chinese: bool
) -> Callable[[str], list[int] | None]:
    from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer, WordpieceTokenizer

    words: Any = BasicTokenizer(do_lower_case=lower, strip_accents=accents, tokenize_chinese_chars=chinese)
    pieces: Any = WordpieceTokenizer(vocab=vocabulary, unk_token="[UNK]")

    def ids(text: str) -> list[int] | None:
        if not unicodedata.is_normalized("NFC", text) and not lower:
            return None  # it composes cased text first, which BERT itself did not
        return [vocabulary[piece] for word in words.tokenize(text) for piece in pieces.tokenize(word)]

    return ids
