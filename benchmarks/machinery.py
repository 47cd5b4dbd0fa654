"""What Triptych itself costs around a stage: run, no-op and answer times; `make bench`.

Measured as a user meets them. Chain and wide runs go through `pipelines.run` on a Ray that is already
warm, each into a fresh store on local disk; with MLflow's SQLite tracking, as by default, and without
tracking, which is what DVC and Metaflow do. The no-op, `plan` and `--help` are whole processes. Medians;
every measurement is in the results file. The peers' figures in the table come from that file:
`make bench-peers` measures them anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, Spent, circumstances, command, figure, record, say, spent, versions

ROOT = Path(__file__).parents[1]
TARGETS_MS = {"chain": 20.0, "wide": 5.0}
TARGETS_SECONDS = {"noop_wide": 1.0, "help": 0.5, "plan_chain": 0.5, "plan_quickstart": 0.5}


def warm_runs(shape: str, n: int, *, runs: int, folder: Path) -> dict[str, Any]:
    """Runs of a fresh DAG on a warm Ray, in this process, with the default tracking and without."""
    from benchmarks import trivial
    from pipelines import run

    recipe: Callable[[int], Any] = getattr(trivial, shape)
    out: dict[str, Any] = {}
    for label, tracking in (("tracked", None), ("untracked", "off")):
        times: list[Spent] = []
        for number in range(-1, runs):  # the first, small one brings up Ray's workers and their imports
            stages = n if number >= 0 else min(n, 20)
            store = folder / f"{shape}-{label}-{number}"

            def work(stages: int = stages, store: Path = store, tracking: str | None = tracking) -> None:
                result = run(recipe(stages), store=str(store), tracking=tracking, recipe=shape)
                if result.state != "done":
                    raise RuntimeError(f"{shape} of {stages} stages ended as {result.state}; see {store}")

            took = spent(work)
            if number >= 0:
                times.append(took)
                say(f"triptych {shape} {n} {label}: {took.wall:.2f} s")
            shutil.rmtree(store, ignore_errors=True)
        out[label] = figure(times, n)
    return out


def whole_processes(n_wide: int, n_chain: int, *, runs: int, folder: Path) -> dict[str, Any]:
    """`--help`, `plan`, and a run where all is cached: the time until the prompt is back."""
    triptych = [str(Path(sys.executable).with_name("triptych"))]
    trivial = str(ROOT / "benchmarks" / "trivial.py")
    wide = [f"{trivial}:wide", f"n={n_wide}", "--store", str(folder / "wide")]
    chain = [f"{trivial}:chain", f"n={n_chain}", "--store", str(folder / "chain")]
    say(f"triptych run wide n={n_wide}, once, so that all is cached")
    first = command([*triptych, "run", *wide], cwd=folder)

    def repeated(words: list[str]) -> dict[str, Any]:
        times = [command([*triptych, *words], cwd=folder) for _ in range(runs)]
        say(f"triptych {' '.join(words[:1])}: {[round(t.wall, 2) for t in times]} s")
        return figure(times)

    return {
        "first_wide": figure([first], n_wide),
        "noop_wide": repeated(["run", *wide]),
        "plan_cached_wide": repeated(["plan", *wide]),
        "plan_chain": repeated(["plan", *chain]),
        "plan_quickstart": repeated(["plan", "quickstart", "--store", str(folder / "quickstart")]),
        "help": repeated(["--help"]),
    }


def measure(n_chain: int, n_wide: int, runs: int, process_runs: int) -> dict[str, Any]:
    from cluster.connect import connect, shutdown

    values: dict[str, Any] = {**circumstances(), "versions": versions("triptych", "ray", "mlflow", "torch")}
    folder = Path(tempfile.mkdtemp(prefix="bench-triptych-"))
    try:
        values["processes"] = whole_processes(n_wide, n_chain, runs=process_runs, folder=folder)
        os.chdir(folder)  # whatever is left beside the stores stays out of the repository
        mine = connect(None, import_paths=[str(ROOT)])
        try:
            values["chain"] = warm_runs("chain", n_chain, runs=runs, folder=folder)
            values["wide"] = warm_runs("wide", n_wide, runs=runs, folder=folder)
        finally:
            if mine:
                shutdown()
    finally:
        os.chdir(ROOT)
        shutil.rmtree(folder, ignore_errors=True)
    return values


def table(results: dict[str, Any]) -> str:
    """The comparison as Markdown, from the results file."""

    def cell(section: str, *path: str) -> str:
        value: Any = results.get(section, {})
        for name in path:
            value = value.get(name, {})
        if not value:
            return "not measured"
        if "ms_per_stage" in value:
            return f"{value['ms_per_stage']:.1f} ms × {value['stages']}"
        return f"{value['seconds']:.2f} s"

    rows = [
        ("chain, per stage", cell("triptych", "chain", "tracked"), cell("dvc", "chain", "run"),
         cell("metaflow", "chain", "run")),
        ("chain, no tracking", cell("triptych", "chain", "untracked"), "", ""),
        ("wide, per stage", cell("triptych", "wide", "tracked"), cell("dvc", "wide", "run"),
         cell("metaflow", "wide", "run")),
        ("wide, no tracking", cell("triptych", "wide", "untracked"), "", ""),
        ("wide, all cached, whole process", cell("triptych", "processes", "noop_wide"),
         cell("dvc", "wide", "noop_repro"), cell("metaflow", "wide", "resume_finished")),
        ("plan or status of the same", cell("triptych", "processes", "plan_cached_wide"),
         cell("dvc", "wide", "noop_status"), ""),
    ]  # fmt: skip
    lines = ["| | Triptych | DVC | Metaflow |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def verdicts(values: dict[str, Any]) -> list[str]:
    """One line for each target."""
    lines = []
    for shape, target in TARGETS_MS.items():
        found = values[shape]["tracked"]["ms_per_stage"]
        lines.append(f"{shape}: {found:.1f} ms a stage, target {target:g}: {'met' if found <= target else 'MISSED'}")
    for name, target in TARGETS_SECONDS.items():
        found = values["processes"][name]["seconds"]
        lines.append(f"{name}: {found:.2f} s, target {target:g}: {'met' if found <= target else 'MISSED'}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", type=int, default=100, help="stages in the chain")
    parser.add_argument("--wide", type=int, default=1000, help="stages side by side")
    parser.add_argument("--runs", type=int, default=3, help="runs of each DAG")
    parser.add_argument("--process-runs", type=int, default=5, help="runs of each whole process")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--table", action="store_true", help="only print the table of what is recorded")
    call = parser.parse_args()
    file = RESULTS / "machinery.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    if not call.table:
        results["triptych"] = measure(call.chain, call.wide, call.runs, call.process_runs)
        if not call.dry:
            record("triptych", results["triptych"])
        print("\n".join(verdicts(results["triptych"])) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
