"""Training by torchrun: the same bytes as the stage's, on a machine that has no Ray, MLflow, fsspec or typer."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import BadConfig
from modeling.errors import ConfigError
from pipelines.identity import config_of
from tasks.base import Runtime
from tasks.pretrain_job import main, read_job
from tests.tasks.jobs import make_job, torchrun
from tests.tasks.stage import digests, run_stage
from tests.tasks.test_pretrain import EXAMPLES, TOKENIZER, inputs, task  # noqa: F401 - a fixture

WITHOUT_RAY = Runtime(zero_stage=2, samples=0)


@pytest.fixture
def job(inputs, tmp_path) -> Path:  # noqa: F811
    return make_job(tmp_path / "job", task(runtime=WITHOUT_RAY), inputs)


def test_torchrun_gives_the_bytes_of_the_stage(job, inputs, tmp_path):  # noqa: F811
    stage = run_stage(task(runtime=WITHOUT_RAY), tmp_path / "stage", **inputs)
    found = torchrun(job, tmp_path / "site", 1)
    assert found.returncode == 0, found.stderr
    assert digests(job / "model") == digests(stage.out)
    assert "step 40" in found.stdout


def test_the_placement_is_the_jobs_the_words_and_torchruns(job):
    stage, runtime = read_job(job, ["micro_batch=4", "offload_optimizer=cpu"], 3, gpus=False)
    assert config_of(stage.model_copy(update={"examples": EXAMPLES, "tokenizer": TOKENIZER})) == config_of(task())
    assert (runtime.workers, runtime.gpus, runtime.zero_stage, runtime.micro_batch) == (3, 0, 2, 4)
    assert runtime.offload_optimizer == "cpu"
    with pytest.raises(BadConfig, match="number of workers is torchrun's"):
        read_job(job, ["workers=2"], 1, gpus=False)
    with pytest.raises(ConfigError, match="did you mean 'zero_stage'"):
        read_job(job, ["zero_stge=2"], 1, gpus=False)


def test_what_is_no_job_is_said_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "give a folder that `triptych pack` wrote" in capsys.readouterr().err
