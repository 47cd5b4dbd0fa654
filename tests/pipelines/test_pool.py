"""What Ray says in the driver's process lands in the run's folder, on any store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.store import Store
from pipelines.pool import ray_log


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_ray_log_is_a_file_of_the_run(tmp_path: Path, kind: str) -> None:
    store = Store(str(tmp_path / "store") if kind == "local" else f"memory://{tmp_path.name}")
    with pytest.raises(KeyboardInterrupt), ray_log(store, "runs/one"):
        os.write(2, b"lost\n")
        raise KeyboardInterrupt
    with ray_log(store, "runs/one"):  # the same run, continued
        os.write(2, b"again\n")
    with ray_log(store, "runs/two"):
        pass
    assert store.read_text("runs/one/ray.log") == "lost\nagain\n"
    assert store.read_text("runs/two/ray.log") is None
