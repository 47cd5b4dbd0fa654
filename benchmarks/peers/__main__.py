"""Measure the peers: `make bench-peers`, or `python -m benchmarks.peers --bin FOLDER_OF_DVC_AND_PYTHON`."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from benchmarks.measuring import circumstances, record
from benchmarks.peers import dvc_dag, metaflow_dag


def installed(python: str, name: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, default=Path(".venv-bench/bin"), help="where dvc and its python are")
    parser.add_argument("--chain", type=int, default=100, help="stages in the chain")
    parser.add_argument("--wide", type=int, default=1000, help="stages side by side")
    parser.add_argument("--wide-metaflow", type=int, help="stages side by side for Metaflow; as --wide by default")
    parser.add_argument("--runs", type=int, default=3, help="runs of each chain; wide DAGs of minutes run once")
    parser.add_argument("--only", choices=["dvc", "metaflow"])
    call = parser.parse_args()
    bin_ = call.bin.resolve()
    python = str(bin_ / "python")
    if call.only != "metaflow":
        values = {**circumstances(), "version": installed(python, "dvc"), "settings": dvc_dag.SETTINGS}
        values["chain"] = dvc_dag.measure(str(bin_ / "dvc"), "chain", call.chain, runs=call.runs, noops=3)
        values["wide"] = dvc_dag.measure(str(bin_ / "dvc"), "wide", call.wide, runs=1, noops=3)
        record("dvc", values)
    if call.only != "dvc":
        values = {**circumstances(), "version": installed(python, "metaflow"), "settings": {"max_workers": 2}}
        values["chain"] = metaflow_dag.measure(python, "chain", call.chain, runs=call.runs, noops=1)
        values["wide"] = metaflow_dag.measure(python, "wide", call.wide_metaflow or call.wide, runs=1, noops=1)
        record("metaflow", values)


if __name__ == "__main__":
    main()
