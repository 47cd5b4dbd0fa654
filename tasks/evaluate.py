"""Evaluate: a fine-tuned model's figures on a data set's labelled rows that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from cluster.errors import BadConfig
from tasks.base import Context, Model, Task
from tasks.datasets import Dataset

if TYPE_CHECKING:
    from tasks.downstream.encode import Encoder
    from tasks.downstream.spec import Row


class Evaluate(Task):
    """Predictions and metrics on `split`, and metrics on every other labelled split but train.

    `score.json`: {task, metric (the main one's name), primary (its value), init, seed, split, values
    {metric: value}, others {split: values}, examples}; `predictions.parquet`: id, prediction, label of `split`.
    """

    produces: ClassVar[str] = "score"

    model: Model
    dataset: Dataset
    split: str = Field("validation", description="the split that the report shows")
    batch_size: int = Field(64, ge=1, description="sequences per forward pass")

    def run(self, ctx: Context) -> Mapping[str, Any]:
        import json

        from tasks.datasets import read_rows
        from tasks.downstream.encode import Encoder
        from tasks.metrics import measure

        data, trained = ctx.input("dataset").path, ctx.input("model").path
        facts = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        head = _head(trained, facts)
        training = json.loads((trained / "training.json").read_text(encoding="utf-8"))
        splits = [split for split in facts["splits"] if split != "train"]
        if self.split not in splits:
            raise BadConfig(
                f"evaluate: split {self.split!r} is not in task {facts['task']!r}", f"it has {', '.join(splits)}"
            )
        encoder = Encoder(trained, head["length_tokens"])
        network = _load(trained, head).to("cuda" if ctx.runtime.gpus else "cpu")
        values: dict[str, dict[str, float]] = {}
        for done, split in enumerate(sorted(splits, key=lambda s: s == self.split)):
            rows = read_rows(data / f"{split}.parquet")
            predictions = predict(network, head, encoder, rows, self.batch_size, int(ctx.runtime.cpus))
            golds: list[Any] = [row.answers if head["kind"] == "span" else row.label for row in rows]
            values[split] = measure(facts["metrics"], golds, predictions)
            if split == self.split:
                _write_predictions(ctx.out / "predictions.parquet", rows, predictions, head["kind"])
            ctx.progress(done + 1, len(splits), "splits")
        score = {
            "task": facts["task"],
            "metric": facts["primary"],
            "primary": values[self.split][facts["primary"]],
            "init": training["init"],
            "seed": training["seed"],
            "split": self.split,
            "values": values[self.split],
            "others": {split: found for split, found in values.items() if split != self.split},
            "examples": facts["splits"][self.split],
            "train_examples": training["final"]["rows"],
            "published": facts.get("published", {}),
            "published_metric": facts.get("published_metric", ""),
        }
        (ctx.out / "score.json").write_text(json.dumps(score, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        ctx.log(f"{facts['task']}: " + ", ".join(f"{name} {value:.4f}" for name, value in values[self.split].items()))
        return {"primary": score["primary"], **values[self.split]}


def predict(
    network: Any, head: Mapping[str, Any], encoder: Encoder, rows: Sequence[Row], batch_size: int, threads: int = 1
) -> list[Any]:
    """One prediction a row, in order: class number, score, or answer text. Batches are sorted by length.

    It computes where the network is.
    """
    import torch

    from modeling.step import to_device
    from tasks.downstream.encode import best_span, collate, span_text

    kind = head["kind"]
    features = (
        encoder.spans(rows, training=False) if kind == "span" else encoder.texts(rows, head.get("both_orders", False))
    )
    order = sorted(range(len(features)), key=lambda i: (len(features[i].ids), i))
    found: list[Any] = [None] * len(rows)
    best = [float("-inf")] * len(rows)
    device = next(network.parameters()).device
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        network.eval()
        for low in range(0, len(order), batch_size):
            part = [features[i] for i in order[low : low + batch_size]]
            arrays = collate(part, kind, encoder.pad, getattr(network.config, "token_types", 0) > 1)
            batch = {name: to_device(torch.from_numpy(value), device) for name, value in arrays.items()}
            with torch.inference_mode():
                if kind != "span":
                    for feature, value in zip(part, network.predict(batch).tolist(), strict=True):
                        found[feature.row] = (
                            value * head["label_std"] + head["label_mean"] if "label_std" in head else value
                        )
                    continue
                starts, ends = (logits.cpu().numpy() for logits in network.logits(batch))
            for feature, start, end in zip(part, starts, ends, strict=True):
                score, first, last = best_span(start, end, head["most_answer_tokens"])
                if score > best[feature.row]:
                    best[feature.row] = score
                    found[feature.row] = span_text(feature, rows[feature.row], first, last)
    finally:
        torch.set_num_threads(before)
    return ["" if value is None and kind == "span" else value for value in found]


def _head(trained: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    import json

    try:
        head: dict[str, Any] = json.loads((trained / "head.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadConfig("evaluate: the model has no head.json", "pass the stage that fine-tuned it") from None
    if head["kind"] != facts["kind"] or head["labels"] != facts["labels"]:
        raise BadConfig(
            f"evaluate: the model was fine-tuned on {head['task']!r} ({head['kind']}, {len(head['labels'])} labels), "
            f"the data set is {facts['task']!r} ({facts['kind']}, {len(facts['labels'])} labels)",
            "evaluate a model on a task with the labels it was trained for",
        )
    return head


def _load(trained: Path, head: Mapping[str, Any]) -> Any:
    from safetensors.torch import load_file

    from modeling.checkpoint import WEIGHTS, load_config
    from tasks.finetune import build

    network = build(load_config(trained), head)
    network.load_state_dict(load_file(str(trained / WEIGHTS)))
    return network


def _write_predictions(path: Path, rows: Sequence[Row], predictions: Sequence[Any], kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"id": pa.array([row.id for row in rows], pa.string())}
    if kind == "span":
        columns["prediction"] = pa.array(predictions, pa.string())
        columns["answers"] = pa.array([row.answers for row in rows], pa.list_(pa.string()))
    else:
        columns["prediction"] = pa.array([float(p) for p in predictions], pa.float64())
        columns["label"] = pa.array([row.label for row in rows], pa.float64())
    pq.write_table(pa.table(columns), path, compression="zstd")
