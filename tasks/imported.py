"""ImportModel, ImportTokenizer: what was trained elsewhere as the artifacts that a run can begin from.

    source = "hf://openai-community/gpt2"                      # or a folder, or any URL that fsspec knows
    tokenizer = ImportTokenizer(source=source)
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective="causal")
    Pretrain(examples=examples, tokenizer=tokenizer, init=ImportModel(source=source), model=None)

A source is a folder of the Hub's layout (`modeling.hub`), or a model's folder of Triptych, which is taken as it is.
Weights are read from safetensors only: other formats can run code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, UserError
from cluster.files import base_name, expand, fingerprint, is_remote, local_path, open_plain
from modeling.hub import FAMILIES
from tasks.base import Context, Task

CONFIG, TOKENIZER, INFO = "config.json", "tokenizer.json", "tokenizer-info.json"
TOKENIZER_FILES = (CONFIG, TOKENIZER, INFO, "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LEFT = "hub-left.safetensors"  # what an earlier import kept aside


class ImportModel(Task):
    """A pretrained model from a folder of the Hub's layout, or of Triptych's."""

    produces: ClassVar[str] = "model"
    stage: ClassVar[str] = "model"

    # The place is not the identity: the key covers what `external` says of the content.
    source: str = Field(
        description="folder with config.json and model.safetensors; hf://owner/name for one of the Hub",
        json_schema_extra={"identity": False},
    )
    family: Annotated[str | None, FAMILIES] = Field(
        None, description="found in config.json, so that the key covers its code; none for Triptych's own"
    )

    @model_validator(mode="before")
    @classmethod
    def _family_of_the_source(cls, values: Any) -> Any:
        found = _model_type(values.get("source")) if isinstance(values, dict) else None
        return {**values, "family": found} if found else values

    def external(self) -> Mapping[str, Any]:
        return {"files": fingerprint(_model_files(self.source))}

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `config.json`, `model.safetensors` and the tokenizer's files.

        Raises:
            BadConfig: files are missing.
            ConfigError: a family, an option or a tensor that Triptych does not have; names it.
        """
        from modeling.hub import import_into

        ctx.progress(0, 2, "steps")
        folder = _fetched(_model_files(self.source), ctx.work / "source")
        ctx.progress(1, 2, "steps")
        if _is_ours(folder):
            from modeling.checkpoint import load_config

            config = load_config(folder)
            for path in folder.iterdir():
                shutil.copyfile(path, ctx.out / path.name)
            found = {"vocab_size": config.vocab_size, "parameters": _numbers(folder / WEIGHTS)}
        else:
            found = import_into(folder, ctx.out)
            for name in found["left"]:
                ctx.log(f"kept aside, since the model does not use it: {name}")
        ctx.progress(2, 2, "steps")
        return {name: found[name] for name in ("parameters", "vocab_size")}


class ImportTokenizer(Task):
    """The tokenizer of a model's folder."""

    produces: ClassVar[str] = "tokenizer"
    stage: ClassVar[str] = "tokenizer"

    source: str = Field(
        description="folder with tokenizer.json; hf://owner/name for one of the Hub",
        json_schema_extra={"identity": False},
    )

    def external(self) -> Mapping[str, Any]:
        return {"files": fingerprint(_files(self.source, TOKENIZER_FILES, needs=(TOKENIZER,)))}

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `tokenizer.json` and `tokenizer-info.json`, with the special tokens by role.

        Raises:
            BadConfig: there is no tokenizer.json.
            ConfigError: it is not a tokenizer's.
        """
        from modeling.hub.tokenizer import read_tokenizer

        folder = _fetched(_files(self.source, TOKENIZER_FILES, needs=(TOKENIZER,)), ctx.work / "source")
        ours = (folder / INFO).is_file()
        info = _json(folder / INFO) if ours else read_tokenizer(folder)
        shutil.copyfile(folder / TOKENIZER, ctx.out / TOKENIZER)
        (ctx.out / INFO).write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
        ctx.log(f"special tokens: {', '.join(f'{role} {number}' for role, number in info['special_tokens'].items())}")
        return {"vocab_size": info["vocab_size"]}


# ---------------------------------------------------------------- files


def _model_type(source: Any) -> str | None:
    """`model_type` in a source's config.json; None where there is none to read (`external` then says so)."""
    if not isinstance(source, str):
        return None
    try:
        with open_plain(f"{source.rstrip('/')}/{CONFIG}") as file:
            found = json.load(file)
    except (UserError, OSError, ValueError):
        return None
    return found.get("model_type") if isinstance(found, dict) else None


def _model_files(source: str) -> list[str]:
    """URLs of a model's files. Raises BadConfig where config.json or the weights are missing."""
    found = _files(source, (*TOKENIZER_FILES, "*.safetensors", INDEX), needs=(CONFIG,))
    names = [base_name(url) for url in found]
    if WEIGHTS in names:  # some folders hold the same weights in shards, or for another framework, beside it
        kept = (*TOKENIZER_FILES, WEIGHTS, LEFT)
        return [url for url, name in zip(found, names, strict=True) if name in kept]
    if INDEX in names:
        return found
    pickles = [name for name in map(base_name, _direct(source)) if name.endswith(".bin")]
    held = f"; {pickles[0]} is a pickle, which can run code" if pickles else ""
    raise BadConfig(
        f"source: {source} has no {WEIGHTS}{held}",
        "where you trust its source, convert it: "
        "transformers.AutoModelForPreTraining.from_pretrained(DIR).save_pretrained(DIR)"
        if pickles
        else "name a folder of the Hub's layout, or of Triptych's",
    )


def _files(source: str, patterns: tuple[str, ...], needs: tuple[str, ...]) -> list[str]:
    """URLs of the folder's own files that match; raises BadConfig where one that is needed is missing."""
    from fnmatch import fnmatch

    urls = _direct(source)
    found = [url for url in urls if any(fnmatch(base_name(url), pattern) for pattern in patterns)]
    for name in needs:
        if name not in map(base_name, found):
            raise BadConfig(
                f"source: {source} has no {name}",
                f"it holds: {', '.join(map(base_name, urls[:8]))}"
                + (
                    "; convert the tokenizer: transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
                    if name == TOKENIZER
                    else ""
                ),
            )
    return found


def _direct(source: str) -> list[str]:
    """URLs of the files in the folder itself, not below it, sorted."""
    if not is_remote(source) and local_path(source).is_file():
        raise BadConfig(f"source: {source} is a file, expected a model's folder", "name the folder that holds it")
    folder = source.rstrip("/") if is_remote(source) else str(local_path(source))
    return [url for url in expand([folder]) if _depth(url) == _depth(folder) + 1]


def _depth(url: str) -> int:
    return url.split("://", 1)[-1].strip("/").count("/")


def _numbers(path: Path) -> int:
    """How many numbers a safetensors file holds."""
    from math import prod

    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return sum(prod(file.get_slice(name).get_shape()) for name in file.keys())


def _fetched(urls: list[str], folder: Path) -> Path:
    """A local folder with these files: the source itself where it is local, otherwise copies in `folder`."""
    folder.mkdir(parents=True)
    for url in urls:
        to = folder / base_name(url)
        if is_remote(url):
            with open_plain(url) as source, to.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        else:
            to.symlink_to(local_path(url).absolute())
    return folder


def _is_ours(folder: Path) -> bool:
    return "model" in _json(folder / CONFIG)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadData(f"{path.name}: not readable as JSON: {error}", "fetch or write the file again") from None
