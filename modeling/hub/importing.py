"""A folder of the Hub's layout as a model of ours: config, head and weights; and as a Triptych model's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.checkpoint import CONFIG, WEIGHTS, build_model
from modeling.errors import ConfigError
from modeling.hub import FAMILIES
from modeling.hub.exporting import LEFT
from modeling.hub.family import Family
from modeling.hub.mapping import from_hub
from modeling.hub.tokenizer import INFO, TOKENIZER, ids_alone, read_tokenizer

INDEX = "model.safetensors.index.json"


class Imported(NamedTuple):
    """A model of the Hub as one of ours."""

    config: TransformerConfig
    head: dict[str, Any]
    """{name, settings}, as `modeling.checkpoint.save_model` writes it."""
    state: dict[str, Tensor]
    """The weights by our names, float32."""


def import_model(folder: Path) -> Imported:
    """The model in a folder of the Hub's layout: config.json and model.safetensors, or its shards with an index.

    Raises:
        ConfigError: no such files, a family or an option that we do not have, tensors that are missing or
            unexpected; names them.
    """
    return _import(folder)[0]


def _import(folder: Path) -> tuple[Imported, dict[str, Tensor]]:
    """The model, and their tensors that it does not use."""
    path = folder / CONFIG
    theirs = _config(path)
    model_type = theirs.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"{path}: no model_type; expected a config of the Hub")
    if model_type not in FAMILIES:
        raise ConfigError(f"{path}: model_type is {model_type!r}, expected one of {', '.join(FAMILIES)}")
    family: Family = FAMILIES.load(model_type)()
    tensors = _named_by(family, _tensors(folder))
    config, head = family.read_config(theirs, tensors, str(path))
    state, left = from_hub(tensors, family.state_map(config, head), _shapes(config, head), str(folder / WEIGHTS))
    return Imported(config, head, state), left


def import_into(folder: Path, out: Path) -> dict[str, Any]:
    """Write a folder of the Hub's layout as a Triptych model's folder; the tokenizer too, where there is one.

    Returns:
        {model_type, parameters, vocab_size, left}: the latter names tensors that the model does not use; they are
        kept aside, so that an export gives all of them back.

    Raises:
        ConfigError: as `import_model`; and a tokenizer with ids beyond the model's vocabulary.
    """
    (config, head, state), left = _import(folder)
    out.mkdir(parents=True, exist_ok=True)
    if (folder / TOKENIZER).is_file():
        info = read_tokenizer(folder)
        if info["vocab_size"] > config.vocab_size:
            raise ConfigError(
                f"{folder / TOKENIZER} has {info['vocab_size']} tokens, the model's vocab_size is {config.vocab_size}",
                "the tokenizer belongs to another model",
            )
        shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    else:
        info = ids_alone(folder, config.vocab_size)
    (out / INFO).write_text(json.dumps(info, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = json.dumps({"model": config.model_dump(mode="json"), "head": head}, indent=2, sort_keys=True)
    (out / CONFIG).write_text(text + "\n", encoding="utf-8")
    save_file(state, str(out / WEIGHTS))
    if left:
        save_file(left, str(out / LEFT))
    return {
        "model_type": _config(folder / CONFIG)["model_type"],
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "vocab_size": config.vocab_size,
        "left": sorted(left),
    }


def _shapes(config: TransformerConfig, head: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shapes of our model's tensors; nothing is allocated."""
    from modeling.transformer import Transformer

    with torch.device("meta"):
        if head["name"]:
            return {name: value.shape for name, value in build_model(config, head).state_dict().items()}
        return {f"transformer.{name}": value.shape for name, value in Transformer(config).state_dict().items()}


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a folder of the Hub's layout") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(found).__name__}")
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not (folder / INDEX).is_file():
            pickles = [p.name for p in sorted(folder.glob("*.bin"))]
            held = f"; it holds {pickles[0]}, a pickle, which can run code" if pickles else ""
            raise ConfigError(
                f"{folder / WEIGHTS}: no such file{held}",
                "where you trust its source, convert it: "
                "transformers.AutoModelForPreTraining.from_pretrained(DIR).save_pretrained(DIR)"
                if pickles
                else "expected a folder of the Hub's layout",
            )
        names = sorted(set(_config(folder / INDEX).get("weight_map", {}).values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= load_file(str(folder / name))
        except FileNotFoundError:
            raise ConfigError(f"{folder / name}: no such file, though {INDEX} names it") from None
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{folder / name}: not a readable safetensors file: {error}") from None
    return tensors


def _named_by(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of today's classes: older files have gamma and beta, and a bare trunk has no prefix."""
    bare = not any(name.startswith(family.base) for name in tensors)
    named = {}
    for name, value in tensors.items():
        if name.endswith(("LayerNorm.gamma", "LayerNorm.beta")):
            name = name.removesuffix("gamma").removesuffix("beta") + ("weight" if name.endswith("gamma") else "bias")
        named[family.base + name if bare and not name.startswith(family.outside) else name] = value
    return named
