"""A Triptych model's folder as a folder of the Hub's layout, which `AutoModel….from_pretrained` loads."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modeling.checkpoint import CONFIG, WEIGHTS, load_config, load_head
from modeling.errors import ConfigError
from modeling.hub.family import Family, canonical, family_of
from modeling.hub.mapping import to_hub
from modeling.hub.tasks import on_the_tasks_scale, task_head
from modeling.hub.tokenizer import roles_of, write_tokenizer

GENERATION = "generation_config.json"
LEFT = "hub-left.safetensors"
"""In an imported folder: tensors of the original that the model does not use, for an export without a loss."""


def export_model(folder: Path, to: Path) -> dict[str, Any]:
    """Write the model in `folder` to the new folder `to`: config, weights, tokenizer, generation config.

    Returns:
        {model_type, architecture, files, parameters, left_out}: the latter are tensors of ours that the family has
        no place for (SpanBERT's boundary head, a fine-tuned head that reads the mean).

    Raises:
        ConfigError: `to` exists and is not empty, or cannot be written; or no family of the Hub can express the model:
            names the fields.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not empty", "name a new folder, or empty this one")
    config, roles = load_config(folder), roles_of(folder)
    family, head = _family(folder, config, roles)
    hub_class = family.class_of(head)
    assert hub_class is not None
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder / WEIGHTS}: no such file; expected a saved model's folder")
    state, mapping = load_file(str(folder / WEIGHTS)), family.state_map(config, head)
    used = {each.ours for each in mapping.rules}
    if missing := sorted(used - state.keys()):
        raise ConfigError(f"{folder / WEIGHTS}: no tensor {missing[0]}, which its config.json tells of")
    tensors = to_hub(on_the_tasks_scale(state, head), mapping)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    if (folder / LEFT).is_file():
        tensors |= load_file(str(folder / LEFT))
    if not hub_class.head:  # a bare trunk's names have no prefix
        tensors = {name.removeprefix(family.base): value for name, value in tensors.items()}

    theirs = family.write_config(config, head, roles)
    part = to.parent / f".{to.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        part.mkdir(parents=True)
        if family.generates:
            start = head["settings"].get("decoder_start_token_id", roles.get("pad"))
            begins = {"decoder_start_token_id": start} if theirs.get("is_encoder_decoder") else {}
            theirs |= begins
            ids = {f"{role}_token_id": roles[role] for role in ("pad", "bos", "eos") if role in roles}
            _write_json(part / GENERATION, {**ids, **begins})
        _write_json(part / CONFIG, theirs)
        save_file(tensors, str(part / WEIGHTS), metadata={"format": "pt"})
        types = canonical(config)["token_types"] > 1
        continues = family.generates and not theirs.get("is_encoder_decoder")
        write_tokenizer(folder, part, max_length=config.max_length, token_types=types, continues=continues)
        os.rename(part, to)  # also onto an empty folder
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{to} cannot be written: {error}", "name another, with room for the model") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {
        "model_type": family.model_type,
        "architecture": hub_class.name,
        "files": sorted(path.name for path in to.iterdir()),
        "parameters": parameters,
        "left_out": sorted(state.keys() - used),
    }


def _family(folder: Path, config: Any, roles: dict[str, int]) -> tuple[Family, dict[str, Any]]:
    """(family, head): a task's head where a family has it, else of a fine-tuned model the trunk alone."""
    head = load_head(folder)
    if not head["name"] and (task := task_head(folder)) is not None:
        with suppress(ConfigError):
            return family_of(config, task, roles), task
    return family_of(config, head, roles), head


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
