"""Weights of several names, or used by two streams: checkpoints hold them, runs go on with another ZeRO stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling.checkpoint import load_model
from modeling.checkpoints import layout
from tests.dist.ranks import run_ranks, train

ALL_DIVIDED = {"own": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}
"""At stage 3: otherwise matrices of fewer than 10,000 weights, which here is all of them, stay whole."""
RUN: dict[str, Any] = {"checkpoints": True, "steps": 6}
KINDS: dict[str, dict[str, Any]] = {
    "electra": {
        "preset": "electra-small",
        "head": "replaced-token-detection",
        "shape": {"embedding_width": 16, "generator_share": 0.5},
    },
    "albert": {"preset": "albert-base", "shape": {"embedding_width": 16}},
    "t5-shared": {"preset": "t5-small", "shape": {"share_stacks": True}},
    "xlnet": {"preset": "xlnet-base", "head": "permutation-language-model"},
    "bert": {"preset": "bert-tiny"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_and_another_stage(tmp_path: Path, kind: str) -> None:
    """Stopped at stages 0, 2 and 3, gone on with at 3 and 0: the curve of the undisturbed run."""
    run = {**RUN, **KINDS[kind]}
    plain = train(tmp_path, name="plain", scratch="plain", **run)
    whole = None
    for stage, after in ((0, 3), (2, 3), (3, 0), (3, 3)):
        placement = ALL_DIVIDED if stage == 3 else None
        half = train(tmp_path, name="half", stage=stage, scratch="half", stop_after=3, placement=placement, **run)
        assert half["stopped"] == 3
        model = load_model_of(tmp_path / "half", run)
        names = {name: value for name, value in model.items()}
        whole = whole or names
        assert names.keys() == whole.keys()
        for name, value in names.items():
            np.testing.assert_allclose(value, whole[name], rtol=0, atol=2e-6, err_msg=name)
        placement = ALL_DIVIDED if after == 3 else None
        found = train(tmp_path, name="on", stage=after, scratch="half", placement=placement, **run)
        assert found["resumed_from"] == 3
        losses = [[row["loss"] for row in result["history"]] for result in (found, plain)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)
        shutil.rmtree(tmp_path / "half")


@pytest.mark.parametrize("kind", ["electra", "xlnet"])
def test_small_matrices_stay_whole_by_default(tmp_path: Path, kind: str) -> None:
    """And a run goes on with them: the query stream must not look for weights that were put away."""
    run = {**RUN, **KINDS[kind], "stage": 3}
    plain = train(tmp_path, name="plain", scratch="plain", **run)
    assert train(tmp_path, name="half", scratch="half", stop_after=3, **run)["stopped"] == 3
    found = train(tmp_path, name="on", scratch="half", **run)
    assert found["resumed_from"] == 3
    losses = [[row["loss"] for row in result["history"]] for result in (found, plain)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5)


def load_model_of(scratch: Path, run: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's `model`, which `load_model` takes where it says what it is."""
    from safetensors.torch import load_file

    folder = max(scratch.glob("step-*")) / layout.MODEL
    if (folder / "config.json").exists():
        return dict(load_model(folder).state_dict())
    return load_file(str(folder / "model.safetensors"))


def test_two_workers_divide_all_weights(tmp_path: Path) -> None:
    """ZeRO 3 with nothing kept whole, of two workers, beside ZeRO 0 of one; and back to one worker."""
    scenarios = [
        {**RUN, **KINDS[kind], "name": kind, "scratch": kind, "stage": 3, "placement": ALL_DIVIDED, "stop_after": 3}
        for kind in KINDS
    ]
    results = run_ranks(2, tmp_path, scenarios)
    assert results is not None, (tmp_path / "rank-0.log").read_text() + (tmp_path / "rank-1.log").read_text()
    assert [result["stopped"] for result in results] == [3] * len(KINDS)
    for kind, fields in KINDS.items():
        plain = train(tmp_path, name="plain", scratch=f"plain-{kind}", **RUN, **fields)
        found = train(tmp_path, name="on", stage=0, scratch=kind, **RUN, **fields)
        assert found["resumed_from"] == 3
        losses = [[row["loss"] for row in result["history"]] for result in (found, plain)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=2e-5, err_msg=kind)
