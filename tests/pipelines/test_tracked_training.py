"""The curves of a run that is lost, fails and goes on elsewhere: every step once in MLflow, none missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.workers import WorkerLost
from modeling.architecture import preset
from modeling.schedule import LoopConfig
from pipelines import Pipeline, run
from tasks.base import Context, Runtime
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.pretrain import Pretrain
from tasks.tokenizer import TrainTokenizer

FAULTS: dict[int, Exception] = {}
"""{logged step: what happens then, once}."""


class FaultyContext:
    """The stage's context, in which something happens at a step."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def metric(self, step: int, values: dict[str, float]) -> None:
        self._context.metric(step, values)
        if step in FAULTS:
            raise FAULTS.pop(step)


class FaultyPretrain(Pretrain):
    def run(self, ctx: Context) -> Any:
        return super().run(FaultyContext(ctx))


def pipeline(source: Path, runtime: Runtime) -> Pipeline:
    corpus = Ingest(source=str(source), validation_share=0.1, duplicates="keep")
    tokenizer = TrainTokenizer(corpus=corpus, vocab_size=300)
    examples = MakeExamples(
        corpus=corpus, tokenizer=tokenizer, length_tokens=16, objective={"kind": "mlm", "mask_rate": 0.2}
    )
    shape = preset("modern-tiny", layers=1, width=16, heads=2, ff_width=32, max_length=32)
    loop = LoopConfig(steps=16, batch_size=4, log_every_steps=1)
    model = FaultyPretrain(examples=examples, tokenizer=tokenizer, model=shape, loop=loop, runtime=runtime)
    return Pipeline(model)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"the number {n} follows {n - 1} and " * 4}) + "\n" for n in range(80)))
    return path


def test_no_gap_and_no_doubled_step_after_a_lost_worker_and_on_another_zero_stage(tmp_path: Path, source: Path) -> None:
    from mlflow import MlflowClient

    every_four = {
        "checkpoint_every_seconds": 1e6,
        "checkpoint_keep_every_steps": 4,
        "checkpoint_background": False,
        "max_retries": 1,
    }
    options = {"store": str(tmp_path / "store"), "address": "inline", "recipe": "curves"}
    FAULTS.update({6: WorkerLost("gone"), 11: RuntimeError("a bug")})
    first = run(pipeline(source, Runtime(**every_four)), **options)
    assert not FAULTS and "pretrain" not in first.artifacts
    second = run(pipeline(source, Runtime(**every_four, zero_stage=2)), **options)
    model = second.artifacts["pretrain"]
    folder = Path(options["store"]) / model["folder"]
    curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == list(range(1, 17))
    assert model["timings"]["resumed_from"] == 8
    assert first.tracking["run_id"] == second.tracking["run_id"]
    mlflow = MlflowClient(f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiment = mlflow.get_run(first.tracking["run_id"]).info.experiment_id
    (child,) = mlflow.search_runs([experiment], "tags.`triptych.stage` = 'pretrain'")
    points = mlflow.get_metric_history(child.info.run_id, "loss")
    # the last point is the artifact's own figure
    assert [point.step for point in points][:16] == list(range(1, 17))
    # Steps 9 to 11 were made twice: at ZeRO 2 their losses differ by rounding alone (test_exactness).
    assert [point.value for point in points][:16] == pytest.approx([row["loss"] for row in curve], rel=2e-5)
