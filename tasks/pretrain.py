"""Pretrain: a transformer from random weights on masked examples, with DeepSpeed, on one or several workers.

The artifact is a model's folder: `config.json`, `model.safetensors`, the tokenizer's files,
`metrics.jsonl` (a line per logged step) and `training.json`. All of it is a function of the config, the
inputs and the placement; speeds are in the manifest's timings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from cluster.errors import BadConfig, BadData
from modeling.architecture import TransformerConfig, preset
from modeling.schedule import LoopConfig
from tasks.base import Context, Examples, Task, Tokenizer
from tasks.training import fit_on_rank, timings, train

if TYPE_CHECKING:
    from cluster.workers import RankContext
    from modeling.heads import MaskedLM
    from tasks.example_reader import ExampleReader

TOKENIZER_FILES = ("tokenizer.json", "tokenizer-info.json")


class Pretrain(Task):
    """Train a masked language model; see the module's docstring for the artifact."""

    produces: ClassVar[str] = "model"
    stage: ClassVar[str] = "pretrain"

    examples: Examples
    tokenizer: Tokenizer
    model: TransformerConfig = Field(
        preset("modern-mini"), description="a preset's name, or fields; the vocabulary comes from the tokenizer"
    )
    loop: LoopConfig = LoopConfig()
    seed: int = Field(0, ge=0, description="of the samples' order and masks; weights start from loop.seed")
    validation_sequences: int = Field(2000, ge=1, description="sequences of the validation loss, at most")

    def run(self, ctx: Context) -> Mapping[str, Any]:
        import shutil

        examples, tokenizer = ctx.input("examples").path, ctx.input("tokenizer").path
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, ctx.out / name)
        payload = {
            "model": self._config(examples, tokenizer),
            "loop": self.loop,
            "seed": self.seed,
            "validation_sequences": self.validation_sequences,
            "examples": str(examples),
            "out": str(ctx.out),
            "scratch": str(ctx.scratch),
            "runtime": ctx.runtime,
        }
        return train(ctx, pretrain_on_rank, payload, steps=self.loop.steps)["metrics"]

    def _config(self, examples: Path, tokenizer: Path) -> TransformerConfig:
        """The model's config with the tokenizer's vocabulary, checked against the examples."""
        info = _read_json(examples / "examples.json")
        vocab_size = int(_read_json(tokenizer / "tokenizer-info.json")["vocab_size"])
        if int(info["vocab_size"]) != vocab_size:
            raise BadConfig(
                f"examples were made with a vocabulary of {info['vocab_size']}, the tokenizer has {vocab_size} tokens",
                "give Pretrain the tokenizer that made the examples",
            )
        length = int(info["length_tokens"])
        if length > self.model.max_length:
            raise BadConfig(
                f"examples have {length} tokens, model.max_length is {self.model.max_length}",
                f"set model.max_length to at least {length}, or make shorter examples",
            )
        return self.model.with_vocabulary(vocab_size)


def pretrain_on_rank(payload: dict[str, Any], rank: RankContext) -> dict[str, Any]:
    """What every worker runs. Rank 0 writes the model and returns {metrics, timings}."""
    import torch

    from modeling.checkpoint import save_model
    from modeling.flops import parameter_counts, training_flops_per_token
    from modeling.heads import MaskedLM
    from modeling.loop import rank_rows
    from tasks.example_reader import ExampleReader

    loop, config, out = payload["loop"], payload["model"], Path(payload["out"])
    reader = ExampleReader(Path(payload["examples"]), "train", payload["seed"])
    torch.manual_seed(loop.seed)
    model = MaskedLM(config)
    rows = rank_rows(loop.batch_size, rank.rank, rank.world_size)

    def next_batch(step: int) -> dict[str, Any]:
        return reader.batch(reader.indices(step * loop.batch_size + rows.start, len(rows)))

    label_share = float((next_batch(0)["labels"] != -100).mean())
    result = fit_on_rank(
        rank,
        model,
        loop,
        next_batch,
        runtime=payload["runtime"],
        length_tokens=reader.length,
        checkpoint_dir=Path(payload["scratch"]),
        flops_per_token=training_flops_per_token(config, reader.length, label_share),
    )
    figures: dict[str, float] = {}
    if reader.info["sequences"]["validation"]:
        validation = ExampleReader(Path(payload["examples"]), "validation", payload["seed"])
        figures = validate(model, validation, payload["validation_sequences"], loop, rank)
    if rank.rank:
        return {}
    metrics = {
        "loss": result.history[-1]["loss"],
        **figures,
        "unigram_entropy": reader.info.get("unigram_entropy_nats"),
        "tokens": result.tokens,
        "labels": result.labels,
        "steps": result.step,
    }
    save_model(out, model, config)
    lines = [json.dumps(row, sort_keys=True) for row in result.history]
    (out / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    parameters = parameter_counts(model)
    share = result.labels / max(result.tokens, 1)
    note = {
        "loop": loop.model_dump(mode="json"),
        "seed": payload["seed"],
        "length_tokens": reader.length,
        "objective": reader.info.get("objective"),
        "parameters": parameters,
        "training_flops": training_flops_per_token(config, reader.length, share) * result.tokens,
        "final": metrics,
    }
    (out / "training.json").write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    metrics = {name: value for name, value in metrics.items() if value is not None}
    return {"metrics": {**metrics, "parameters": parameters["total"]}, "timings": timings(result)}


def validate(
    model: MaskedLM, reader: ExampleReader, sequences: int, loop: LoopConfig, rank: RankContext
) -> dict[str, float]:
    """Loss per label (nats) and accuracy on the first `sequences` validation examples, each rank a share.

    The masks are the artifact's own, the same for every model that is validated on it.
    """
    import torch

    count = min(len(reader), sequences)
    total = torch.zeros(3, dtype=torch.float64)
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for pairs in _batches(count, rank.rank, rank.world_size):
            batch = {name: torch.from_numpy(array) for name, array in reader.batch(pairs).items()}
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=loop.precision == "bf16"):
                logits_NV, labels_N = model.masked_logits(batch)
            loss = torch.nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
            right = (logits_NV.argmax(-1) == labels_N).sum()
            total += torch.tensor([float(loss), float(right), labels_N.numel()], dtype=torch.float64)
    if rank.world_size > 1:
        total = total.to(device)
        torch.distributed.all_reduce(total)
    loss_sum, right_sum, labels = total.tolist()
    return {"validation_loss": loss_sum / max(labels, 1), "validation_accuracy": right_sum / max(labels, 1)}


def _batches(count: int, rank: int, world_size: int, size: int = 64) -> Iterator[Any]:
    import numpy as np

    for first in range(rank * size, count, world_size * size):
        index = np.arange(first, min(first + size, count), dtype=np.int64)
        yield np.stack([np.zeros_like(index), index], axis=1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path.name}: not readable ({error})", "run the stage that makes it again") from None
