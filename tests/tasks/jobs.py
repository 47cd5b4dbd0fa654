"""Jobs of `tasks.pretrain_job` for tests: a folder as `triptych pack` writes it, and torchrun on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pipelines.identity import config_of
from tasks.pretrain import Pretrain
from tasks.pretrain_job import write_job

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("ray", "mlflow", "fsspec", "transformers", "typer", "tokenizers", "datasets", "yaml", "pandas", "scipy")
BLOCK = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {BLOCKED!r} else find(name, *more)
"""


def make_job(folder: Path, stage: Pretrain, inputs: Mapping[str, Path]) -> Path:
    folder.mkdir()
    for field, path in inputs.items():
        (folder / field).symlink_to(path)
    edges = {field: {"key": field, "kind": field} for field in inputs}
    write_job(folder, config_of(stage), stage.runtime, edges, "pretrain")
    return folder


def torchrun(job: Path, folder: Path, processes: int, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """The command of the documentation, with the modules of a full installation out of reach."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(BLOCK)
    path = f"{folder}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, "-m", "tasks.pretrain_job", str(job), *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
