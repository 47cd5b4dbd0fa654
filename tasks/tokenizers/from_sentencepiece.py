"""SentencePiece's `.model`: Unigram, BPE and character models, with their normalisation (Kudo & Richardson 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import BadData
from tasks.tokenizers.charsmap import normalizers_of
from tasks.tokenizers.foreign import Foreign, Options, numbered, special

SPACE = "▁"
_NEVER = -1000.0  # score of a special token: a text that spells one is cheaper to cut into its letters
_UNKNOWN = "\uffff"
_NAMED = ("[CLS]", "[SEP]", "[MASK]", "[PAD]", "<cls>", "<sep>", "<mask>", "<pad>", "<s>", "</s>")


def read(files: Mapping[str, Path], options: Options) -> Foreign:
    """The model with its control symbols as special tokens, tried against sentencepiece.

    Raises:
        BadData: the file is damaged, or a model of words, or one whose spaces follow the words.
    """
    import sentencepiece as spm
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    (path,) = files.values()
    proto = _proto(path)
    spec, rules = proto.trainer_spec, proto.normalizer_spec
    pieces = proto.pieces
    Kind = type(pieces[0])
    texts = [p.piece for p in pieces if p.type in (Kind.NORMAL, Kind.USER_DEFINED)]
    symbols = [p.piece for p in pieces if p.type == Kind.USER_DEFINED and p.piece not in _NAMED]
    given = {p.piece: n for n, p in enumerate(pieces)}
    extra = sorted(
        numbered(len(pieces), [*options.added, *_t5_sentinels(options, given)], given).items(), key=lambda t: t[1]
    )
    if [number for _, number in extra] != list(range(len(pieces), len(pieces) + len(extra))):
        raise BadData(
            f"{path.name} has {len(pieces):,} pieces, and the added tokens have ids {[n for _, n in extra]}",
            "their ids must follow the pieces'",
        )
    unigram = spec.model_type == spec.UNIGRAM
    added = [token for token, _ in extra]
    model = _unigram(pieces, added) if unigram else _bpe(pieces, added)
    tokenizer = Tokenizer(model)

    steps = normalizers_of(rules.precompiled_charsmap)
    if rules.remove_extra_whitespaces:
        steps += [_replace(r"\A +| +\z", ""), _replace(" {2,}", " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    steps.append(normalizers.Replace(" ", SPACE))
    if rules.remove_extra_whitespaces:
        steps.append(_replace(rf"{SPACE}+\z", ""))
    control = [p.piece for p in pieces if p.type in (Kind.CONTROL, Kind.UNKNOWN)]
    escaped_only = len(steps) == 1
    if unigram and not _has_bytes(pieces):
        # A name as </s> in a text would be cheaper as one piece than with an unknown letter: the letter is made one
        # that stands in no name.
        steps += [normalizers.Replace(c, _UNKNOWN) for c in sorted({*"".join([*control, *added])} - {*"".join(texts)})]
    tokenizer.normalizer = normalizers.Sequence(steps)
    if SPACE in given and not any(SPACE in text[1:] for text in texts):
        # no piece goes over a space, so words are cut by themselves, which is much quicker
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True)
    strip = 1 << 16 if rules.remove_extra_whitespaces else int(rules.add_dummy_prefix)
    after = [decoders.Strip(" ", strip, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )

    special(tokenizer, [*control, *(t for t in _NAMED if t in given), *added])
    if not unigram:  # whole, wherever they stand; a Unigram model gives them a score instead
        # where spaces are escaped and nothing else, a symbol's own spelling is the same before and after
        tokenizer.add_tokens([_symbol(text, escaped_only) for text in symbols])
    _frame(tokenizer, options)
    original = spm.SentencePieceProcessor(model_proto=proto.SerializeToString())
    probes = [f"{t} a{t}b {t}{t} c" for t in symbols[:64]]
    scores = [p.score for p in pieces] if unigram else []
    return Foreign(tokenizer, _roles(proto), original.encode, probes, scores)


def _proto(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # made at run time
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise BadData(f"{path.name}: not a SentencePiece model: {error}", "fetch the file again") from None
    if not proto.pieces:
        raise BadData(f"{path.name}: not a SentencePiece model: it has no pieces", "fetch the file again")
    spec, rules = proto.trainer_spec, proto.normalizer_spec
    for cannot, what in (
        (spec.model_type == spec.WORD, "a model of words"),
        (spec.treat_whitespace_as_suffix, "a model whose spaces follow the words"),
        (not rules.escape_whitespaces, "a model that keeps spaces as they are"),
    ):
        if cannot:
            raise BadData(f"{path.name} is {what}", "only Unigram, BPE and character models are read")
    return proto


def _roles(proto: Any) -> dict[str, str]:
    spec = proto.trainer_spec
    ids = {"unk": spec.unk_id, "bos": spec.bos_id, "eos": spec.eos_id, "pad": spec.pad_id}
    pieces = proto.pieces
    Kind = type(pieces[0])
    return {
        role: pieces[n].piece
        for role, n in ids.items()
        if 0 <= n < len(pieces) and pieces[n].type in (Kind.CONTROL, Kind.UNKNOWN)
    }


def _t5_sentinels(options: Options, given: Mapping[str, int]) -> list[tuple[str, None]]:
    """T5's, which stand in tokenizer_config.json as a number: descending, so that <extra_id_0> is the last id."""
    count = options.settings.get("extra_ids", 0)
    names = [f"<extra_id_{n}>" for n in reversed(range(count if isinstance(count, int) else 0))]
    known = {*given, *(token for token, _ in options.added)}
    return [(name, None) for name in names if name not in known]


def _unigram(pieces: Any, added: list[str]) -> Any:
    """The scores as they are; a user's symbol gets the one that SentencePiece gives it, by its length in bytes."""
    from tokenizers import models

    Kind = type(pieces[0])
    normal = [p.score for p in pieces if p.type == Kind.NORMAL]
    least, most = min(normal, default=0.0), max(normal, default=0.0)
    texts = [p.piece for p in pieces if p.type == Kind.NORMAL]
    # The score of an unknown letter stands below the least of all. It decides nothing where each letter is a piece.
    never = _NEVER if {c for text in texts for c in text} <= set(texts) else least
    vocabulary = []
    for p in pieces:
        score = p.score if p.type == Kind.NORMAL else never
        if p.type == Kind.USER_DEFINED and p.piece not in _NAMED:
            score = len(p.piece.encode()) * most - 0.1
        vocabulary.append((p.piece, score))
    unk = next((n for n, p in enumerate(pieces) if p.type == Kind.UNKNOWN), None)
    vocabulary += [(token, never) for token in added]
    return models.Unigram(vocabulary, unk_id=unk, byte_fallback=_has_bytes(pieces))


def _bpe(pieces: Any, added: list[str]) -> Any:
    """A merge for every cut of a piece into two, in the order of the pieces' scores."""
    from tokenizers import models

    Kind = type(pieces[0])
    vocabulary = {p.piece: n for n, p in enumerate(pieces)}
    normal = {p.piece for p in pieces if p.type == Kind.NORMAL}
    merges = []
    for p in pieces:
        for at in range(1, len(p.piece) if p.type == Kind.NORMAL else 0):
            left, right = p.piece[:at], p.piece[at:]
            if left in normal and right in normal:
                merges.append((-p.score, vocabulary[p.piece], vocabulary[left], vocabulary[right], left, right))
    unk = next((p.piece for p in pieces if p.type == Kind.UNKNOWN), None)
    vocabulary |= {token: len(pieces) + n for n, token in enumerate(added)}
    cuts = [(left, right) for *_, left, right in sorted(merges)]
    return models.BPE(vocabulary, cuts, unk_token=unk, fuse_unk=True, byte_fallback=_has_bytes(pieces))


def _has_bytes(pieces: Any) -> bool:
    """Whether a letter outside the vocabulary becomes its bytes."""
    return sum(p.type == type(p).BYTE for p in pieces) == 256


def _symbol(text: str, normalized: bool) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, special=False, normalized=normalized)


def _replace(pattern: str, content: str) -> Any:
    from tokenizers import Regex, normalizers

    return normalizers.Replace(Regex(pattern), content)


def _frame(tokenizer: Any, options: Options) -> None:
    """What an encoded text begins and ends with: as tokenizer_config.json says, or BERT's where it has its tokens."""
    from tokenizers import processors

    settings = options.settings
    known = {t: n for t in ("[CLS]", "[SEP]", "<s>", "</s>") if (n := tokenizer.token_to_id(t)) is not None}
    if {"[CLS]", "[SEP]"} <= set(known):
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    else:
        t5 = str(settings.get("tokenizer_class", "")).startswith(("T5", "MT5"))
        begin = "<s> " if settings.get("add_bos_token") and "<s>" in known else ""
        end = " </s>" if (settings.get("add_eos_token") or t5) and "</s>" in known else ""
        if not begin and not end:
            return
        single, pair = f"{begin}$A{end}", f"{begin}$A{end} {begin}$B{end}"
    used = [(t, n) for t, n in known.items() if t in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
