"""How the command ends where its reader goes away, its user does, or its model is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.text_models import save_models


@pytest.mark.parametrize("words", ["recipes bert", "recipes bert --json", "--help"])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, words: str) -> None:
    call = f"{sys.executable} -m pipelines.cli {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_while_commands_are_imported_is_told_in_a_word() -> None:
    code = "from pipelines import cli\nsys.meta_path.insert(0, Interrupts())\ncli.main()"
    done = subprocess.run([sys.executable, "-c", INTERRUPTS + code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


INTERRUPTS = """
import sys
class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "pipelines.cli_scaling":
            raise KeyboardInterrupt
"""


@pytest.mark.parametrize("command_name", ["generate", "fill", "export"])
def test_a_model_without_a_head_is_named(command: Any, tmp_path: Path, command_name: str) -> None:
    folder = next(iter(save_models(tmp_path / "models").values()))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "head": {}}))
    words = ["--to", "out"] if command_name == "export" else ["a [MASK] text"]
    done = command(command_name, str(folder), *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "config.json: head is {}, expected its name" in done.stderr
