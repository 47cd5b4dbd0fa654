"""What a family of the Hub is: which of our configs it can express, and how config and tensors translate.

Families are data (`fixed`, `fields`, `accepted`, `classes`, rules of tensors), read in both directions. A new one
is a file with a subclass of `Family` and a line in `modeling.hub.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from modeling.architecture import TransformerConfig
from modeling.errors import ConfigError
from modeling.hub import FAMILIES
from modeling.hub.mapping import Rows, StateMap
from modeling.hub.tasks import TASK_HEADS, task_fields

TRAINING_ONLY = frozenset(
    {
        "dropout",
        "generator_share",
        "init",
        "init_std",
        "relative_init",
        "scaled_init_residual",
        "zero_init_residual",
    }
)
"""Fields of ours that do not change what a trained model computes."""
OUTPUT_ONLY = frozenset({"tie_embeddings", "head_transform", "head_bias", "head_scale"})
"""Fields of ours that only a language model's output layer reads."""
OUTPUT_HEADS = frozenset({"language-model", "permutation-language-model"})
"""Heads that have an output layer."""
PUBLISHED = {
    ("encoder", "language-model"): "bert-mini",
    ("encoder", "permutation-language-model"): "xlnet-base",
    ("encoder", "discriminator"): "electra-small",
    ("decoder", "language-model"): "gpt2-124M",
    ("encoder-decoder", "language-model"): "t5-small",
}
"""{(architecture, head): a preset that a family can express}, to name where a model is none's."""
WRITTEN_OUT = frozenset({"share_layers", "share_stacks"})
"""Fields of ours that say which weights are one: a family without sharing has them several times."""

GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "gelu": ("gelu", "gelu_python"),
    "gelu-tanh": GELU_TANH,
    "relu": ("relu",),
}


class FieldPair(NamedTuple):
    """A field of their config that is one of ours."""

    theirs: str
    ours: str
    default: Any
    """What theirs is where a config.json leaves it out."""
    names: Mapping[Any, tuple[Any, ...]] | None = None
    """{our value: their spellings, the one to write first}; None: the value itself."""


class HubClass(NamedTuple):
    """A class of theirs and the head of ours that it is."""

    name: str
    head: str
    """A name in `modeling.heads.HEADS`, or in `modeling.hub.tasks.TASK_HEADS`; "": the bare trunk."""
    pairs: str = "none"
    """The objective whose labels its sentence-pair head was trained on."""


class Family:
    """Base of the families; a subclass fills in the data and writes `state_map`."""

    model_type: ClassVar[str]
    classes: ClassVar[tuple[HubClass, ...]]
    """The first one with a fitting head is written."""
    fixed: ClassVar[Mapping[str, Any]]
    """Fields of ours that have this value in every model of the family."""
    fields: ClassVar[tuple[FieldPair, ...]]
    accepted: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields of theirs that we have only one way of: the values that are fine, their default first."""
    written: ClassVar[Mapping[str, Any]] = {}
    """Further fields to write."""
    base: ClassVar[str] = ""
    """Prefix of the trunk's tensors, which files of a bare trunk leave out."""
    outside: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the tensors that are outside of the trunk."""
    output: ClassVar[str] = ""
    """Their output matrix; in the file where it is not tied to `embedding`."""
    embedding: ClassVar[str] = ""
    generates: ClassVar[bool] = False
    decoder_start: ClassVar[int | None] = None
    """The id that a decoder begins with where a config.json leaves it out; None: the pad id."""

    def state_map(self, config: TransformerConfig, head: Mapping[str, Any]) -> StateMap:
        """The rules of a model's tensors."""
        raise NotImplementedError

    def limits(self, values: Mapping[str, Any], head: Mapping[str, Any], roles: Mapping[str, int]) -> Iterator[str]:
        """What does not fit beyond `fixed` and `fields`, as "field is …, expected …"."""
        return iter(())

    def more_written(self, values: Mapping[str, Any], roles: Mapping[str, int]) -> dict[str, Any]:
        """Fields of theirs that are no single field of ours."""
        return {}

    def more_read(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fields of ours that are no single field of theirs."""
        return {}

    def wrong(self, theirs: Mapping[str, Any]) -> list[str]:
        """Options of theirs that we do not have, beyond `accepted`, as "field is …, expected …"."""
        return []

    # ---------------------------------------------------------------- both directions, from the data

    def misfits(self, config: Any, head: Mapping[str, Any], roles: Mapping[str, int]) -> list[str]:
        """Why the family cannot express a model: one line for each field; empty if it can."""
        if not isinstance(config, TransformerConfig):
            return [f"architecture is {config.architecture}, expected {self.fixed['architecture']}"]
        values = canonical(config)
        unread = frozenset() if head["name"] in OUTPUT_HEADS else OUTPUT_ONLY
        found = [
            f"{name} is {_said(values[name])}, expected {_said(value)}"
            for name, value in self.fixed.items()
            if values[name] != value and name not in unread
        ]
        for pair in self.fields:
            if pair.names is not None and values[pair.ours] not in pair.names:
                known = " or ".join(map(_said, pair.names))
                found.append(f"{pair.ours} is {_said(values[pair.ours])}, expected {known}")
        if self.class_of(head) is None:
            heads = " or ".join(sorted({_head_said(each.head, each.pairs != "none") for each in self.classes}))
            found.append(f"head is {_head_said(head['name'], has_pairs(head))}, expected {heads}")
        return found + list(self.limits(values, head, roles))

    def class_of(self, head: Mapping[str, Any]) -> HubClass | None:
        """The class of theirs for a head of ours."""
        for each in self.classes:
            if each.head == head["name"] and (each.pairs != "none") == has_pairs(head):
                return each
        return None

    def write_config(self, config: TransformerConfig, head: Mapping[str, Any], roles: Mapping[str, int]) -> dict:
        """Their config.json."""
        values, hub_class = canonical(config), self.class_of(head)
        assert hub_class is not None
        theirs: dict[str, Any] = {
            "architectures": [hub_class.name],
            "model_type": self.model_type,
            "dtype": "float32",
            **{f"{role}_token_id": roles.get(role) for role in ("pad", "bos", "eos")},
            **self.written,
            **task_fields(head),
        }
        for pair in self.fields:
            value = values[pair.ours]
            theirs[pair.theirs] = value if pair.names is None else pair.names[value][0]
        return {**theirs, **self.more_written(values, roles)}

    def read_config(
        self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
    ) -> tuple[TransformerConfig, dict[str, Any]]:
        """(config, head) of their config.json; some facts show in the tensors only.

        Raises:
            ConfigError: an option that we do not have; names all of them.
        """
        wrong = [
            f"{name} is {theirs[name]!r}, expected {' or '.join(repr(v) for v in values)}"
            for name, values in self.accepted.items()
            if theirs.get(name, values[0]) not in values
        ] + self.wrong(theirs)
        read: dict[str, Any] = {}
        for pair in self.fields:
            value = theirs.get(pair.theirs, pair.default)
            if pair.names is not None:
                known = [own for own, spellings in pair.names.items() if value in spellings]
                if not known:
                    spellings = " or ".join(repr(each[0]) for each in pair.names.values())
                    wrong.append(f"{pair.theirs} is {value!r}, expected {spellings}")
                value = next(iter(known), None)
            read.setdefault(pair.ours, value)  # of several dropout rates the first
        name = next(iter(theirs.get("architectures") or ()), self.classes[0].name)
        whole = [each for each in self.classes if each.head not in TASK_HEADS]
        hub_class = next((each for each in whole if each.name == name), None)
        if hub_class is None:
            wrong.append(f"architectures is {name}, expected {' or '.join(each.name for each in whole)}")
        if wrong or hub_class is None:
            raise ConfigError(
                f"{where}: {'; '.join(wrong)}", f"Triptych builds {self.model_type} without these options"
            )
        ours = {**self.fixed, **read, "tie_embeddings": self.tied(theirs, tensors), **self.more_read(theirs, tensors)}
        settings = {} if hub_class.pairs == "none" else {"pairs": hub_class.pairs}
        start = theirs.get("decoder_start_token_id", self.decoder_start)
        if self.fixed["architecture"] == "encoder-decoder" and start is not None:
            settings["decoder_start_token_id"] = start
        try:
            config = TransformerConfig(**_tidy(ours))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{where}: not a config of {self.model_type}: {error}") from None
        head = {"name": hub_class.head, "settings": settings}
        wrong = self.misfits(config, head, {})
        if wrong:
            raise ConfigError(
                f"{where}: {'; '.join(wrong)}", f"Triptych builds {self.model_type} without these options"
            )
        return config, head

    def tied(self, theirs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
        """Whether the output matrix is the embedding.

        Two that differ are two, whatever the config says (transformers does the same).
        """
        if theirs.get("tie_word_embeddings", True) is False:
            return False
        if self.output not in tensors or self.embedding not in tensors:
            return True
        output, embedding = tensors[self.output], tensors[self.embedding]
        return output.shape == embedding.shape and bool((output == embedding).all())


def canonical(config: TransformerConfig) -> dict[str, Any]:
    """The config's fields, with those that stand for others spelled out."""
    return {
        **config.model_dump(),
        "head_size": config.head_width,
        "embedding_width": config.token_width,
        "embedding_norm": config.normalises_embeddings,
        "decoder_layers": (config.decoder_layers or config.layers) if config.architecture == "encoder-decoder" else 0,
    }


def _tidy(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ours as a person would write them: 0 where it says the same."""
    tidy = dict(ours)
    if tidy.get("head_size", 0) * tidy["heads"] == tidy["width"]:
        tidy["head_size"] = 0
    for name, same in (("embedding_width", "width"), ("decoder_layers", "layers")):
        if tidy.get(name) == tidy[same]:
            tidy[name] = 0
    if tidy.get("embedding_norm") == (tidy.get("norm_placement") == "post"):
        del tidy["embedding_norm"]
    return tidy


def stack_blocks(config: TransformerConfig, stack: str) -> Iterator[tuple[int, str]]:
    """(layer, our prefix of its block) of `encoder` or `decoder`; shared layers are written out."""
    second = stack == "decoder" and config.architecture == "encoder-decoder"
    layers = (config.decoder_layers if second else 0) or config.layers
    owner = "encoder" if config.share_stacks else stack
    for n in range(layers):
        yield n, f"transformer.{owner}.blocks.{0 if config.share_layers else n}"


def vocabulary_rows(config: TransformerConfig, fill: float = 0.0, lead: tuple[int, ...] = ()) -> Rows:
    """How a matrix or a bias over the vocabulary translates."""
    return Rows(config.vocab_size, config.padded_vocab_size, fill, lead)


def has_pairs(head: Mapping[str, Any]) -> bool:
    """Whether a language model of ours also has a head for sentence pairs."""
    return head["settings"].get("pairs", "none") != "none"


def _head_said(name: str, pairs: bool) -> str:
    return (name or "none") + (" with sentence pairs" if pairs else "")


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def family_of(config: Any, head: Mapping[str, Any], roles: Mapping[str, int] | None = None) -> Family:
    """The family of the Hub that can express a model.

    Args:
        roles: {role: id} of the tokenizer's special tokens, where they are known.

    Raises:
        ConfigError: none can; names the nearest and every field that does not fit it.
    """
    tried: dict[str, list[str]] = {}
    for name in FAMILIES:
        family: Family = FAMILIES.load(name)()
        tried[name] = family.misfits(config, head, roles or {})
        if not tried[name]:
            return family
    none = f"no family of the Hub can express this model (tried {', '.join(tried)})"
    if not isinstance(config, TransformerConfig):  # word vectors, ELMo: as far from any family as from another
        raise ConfigError(none, _remedy(config, head))
    of_the_kind = [n for n, wrong in tried.items() if not any(each.startswith("architecture ") for each in wrong)]
    fewest = min(len(tried[name]) for name in of_the_kind or tried)
    nearest = [name for name in of_the_kind or tried if len(tried[name]) == fewest]
    reasons = "; ".join(f"{name}: {', '.join(tried[name])}" for name in nearest)
    raise ConfigError(f"{none}; nearest is {reasons}", _remedy(config, head))


def _remedy(config: Any, head: Mapping[str, Any]) -> str:
    """What to train instead of a model that no family can express."""
    kind = config.architecture
    published = PUBLISHED.get((kind, head["name"])) or PUBLISHED.get((kind, "language-model"))
    if published is None:
        known = ", ".join(sorted({architecture for architecture, _ in PUBLISHED}))
        return f"the Hub has no class for architecture {kind}, only for {known}; keep the folder as it is"
    return f"set these fields as expected, or train a published shape: model={published}"
