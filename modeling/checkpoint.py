"""A model on disk: `config.json` and `model.safetensors`, nothing that can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modeling.architecture import ModelConfig, model_config
from modeling.errors import ConfigError
from modeling.heads import HEADS

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NO_HEAD: Mapping[str, Any] = {"name": "", "settings": {}}


def save_model(folder: Path, model: nn.Module, config: ModelConfig, head: Mapping[str, Any] = NO_HEAD) -> None:
    """Write the config and the weights (fp32, tied matrices once) of `model` into `folder`.

    Args:
        head: {name in HEADS, settings}: how `load_model` builds it again; without a name it is a task's
            model, whose trunk alone `load_transformer` can read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_bytes(config_file(config, head))
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(folder / WEIGHTS))


def config_file(config: ModelConfig, head: Mapping[str, Any] = NO_HEAD) -> bytes:
    """What `save_model` writes beside the weights, as `config.json`."""
    text = json.dumps({"model": config.model_dump(mode="json"), "head": dict(head)}, indent=2, sort_keys=True)
    return (text + "\n").encode()


def load_config(folder: Path) -> ModelConfig:
    """The config of a saved model. Raises ConfigError, naming the file, where it is missing or unreadable."""
    return model_config(_saved(folder)["model"])


def load_head(folder: Path) -> dict[str, Any]:
    """{name, settings} of a saved model's head. Raises ConfigError, naming the file, where it is none."""
    head = _saved(folder).get("head")
    whole = isinstance(head, dict) and isinstance(head.get("settings"), dict) and isinstance(head.get("name"), str)
    if not whole or (head["name"] and head["name"] not in HEADS):
        raise ConfigError(
            f"{folder / CONFIG}: head is {head!r}, expected its name (none, or one of {', '.join(HEADS)}) and settings",
            "take the file that was written with the weights",
        )
    return dict(head)


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        model_config(saved["model"])
        return dict(saved)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a saved model's folder") from None
    except KeyError as error:
        raise ConfigError(f"{path}: not a model's config: no key {error}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a model's config: {error}") from None


def build_model(config: ModelConfig, head: Mapping[str, Any]) -> Any:
    """A model with new weights: the head `head["name"]` of HEADS, told its settings, on the trunk of `config`."""
    return HEADS.load(head["name"]).for_objective(config, head["settings"])


def load_model(folder: Path) -> Any:
    """The pretrained model in `folder`, in evaluation mode; `.transformer` is its trunk.

    Raises ConfigError where the folder holds a task's model, which has no head of pretraining.
    """
    head = load_head(folder)
    if not head["name"]:
        raise ConfigError(
            f"{folder / CONFIG}: a fine-tuned model, expected a pretrained one", "use the model it began from"
        )
    model = build_model(load_config(folder), head)
    model.load_state_dict(_weights(folder))
    return model.eval()


def load_weights(model: nn.Module, folder: Path) -> list[str]:
    """Copy a saved model's weights into `model`, by name; returns the names of `model` that it does not have.

    The trunk must be there whole; a head that the saved model lacks keeps its new weights. A model that keeps only a
    part of itself (`kept_prefix`: ELECTRA's discriminator) goes on with that part, and with what others share with it.

    Raises ConfigError for a tensor of another shape, or a trunk that is not whole.
    """
    prefix = getattr(model, "kept_prefix", "")
    found = {prefix + name: value for name, value in _weights(folder).items()}
    own = model.state_dict()
    missing = [name for name in own if name not in found]
    for name, value in own.items():
        trunk = name.startswith(f"{prefix}transformer.")
        if (name in found and found[name].shape != value.shape) or (trunk and name in missing):
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise ConfigError(
                f"{folder / WEIGHTS}: {name.removeprefix(prefix)} is {shape}, the model expects {tuple(value.shape)}"
            )
    taken = {own[name].data_ptr() for name in own if name in found}
    model.load_state_dict({name: found[name] for name in own if name in found}, strict=False)
    return [name for name in missing if own[name].data_ptr() not in taken]


def load_transformer(folder: Path, into: Any) -> None:
    """Copy the trunk's weights of a saved model (whatever its head) into `into` (`modeling.trunks`).

    Raises ConfigError where the shapes do not fit, naming the file and the first tensor.
    """
    try:
        into.load_pretrained(_weights(folder))
    except ConfigError as error:
        raise ConfigError(f"{folder / WEIGHTS}: {error.message}", error.remedy) from None


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a saved model's folder")
    return load_file(str(path))
