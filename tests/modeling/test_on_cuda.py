"""What models do on a GPU, on a pretended one: the same numbers, one device, and no waiting in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.modeling.pretended_gpu import built

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(torch.backends.cuda.is_built(), reason="torch is a build for CUDA: it has a GPU's own guard"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed here"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    library = built(tmp_path_factory.mktemp("pretended"))
    words = [sys.executable, "-m", "tests.modeling.on_pretended_gpu", str(library)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_models_compute_the_same_on_one_device(seen: dict[str, Any]) -> None:
    for name, case in seen["cases"].items():
        assert "error" not in case, (name, case)
        # bf16 rounds to 8 bits at other places: autocast for a GPU has norms and softmax in fp32
        loss, gradient = (1e-6, 1e-5) if name.endswith("fp32") else (2e-3, 5e-2)
        assert case["loss"] < loss and case["gradient"] < gradient, (name, case)


def test_nothing_is_asked_of_the_device_in_the_middle_of_a_pass(seen: dict[str, Any]) -> None:
    assert {name: case["late"] for name, case in seen["cases"].items() if case.get("late")} == {}


def test_the_cross_entropy_of_many_logits_asks_nothing(seen: dict[str, Any]) -> None:
    assert seen["chunks"]["asked"] == []
    assert seen["chunks"]["off"] < 1e-6


def test_a_norm_of_bf16_values_is_computed_in_fp32(seen: dict[str, Any]) -> None:
    assert seen["norms"] < 1e-5


def test_a_step_waits_for_places_loss_and_norm_alone(seen: dict[str, Any]) -> None:
    assert seen["step"] == ["aten.nonzero.default", "tolist", "aten._local_scalar_dense.default"]


def test_predictions_are_made_where_the_model_is(seen: dict[str, Any]) -> None:
    assert seen["predictions"] == {"classification": True, "span": True}


def test_kernels_are_deterministic_while_a_model_trains(seen: dict[str, Any]) -> None:
    """With warnings only (1), attention's backward pass would not be."""
    assert seen["settings"] == {"modes": [2, 2, 0], "finite": True}
