"""DVC: the DAG as dvc.yaml, each stage a shell command that writes one small file.

Set to be quick: no analytics, no look for updates, no staging into git (no git at all), quiet, and
outputs linked rather than copied. `dvc repro` runs stages one after the other and has no setting for more.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import Spent, command, figure, say

SETTINGS = {
    "core.analytics": "false",
    "core.check_update": "false",
    "core.autostage": "false",
    "cache.type": "reflink,hardlink,symlink",
}


def stages(shape: str, n: int) -> dict[str, Any]:
    """The `stages` of dvc.yaml: `chain` or `wide`."""
    out: dict[str, Any] = {}
    for i in range(n):
        stage: dict[str, Any] = {"cmd": f"echo {i} > {i}.txt", "outs": [f"{i}.txt"]}
        if shape == "chain" and i:
            stage = {"cmd": f"cp {i - 1}.txt {i}.txt", "deps": [f"{i - 1}.txt"], "outs": [f"{i}.txt"]}
        out[f"s{i:04d}"] = stage
    return out


def measure(dvc: str, shape: str, n: int, *, runs: int, noops: int) -> dict[str, Any]:
    """Whole processes: `dvc repro` on a fresh project, again with all cached, and `dvc status`."""
    times: list[Spent] = []
    repro: list[Spent] = []
    status: list[Spent] = []
    for number in range(runs):
        folder = Path(tempfile.mkdtemp(prefix="bench-dvc-"))
        # JSON is YAML; the site cache is part of what DVC keeps between calls, and must not outlive the project
        env = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site"), "CI": "1"}
        try:
            command([dvc, "init", "--no-scm", "-q"], cwd=folder, env=env)
            for key, value in SETTINGS.items():
                command([dvc, "config", key, value], cwd=folder, env=env)
            (folder / "dvc.yaml").write_text(json.dumps({"stages": stages(shape, n)}))
            times.append(command([dvc, "repro", "-q"], cwd=folder, env=env))
            say(f"dvc {shape} {n}: {times[-1].wall:.1f} s")
            if number == runs - 1:
                repro = [command([dvc, "repro", "-q"], cwd=folder, env=env) for _ in range(noops)]
                status = [command([dvc, "status", "-q"], cwd=folder, env=env) for _ in range(noops)]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {"run": figure(times, n), "noop_repro": figure(repro, n), "noop_status": figure(status, n)}
