"""A long pretraining under random faults: does it end as if nothing had happened, and what did the faults cost?

    python -m benchmarks.endurance --corpus wiki=articles.jsonl.gz --corpus books=books.jsonl.gz \\
        --downstream-dir glue --downstream sst2,cola,rte --minutes 60

A first short run makes the data and measures the steps per second; from them and `--minutes` follow the steps. Then
`triptych run bert …` starts, and at random moments something is killed: a rank (SIGKILL), a rank is stopped (SIGSTOP:
it hangs), the raylet, or the driver. Whenever the driver has ended before its work, the same command is started again.
At the end the curve is looked at, here and in MLflow: each logged step once, none missing; and the report's table, each
task from the pretrained model beside random initialisation. It needs nobody to look after it.

`--undisturbed` makes the same pretraining once more without faults, in a store of its own, and compares the bytes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos import KINDS, Chaos, Fault
from benchmarks.measuring import RESULTS, circumstances, say, versions
from cluster.store import Store
from pipelines.runs import RunRecord

CALIBRATION_STEPS = 60
TRAINING_SHARE = 0.85
"""Of the minutes: the rest is what the faults cost, about."""
HANG_SECONDS = 20.0
"""A stopped rank is given up after this long."""


def curve(store: Store, record: RunRecord, every: int, steps: int) -> dict[str, Any]:
    """Whether each logged step is there once: in the artifact, and in MLflow."""
    from mlflow import MlflowClient

    entry = record.status["stages"]["pretrain"]
    manifest = store.manifest(entry["key"]) or {}
    text = store.read_text(f"{manifest['folder']}/metrics.jsonl") or ""
    rows = [json.loads(line) for line in text.splitlines()]
    expected = sorted({*range(every, steps + 1, every), steps})
    found: dict[str, Any] = {"file": continuity([row["step"] for row in rows], expected)}
    facts = record.info.get("mlflow") or {}
    if entry.get("mlflow_run") and facts.get("uri"):
        history = MlflowClient(facts["uri"]).get_metric_history(entry["mlflow_run"], "loss")
        found["mlflow"] = continuity([point.step for point in history if point.step], expected)
        logged = {point.step: point.value for point in history}
        found["mlflow"]["largest_difference_to_file"] = max(
            (abs(logged[row["step"]] - row["loss"]) for row in rows if row["step"] in logged), default=None
        )
        found["mlflow"]["status"] = MlflowClient(facts["uri"]).get_run(entry["mlflow_run"]).info.status
    return found


def continuity(steps: list[int], expected: list[int]) -> dict[str, Any]:
    return {
        "points": len(steps),
        "missing": len(set(expected) - set(steps)),
        "doubled": len(steps) - len(set(steps)),
        "beside": len(set(steps) - set(expected)),
    }


def results(store: Store, record: RunRecord) -> dict[str, Any]:
    """Final figures: pretraining's metrics, and the report's rows."""
    entries = record.status["stages"]
    found: dict[str, Any] = {"pretrain": entries["pretrain"].get("metrics", {})}
    if "report" in entries:
        manifest = store.manifest(entries["report"]["key"]) or {}
        report = json.loads(store.read_text(f"{manifest['folder']}/results.json") or "{}")
        kept = ("task", "metric", "pretrained", "random", "difference", "pays", "examples", "train_examples")
        found["downstream"] = [{name: row.get(name) for name in kept} for row in report.get("rows", [])]
    return found


def timing(store: Store, record: RunRecord, faults: list[Fault]) -> dict[str, Any]:
    back = [fault.back_after_seconds for fault in faults if fault.back_after_seconds is not None]
    manifest = store.manifest(record.status["stages"]["pretrain"]["key"]) or {}
    return {
        "lost_seconds": round(sum(back), 1),
        "median_seconds_to_be_back": statistics.median(back) if back else None,
        "last_attempt": manifest.get("timings", {}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    store = Path(given.store).absolute()
    store.mkdir(parents=True, exist_ok=True)
    words = recipe_words(given)
    seen = circumstances()
    steps = given.steps or calibrated(given, words, store)
    log = store / "endurance.log"
    say(f"{steps} steps, a fault every {given.every:g} s on average; output in {log}")
    chaos = Chaos(
        [*words, f"pretrain.steps={steps}"],
        store,
        log,
        kinds=given.kinds.split(","),
        mean_seconds=given.every,
        most=given.most,
        seed=given.seed,
    )
    began = time.monotonic()
    code = chaos.run(60 * (given.minutes * 3 + 60))
    record = chaos.record()
    out: dict[str, Any] = {
        **seen,
        "versions": versions("torch", "deepspeed", "ray", "mlflow"),
        "command": shlex.join(["triptych", "run", *map(without_folder, words), f"pretrain.steps={steps}"]),
        "exit_code": code,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "steps": steps,
        "driver_starts": chaos.starts,
        "faults": [asdict(fault) for fault in chaos.faults],
    }
    if record is not None:
        entry = record.status["stages"]["pretrain"]
        out["decisions"] = [
            {"error": d["error"], "message": d["message"].split(" Node IP")[0], "decision": d["decision"]}
            for d in entry.get("decisions", [])
        ]
    if record is not None and code == 0:
        every = int(dict(word.split("=", 1) for word in words if "=" in word).get("pretrain.log_every_steps", 10))
        out |= {
            "curve": curve(chaos.store, record, every, steps),
            "time": timing(chaos.store, record, chaos.faults),
            "final": results(chaos.store, record),
        }
        if given.undisturbed:
            out["same_bytes"] = same_bytes(chaos, store)
    target = Path(given.out) if given.out else RESULTS / "endurance.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(out, indent=2) + "\n")
    print(json.dumps(out, indent=2))
    return code


def without_folder(word: str) -> str:
    """`corpus=articles.jsonl.gz` for a file wherever it lies."""
    name, equals, value = word.partition("=")
    return f"{name}={Path(value).name}" if equals and Path(value).is_absolute() else word


def same_bytes(chaos: Chaos, store: Path) -> dict[str, bool]:
    """{stage: whether it is byte for byte that of a run that nothing happened to}."""
    calm = Chaos(chaos.words[4:-2], store / "undisturbed", chaos.log)
    calm.run(6 * 3600)
    found = [one.record() for one in (chaos, calm)]
    contents = [
        {name: (one.store.manifest(e["key"]) or {}).get("content") for name, e in record.status["stages"].items()}
        for one, record in zip((chaos, calm), found, strict=True)
        if record is not None
    ]
    return {name: content == contents[1].get(name) for name, content in contents[0].items()}


def calibrated(given: argparse.Namespace, words: list[str], store: Path) -> int:
    """Steps for the minutes asked for, from a short run that also makes the data."""
    short = [*words, f"pretrain.steps={CALIBRATION_STEPS}", "tracking=off"]
    chaos = Chaos([*short, "--only", "pretrain"], store, store / "calibration.log")
    if chaos.run(6 * 3600):
        raise SystemExit(f"the short run failed: see {chaos.log}")
    record = chaos.record()
    assert record is not None
    timings = (chaos.store.manifest(record.status["stages"]["pretrain"]["key"]) or {}).get("timings", {})
    tokens = record.status["stages"]["pretrain"]["metrics"]["tokens"] / CALIBRATION_STEPS
    rate = timings["tokens_per_second"] / tokens
    say(f"{rate:.2f} steps/s")
    return max(10, int(rate * 60 * given.minutes * TRAINING_SHARE))


def recipe_words(given: argparse.Namespace) -> list[str]:
    """The settings of the run; what was given on the command line comes last and wins."""
    words = ["bert", "model=bert-mini"]
    for number, corpus in enumerate(given.corpus):
        name, _, source = corpus.rpartition("=")
        several = len(given.corpus) > 1 or name
        path = str(Path(source).absolute()) if Path(source).exists() else source
        words.append(f"corpus.{name or f'part-{number + 1}'}={path}" if several else f"corpus={path}")
    if given.downstream:
        folder = Path(given.downstream_dir).absolute()
        words += [f"downstream=[{given.downstream}]", f"downstream_dir={folder}"]
    words += [
        f"placement.workers={given.workers}",
        "placement.checkpoint_every_seconds=20",
        f"placement.collective_timeout_seconds={HANG_SECONDS:g}",
    ]
    return [*words, *given.settings]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("settings", nargs="*", help="further settings of the recipe, key=value")
    made.add_argument("--corpus", action="append", required=True, help="a file, or NAME=FILE; several are mixed")
    made.add_argument("--minutes", type=float, default=60.0, help="of pretraining, about")
    made.add_argument("--steps", type=int, default=0, help="instead of --minutes and the short run before")
    made.add_argument("--downstream", default="", help="tasks to fine-tune on, for instance sst2,cola,rte")
    made.add_argument("--downstream-dir", default="", help="folder with their files")
    made.add_argument("--workers", type=int, default=2, help="data-parallel workers of pretraining")
    made.add_argument("--every", type=float, default=240.0, help="mean seconds between two faults")
    made.add_argument("--most", type=int, default=1000, help="faults at most")
    made.add_argument("--kinds", default=",".join(KINDS), help="what may happen")
    made.add_argument("--seed", type=int, default=0, help="of the faults")
    made.add_argument("--store", default="runs-endurance", help="a folder; the same one again continues")
    made.add_argument("--undisturbed", action="store_true", help="then the same without faults; compare the bytes")
    made.add_argument("--out", default="", help="where the figures go; default: benchmarks/results/endurance.json")
    return made


if __name__ == "__main__":
    sys.exit(main())
