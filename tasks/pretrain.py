"""Pretrain: a model from random weights (or from another model's) on any objective's examples, with DeepSpeed.

The artifact is a model's folder: `config.json`, `model.safetensors`, the tokenizer's files,
`metrics.jsonl` (a line per logged step), `updates.jsonl` (how far updates move each layer), `samples.json` (predictions
on held-out examples on the way), `training.json`, `incidents.jsonl` where steps went wrong, and with `keep_stable` a
checkpoint in `stable/`. All of it is a function of the config, the inputs and the placement; speeds are in the
manifest's timings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData
from modeling.architecture import AnyModel, generator_config, preset
from modeling.heads import HEADS
from modeling.optimizers.settings import check_stage
from modeling.schedule import LoopConfig
from tasks.base import Artifact, Context, Examples, Model, Task, Tokenizer
from tasks.objectives.settings import ObjectiveSettings, parse
from tasks.stable_phase import FOLDER, begin, check_loop, check_prefix, keep
from tasks.training import (
    TOKENIZER_FILES,
    fit_on_rank,
    model_files,
    same_tokenizer,
    timings,
    train,
    write_history,
    write_watched,
)

if TYPE_CHECKING:
    from cluster.workers import RankContext

TRAINING = "training.json"
SAMPLED_ROWS = 256
"""Rows that the shares of labels and padding, for counting FLOPs, are taken from."""


class Pretrain(Task):
    """Train a model on what the examples' objective asks for; see the module's docstring for the artifact."""

    produces: ClassVar[str] = "model"
    stage: ClassVar[str] = "pretrain"

    examples: Examples
    tokenizer: Tokenizer
    init: Model | None = Field(None, description="a model to go on from; none: random weights")
    model: AnyModel | None = Field(
        preset("modern-mini"),
        description="a preset's name, or fields; the vocabulary comes from the tokenizer; none: init's own",
    )
    head: Annotated[str, HEADS] = Field("language-model", description="what the objective trains; it follows from it")
    loop: LoopConfig = LoopConfig()
    prefix: Model | None = Field(
        None, description="a shorter run of this loop under schedule=wsd, which this one goes on from"
    )
    keep_stable: bool = Field(
        False, description="schedule=wsd: keep the state before the decay, so that a longer run can go on from it"
    )
    judge: Examples | None = Field(
        None, description="validate on these held-out examples instead: the same for runs that are to be compared"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="of the samples' order and masks; weights start from loop.seed")
    validation_sequences: int = Field(2000, ge=1, description="sequences of the validation loss, at most")

    @model_validator(mode="before")
    @classmethod
    def _head_of_the_objective(cls, values: Any) -> Any:
        objective = getattr(values.get("examples"), "objective", None) if isinstance(values, dict) else None
        return {"head": objective.head, **values} if isinstance(objective, ObjectiveSettings) else values

    @model_validator(mode="after")
    def _fits(self) -> Pretrain:
        """What can be known before anything runs: the objective fits the architecture, and its lengths fit."""
        check_stage(self.loop.optimizer, self.runtime.zero_stage)
        objective = getattr(self.examples, "objective", None)
        for field in ("prefix", "keep_stable"):
            if getattr(self, field):
                check_loop(self.loop, field)
        if self.model is None and self.init is None:
            raise BadConfig("pretrain: neither init nor model is given", "name a model to go on from, or a shape")
        smallest = self.loop.batch_warmup_from or self.loop.batch_size
        if smallest < self.runtime.workers:
            name = "batch_warmup_from" if self.loop.batch_warmup_from else "batch_size"
            raise BadConfig(
                f"pretrain.{name} is {smallest}, less than the {self.runtime.workers} workers of placement",
                "raise it, or set placement.workers lower",
            )
        if isinstance(objective, ObjectiveSettings) and self.model is not None:
            fits(objective, int(self.examples.length_tokens), self.model)  # type: ignore[attr-defined]
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        return train(ctx, pretrain_on_rank, self.payload(ctx), steps=self.loop.steps)["metrics"]

    def payload(self, ctx: Any) -> dict[str, Any]:
        """What `pretrain_on_rank` needs, from a context's inputs; the tokenizer's files go into `ctx.out`."""
        import shutil

        examples, tokenizer = ctx.input("examples").path, ctx.input("tokenizer")
        init = ctx.input("init") if self.init is not None else None
        if init is not None:
            same_tokenizer("pretrain", tokenizer, init)
        for name in TOKENIZER_FILES:
            if (tokenizer.path / name).is_file():
                shutil.copyfile(tokenizer.path / name, ctx.out / name)
        info = _read_json(examples / "examples.json")
        judge = _read_json(ctx.input("judge").path / "examples.json") if self.judge is not None else None
        return {
            "model": self._config(info, judge, tokenizer.path, init),
            "head": {"name": self.head, "settings": info["objective"]},
            "init": str(init.path) if init is not None else None,
            "prefix": str(ctx.input("prefix").path) if self.prefix is not None else None,
            "keep_stable": self.keep_stable,
            "judge": str(ctx.input("judge").path) if self.judge is not None else None,
            "loop": self.loop,
            "seed": self.seed,
            "validation_sequences": self.validation_sequences,
            "examples": str(examples),
            "out": str(ctx.out),
            "scratch": str(ctx.scratch),
            "runtime": ctx.runtime,
        }

    def _config(
        self, info: Mapping[str, Any], judge: Mapping[str, Any] | None, tokenizer: Path, init: Artifact | None
    ) -> Any:
        """The model's config with the tokenizer's vocabulary, checked against the examples and `init`."""
        vocab_size = int(_read_json(tokenizer / "tokenizer-info.json")["vocab_size"])
        for field, facts in (("examples", info), ("judge", judge or info)):
            if int(facts["vocab_size"]) != vocab_size:
                raise BadConfig(
                    f"{field} were made with a vocabulary of {facts['vocab_size']}, the tokenizer has {vocab_size} "
                    "tokens",
                    "give Pretrain the tokenizer that made the examples",
                )
        config = shape_of(self.model, init, vocab_size, "pretrain")
        for facts in (info, judge or info):
            fits(parse(dict(facts["objective"])), int(facts["length_tokens"]), config)
        return config


def fits(objective: ObjectiveSettings, length_tokens: int, model: Any) -> None:
    """Raise BadConfig where the objective cannot train the model, or its examples are longer than positions."""
    if model.architecture not in objective.architectures:
        raise BadConfig(
            f"objective {objective.kind!r} does not fit model.architecture {model.architecture!r}",
            f"it trains {' or '.join(objective.architectures)}",
        )
    positions = getattr(model, "positions", "")
    if objective.kind == "permutation" and positions != "transformer-xl":
        raise BadConfig(
            f"objective 'permutation' needs model.positions 'transformer-xl', found {positions!r}",
            "take a preset such as xlnet-base, or another objective",
        )
    if objective.kind == "rtd":
        if positions == "transformer-xl":
            raise BadConfig(
                "objective 'rtd' shares embeddings of positions, and model.positions 'transformer-xl' has none",
                "set model.positions to learned, relative or rotary",
            )
        generator_config(model)  # raises where there is no such generator
    if getattr(objective, "pairs", "none") != "none" and getattr(model, "token_types", 0) == 1:
        raise BadConfig(
            f"objective {objective.kind!r} has pairs of segments, model.token_types is 1",
            "set model.token_types=2, or 0 for none",
        )
    inputs, targets = objective.lengths(length_tokens)
    joined = objective.paired and model.architecture != "encoder-decoder"
    longest = objective.joint_length(length_tokens) if joined else max(inputs, targets)
    if longest > model.max_length:
        sides = f" (inputs of {inputs}, targets of {targets})" if targets else ""
        raise BadConfig(
            f"examples have {longest} tokens{sides}, model.max_length is {model.max_length}",
            f"set model.max_length to at least {longest}, or make shorter examples",
        )


def shape_of(model: Any, init: Artifact | None, vocab_size: int, stage: str) -> Any:
    """The config of a run: `init`'s own where there is one, otherwise `model` with the tokenizer's vocabulary.

    Raises BadConfig where both are given and differ, naming the fields.
    """
    if init is None:
        return model.with_vocabulary(vocab_size)
    from modeling.checkpoint import load_config

    config = load_config(init.path)
    if vocab_size > config.vocab_size:
        raise BadConfig(
            f"{stage}: the tokenizer has {vocab_size} tokens, init has embeddings of {config.vocab_size}",
            "give the tokenizer that init was trained with",
        )
    if model is not None:
        own, found = model.with_vocabulary(vocab_size).model_dump(), config.model_dump()
        changed = [f"{name} {own[name]!r} (init: {found.get(name)!r})" for name in own if own[name] != found.get(name)]
        if changed:
            raise BadConfig(
                f"{stage}: model differs from init in {', '.join(changed)}",
                "leave model out, or give both the same section",
            )
    return config


def pretrain_on_rank(payload: dict[str, Any], rank: RankContext) -> dict[str, Any]:
    """What every worker runs. Rank 0 writes the model and returns {metrics, timings}."""
    import torch

    from modeling.checkpoint import build_model, load_weights, save_model
    from modeling.flops import parameter_counts, training_flops_per_token
    from modeling.prefetch import Prefetch
    from modeling.schedule import BUDGETS, batch_size_at, decay_start, first_sample, resolved
    from modeling.step import SAMPLE_IDS, count_tokens, rank_rows
    from tasks.drawn_ahead import DrawnAhead
    from tasks.example_reader import ExampleReader
    from tasks.held_out import held_out
    from tasks.samples import Sampler
    from tasks.vocabulary import tokenizers_installed

    loop, config, head, out = payload["loop"], payload["model"], payload["head"], Path(payload["out"])
    folder, architecture = Path(payload["examples"]), config.architecture
    reader = ExampleReader(folder, "train", payload["seed"], architecture)
    torch.manual_seed(loop.seed)
    model = build_model(config, head)
    new = load_weights(model, Path(payload["init"])) if payload["init"] is not None else []

    def draw(positions: Any) -> dict[str, Any]:
        pairs = reader.at(positions)
        return {**reader.batch(pairs), SAMPLE_IDS: pairs[:, 0] * len(reader) + pairs[:, 1]}

    def positions(step: int) -> range:
        rows, first = rank_rows(batch_size_at(loop, step), rank.rank, rank.world_size), first_sample(loop, step)
        return range(first + rows.start, first + rows.stop)

    sample = reader.batch(reader.indices(0, SAMPLED_ROWS))  # the same on every rank
    first = {name: torch.from_numpy(array) for name, array in sample.items()}
    tokens = max(1, count_tokens(first))
    label_share = float(model.count(first).reshape(-1)[0]) / tokens
    lengths = [first[name].shape[1] if name in first else 0 for name in ("input_ids", "decoder_input_ids")]
    flops = training_flops_per_token(config, lengths[0], label_share, target_length=lengths[1], head=head)
    budget = {name: getattr(loop, name) for name in BUDGETS if getattr(loop, name)}
    places = len(first["input_ids"]) * sum(lengths)
    # The formula is per token, and padding costs nothing; packed rows have none.
    loop = resolved(loop, row_tokens=sum(lengths), flops_per_token=flops and flops * (tokens / places))
    scratch = Path(payload["scratch"])
    if payload["prefix"] is not None:
        check_prefix(loop.model_dump(mode="json"), payload["seed"], _read_json(Path(payload["prefix"]) / TRAINING))
        if not rank.rank:
            begin(Path(payload["prefix"]), scratch, decay_start(loop))
    validation = sampler = None
    judge = Path(payload["judge"]) if payload["judge"] is not None else folder
    if _read_json(judge / "examples.json")["sequences"]["validation"]:
        split = ExampleReader(judge, "validation", payload["seed"], architecture)
        validation = held_out(split, payload["validation_sequences"], out / "tokenizer.json")
        sampler = Sampler(split, out / "tokenizer.json") if tokenizers_installed() else None
    with Prefetch(DrawnAhead(draw, positions, reader.length, loop.steps), loop.steps) as batches:
        result = fit_on_rank(
            rank,
            model,
            loop,
            batches,
            runtime=payload["runtime"],
            length_tokens=sum(lengths),
            checkpoint_dir=scratch,
            flops_per_token=flops,
            held_out=validation,
            sampler=sampler,
            watch_layers=True,
            model_files=model_files(rank, config, head, out),
            stable_dir=scratch / FOLDER if payload["keep_stable"] else None,
        )
    if rank.rank:
        return {}
    if payload["keep_stable"]:
        keep(scratch, out)
    metrics = {
        "loss": result.history[-1]["loss"],
        **result.validation,
        "unigram_entropy": reader.info.get("unigram_entropy_nats"),
        "tokens": result.tokens,
        "labels": result.labels,
        "steps": result.step,
        "epochs": first_sample(loop, result.step) / len(reader),
        "best_step": result.best_step if loop.validate_every_steps else None,
    }
    # ELECTRA's generator, say, has done its work
    kept, name = getattr(model, "kept", model), getattr(model, "kept_head", head["name"])
    save_model(out, kept, config, {"name": name, "settings": head["settings"]})
    write_history(out, result)
    write_watched(out, result)
    parameters = parameter_counts(kept)
    note = {
        "loop": {**loop.model_dump(mode="json"), "steps": result.planned_steps},
        "precision": result.precision,
        "budget": budget,
        "seed": payload["seed"],
        "init": "random" if payload["init"] is None else "pretrained",
        "not_in_init": new,  # weights that began anew all the same
        "length_tokens": reader.length,
        "objective": reader.info["objective"],
        "parameters": parameters,
        "training_flops": flops * result.tokens if flops else None,
        "stopped_early": result.stopped_early,
        "final": metrics,
    }
    (out / TRAINING).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    metrics = {name: value for name, value in metrics.items() if value is not None}
    metrics |= {"parameters": parameters["total"]}
    if flops:
        metrics["training_flops"] = flops * result.tokens
    return {"metrics": metrics, "timings": timings(result)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path.name}: not readable ({error})", "run the stage that makes it again") from None
