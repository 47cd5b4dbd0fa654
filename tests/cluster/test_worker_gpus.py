"""Which GPUs a worker sees: Ray counts them and says so in the environment, whether or not there are any."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.workers import TRAIN_ENVIRONMENT, _backend_config

pytestmark = pytest.mark.slow
ROOT = str(Path(__file__).resolve().parents[2])


def note_places(config: dict[str, str]) -> None:
    import ray.train

    context = ray.train.get_context()
    place = {"visible": os.environ["CUDA_VISIBLE_DEVICES"], "local_rank": context.get_local_rank()}
    (Path(config["folder"]) / f"{context.get_world_rank()}.json").write_text(json.dumps(place), encoding="utf-8")


@pytest.fixture
def two_gpus(monkeypatch):
    import ray

    for name, value in TRAIN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
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
