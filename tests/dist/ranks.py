"""Starts real ranks (processes with a gloo group) for the two-rank tests, and is what they run.

`run_ranks(world_size, folder, [scenario, …])` runs the scenarios one after another in the same
processes, as a reused worker would, and returns rank 0's results. A scenario is a dict of `train`'s
arguments. Starting a process costs seconds (torch, DeepSpeed), hence the list.
"""

import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LENGTH, VOCABULARY, BATCH = 16, 90, 8
NOT_FINITE, TOO_LARGE = 1, 2
"""Tokens that no batch holds by itself; see `poisoned`."""


def run_ranks(world_size: int, folder: Path, scenarios: list[dict[str, Any]], timeout: float = 200) -> list[Any] | None:
    """Results of rank 0, or None where a rank died (the others are ended then)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "results.json"
    result.unlink(missing_ok=True)
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, str(folder), json.dumps(scenarios)]
        log = (folder / f"rank-{rank}.log").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        for process in reversed(processes):
            if process.wait(timeout):
                return None
        return json.loads(result.read_text())
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train(
    folder: Path,
    *,
    name: str,
    stage: int = 0,
    precision: str = "fp32",
    micro_batch: int = 0,
    steps: int = 6,
    dropout: float = 0.0,
    preset: str = "modern-tiny",
    shape: dict[str, Any] | None = None,
    head: str = "language-model",
    peak_lr: float = 1e-3,
    optimizer: Any = "adamw",
    batch_from: int = 0,
    clip_norm: float = 1.0,
    pairs: bool = False,
    checkpoints: bool = False,
    validate_every: int = 0,
    die_at: int = -1,
    die_rank: int = 0,
    die_at_sync: int = 0,
    stop_after: int = 0,
    scratch: str = "scratch",
    background: bool = False,
    watched: bool = False,
    batch_size: int = BATCH,
    activation_checkpointing: bool = False,
    placement: dict[str, Any] | None = None,
    poison: dict[str, int] | None = None,
    batches: list[int] | None = None,
    guard: dict[str, Any] | None = None,
    bf16_ranks: list[int] | None = None,
) -> dict[str, Any]:
    """Train a small masked LM; a dict of history and figures; the weights go to `folder/name`.

    shape: fields of the model's config beside the preset's. head: of HEADS; what it keeps is what is written.
    placement: further arguments of `engine_config`.
    batch_from: rows of the first step; the batch grows over three full ones.
    checkpoints: after every step, into `folder/scratch`; in the `background`, whenever one can be written, and the
        fifth step waits for the first.
    stop_after: end after so many steps, with a checkpoint, as a cancelled run does.
    die_at_sync: the call of fsync, counted from 1, in which `die_rank` is killed: while a checkpoint is written.
    die_at: the number of the batch before which the rank `die_rank` is killed (SIGKILL), in its first life.
    poison: {number of a batch: NOT_FINITE or TOO_LARGE}: what goes wrong with its second last row.
    batches: the number of the batch of each step, where it is not the step's.
    bf16_ranks: the ranks whose processors have bf16's instructions, as they say.
    """
    import numpy as np
    import torch
    import torch.distributed as dist

    import modeling.precision
    from cluster.deepspeed import engine_config
    from modeling.checkpoint import build_model, save_model
    from modeling.errors import TrainingStopped
    from modeling.guard import GuardConfig
    from modeling.heads.language import LanguageModel
    from modeling.loop import fit, through_rollbacks
    from modeling.records import Hooks, Watch
    from modeling.schedule import LoopConfig, batch_size_at
    from modeling.step import rank_rows
    from modeling.transformer import preset as make_config
    from modeling.validation import HeldOut
    from tasks.base import Runtime

    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if bf16_ranks is not None:
        modeling.precision.processor_has_bf16 = lambda: rank in bf16_ranks
    config = make_config(preset, layers=2, width=32, heads=2, ff_width=64, vocab_size=VOCABULARY, dropout=dropout)
    config = config.model_copy(update={"max_length": LENGTH, **(shape or {})})
    made_batch = functools.partial(
        global_batch, pairs=pairs, head=head, sides=1 + (config.architecture == "encoder-decoder")
    )
    loop = LoopConfig(
        steps=steps,
        batch_size=batch_size,
        peak_lr=peak_lr,
        optimizer=optimizer,
        batch_warmup_from=batch_from,
        batch_warmup_sequences=3 * batch_size if batch_from else 0,
        clip_norm=clip_norm,
        precision=precision,
        log_every_steps=2 if checkpoints else 1,
        validate_every_steps=validate_every,
        guard=GuardConfig(**guard or {}),
    )
    notes: list[str] = []
    made = [0]

    def next_batch(step: int) -> dict[str, np.ndarray]:
        if step == die_at and rank == die_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        if background and step == 4:  # nine steps may be over before a checkpoint is written
            end = time.monotonic() + 60
            while time.monotonic() < end and not any((folder / scratch).glob("step-*")):
                time.sleep(0.02)
        made[0] = step + 1
        number = batches[step] if batches else step
        batch = made_batch(number)
        if str(number) in (poison or {}):
            batch["input_ids"][BATCH - 2, 3] = poison[str(number)]
        rows = rank_rows(batch_size_at(loop, step), rank, world_size)
        return {key: value[rows.start : rows.stop] for key, value in batch.items()}

    def once() -> tuple[LanguageModel, Any]:
        torch.manual_seed(0)
        if head == "language-model":
            model = (poisoned(LanguageModel) if poison else LanguageModel)(config, pairs=pairs)
        else:
            model = build_model(config, {"name": head, "settings": {}})
        return model, fit(
            model,
            loop,
            next_batch,
            engine_config=engine_config(
                batch_size=batch_size,
                world_size=world_size,
                length_tokens=LENGTH,
                zero_stage=stage,
                micro_batch=micro_batch,
                clip_norm=clip_norm,
                **(placement or {}),
            ),
            activation_checkpointing=activation_checkpointing,
            runtime=Runtime(checkpoint_every_seconds=1e-9, checkpoint_background=background),
            checkpoint_dir=folder / scratch if checkpoints else None,
            hooks=Hooks(note=notes.append, should_stop=lambda: stop_after == made[0]),
            watch=Watch(
                layer_updates=3,
                samples=2,
                sample=first_predictions,
                profile=range(2, 4) if stage in (0, 3) else range(0),
                trace=folder / f"{name}-trace.json.gz",
            )
            if watched
            else None,
            # three chunks for two ranks: one of them makes a pass that does not count
            held_out=HeldOut(3, lambda chunk: made_batch(1000 + chunk)) if validate_every else None,
        )

    if die_at_sync and rank == die_rank:
        _die_at_sync(die_at_sync)
    try:
        model, result = through_rollbacks(once)
    except TrainingStopped as stopped:
        return {"stopped": stopped.step, "notes": notes}
    if rank == 0:
        save_model(folder / name, getattr(model, "kept", model), config)
    kept = (
        "history",
        "precision",
        "resumed_from",
        "labels",
        "updates",
        "samples",
        "memory",
        "step_seconds",
        "incidents",
    )
    return {**{part: getattr(result, part) for part in kept}, "name": name, "notes": notes}


def poisoned(kind: type) -> type:
    """A model whose loss is not finite, or far too large, where a batch holds the token of that name."""

    class Poisoned(kind):
        def forward(self, batch: dict[str, Any]) -> Any:
            found = super().forward(batch)
            factor = 1 + 999 * (batch["input_ids"] == TOO_LARGE).any()
            return found._replace(loss_sum=found.loss_sum * factor / (batch["input_ids"] != NOT_FINITE).all())

    return Poisoned


def _die_at_sync(call: int) -> None:
    """Kill this process in the `call`-th call of os.fsync: a file of a checkpoint is written, the next is not."""
    calls, sync = itertools.count(1), os.fsync

    def dying(file: int) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(file)

    os.fsync = dying


def first_predictions(model: Any) -> list[int]:
    """Most probable tokens at the labels of a fixed batch."""
    import torch

    batch = {name: torch.from_numpy(array) for name, array in global_batch(1000).items()}
    return model.predict(batch).tolist()


def global_batch(step: int, pairs: bool = False, head: str = "language-model", sides: int = 1) -> dict[str, Any]:
    """Rows whose share of labels grows from 5 to 60 %, so that every split has unequal counts; some padding.

    With `pairs` a label for each row of the first half but the first: none at all for the second rank. With two `sides`
    the decoder reads what the encoder reads.
    """
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=[7, step]))
    ids = random.integers(5, VOCABULARY, (BATCH, LENGTH)) // 3 + 5
    share = np.linspace(0.05, 0.6, BATCH)[:, None]
    labels = np.where(random.random((BATCH, LENGTH)) < share, ids, -100)
    mask = np.ones((BATCH, LENGTH), dtype=np.int64)
    mask[1, 10:] = 0
    labels[1, 10:] = -100
    batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    if pairs:
        row = np.arange(BATCH)
        batch["pair_labels"] = np.where((row > 0) & (row < BATCH // 2), row % 2, -100)
    if sides == 2:
        batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    if head == "replaced-token-detection":
        batch |= {"original_ids": ids, "input_ids": np.where(labels >= 0, 4, ids), "uniforms": random.random(ids.shape)}
    if head == "permutation-language-model":
        batch["ranks"] = np.where(labels >= 0, random.permuted(np.tile(np.arange(LENGTH), (BATCH, 1)), axis=1), -1)
    return batch


def main() -> None:
    import torch.distributed as dist

    folder, scenarios = Path(sys.argv[1]), json.loads(sys.argv[2])
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    results = [train(folder, **scenario) for scenario in scenarios]
    if os.environ["RANK"] == "0":
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
