"""ImportModel, ImportTokenizer: what was trained elsewhere as the artifacts that a run can begin from.

    source = "hf://openai-community/gpt2"                      # or a folder, or any URL that fsspec knows
    tokenizer = ImportTokenizer(source=source)                 # tokenizer.json, SentencePiece, tiktoken, …
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective="causal")
    Pretrain(examples=examples, tokenizer=tokenizer, init=ImportModel(source=source), model=None)

A source is a folder of the Hub's layout (`modeling.hub`), or a model's folder of Triptych, which is taken as it is.
Weights are read from safetensors only: other formats can run code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, UserError
from cluster.files import base_name, expand, fingerprint, is_remote, local_path, open_plain
from modeling.hub import FAMILIES
from modeling.hub.tokenizer import ROLES
from tasks.base import Context, Corpus, Task
from tasks.tokenizer_figures import examples, measure
from tasks.tokenizers.foreign import FORMATS, Options, check, files_of, needed, special, spellable
from tasks.tokenizers.from_tiktoken import SCHEME, cached_files

CONFIG, TOKENIZER, INFO = "config.json", "tokenizer.json", "tokenizer-info.json"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TOKENIZER_FILES = (CONFIG, TOKENIZER, INFO, SETTINGS, SPECIAL)
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
        folder = _fetched({base_name(url): url for url in _model_files(self.source)}, ctx.work / "source")
        ctx.progress(1, 2, "steps")
        if _is_ours(folder):
            from modeling.checkpoint import load_config

            config = load_config(folder)
            for path in folder.iterdir():
                shutil.copyfile(path, ctx.out / path.name)
            found: dict[str, Any] = {"vocab_size": config.vocab_size, "parameters": _numbers(folder / WEIGHTS)}
        else:
            found = import_into(folder, ctx.out)
            for name in found["left"]:
                ctx.log(f"kept aside, since the model does not use it: {name}")
        ctx.progress(2, 2, "steps")
        return {name: found[name] for name in ("parameters", "vocab_size")}


class ImportTokenizer(Task):
    """A tokenizer that was made elsewhere, as `tokenizer.json`; formats in `tasks.tokenizers.foreign`.

    What is converted gives the original library's ids on a set of texts, or the stage fails.
    """

    produces: ClassVar[str] = "tokenizer"
    stage: ClassVar[str] = "tokenizer"

    source: str = Field(
        description="folder or file (tokenizer.json, .model, .tiktoken, …), hf://owner/name, or tiktoken:encoding",
        json_schema_extra={"identity": False},
    )
    format: Annotated[str | None, FORMATS] = Field(None, description="found by the files' names where not given")
    pattern: str = Field("", description="tiktoken: how text is cut into words; or the encoding that cuts so")
    lowercase: bool | None = Field(None, description="vocab.txt: fold case; none: as its settings or pieces say")
    special_tokens: dict[str, str] = Field(default_factory=dict, description="{role: token} of the vocabulary")
    added_tokens: dict[str, str] = Field(default_factory=dict, description="{role: token} with new ids at the end")
    sentinels: int = Field(0, ge=0, le=10_000, description="tokens <extra_id_…> to add; <extra_id_0> is the last id")
    corpus: Corpus | None = Field(None, description="its validation split is what the figures are measured on")

    @model_validator(mode="before")
    @classmethod
    def _format_of_the_source(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("format") or not isinstance(values.get("source"), str):
            return values
        try:
            return {**values, "format": _tokenizer_files(values["source"], None)[0]}
        except (UserError, OSError):
            return values  # `external` says so

    @model_validator(mode="after")
    def _each_role_once(self) -> ImportTokenizer:
        both = sorted(set(self.special_tokens) & set(self.added_tokens))
        roles = {*ROLES, "delimiter"}
        unknown = sorted({*self.special_tokens, *self.added_tokens} - roles)
        if both or unknown:
            name = (both or unknown)[0]
            raise BadConfig(
                f"role {name!r} stands in special_tokens and in added_tokens" if both else f"no role {name!r}",
                "name it once" if both else f"roles: {', '.join(sorted(roles))}",
            )
        return self

    def external(self) -> Mapping[str, Any]:
        _, files, settings = _tokenizer_files(self.source, self.format)
        return {"files": fingerprint([*files.values(), *settings.values()])}

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `tokenizer.json` and `tokenizer-info.json`, with the special tokens by role.

        Raises:
            BadConfig: there is no tokenizer, or a setting is missing that its files do not say.
            BadData: the files are damaged, or cannot be converted exactly.
            ConfigError: a special token is not in the vocabulary.
        """
        from modeling.hub.tokenizer import read_tokenizer

        ctx.progress(0, 3, "steps")
        format, files, settings = _tokenizer_files(self.source, self.format)
        folder = _fetched({**settings, **files}, ctx.work / "source")
        paths = {name: folder / name for name in files}
        added: list[tuple[str, int | None]] = [(token, None) for token in self.added_tokens.values()]
        added += [(f"<extra_id_{n}>", None) for n in reversed(range(self.sentinels))]
        said = _json(folder / SETTINGS) if SETTINGS in settings else {}
        options = Options(self.pattern, self.lowercase, said, [*_configured(said), *added])
        foreign = FORMATS.load(format)(paths, options)
        ctx.progress(1, 3, "steps")
        check(foreign, self.source.rstrip("/").rsplit("/", 1)[-1])
        given = {**self.special_tokens, **self.added_tokens}
        special(foreign.tokenizer, given.values())
        if format == "huggingface" and not given and not added:
            shutil.copyfile(paths[TOKENIZER], ctx.out / TOKENIZER)
        else:
            foreign.tokenizer.save(str(ctx.out / TOKENIZER), pretty=False)
            (folder / TOKENIZER).unlink(missing_ok=True)
            (folder / TOKENIZER).symlink_to(ctx.out / TOKENIZER)
        info = {**read_tokenizer(folder, given, foreign.roles), "format": format}
        if INFO in settings:  # Triptych's own
            own = _json(folder / INFO)
            roles = {**own["special_tokens"], **{role: info["special_tokens"][role] for role in given}}
            info = {**own, **{k: info[k] for k in ("vocab_size", "sentinels", "format")}, "special_tokens": roles}
        for name in spellable(foreign.tokenizer, info["special_tokens"].get("unk")):
            ctx.log(f"warning: a text that spells {name} becomes that token, since the vocabulary has no other way")
        ctx.progress(2, 3, "steps")
        info["examples"] = examples(foreign.tokenizer)
        if self.corpus is not None:
            info |= measure(foreign.tokenizer, ctx.input("corpus").path, info["special_tokens"])
        (ctx.out / INFO).write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
        ctx.progress(3, 3, "steps")
        ctx.log(f"special tokens: {', '.join(f'{role} {number}' for role, number in info['special_tokens'].items())}")
        measured = info if self.corpus is not None else {}
        return {"vocab_size": info["vocab_size"], **{k: v for k, v in measured.items() if isinstance(v, float)}}


def _configured(settings: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """The tokens that tokenizer_config.json gives ids to, by id; (token, id)."""
    decoder = settings.get("added_tokens_decoder")
    if not isinstance(decoder, dict):
        return []
    found = [(int(n), t.get("content") if isinstance(t, dict) else t) for n, t in decoder.items() if n.isdigit()]
    return [(str(token), number) for number, token in sorted(found)]


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


def _tokenizer_files(source: str, format: str | None) -> tuple[str, dict[str, str], dict[str, str]]:
    """(format, {name: URL} of the tokenizer's files, the same of the settings beside them).

    Raises:
        BadConfig: the source has no tokenizer (of that format).
    """
    if source.startswith(SCHEME):
        name = source.removeprefix(SCHEME)
        cached = {file: str(path) for file, path in cached_files(name).items()}
        return (
            ("gpt2", cached, {}) if len(cached) > 1 else ("tiktoken", {f"{name}.tiktoken": [*cached.values()][0]}, {})
        )
    single = is_file(source)
    urls = [source] if single else _direct(source)
    there = {base_name(url): url for url in urls}
    found = (format, list(there)) if single and format else files_of(there, format)
    if found is None:
        raise BadConfig(
            f"source: {source} has no {needed(format)}",
            f"it holds: {', '.join([*there][:8])}; a tokenizer of another kind can be converted: "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    kind, names = found
    if kind == "sentencepiece" and format is None and _is_rank_file(there[names[0]]):
        kind = "tiktoken"
    settings = (CONFIG, SETTINGS, SPECIAL, *((INFO,) if kind == "huggingface" else ()))
    return kind, {n: there[n] for n in names}, {n: there[n] for n in settings if n in there}


def is_file(source: str) -> bool:
    """Whether a source is one file with a tokenizer in it, by its name where it is far away."""
    if is_remote(source):
        return base_name(source).endswith((".json", ".model", ".tiktoken", ".txt"))
    return local_path(source).is_file()


def _is_rank_file(url: str) -> bool:
    """Whether a .model file is tiktoken's text (Llama 3's is), not SentencePiece's protocol buffer."""
    with open_plain(url) as file:
        return bool(re.match(rb"[A-Za-z0-9+/]+=* \d+\s", file.read(200)))


def _files(source: str, patterns: tuple[str, ...], needs: tuple[str, ...]) -> list[str]:
    """URLs of the folder's own files that match; raises BadConfig where one that is needed is missing."""
    from fnmatch import fnmatch

    urls = _direct(source)
    found = [url for url in urls if any(fnmatch(base_name(url), pattern) for pattern in patterns)]
    for name in needs:
        if name not in map(base_name, found):
            raise BadConfig(
                f"source: {source} has no {name}",
                f"it holds: {', '.join(map(base_name, urls[:8]))}",
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


def _fetched(urls: Mapping[str, str], folder: Path) -> Path:
    """A local folder with these files under these names: links where they are local, otherwise copies."""
    folder.mkdir(parents=True)
    for name, url in urls.items():
        to = folder / name
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
