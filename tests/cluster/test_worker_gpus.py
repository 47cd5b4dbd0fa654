"""Which GPUs a worker sees: Ray counts them and says so in the environment, whether or not there are any."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import see_own_gpus
from cluster.workers import TRAIN_ENVIRONMENT, RankContext, _backend_config, run_group

pytestmark = pytest.mark.slow
ROOT = str(Path(__file__).resolve().parents[2])


def note_places(config: dict[str, str]) -> None:
    import ray.train

    context = ray.train.get_context()
    place = {"visible": os.environ["CUDA_VISIBLE_DEVICES"], "local_rank": context.get_local_rank()}
    (Path(config["folder"]) / f"{context.get_world_rank()}.json").write_text(json.dumps(place), encoding="utf-8")


def visible(payload: Any = None, rank: RankContext | None = None) -> Any:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def in_a_task() -> str | None:
    see_own_gpus()
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture(scope="module")
def two_gpus():
    import ray

    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**TRAIN_ENVIRONMENT, "PYTHONPATH": ROOT}.items():
            environment.setenv(name, value)
        environment.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_local_rank_is_the_number_of_a_gpu_that_the_worker_sees(two_gpus, tmp_path):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    folder = tmp_path / "places"
    folder.mkdir()
    DataParallelTrainer(
        note_places,
        train_loop_config={"folder": str(folder)},
        backend_config=_backend_config(),
        scaling_config=ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"CPU": 1, "GPU": 1}),
        run_config=RunConfig(
            name="gpus", storage_path=str(tmp_path / "train"), worker_runtime_env={"env_vars": {"PYTHONPATH": ROOT}}
        ),
    ).fit()
    places = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert [place["visible"] for place in places] == ["0,1", "0,1"]
    assert sorted(place["local_rank"] for place in places) == [0, 1]


def test_who_was_placed_on_no_gpu_sees_none(two_gpus, tmp_path):
    import ray

    task = ray.remote(in_a_task)
    assert ray.get(task.options(num_gpus=0).remote()) == ""
    assert ray.get(task.options(num_gpus=1).remote()) in ("0", "1")
    seen = run_group(
        visible,
        {},
        workers=2,
        cpus=1,
        gpus=0,
        on_event=lambda event: None,
        should_stop=lambda: False,
        storage=tmp_path,
        name="no-gpus",
    )
    assert seen == ""
