"""scaling: a sweep of model sizes and lengths, the laws fitted to it, and the run that puts them to the test.

    corpus ─ tokenizer ─ examples ─┬─ w32-c1 ─ w32-c2 ─ …          each run goes on from the one before it (WSD)
                                   ├─ w64-c1 ─ w64-c2 ─ …
                                   └─ …        all of them ─ scaling (the fits) ─ next (8 × the compute) ─ comparison

A *variant* is a family (decoder with a causal objective, encoder with MLM, encoder-decoder with span corruption, or at
`scale=cpu` with T5's LM objective, prefix LM) with settings of its own; by default the three architectures.
`variants.NAME.…` sweeps others instead: a depth, a masking rate, a vocabulary, a dropout; the comparison says which
wins at a larger scale, and where they cross.

    triptych run scaling corpus=… families=[decoder]
    triptych run scaling corpus=… variants.deep.ladder.aspect=16 variants.wide.ladder.aspect=64
    triptych run scaling corpus=… variants.m15.family=encoder variants.m40.family=encoder \\
        variants.m40.objective.mask_rate=0.4 judge.kind=mlm

Sizes, lines, batch, learning rate: `tasks.scaling.ladder`. When it ends: `tasks.scaling.stopping`.

`cpu`: two decades of compute, 2e10 to 2e12 FLOPs. `gpu`: from 1e15 on, models of 1 to 30 M parameters. `base`: from
1e17. `paper`: Hoffmann et al.'s lines, 6e18 to 3e21.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from cluster.errors import BadConfig
from modeling.architecture import model_config
from modeling.config import Config, section
from modeling.errors import ConfigError
from modeling.flops import count_by_group
from modeling.schedule import LoopConfig
from modeling.shapes import parameter_shapes
from pipelines.graph import Pipeline
from pipelines.recipes.corpora import CorpusConfig, corpus_parts, mixed, unweighted
from pipelines.recipes.scale import Scale
from pipelines.recipes.sections import given, settings_of
from pipelines.sweep import Made, Sweep
from tasks.base import Runtime, Task
from tasks.examples import MakeExamples
from tasks.ngram import NGramBaseline
from tasks.objectives.settings import AnyObjective, ObjectiveSettings
from tasks.objectives.settings import parse as parse_objective
from tasks.pretrain import Pretrain
from tasks.report import Report
from tasks.scaling.comparison import CompareScaling
from tasks.scaling.ladder import Ladder, Rung, check_identifiable, rungs
from tasks.scaling.next_run import PretrainNext
from tasks.scaling.stopping import Stopping, unneeded
from tasks.scaling.sweep_fit import FitScaling, Measure, run_name
from tasks.tokenizer import TrainTokenizer

if TYPE_CHECKING:  # a class made at run time is no type to a checker

    class TokenizerSettings(Config): ...

    class ExamplesSettings(Config):
        length_tokens: int = 128

    class FitSettings(Config):
        measure: Measure = "validation_loss"
        counts: Literal["total", "non_embedding"] = "total"
        bootstrap: int = 4000

    class BaselineSettings(Config): ...

else:
    TokenizerSettings = settings_of(TrainTokenizer)
    ExamplesSettings = settings_of(MakeExamples, "objective")
    FitSettings = settings_of(FitScaling, "variant", "ladder")
    BaselineSettings = settings_of(NGramBaseline)

Family = Literal["decoder", "encoder", "encoder-decoder", "prefix-lm"]
FAMILIES: dict[str, dict[str, Any]] = {
    "decoder": {
        "model": {"activation": "swiglu", "head_bias": False},
        "tokenizer": {"kind": "gpt2"},
        "objective": {"kind": "causal"},
    },
    "encoder": {
        "model": {"positions": "relative", "relative_init": "near"},
        "tokenizer": {"kind": "bpe"},
        "objective": {"kind": "mlm"},
    },
    "encoder-decoder": {
        "model": {"positions": "relative"},
        "tokenizer": {"kind": "unigram"},
        "objective": {"kind": "span-corruption"},
    },
    "prefix-lm": {"tokenizer": {"kind": "gpt2"}, "objective": {"kind": "prefix"}},
}
"""What a family is: the modern block (`modeling.presets.modern`) in its architecture, and its objective.

A decoder has the token before in its hands; an encoder must find a masked token's neighbours. After 0.6 million tokens
a small one is at 5.5 nats with rotary or T5's relative positions, about what frequencies alone tell, and at 4.4 where
heads begin with the nearest tokens (docs/log.md).
"""


OF_SCALE: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "encoder-decoder": {
            "model": {"positions": "relative", "relative_init": "near"},
            "objective": {"kind": "prefix", "least_share": 0.5, "most_share": 0.5},
        }
    }
}
"""Families that are otherwise at a scale.

With so little compute a decoder does not learn to find its sentinel in what the encoder has read: it tells the first
token of a span no better than frequencies do, and such losses foretell little of larger models' (three sweeps were 3 to
7 % off, docs/log.md). An encoder-decoder that models language, as Raffel et al. 2020 (section 3.2) have it, too, needs
no such place. Rows are cut in their middle, so that none of them is padded.
"""


class Sparse(NamedTuple):
    """How a family with few labels differs from a decoder."""

    batch: int
    """So many times the tokens a batch."""
    rate: float
    """So many times the learning rate, which the rule raises by the root of the batch."""
    tokens_per_param: float
    """So many times the tokens a parameter are expected at the optimum."""


SPARSE = {"encoder": Sparse(2, 0.5, 1.5), "encoder-decoder": Sparse(4, 0.5, 3.0), "prefix": Sparse(2, 0.5, 1.0)}
"""Families with a label in six or seven tokens, and encoder-decoders with the objective `prefix`, which has one in two:
larger batches cost no loss and less time. Where the minima of IsoFLOP lines lay is in docs/log.md."""


BY_LADDER = {
    **dict.fromkeys(("steps", "tokens", "flops", "wall_minutes"), "set ladder.smallest_flops and ladder.largest_flops"),
    "batch_size": "set ladder.batch_tokens",
    "peak_lr": "set ladder.lr",
    "decay_share": "set ladder.decay_share",
    "seed": "set seed",
    "schedule": "leave it out: under WSD the lengths of one size share their steps",
    "warmup_steps": "leave it out: it is the same for every length",
}
"""Fields of the loop that follow from a run's size and line, and what to do instead."""


class VariantSettings(Config):
    """One sweep: a family, and what is other than the recipe's own sections."""

    family: Family = "decoder"
    objective: dict[str, Any] = Field({}, description="fields of the objective; kind: another than the family's")
    tokenizer: dict[str, Any] = Field({}, description="fields of the tokenizer")
    examples: dict[str, Any] = Field({}, description="fields of the examples")
    model: dict[str, Any] = Field({}, description="fields of the model, but for those that follow from its width")
    pretrain: dict[str, Any] = Field({}, description="fields of the loop, but for those that the ladder sets")
    ladder: dict[str, Any] = Field({}, description="fields of the ladder")


def _scale(ladder: dict[str, Any], tokenizer: dict[str, Any], length: int, **sections: Any) -> dict[str, Any]:
    return {"ladder": ladder, "tokenizer": tokenizer, "examples": {"length_tokens": length}, **sections}


ONE_CORE: dict[str, Any] = {"layer_updates": 0, "samples": 0, "checkpoint_every_seconds": 30}
ONE_GPU: dict[str, Any] = {**ONE_CORE, "gpus": 1, "cpus": 4}
SCALES: dict[str, dict[str, Any]] = {
    "cpu": _scale(
        {"spread": 3.0},
        {"vocab_size": 1024, "sample_bytes": 4 << 20},
        128,
        validation_sequences=1000,
        pretrain={"precision": "fp32"},  # autocast's casts cost models up to width 48 more time than they save
        placement=ONE_CORE,
        next_placement=ONE_CORE,  # models so small gain nothing from a second worker; other runs do
    ),
    "gpu": _scale(
        {"smallest_flops": 1e15, "largest_flops": 1e17, "widths": (128, 192, 256, 320, 384, 448, 512, 640, 768, 896),
         "aspect": 64, "head_width": 64, "batch_tokens": 2048},
        {"vocab_size": 8192, "sample_bytes": 32 << 20}, 256, placement=ONE_GPU, next_placement=ONE_GPU,
    ),
    "base": _scale(
        {"smallest_flops": 1e17, "largest_flops": 1e19, "widths": (256, 384, 512, 640, 768, 896, 1024, 1280, 1536),
         "aspect": 64, "head_width": 64, "batch_tokens": 4096},
        {"vocab_size": 16_384, "sample_bytes": 128 << 20}, 512, placement=ONE_GPU, next_placement=ONE_GPU,
    ),
    "paper": _scale(
        {"smallest_flops": 6e18, "largest_flops": 3e21, "lines": 9, "aspect": 128, "head_width": 128,
         "widths": (512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120), "batch_tokens": 8192},
        {"vocab_size": 32_768, "sample_bytes": 512 << 20}, 2048, placement={**ONE_GPU, "workers": 8, "zero_stage": 1},
        next_placement={**ONE_GPU, "workers": 64, "zero_stage": 1},
    ),
}  # fmt: skip


class ScalingConfig(CorpusConfig):
    """Settings of the `scaling` recipe."""

    families: tuple[Family, ...] = Field(("decoder", "encoder", "encoder-decoder"), min_length=1)
    variants: dict[str, VariantSettings] = Field({}, description="sweeps by name, instead of those of families")
    scale: Scale = Field("cpu", description="budgets and sizes together")
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the weights and the samples' order and masks")
    ladder: Ladder = Ladder()
    stopping: Stopping = Stopping()
    tokenizer: TokenizerSettings = TokenizerSettings()
    examples: ExamplesSettings = ExamplesSettings()
    judge: AnyObjective | None = Field(
        None, description="the objective by which all variants are validated, on the same examples; none: their own"
    )
    pretrain: LoopConfig = LoopConfig(precision="bf16")
    validation_sequences: int = Field(2000, ge=1, description="sequences of each validation loss, at most")
    fit: FitSettings = FitSettings()
    check: bool = Field(True, description="make the run that each fit predicts")
    baseline: BaselineSettings = BaselineSettings()
    placement: Runtime = Field(Runtime(), description="where each run of the sweep runs")
    next_placement: Runtime = Field(Runtime(), description="where the runs that check the fits run")

    @field_validator("variants")
    @classmethod
    def _names(cls, value: dict[str, VariantSettings]) -> dict[str, VariantSettings]:
        import re

        for name in value:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,40}", name):
                raise BadConfig(f"variants: {name!r} is no name for stages", "use lower-case letters, digits, - and _")
        return value

    @classmethod
    def scaled(cls, scale: str) -> dict[str, Any]:
        """The values that a scale stands for."""
        return SCALES.get(scale, {})

    def swept(self) -> dict[str, VariantSettings]:
        """The variants, by name."""
        return self.variants or {name: VariantSettings(family=name) for name in dict.fromkeys(self.families)}


class Swept(NamedTuple):
    """A variant as stages."""

    examples: Task
    ladder: Ladder
    planned: list[Rung]
    runs: list[Task]
    fit: FitScaling
    check: Task | None
    text: tuple[Any, ...]
    """What the losses of two variants must share to be of one kind: objective and tokenizer, or the judge."""


def scaling(c: ScalingConfig) -> Pipeline:
    """Scaling laws: sweep, fit, predict a run at 8 times the compute, make it, compare architectures."""
    parts = corpus_parts(c)
    swept: dict[str, Swept] = {}
    for name, settings in c.swept().items():
        try:
            swept[name] = _sweep(c, name, settings, parts)
        except (BadConfig, ConfigError) as error:
            raise BadConfig(f"variant {name}: {error.message}", error.remedy) from None
    per_byte = c.fit.measure == "validation_bits_per_byte"  # then tokenizers may differ, objectives may not
    texts = {each.text[:1] if per_byte else each.text for each in swept.values()}
    checks = tuple(each.check for each in swept.values() if each.check is not None)
    comparison = CompareScaling(
        fits=tuple(each.fit for each in swept.values()),
        runs=checks,
        comparable=len(texts) == 1,
        measure=c.fit.measure,
        bootstrap=c.fit.bootstrap,
    )
    report = None
    if checks:
        baselines = tuple(NGramBaseline(examples=each.examples, **given(c.baseline)) for each in swept.values())
        report = Report(models=checks, baselines=baselines)
    return Pipeline([comparison], report=report, sweep=_order(c, list(swept.values())))


def _sweep(c: ScalingConfig, name: str, settings: VariantSettings, parts: Any) -> Swept:
    for field in (*sorted(c.pretrain.model_fields_set), *settings.pretrain):
        if field in BY_LADDER:
            raise BadConfig(f"pretrain.{field}: the rules of the sweep set it for each run", BY_LADDER[field])
    if "width" in settings.model:
        raise BadConfig("model.width: a sweep is of several widths", "set ladder.widths")
    family = _family(c.scale, settings)
    objective = _objective(family["objective"], settings.objective)
    tokenizer_fields = {**given(c.tokenizer), **family["tokenizer"], **settings.tokenizer}
    tokenizer = TrainTokenizer(corpus=unweighted(c, parts), **tokenizer_fields)
    corpus = mixed(c, parts, tokenizer)
    fields = {**given(c.examples), **settings.examples}
    examples = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective=objective, **fields)
    judge = MakeExamples(corpus=corpus, tokenizer=tokenizer, objective=c.judge, **fields) if c.judge else None
    ladder = section(Ladder, {**_fields(c.ladder), **_own_ladder(c, settings.family, objective), **settings.ladder})
    block = {**family.get("model", {}), **settings.model}
    length = int(fields["length_tokens"])
    shapes = {width: _shape(ladder, width, settings.family, block, length, objective) for width in ladder.widths}
    counted = {width: _params(shape, tokenizer.vocab_size, c.fit.counts) for width, shape in shapes.items()}
    planned = rungs(ladder, counted, length)
    check_identifiable(planned)
    loop = section(LoopConfig, {**_fields(c.pretrain), **settings.pretrain, "seed": c.seed})
    common: dict[str, Any] = {
        "examples": examples,
        "tokenizer": tokenizer,
        "judge": judge,
        "seed": c.seed,
        "head": objective.head,
        "validation_sequences": c.validation_sequences,
    }
    runs: list[Task] = []
    last: dict[int, Task] = {}
    longest = {rung.width: rung.line for rung in planned}
    for rung in planned:
        sized = {**_fields(loop), **ladder.loop(rung.width, rung.params, length), **dict(rung.budget)}
        last[rung.width] = Pretrain(
            **common,
            model=shapes[rung.width],
            loop=section(LoopConfig, sized),
            prefix=last.get(rung.width),
            keep_stable=rung.line < longest[rung.width],
            runtime=c.placement,
            name=run_name(name, rung.width, rung.line),
        )
        runs.append(last[rung.width])
    fit = FitScaling(runs=tuple(runs), variant=name, ladder=ladder, name=f"{name}-scaling", **given(c.fit))
    check = (
        PretrainNext(**common, fit=fit, loop=loop, runtime=c.next_placement, name=f"{name}-next") if c.check else None
    )
    judged = repr(c.judge if c.judge is not None else objective)
    return Swept(examples, ladder, planned, runs, fit, check, (judged, repr(tokenizer_fields), length))


def _family(scale: str, settings: VariantSettings) -> dict[str, Any]:
    """What the variant's family is at a scale, where the variant has no other objective."""
    own = OF_SCALE.get(scale, {}).get(settings.family, {})
    if settings.objective.get("kind") not in (None, own.get("objective", {}).get("kind")):
        own = {}
    return {**FAMILIES[settings.family], **own}


def _objective(family: Mapping[str, Any], own: Mapping[str, Any]) -> ObjectiveSettings:
    kind = own.get("kind", family["kind"])
    base = family if kind == family["kind"] else {"kind": kind}
    return parse_objective({**base, **own})


def _own_ladder(c: ScalingConfig, family: str, objective: ObjectiveSettings) -> Mapping[str, Any]:
    """What a family's ladder has for itself, where the variant does not say otherwise."""
    own = SPARSE.get("prefix" if (family, objective.kind) == ("encoder-decoder", "prefix") else family)
    if own is None:
        return {}
    return {
        "batch_tokens": own.batch * c.ladder.batch_tokens,
        "lr": own.rate * c.ladder.lr,
        "tokens_per_param": own.tokens_per_param * c.ladder.tokens_per_param,
    }


def _fields(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}


def _shape(
    ladder: Ladder, width: int, family: str, block: Mapping[str, Any], length: int, objective: ObjectiveSettings
) -> Any:
    longest = max(*objective.lengths(length), objective.joint_length(length) if objective.paired else 0)
    gated = "glu" in str(block.get("activation", "gelu"))
    shape = ladder.shape(width, gated=gated, two_stacks=family == "encoder-decoder")
    return model_config(
        {"preset": "modern-tiny", **shape, "max_length": longest, **block, "architecture": family}  # block may be sized
    )


def _params(shape: Any, vocab_size: int, counts: str) -> int:
    shapes = parameter_shapes(shape.with_vocabulary(vocab_size), {"name": "language-model", "settings": {}})
    return count_by_group(shapes.items())[counts]


def _order(c: ScalingConfig, swept: list[Swept]) -> Sweep:
    """All runs, cheapest first; which of a variant's are not needed is decided by its own."""
    flat = sorted(
        ((v, n) for v, each in enumerate(swept) for n in range(len(each.runs))),
        key=lambda pair: (swept[pair[0]].planned[pair[1]].flops, pair),
    )
    places = {pair: number for number, pair in enumerate(flat)}
    known: dict[tuple[int, tuple[int, ...]], dict[int, str]] = {}

    def rule(made: Made) -> dict[int, str]:
        out: dict[int, str] = {}
        for v, each in enumerate(swept):
            own = {n: made[places[v, n]] for n in range(len(each.runs)) if places[v, n] in made}
            state = (v, tuple(sorted(own)))
            if state not in known:
                known[state] = unneeded(
                    each.planned, own, c.stopping, decay_share=each.ladder.decay_share, measure=c.fit.measure
                )
            out |= {places[v, n]: why for n, why in known[state].items()}
        return out

    return Sweep(tuple(swept[v].runs[n] for v, n in flat), rule)
