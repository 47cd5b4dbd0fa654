"""Memory and step time of real runs on 1, 2 and 4 workers at every ZeRO stage, beside what the models predict.

    make bench-placement                          # all cases, about a quarter of an hour on two cores
    make bench-placement ARGS="--model small --workers 1,2 --stages 0,2"
    .venv/bin/python -m benchmarks.placement --table

Each run is `modeling.loop.fit` in processes of its own on gloo, a thread each. What is measured: bytes by part
(`modeling.memory_use`), what malloc has handed out as the forward pass ends and before the update, the bytes of every
collective, seconds of a step, and processor seconds of all ranks together. Processor seconds are what a machine that
others use still tells: divided by the cores that the ranks can have they are a step on a quiet one, waiting left out.

Calibration and check are apart. The device's three constants come from one-worker runs at stage 0 alone, on both
models and two batch sizes, those of DeepSpeed's hooks from one-worker runs at the other stages; how much slower
computation is where several share the machine, from the same runs made at once by as many processes that have nothing
to do with each other; the network's from collectives of plain tensors. The last two are taken by the clock and in
processor seconds. All else is predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, circumstances, record, say, versions
from benchmarks.placement_ranks import LM, MASKED, MODELS, VOCABULARY, engine

FILE = "placement.json"


def workload(name: str, rows: int) -> Any:
    """The workload of a micro-batch of `rows`."""
    from modeling.activations import Workload
    from modeling.architecture import model_config

    size = MODELS[name]
    config = model_config({"preset": size["preset"], "vocab_size": VOCABULARY})
    return Workload(config, LM, "fp32", rows, size["length"], label_share=MASKED, device="cpu")


def run(workers: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of the cases on so many processes."""
    with tempfile.TemporaryDirectory() as name:
        return _ended(_start(Path(name), workers, cases))


def run_apart(copies: int, cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Results of the cases on one process each, so many of them at once: they share the machine and nothing else."""
    with tempfile.TemporaryDirectory() as name:
        started = [_start(Path(name) / str(number), 1, cases) for number in range(copies)]
        try:
            return [_ended(each) for each in started]
        finally:  # where one erred
            for _, processes in started:
                _kill(processes)


Started = tuple[Path, list[subprocess.Popen[bytes]]]


def _start(folder: Path, workers: int, cases: list[dict[str, Any]]) -> Started:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    processes = []
    for rank in range(workers):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(workers),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        log = (folder / f"{rank}.log").open("w")
        command = [sys.executable, "-m", "benchmarks.placement_ranks", str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return folder, processes


def _ended(started: Started) -> list[dict[str, Any]]:
    folder, processes = started
    try:
        for process in reversed(processes):
            if process.wait(550):
                logs = "\n".join((folder / f"{r}.log").read_text()[-1500:] for r in range(len(processes)))
                raise RuntimeError(f"a rank of {len(processes)} ended with an error:\n{logs}")
        return json.loads((folder / "found.json").read_text())
    finally:
        _kill(processes)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def calibrate(alone: list[tuple[Any, float]]) -> Any:
    """The device's constants by least squares over relative errors, from (workload, seconds of a step) on one worker.

    A step is linear in 1 / FLOP rate, 1 / bandwidth and the seconds of an operation's start.
    """
    import numpy as np
    from scipy.optimize import nnls

    from modeling.memory import optimizer_bytes
    from modeling.shapes import count, parameter_shapes
    from modeling.step_time import OPERATIONS_PER_STEP, Device, micro_flops, operations, traffic

    lines, times = [], []
    for work, seconds in alone:
        shapes = parameter_shapes(work.config, work.head)
        updated = 16 * count(shapes) + 2 * optimizer_bytes("adamw", shapes)
        lines.append([micro_flops(work), traffic(work) + updated, operations(work) + OPERATIONS_PER_STEP])
        times.append(seconds)
    relative = np.array(lines) / np.array(times)[:, None]
    scale = relative.max(0)
    (flops, memory, launch), _ = nnls(relative / scale, np.ones(len(times)))
    flops, memory, launch = flops / scale[0], memory / scale[1], launch / scale[2]
    return Device(1 / max(flops, 1e-13), 1 / max(memory, 1e-12), launch)


def hooks(device: Any, alone: list[tuple[Mapping[str, Any], float]]) -> tuple[float, float]:
    """Seconds of DeepSpeed's hooks for a weight, at stages 1 and 2 and at stage 3: medians of what is missing without.

    Args:
        alone: (case, seconds of a step) on one worker, at all stages.
    """
    from modeling.shapes import parameter_shapes

    missing: dict[bool, list[float]] = {False: [], True: []}
    for case, seconds in alone:
        if case["stage"]:
            work = workload(case["model"], case["batch"])
            weights = len(parameter_shapes(work.config, work.head))
            without = _seconds(case, replace(device, hook_seconds=(0.0, 0.0)))
            missing[case["stage"] == 3].append((seconds - without) / weights)
    first, third = (max(0.0, statistics.median(missing[stage])) if missing[stage] else 0.0 for stage in (False, True))
    return first, third


def networks_of(found: Mapping[str, Mapping[str, Mapping[str, float]]], workers: int) -> dict[str, Any]:
    """{"step", "processor": a ring of so many workers}: by the clock, and by processor seconds.

    The smallest all-reduce gives the latency, the largest the bandwidth; gathers and scatters are shares of it.
    """
    from modeling.step_time import Network

    nets = {}
    for name in ("step", "processor"):
        seconds = {kind: {int(size): each[name] for size, each in sizes.items()} for kind, sizes in found.items()}
        reduced = seconds["all_reduce"]
        small, large = min(reduced), max(reduced)
        moved = 2 * (workers - 1) / workers * large
        nets[name] = Network(
            moved / max(reduced[large] - reduced[small], 1e-9),
            reduced[small] / (2 * (workers - 1)),
            gather=statistics.median(seconds["all_gather"][size] / reduced[size] for size in reduced),
            scatter=statistics.median(seconds["reduce_scatter"][size] / reduced[size] for size in reduced),
        )
    return nets


def _seconds(case: Mapping[str, Any], device: Any, network: Any = None, slowdown: float = 1.0) -> float:
    from modeling.memory import Placed
    from modeling.step_time import Network, step_time

    work = workload(case["model"], int(engine(case)["train_micro_batch_size_per_gpu"]))
    placed = Placed.of(engine(case))
    return step_time(work, placed, device, network or Network(1e9, 0.0), slowdown=slowdown).seconds


def predicted(
    case: Mapping[str, Any], device: Any, nets: Mapping[str, Any], crowded: Mapping[str, float]
) -> dict[str, Any]:
    """What the models say of a case.

    Args:
        nets: of `networks_of`; empty for one worker.
        crowded: {"step", "processor": how many times as long computation takes beside so many}; empty for one.
    """
    from modeling.activations import activations
    from modeling.memory import Placed, static
    from modeling.shapes import count, parameter_shapes
    from modeling.step_time import volumes

    placed = Placed.of(engine(case))
    work = workload(case["model"], int(engine(case)["train_micro_batch_size_per_gpu"]))
    shapes = parameter_shapes(work.config, work.head)
    fixed = static(shapes, shapes, placed, "adamw", "cpu")
    seconds = {name: _seconds(case, device, nets.get(name), crowded.get(name, 1.0)) for name in ("step", "processor")}
    parts = {
        "parameters": fixed.device["weights"],
        "gradients": fixed.gradients + fixed.device.get("gradients", 0),
        "master_weights": fixed.device.get("master", 0),
        "optimizer_state": fixed.device["optimizer"],
    }
    # At the moments that are looked at: as the forward pass ends, and before the update.
    kept = activations(work)
    always = sum(fixed.device.values()) + sum(fixed.host.values())
    if placed.zero_stage == 3:  # malloc hands out the whole bucket; `static` counts the pages that are ever touched
        always += 4 * max(0, placed.bucket - count(shapes))
    earlier = fixed.gradients if placed.accumulation > 1 else 0
    held = always + max(earlier + kept.kept + kept.casts + kept.loss, fixed.gradients)
    return {
        "step_seconds": seconds["step"],
        "processor_seconds": seconds["processor"] * case["workers"],
        "bytes": parts,
        "sent_bytes": volumes(count(shapes), placed),
        "held_bytes": held,
    }


def cases_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name in arguments.model:
        batch = MODELS[name]["batch"]
        for workers in arguments.workers:
            for stage in arguments.stages:
                found.append({"model": name, "workers": workers, "stage": stage, "batch": batch, "micro": 0})
            if 2 in arguments.stages and workers > 1:  # two micro-batches: stage 2 reduces twice
                micro = batch // workers // 2
                found.append({"model": name, "workers": workers, "stage": 2, "batch": batch, "micro": micro})
    return found


def measure(arguments: argparse.Namespace) -> None:
    facts = circumstances()
    facts["versions"] = versions("torch", "deepspeed")
    cores = os.cpu_count() or 1
    cases = cases_of(arguments)
    shapes = [
        {"model": n, "workers": 1, "stage": 0, "batch": b, "micro": 0} for n in MODELS for b in (4, MODELS[n]["batch"])
    ]
    by_workers: dict[int, list[dict[str, Any]]] = {1: []}
    for case in cases:
        by_workers.setdefault(case["workers"], []).append(case)
    # The first case of a process loads libraries: it is thrown away. Rounds take turns, as the load of others changes.
    tries: dict[int, list[list[dict[str, Any]]]] = {workers: [] for workers in by_workers}
    beside: dict[int, list[list[dict[str, Any]]]] = {workers: [] for workers in by_workers if workers > 1}
    for number in range(arguments.rounds):
        for workers, group in by_workers.items():
            say(f"round {number + 1}: {workers} workers, {len(group)} cases")
            first = shapes if workers == 1 else [{"model": "network"}]
            tries[workers].append(run(workers, [{**shapes[0], "workers": workers}, *first, *group])[1:])
            if workers > 1:
                beside[workers] += [each[1:] for each in run_apart(workers, [shapes[0], *shapes])]
    out: dict[str, Any] = {"cases": [], "alone": [], "networks": {}, "beside": {}}
    for index, shape in enumerate(shapes):
        out["alone"].append({**shape, **_medians([t[index] for t in tries[1]])})
    for workers, found in beside.items():
        out["beside"][str(workers)] = [_medians([each[i] for each in found]) for i in range(len(shapes))]
    for workers, group in by_workers.items():
        skipped = len(shapes) if workers == 1 else 1
        if workers > 1:
            out["networks"][str(workers)] = {
                kind: {size: _medians([t[0][kind][size] for t in tries[workers]]) for size in sizes}
                for kind, sizes in tries[workers][0][0].items()
            }
        for index, case in enumerate(group):
            runs = [t[index + skipped] for t in tries[workers]]
            measured = {**runs[0], **_medians(runs)}
            measured["all_processor_seconds"] = [round(r["processor_seconds"], 5) for r in runs]
            out["cases"].append({**case, "measured": measured})
    predict({**facts, "cores": cores, **out})


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of the seconds that all of them have."""
    names = ("step", "processor", "step_seconds", "fastest_seconds", "processor_seconds")
    return {name: statistics.median(r[name] for r in runs) for name in names if name in runs[0]}


def predict(found: dict[str, Any]) -> None:
    """Calibrate, put predictions beside the measurements, write and show them."""
    alone = [(workload(each["model"], each["batch"]), each["processor_seconds"]) for each in found["alone"]]
    device = calibrate(alone)
    ones = [(case, case["measured"]["processor_seconds"]) for case in found["cases"] if case["workers"] == 1]
    device = replace(device, hook_seconds=hooks(device, ones))
    for case in found["cases"]:
        workers = str(case["workers"])
        net, beside = found["networks"].get(workers), found["beside"].get(workers, [])
        pairs = list(zip(found["alone"], beside, strict=True)) if beside else []
        crowded = {
            name: statistics.median(b[f"{name}_seconds"] / a["processor_seconds"] for a, b in pairs)
            for name in ("step", "processor")
            if pairs
        }
        case["predicted"] = predicted(case, device, networks_of(net, case["workers"]) if net else {}, crowded)
    constants = {k: v for k, v in asdict(device).items() if k not in ("peak_flops", "asynchronous")}
    record("cpu", {**found, "device": constants, "summary": summary(found["cases"])}, file=FILE)
    table(found["cases"])


def predict_again() -> None:
    """With the models as they are now, for the measurements that are there."""
    found = json.loads((RESULTS / FILE).read_text())["cpu"]
    if "beside" not in found:
        raise SystemExit(f"{FILE} has no runs beside each other: measure anew, `make bench-placement`")
    predict(found)


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and largest error, as a share of what was measured, by number of workers."""
    found: dict[str, Any] = {}
    for workers in sorted({case["workers"] for case in cases}):
        group = [case for case in cases if case["workers"] == workers]
        errors = {
            "step": [ratio(c, "step_seconds") - 1 for c in group],
            "processor": [ratio(c, "processor_seconds") - 1 for c in group],
            "held": [ratio(c, "held_bytes") - 1 for c in group],
            "sent": [
                sum(c["predicted"]["sent_bytes"].values()) / sum(c["measured"]["sent_bytes"].values()) - 1
                for c in group
                if c["workers"] > 1
            ]
            or [0.0],
            "parts": [
                c["predicted"]["bytes"][part] / c["measured"]["bytes"][part] - 1
                for c in group
                for part in c["predicted"]["bytes"]
                if c["measured"]["bytes"][part]
            ],
        }
        found[str(workers)] = {
            name: {"median": round(statistics.median(map(abs, each)), 3), "largest": round(max(each, key=abs), 3)}
            for name, each in errors.items()
        }
    return found


def ratio(case: Mapping[str, Any], name: str) -> float:
    return case["predicted"][name] / case["measured"][name]


def table(cases: list[dict[str, Any]]) -> None:
    """Measured and predicted side by side, on the screen."""
    columns = ("ms of processors    ratio", "ms by the clock     ratio", "MB by part  ", "MB held       ", "MB sent")
    print(" | ".join(("model   n zero micro", *columns)))
    for case in cases:
        is_, said = case["measured"], case["predicted"]
        parts = sum(is_["bytes"][part] for part in said["bytes"]), sum(said["bytes"].values())
        sent = sum(is_["sent_bytes"].values()) if case["workers"] > 1 else 0, sum(said["sent_bytes"].values())
        pairs = [
            " ".join(f"{value / 1e6:7.1f}" for value in pair)
            for pair in (parts, (is_["held_bytes"], said["held_bytes"]), sent)
        ]
        print(
            f"{case['model']:6} {case['workers']:2} {case['stage']:4} {case['micro'] or '':>5} | "
            f"{1e3 * is_['processor_seconds']:8.1f} {1e3 * said['processor_seconds']:8.1f} "
            f"{ratio(case, 'processor_seconds'):7.2f} | "
            f"{1e3 * is_['step_seconds']:8.1f} {1e3 * said['step_seconds']:8.1f} {ratio(case, 'step_seconds'):7.2f} | "
            f"{' | '.join(pairs)}"
        )


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4])
    parser.add_argument("--stages", type=numbers, default=[0, 1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many runs of each case")
    parser.add_argument("--predict", action="store_true", help="predict anew for the measurements that are there")
    parser.add_argument("--table", action="store_true", help="show the results that are there")
    arguments = parser.parse_args()
    if arguments.predict:
        predict_again()
    elif arguments.table:
        table(json.loads((RESULTS / FILE).read_text())["cpu"]["cases"])
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
