"""The corpus of a recipe: one source or a mixture of several, each read and cleaned, then brought together.

    Ingest per component -> Clean per component (unless clean=none) -> Mix (where there is something to mix)

Near duplicates are looked for in all components together, where all have that step: the components are put one after
another, cleaned of them, and mixed from there.

Sizes in tokens need a tokenizer, and a tokenizer a corpus: it learns from the components in their natural sizes, and
the mixture is made with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator

from cluster.errors import BadConfig
from cluster.files import COMPRESSION_SUFFIXES, base_name, split_list
from modeling.config import Config, section
from modeling.errors import ConfigError
from pipelines.recipes.sections import given, settings_of
from tasks.base import Task
from tasks.clean import Clean
from tasks.cleaning.settings import LISTS, AnyStep, parse
from tasks.ingest import Ingest
from tasks.mix import Component, Mix

if TYPE_CHECKING:  # a class made at run time is no type to a checker

    class IngestSettings(Config): ...

    class MixSettings(Config):
        total_bytes: int | None = None
        total_tokens: int | None = None
        temperature: float = 1.0

else:
    IngestSettings = settings_of(Ingest, "source")
    MixSettings = settings_of(Mix, "components", "order")


def _cleaning(value: Any) -> Any:
    if isinstance(value, str) and value != "none" and value not in LISTS:
        raise ConfigError(
            f"no list of cleaning steps is called {value!r}",
            f"give none, {', '.join(LISTS)}, or a list of steps: clean=[unicode,pii]",
        )
    if isinstance(value, Mapping):
        if isinstance(value.get("preset"), str):  # what a text becomes under `clean.field=…`
            raise ConfigError(
                f"clean is {value['preset']!r} and also has settings of a step",
                "write the steps out: clean=[unicode,{kind: length, min_chars: 3}]",
            )
        value = (value,)
    if isinstance(value, list | tuple):  # here, so that a mistake in a step is told without the union's other half
        return tuple(parse(step) for step in value) or "none"
    return value


Cleaning = Annotated[Literal["none", "standard", "web"] | tuple[AnyStep, ...], BeforeValidator(_cleaning)]
"""How documents are cleaned: the name of a list of steps (`tasks.cleaning.settings`), or one step or several."""


class ComponentSettings(Component):
    """A component of a mixture, with where it comes from."""

    name: str = Field("", max_length=80, description="its name in the mixture; by default the source's")
    source: str | tuple[str, ...] = Field(description="files: path, URL, glob or a list of these; or installed-docs")
    ingest: dict[str, Any] = Field({}, description="settings of ingest that are other than the recipe's")
    clean: Cleaning | None = Field(None, description="how it is cleaned, where other than the recipe's clean")

    @field_validator("ingest")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        section(IngestSettings, value)
        return value

    @property
    def label(self) -> str:
        """Its name; where none is given, its first file's without suffixes."""
        if self.name:
            return self.name
        name = base_name(next(iter(split_list(self.source)), "")).lower()
        for suffix in COMPRESSION_SUFFIXES:
            name = name.removesuffix(suffix)
        return name.rpartition(".")[0] or name or "corpus"

    def component(self) -> Component:
        """What `Mix` is told of it."""
        values = {name: getattr(self, name) for name in Component.model_fields}
        return Component(**{**values, "name": self.label})


def _components(value: Any) -> Any:
    """`{name: section or source}` and lists with sections in them as component sections; sources alone as they are."""
    if isinstance(value, Mapping):
        if "source" in value:
            return (_component(value),)
        if isinstance(value.get("preset"), str):  # what a text becomes under `corpus.name.field=…`
            raise ConfigError(
                f"corpus is {value['preset']!r} and also has components",
                "give every source as a component, corpus.name=source",
            )
        return tuple(_component(item, str(name)) for name, item in value.items())
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | ComponentSettings) for item in value):
        return tuple(_component(item) for item in value)
    return value


def _component(value: Any, name: str = "") -> Any:
    if isinstance(value, ComponentSettings):
        return value
    if isinstance(value, str | list | tuple):
        value = {"source": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"component {name or value!r}: expected a source or a section, found {value!r}")
    if isinstance(value.get("preset"), str) and "source" not in value:  # `corpus.a=a.txt corpus.a.epochs=2`
        value = {("source" if field == "preset" else field): item for field, item in value.items()}
    name = str(value.get("name") or name)
    if "source" not in value:
        raise ConfigError(
            f"component {name!r} has no source" if name else f"a component has no source: {dict(value)}",
            "give its files, or installed-docs",
        )
    try:
        return section(ComponentSettings, {**value, "name": name})
    except (ConfigError, BadConfig) as error:
        raise ConfigError(f"component {name or value['source']!r}: {error.message}", error.remedy) from None


AnyCorpus = Annotated[str | tuple[str, ...] | tuple[ComponentSettings, ...], BeforeValidator(_components)]
"""A source, a list of sources that are one corpus, or a mixture: `{name: {source: …, epochs: 2}, …}` or a list."""


class CorpusConfig(Config):
    """The corpus settings of every recipe."""

    corpus: AnyCorpus = Field(
        description="files: path, URL, glob or a list of these; or installed-docs; or components, {name: {source: …}}"
    )
    ingest: IngestSettings = IngestSettings()
    clean: Cleaning = Field("standard", description="cleaning steps: none, standard, web, or a list of steps")
    mix: MixSettings = MixSettings()


class Part(NamedTuple):
    """A component: its settings, its name as part of a stage's, the stage that reads it, and the steps that follow."""

    settings: ComponentSettings
    label: str
    read: Ingest
    clean: Clean | None

    @property
    def stage(self) -> Task:
        """What makes it, cleaned."""
        return self.clean or self.read

    def without(self, kind: str) -> Part:
        """The same without a step."""
        assert self.clean is not None
        steps = tuple(step for step in self.clean.steps if step.kind != kind)
        return self._replace(clean=self.clean.model_copy(update={"steps": steps}) if steps else None)


class Parts(NamedTuple):
    """The components of a corpus; `together`: all of them as one corpus, where they were cleaned as one."""

    each: tuple[Part, ...]
    together: Task | None = None


def corpus_parts(c: CorpusConfig, evaluation: Sequence[Task] = ()) -> Parts:
    """Read and cleaned.

    Args:
        evaluation: datasets that decontamination keeps out, where it is among the steps.

    Raises:
        BadConfig: two components with the same name, a format that cannot be told.
    """
    several = isinstance(c.corpus, tuple) and isinstance(c.corpus[0] if c.corpus else None, ComponentSettings)
    found: Any = c.corpus if several else (ComponentSettings(source=c.corpus),)
    labels = [_slug(each.label) for each in found]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise BadConfig(f"corpus: two components are named {twice[0]!r}", "give each its own name")
    parts = []
    for each, label in zip(found, labels, strict=True):
        suffix = f"-{label}" if len(found) > 1 else ""
        parsed = section(IngestSettings, each.ingest)
        settings = given(c.ingest) | {name: getattr(parsed, name) for name in each.ingest}
        read = Ingest(source=each.source, name=suffix and f"ingest{suffix}", **settings)
        clean, cleaning = None, c.clean if each.clean is None else each.clean
        if cleaning != "none":
            clean = Clean(corpus=read, steps=cleaning, evaluation=tuple(evaluation), name=suffix and f"clean{suffix}")
        parts.append(Part(each, label, read, clean))
    return _together(tuple(parts))


def _together(parts: tuple[Part, ...]) -> Parts:
    """With the step `near-duplicates` on all components as one corpus, where all have it with the same settings."""
    kind = "near-duplicates"
    found = [[step for step in part.clean.steps if step.kind == kind] if part.clean else [] for part in parts]
    if len(parts) == 1 or any(steps != found[0] or len(steps) != 1 for steps in found):
        return Parts(parts)
    parts = tuple(part.without(kind) for part in parts)
    plain = tuple(Component(name=part.settings.label, category=part.settings.category) for part in parts)
    union = Mix(corpora=tuple(p.stage for p in parts), components=plain, order="concatenated", name="union")
    return Parts(parts, Clean(corpus=union, steps=tuple(found[0]), name="clean-union"))


def counts_tokens(c: CorpusConfig, parts: Parts) -> bool:
    """Whether the mixture's sizes are in tokens."""
    return c.mix.total_tokens is not None or any(part.settings.tokens is not None for part in parts.each)


def unweighted(c: CorpusConfig, parts: Parts) -> Task:
    """What a tokenizer learns from: the mixture or, where its sizes are in tokens, the components as they are."""
    if not counts_tokens(c, parts):
        return mixed(c, parts, None)
    if parts.together is not None:
        return parts.together
    if len(parts.each) == 1:
        return parts.each[0].stage
    plain = tuple(Component(name=part.settings.label, category=part.settings.category) for part in parts.each)
    return Mix(corpora=tuple(part.stage for part in parts.each), components=plain, name="mix-natural")


def mixed(c: CorpusConfig, parts: Parts, tokenizer: Task | None) -> Task:
    """The corpus that is trained on. tokenizer: counts tokens, where sizes are in tokens."""
    (only, *others) = parts.each
    sized = bool(only.settings.given) or c.mix.total_bytes is not None or c.mix.total_tokens is not None
    if not others and not sized:
        return only.stage
    together = (parts.together,) if parts.together is not None else ()
    return Mix(
        corpora=together or tuple(part.stage for part in parts.each),
        components=tuple(part.settings.component() for part in parts.each),
        tokenizer=tokenizer if counts_tokens(c, parts) else None,
        **given(c.mix),
    )


def for_labels(parts: Parts, corpus: Task) -> Task:
    """The corpus that downstream tasks label by themselves: of a mixture the installed libraries' part, if any."""
    docs = [part.stage for part in parts.each if part.read.format == "installed-docs"]
    return docs[0] if len(docs) == 1 else corpus


def _slug(name: str) -> str:
    """A name as part of a stage's."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:60] or "corpus"
