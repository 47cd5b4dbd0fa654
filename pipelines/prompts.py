"""Between text and a model's ids: what stands around a prompt, where masks are, and text as it streams.

A prompt looks as the rows did that the model was trained on: the objective in its head's settings says how those
begin and end. A model from the Hub has no objective; there the tokenizer's own template says it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.errors import BadConfig

MASK = "[MASK]"
ROW_TOKENS = 64  # any length: only what rows begin and end with is asked for
BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character


class TextModel(NamedTuple):
    """A model with what turns text into its ids and back."""

    folder: Path
    model: Any
    """In evaluation mode, on the GPU if there is one."""
    tokenizer: Any
    roles: Mapping[str, int]
    """{role: id} of the special tokens."""
    settings: Mapping[str, Any]
    """Of the head: the objective that the model was trained on, with its `kind`; other keys if it was imported."""

    @property
    def architecture(self) -> str:
        return str(self.model.config.architecture)

    @property
    def continues(self) -> bool:
        """What it writes goes on from the prompt, and does not answer it."""
        kind = self.settings.get("kind")
        return kind in ("causal", "prefix") or (kind is None and self.architecture == "decoder")


def load_text_model(folder: Path, said: str = "") -> TextModel:
    """The pretrained model in a folder, with its tokenizer.

    Args:
        said: what the user called it, for messages: a folder of the Hub is read from the cache.

    Raises:
        ConfigError: a fine-tuned model, or files of the model are missing.
        BadConfig: weights are damaged, the tokenizer is missing or of another vocabulary.
    """
    import torch
    from safetensors import SafetensorError
    from tokenizers import Tokenizer

    from modeling.checkpoint import load_head, load_model

    try:
        model = load_model(folder)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadConfig(f"{folder}: its weights cannot be read: {reason}", "make or copy the model again") from None
    path, info = folder / "tokenizer.json", folder / "tokenizer-info.json"
    for needed in (path, info):
        if not needed.is_file():
            raise BadConfig(
                f"{said or folder} has no {needed.name}", "put the tokenizer that the model was trained with beside it"
            )
    try:
        tokenizer = Tokenizer.from_file(str(path))
        roles = dict(json.loads(info.read_text(encoding="utf-8"))["special_tokens"])
    except Exception as error:  # the library has no exception of its own
        raise BadConfig(f"{folder}: its tokenizer cannot be read: {error}", "copy it again") from None
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise BadConfig(
            f"{path} has {tokenizer.get_vocab_size()} tokens, the model's vocab_size is {model.config.vocab_size}",
            "the tokenizer belongs to another model",
        )
    if torch.cuda.is_available():
        model = model.to("cuda")
    return TextModel(folder, model, tokenizer, roles, load_head(folder)["settings"])


# ---------------------------------------------------------------- text to ids


def encode_prompt(text_model: TextModel, text: str) -> list[int]:
    """The ids of a prompt as the model's training rows would have them; may be empty for an empty text."""
    return _framed(text_model, text_model.tokenizer, text)


def encode_masked(text_model: TextModel, text: str) -> list[int]:
    """The ids of a text with masks, spelled [MASK] or as the tokenizer does.

    A mask stands for a word with the space before it, as in training, so the text's own space there is dropped.

    Raises:
        BadConfig: the text has no mask, or the tokenizer has no mask token.
    """
    from tokenizers import AddedToken, Tokenizer

    if "mask" not in text_model.roles:
        raise BadConfig(f"{text_model.folder}: the tokenizer has no mask token", "the model fills no masks")
    own = text_model.tokenizer.id_to_token(text_model.roles["mask"])
    spellings = "|".join(re.escape(s) for s in {MASK, own})
    text, count = re.subn(rf"\s*(?:{spellings})", lambda _: own, text)
    if not count:
        also = f" or {own}" if own != MASK else ""
        raise BadConfig(f"the text has no {MASK}{also}: there is nothing to fill", f'write it: "The {MASK} is red."')
    tokenizer = Tokenizer.from_str(text_model.tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(own, normalized=False)])  # where it was an ordinary word
    return _framed(text_model, tokenizer, text)


def _framed(text_model: TextModel, tokenizer: Any, text: str) -> list[int]:
    """The text's ids with what the model's training rows begin and end with."""
    roles, kind = text_model.roles, text_model.settings.get("kind")
    if kind is None:
        reads_whole = text_model.architecture in ("encoder", "encoder-decoder")
        return list(tokenizer.encode(text, add_special_tokens=reads_whole).ids)
    from tasks.objectives.settings import parse

    objective = parse(dict(text_model.settings))
    layout = objective.layout(ROW_TOKENS)
    begin, end = list(layout.begin), list(layout.end)
    if kind == "causal":
        begin = [layout.separator]  # it stands before each document
    elif objective.paired:
        if text_model.architecture != "encoder-decoder":
            begin = ["pad", *begin]  # inputs and targets in one row, shifted right
        if kind != "prefix" and not end:
            end = ["eos"]  # the inputs' own
    ids = _cut_as_rows(tokenizer, text)
    return [*(roles[r] for r in begin if r in roles), *ids, *(roles[r] for r in end if r in roles)]


def _cut_as_rows(tokenizer: Any, text: str) -> list[int]:
    """The text's ids, where what touches a mask or a sentinel on its right begins no word.

    In rows these stand in the place of tokens, so "is <mask>." ends with the piece "." there. A tokenizer whose pieces
    have the space before a word in them (SentencePiece's ▁) begins a word behind every special token: "▁" and ".".
    """
    layout = json.loads(tokenizer.to_str())
    inside = _without_first_space(layout["pre_tokenizer"])
    special = [each["content"] for each in layout["added_tokens"]]
    if inside == layout["pre_tokenizer"] or not special:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    from tokenizers import Tokenizer

    touched = Tokenizer.from_str(json.dumps({**layout, "pre_tokenizer": inside}))
    spelled = "|".join(re.escape(each) for each in sorted(special, key=len, reverse=True))
    parts = re.split(rf"(\s*(?:{spelled})(?:(?!{spelled})\S)+)", text)  # every second one is touched
    cut = [(touched if n % 2 else tokenizer).encode(part, add_special_tokens=False).ids for n, part in enumerate(parts)]
    return [i for ids in cut for i in ids]


def _without_first_space(step: Any) -> Any:
    """A pre-tokenizer's settings, where it adds no space before the first word."""
    if isinstance(step, dict):
        own = {"prepend_scheme": "never", "add_prefix_space": False}
        return {name: own.get(name, _without_first_space(value)) for name, value in step.items()}
    return [_without_first_space(each) for each in step] if isinstance(step, list) else step


def generation_ids(text_model: TextModel) -> dict[str, tuple[int, ...]]:
    """`start`, `stop` and `never` of `modeling.generation.Generation` for a model.

    A text ends with the end-of-text token. Special tokens are never said, but for that one, sentinels (which answer
    T5's), and in an encoder-decoder the token that begins a text (BART's targets do); nor are ids of no token, of which
    models of the Hub have some (T5 has 32,128 rows for 32,100 tokens).
    """
    roles, settings = text_model.roles, text_model.settings
    two_stacks = text_model.architecture == "encoder-decoder"
    stop = {roles[r] for r in ("eos",) if r in roles}
    said = stop | ({roles["bos"]} if two_stacks and "bos" in roles else set())
    if two_stacks:
        first = settings.get("decoder_start_token_id", roles.get("pad"))
    else:
        first = roles.get("bos", roles.get("eos"))
    return {
        "start": () if first is None else (int(first),),
        "stop": tuple(sorted(stop)),
        "never": tuple(sorted({*roles.values(), *ids_of_nothing(text_model)} - said)),
    }


def ids_of_nothing(text_model: TextModel) -> list[int]:
    """Ids below the model's vocab_size that the tokenizer has no token for."""
    known = set(text_model.tokenizer.get_vocab(with_added_tokens=True).values())
    return [i for i in range(text_model.model.config.vocab_size) if i not in known]


# ---------------------------------------------------------------- ids to text


def decode(text_model: TextModel, ids: Sequence[int]) -> str:
    """The text of ids, without special tokens; sentinels are shown."""
    special = set(text_model.roles.values())
    return str(text_model.tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=False))


class Stream:
    """Text of ids that come one by one, each character as soon as it is certain.

    Everything so far is decoded again and what is new is told, so that spaces between words are right for every kind of
    tokenizer. An unfinished character (half of its bytes) waits for its end.

    Args:
        context: ids that the text continues; they are not told.
    """

    def __init__(self, text_model: TextModel, context: Sequence[int] = ()) -> None:
        self.text_model, self.ids = text_model, list(context)
        self.told = len(decode(text_model, self.ids))

    def add(self, token: int) -> str:
        """What is certain now and was not before."""
        self.ids.append(token)
        return self._new(decode(self.text_model, self.ids).rstrip(BROKEN))

    def end(self) -> str:
        """What is left: bytes that never became a character are shown as U+FFFD."""
        return self._new(decode(self.text_model, self.ids))

    def _new(self, text: str) -> str:
        new = text[self.told :]
        self.told = max(self.told, len(text))
        return new
