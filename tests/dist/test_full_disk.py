"""A disk that is full while a checkpoint is written: training goes on, the one before stays, the next is tried."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAIN = """
import errno, json, os, sys
from pathlib import Path
import torch
from modeling.checkpoints import shards
from modeling.loop import fit
from modeling.records import Hooks
from tests.dist.ranks import global_batch
from tests.dist.test_resume import arguments
folder, ballast, decisions, kept = Path(sys.argv[1]), Path(sys.argv[1]) / "ballast", [], {}

def next_batch(step):
    kept[step] = sorted(path.name for path in folder.iterdir())
    if step == 2:
        free = os.statvfs(folder)
        ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 100_000))  # less than a checkpoint
    if step == 3:
        ballast.unlink()
    return global_batch(step)

hooks = Hooks(on_decision=lambda *told: decisions.append(told))
given = arguments(next_batch=next_batch, checkpoint_dir=folder, hooks=hooks)
result = fit(**given)
try:
    shards.write_weights(folder / "weights", {"large": torch.zeros(2_000_000)})
except OSError as error:
    assert error.errno == errno.ENOSPC, error
print(json.dumps({"decisions": decisions, "kept": kept, "checkpoints": result.checkpoints, "steps": result.step}))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a small file system of its own")
def test_training_goes_on_when_the_disk_is_full(tmp_path):
    command = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1"'
    call = ["unshare", "-rm", "sh", "-c", command, "sh", str(tmp_path), sys.executable, TRAIN]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    ((error, message, decision),) = found["decisions"]
    assert error == "space" and "step 3" in message and "No space left" in message and "kept" in decision
    # Before step 3 the checkpoints of the first two steps are there; the third never was, and left nothing.
    assert found["kept"]["2"] == found["kept"]["3"][1:] == ["step-00000001", "step-00000002"]
    assert found["checkpoints"] == 2 and found["steps"] == 4
