"""Fixtures: a text to read, a way to run the toy pipeline, the command in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "recipes"))  # the toy's registry names modules of that folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat and the dog\n")
    return path


@pytest.fixture
def toy_run(tmp_path: Path, text: Path) -> Callable[..., Any]:
    """Runs the toy in this process, one stage after another."""
    from pipelines import run
    from tests.recipes.toy import ToyConfig, toy

    def go(config: dict[str, Any] | None = None, **options: Any) -> Any:
        made = ToyConfig(**{"source": str(text), **(config or {})})
        settings = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline", "recipe": "toy"}
        return run(toy(made), **{**settings, **options})

    return go


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, in `tmp_path`, as a user has it."""

    def go(*words: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return go


TOY = str(ROOT / "tests" / "recipes" / "toy.py") + ":toy"
