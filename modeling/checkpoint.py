"""A model as a folder: `config.json` and `model.safetensors`. Training state is in `modeling.resume`.

Files are a pure function of config and weights: sorted JSON, tensors in the module's order.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modeling.errors import ConfigError
from modeling.heads import MaskedLM
from modeling.transformer import Transformer, TransformerConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_model(folder: Path, model: nn.Module, config: TransformerConfig) -> None:
    """Write the config and the weights (fp32, tied matrices once) of `model` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(folder / WEIGHTS))


def load_config(folder: Path) -> TransformerConfig:
    """The config of a saved model. Raises ConfigError, naming the file, where it is missing or unreadable."""
    path = folder / CONFIG
    try:
        return TransformerConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a saved model's folder") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a model's config: {error}") from None


def load_model(folder: Path) -> MaskedLM:
    """The masked language model in `folder`, in evaluation mode; `.transformer` is its trunk."""
    model = MaskedLM(load_config(folder))
    model.load_state_dict(_weights(folder))
    return model.eval()


def load_transformer(folder: Path, into: Transformer) -> None:
    """Copy the trunk's weights of a saved model (whatever its head) into `into`.

    Raises ConfigError where the shapes do not fit, naming the first tensor.
    """
    prefix = "transformer."
    found = {name.removeprefix(prefix): value for name, value in _weights(folder).items() if name.startswith(prefix)}
    for name, value in into.state_dict().items():
        if name not in found or found[name].shape != value.shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise ConfigError(f"{folder / WEIGHTS}: {name} is {shape}, the model expects {tuple(value.shape)}")
    into.load_state_dict(found)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a saved model's folder")
    return load_file(str(path))
