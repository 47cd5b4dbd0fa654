"""Memory and step time of real runs on 1, 2 and 4 workers at every ZeRO stage, beside what the models predict.

    make bench-placement                          # all cases, about a quarter of an hour on two cores
    make bench-placement ARGS="--model small --workers 1,2 --stages 0,2"
    .venv/bin/python -m benchmarks.placement --table

Each run is `modeling.loop.fit` in processes of its own on gloo, a thread each. What is measured: bytes by part
(`modeling.memory_use`), what malloc has handed out as the forward pass ends and before the update, the bytes of every
collective, seconds of a step, and processor seconds of all ranks together. Processor seconds are what a machine that
others use still tells: divided by the cores that the ranks can have they are a step on a quiet one, waiting left out.

Calibration and check are apart. The device's three constants come from one-worker runs at stage 0 alone, on both
models and two batch sizes; the network's two from all-reduces of plain tensors, once by the clock and once in processor
seconds; all else is predicted. On two cores four workers share: computation is slowed by workers · threads / cores, and
messages wait for a turn on a core.
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
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
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
        try:
            for process in reversed(processes):
                if process.wait(550):
                    logs = "\n".join((folder / f"{r}.log").read_text()[-1500:] for r in range(workers))
                    raise RuntimeError(f"a rank of {workers} ended with an error:\n{logs}")
            return json.loads((folder / "found.json").read_text())
        finally:
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


def network_of(found: Mapping[str, float], workers: int) -> Any:
    """Bandwidth and latency of a ring from its all-reduces: the smallest gives the latency, the largest the rest."""
    from modeling.step_time import Network

    latency = found["1024"] / (2 * (workers - 1))
    size = max(map(int, found))
    moved = 2 * (workers - 1) / workers * size
    return Network(moved / max(found[str(size)] - found["1024"], 1e-9), latency)


def networks_of(found: Mapping[str, Mapping[str, float]], workers: int, cores: int) -> dict[str, Any]:
    """{"step", "processor": a ring of so many workers}: by the clock, and by processor seconds.

    Measured by the clock, a ring of more workers than cores has waited for its turns already, which `step_time` would
    count once more.
    """
    from modeling.step_time import Network

    clock = network_of({size: each["step"] for size, each in found.items()}, workers)
    turns = max(1.0, workers / cores)
    return {
        "step": Network(clock.bytes_per_second * turns, clock.latency_seconds / turns),
        "processor": network_of({size: each["processor"] for size, each in found.items()}, workers),
    }


def predicted(case: Mapping[str, Any], device: Any, nets: Mapping[str, Any], cores: int) -> dict[str, Any]:
    """What the models say of a case; `nets`: of `networks_of`, empty for one worker."""
    from modeling.activations import activations
    from modeling.memory import Placed, static
    from modeling.shapes import count, parameter_shapes
    from modeling.step_time import Network, step_time, volumes

    placed = Placed.of(engine(case))
    work = workload(case["model"], int(engine(case)["train_micro_batch_size_per_gpu"]))
    shapes = parameter_shapes(work.config, work.head)
    fixed = static(shapes, shapes, placed, "adamw", "cpu")
    slowdown = max(1.0, case["workers"] / cores)
    seconds = {
        name: step_time(work, placed, device, nets.get(name, Network(1e9, 0.0)), slowdown=slowdown).seconds
        for name in ("step", "processor")
    }
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
        "processor_seconds": seconds["processor"] * min(case["workers"], cores),
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
    for number in range(arguments.rounds):
        for workers, group in by_workers.items():
            say(f"round {number + 1}: {workers} workers, {len(group)} cases")
            first = shapes if workers == 1 else [{"model": "network"}]
            tries[workers].append(run(workers, [{**shapes[0], "workers": workers}, *first, *group])[1:])
    alone = [
        (workload(s["model"], s["batch"]), statistics.median(t[i]["processor_seconds"] for t in tries[1]))
        for i, s in enumerate(shapes)
    ]
    device = calibrate(alone)
    out: dict[str, Any] = {"cases": [], "networks": {}}
    for workers, group in by_workers.items():
        skipped = len(shapes) if workers == 1 else 1
        nets: dict[str, Any] = {}
        if workers > 1:
            reduced = {
                size: {name: statistics.median(t[0][size][name] for t in tries[workers]) for name in each}
                for size, each in tries[workers][0][0].items()
            }
            nets = networks_of(reduced, workers, cores)
            out["networks"][str(workers)] = {"all_reduce_seconds": reduced}
        for index, case in enumerate(group):
            runs = [t[index + skipped] for t in tries[workers]]
            found = dict(runs[0])
            for name in ("step_seconds", "fastest_seconds", "processor_seconds"):
                found[name] = statistics.median(r[name] for r in runs)
            found["all_processor_seconds"] = [round(r["processor_seconds"], 5) for r in runs]
            out["cases"].append({**case, "measured": found, "predicted": predicted(case, device, nets, cores)})
    constants = {
        "flops_per_second": device.flops_per_second,
        "bytes_per_second": device.bytes_per_second,
        "launch_seconds": device.launch_seconds,
    }
    record("cpu", {**facts, "cores": cores, "device": constants, "summary": summary(out["cases"]), **out}, file=FILE)
    table(out["cases"])


def predict_again() -> None:
    """Put the predictions of the models as they are now beside the measurements that are there."""
    from modeling.step_time import Device

    found = json.loads((RESULTS / FILE).read_text())["cpu"]
    if any("all_reduce_seconds" not in net for net in found["networks"].values()):
        raise SystemExit(f"{FILE} has the network in processor seconds alone: measure anew, `make bench-placement`")
    for case in found["cases"]:
        net = found["networks"].get(str(case["workers"]))
        nets = networks_of(net["all_reduce_seconds"], case["workers"], found["cores"]) if net else {}
        case["predicted"] = predicted(case, Device(**found["device"]), nets, found["cores"])
    found["summary"] = summary(found["cases"])
    record("cpu", found, file=FILE)
    table(found["cases"])


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
