"""`triptych run` refuses training that cannot fit, as `plan` does, before anything starts; a flag starts it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.test_cli import check_error

PLACE = ("tracking=off", "--store", "store", "--address", "inline")


@pytest.fixture
def broken(tmp_path: Path) -> tuple[str, ...]:
    """A pretraining of a corpus that is read in vain: a run of it ends with its first stage."""
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    return ("gpt2", "corpus=broken.jsonl", *PLACE)


def test_run_refuses_as_plan_does_and_starts_nothing(command: Any, tmp_path: Path, broken: tuple[str, ...]) -> None:
    words = (*broken, "placement.memory_gb=0.5")
    planned = command("plan", *words)
    refused = command("run", *words)
    check_error(refused, 2, "stage pretrain", "placement.memory_gb has 0.47 GiB", "--skip-memory-check")
    message = refused.stderr.splitlines()[0]
    assert message in planned.stderr
    assert not (tmp_path / "store" / "runs").exists()


def test_the_flag_starts_it_all_the_same(command: Any, tmp_path: Path, broken: tuple[str, ...]) -> None:
    done = command("run", *broken, "placement.memory_gb=0.5", "--skip-memory-check")
    check_error(done, 1, "stage ingest failed")
    assert list((tmp_path / "store" / "runs").iterdir())


def test_a_line_of_run_is_one_of_plan(command: Any, broken: tuple[str, ...]) -> None:
    words = (*broken, "placement.memory_gb=0.5", "--keep-going", "--name", "mine", "--json")
    check_error(command("plan", *words), 2, "stage pretrain", "placement.memory_gb has 0.47 GiB")
    planned = command("plan", *words, "--skip-memory-check")
    assert planned.returncode == 0 and not json.loads(planned.stdout)["memory"][0]["fits"], planned.stderr


def test_plan_takes_every_option_of_run() -> None:
    from pipelines import cli_run

    run, plan = (inspect.signature(each).parameters.keys() for each in (cli_run.run, cli_run.plan))
    assert run - plan == set()


def test_a_pipeline_without_training_is_never_refused(toy_run: Any) -> None:
    assert toy_run({"placement": {"memory_gb": 1e-6}}).state == "done"
