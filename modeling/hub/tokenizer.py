"""Tokenizer files of the Hub's layout, and the special tokens they name, by role."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from modeling.errors import ConfigError

TOKENIZER, INFO = "tokenizer.json", "tokenizer-info.json"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")

_SPELLED = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<|endoftext|>", "<|startoftext|>", "<|begin_of_text|>", "<bos>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
}
"""What the tokens are called where no file says it."""
_STAND_INS = (("cls", "bos"), ("sep", "eos"), ("bos", "cls"), ("eos", "sep"), ("bos", "eos"), ("pad", "eos"))
"""(role, other): the other's token does the role's work where the tokenizer has none for it, in this order."""


def write_tokenizer(folder: Path, to: Path, *, max_length: int, token_types: bool, continues: bool) -> list[str]:
    """Write the Hub's tokenizer files for a Triptych folder; returns their names, none where it has no tokenizer.

    Args:
        max_length: longest sequence of the model, in tokens.
        token_types: the model has segment embeddings, so the tokenizer shall give their ids.
        continues: the model goes on from a text, so that theirs must not end it, as GPT's template for fine-tuning
            does: of a single text it then has nothing but the text.
    """
    if not (folder / TOKENIZER).is_file():
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    named = {
        f"{role}_token": spelling
        for role, number in roles_of(folder).items()
        if role in ROLES and (spelling := tokenizer.id_to_token(number)) is not None
    }
    settings = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", *["token_type_ids"] * token_types, "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if continues and tokenizer.num_special_tokens_to_add(is_pair=False):
        layout = _unframed(_json(folder / TOKENIZER))
        (to / TOKENIZER).write_text(json.dumps(layout, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    else:
        shutil.copyfile(folder / TOKENIZER, to / TOKENIZER)
    for name, content in ((SETTINGS, settings), (SPECIAL, named)):
        (to / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [TOKENIZER, SETTINGS, SPECIAL]


def _unframed(layout: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json whose templates add nothing to a single text; pairs keep theirs."""
    processor = layout["post_processor"]
    for step in [processor, *processor.get("processors", ())]:
        if step["type"] == "TemplateProcessing":
            step["single"] = [piece for piece in step["single"] if "Sequence" in piece]
    return layout


def roles_of(folder: Path) -> dict[str, int]:
    """{role: id} of a Triptych folder's tokenizer; empty where it has none."""
    return {} if not (folder / INFO).is_file() else dict(_json(folder / INFO)["special_tokens"])


def read_tokenizer(
    folder: Path, given: Mapping[str, str] | None = None, otherwise: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """tokenizer-info.json for a Hub folder: {kind, vocab_size, lowercase, sentinels, special_tokens}.

    Roles come from `given`, then from tokenizer_config.json and special_tokens_map.json, then from the ids in
    config.json, then from `otherwise`, then from the usual spellings. A role without a token is filled by another's
    (GPT-2 pads with its end of text).

    Args:
        given: {role: token} that the user names; other roles than `ROLES` are taken over, too.
        otherwise: {role: token} that another file of the tokenizer names.

    Raises:
        ConfigError: the folder has no tokenizer.json, or a given token is not in the vocabulary.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; the tokenizer is in another format",
            f"convert it: transformers.AutoTokenizer.from_pretrained({folder.name!r}).save_pretrained({folder.name!r})",
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no exception of its own
        raise ConfigError(f"{path}: not a tokenizer: {error}") from None
    layout = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return {
        "kind": str((layout.get("model") or {}).get("type") or "unknown").lower(),
        "vocab_size": max(vocabulary.values()) + 1,
        "lowercase": _lowercases(layout.get("normalizer")),
        "sentinels": sum(f"<extra_id_{n}>" in vocabulary for n in range(len(vocabulary))),
        "special_tokens": _roles(folder, vocabulary, given or {}, otherwise or {}),
    }


def ids_alone(folder: Path, vocab_size: int) -> dict[str, Any]:
    """tokenizer-info.json for a Hub folder without a tokenizer: the ids that its config.json names."""
    return {"kind": "none", "vocab_size": vocab_size, "special_tokens": _configured(folder, range(vocab_size))}


def _roles(
    folder: Path, vocabulary: Mapping[str, int], given: Mapping[str, str], otherwise: Mapping[str, str]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for role, token in given.items():
        if token not in vocabulary:
            near = difflib.get_close_matches(token, vocabulary, n=1)
            raise ConfigError(
                f"special_tokens.{role}: the vocabulary has no token {token!r}"
                + (f"; did you mean {near[0]!r}?" if near else ""),
                "name a token that is there, or give a new one by added_tokens",
            )
        found[role] = vocabulary[token]
    for name in (SETTINGS, SPECIAL):
        named = _json(folder / name) if (folder / name).is_file() else {}
        for role in ROLES:
            spelling: Any = named.get(f"{role}_token")
            spelling = spelling.get("content") if isinstance(spelling, dict) else spelling
            if spelling in vocabulary:
                found.setdefault(role, vocabulary[spelling])
    for role, number in _configured(folder, vocabulary.values()).items():
        found.setdefault(role, number)
    for role, spellings in (*((role, (token,)) for role, token in otherwise.items()), *_SPELLED.items()):
        for name in spellings:
            if name in vocabulary:
                found.setdefault(role, vocabulary[name])
    for role, other in _STAND_INS:
        if role not in found and other in found:
            found[role] = found[other]
    return {role: found[role] for role in (*ROLES, *sorted(set(found) - set(ROLES))) if role in found}


def _configured(folder: Path, known: Collection[int]) -> dict[str, int]:
    ids = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = {role: ids.get(f"{role}_token_id") for role in ROLES}
    return {role: number for role, number in named.items() if isinstance(number, int) and number in known}


def _lowercases(normalizer: Any) -> bool:
    steps: Iterable[Any] = (normalizer or {}).get("normalizers") or [normalizer or {}]
    return any(step.get("lowercase") is True or step.get("type") == "Lowercase" for step in steps)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
