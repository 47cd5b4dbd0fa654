"""What native code and Ray's threads say goes into the file; what the process itself says stays where it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, os, sys, threading
from pathlib import Path
from cluster.aside import aside

def from_ray(text):
    thread = threading.Thread(target=print, args=(text,), name="ray_listen_error_messages")
    thread.start()
    thread.join()

with aside(Path(sys.argv[1])):
    handler = logging.StreamHandler()  # keeps the sys.stderr of now
    print("own output")
    print("own error", file=sys.stderr)
    from_ray("(raylet) A worker died")
    os.write(2, b"core_worker.cc: lost\\n")
    with aside(Path("other.log")):
        os.write(2, b"core_worker.cc: again\\n")
from_ray("after it")
os.write(2, b"native, after it\\n")
handler.emit(logging.makeLogRecord({"msg": "logged after it"}))
print("error after it", file=sys.stderr)
with aside(Path("empty.log")):
    print("nothing of Ray")
"""


def test_ray_goes_aside_and_the_rest_does_not(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "logs/ray.log"],
        cwd=tmp_path,
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["own output", "after it", "nothing of Ray"]
    assert done.stderr.splitlines() == ["own error", "native, after it", "logged after it", "error after it"]
    lines = (tmp_path / "logs" / "ray.log").read_text().splitlines()
    assert lines == ["(raylet) A worker died", "core_worker.cc: lost", "core_worker.cc: again"]
    assert not (tmp_path / "other.log").exists() and not (tmp_path / "empty.log").exists()
