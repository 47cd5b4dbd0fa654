"""One run that serves all its prefixes: under WSD a longer run begins as a shorter one did, up to its decay.

A warm-up, a stable phase at the peak rate, a decay (Hu et al. 2024): runs of several lengths differ only from the step
where the shorter one's decay begins. A run that keeps the state at that step (`Pretrain.keep_stable`) can be another's
prefix, and what comes out has the bytes of a run that began at its first step, at the cost of the rest.

    length 100  ▁▂███████▇▅▃▁
    length 200  ▁▂███████ goes on from there ███████▇▅▃▁
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig, BadData

FOLDER = "stable"
"""Of the artifact, and of the scratch folder while it trains."""
LENGTHS = ("steps", "tokens", "flops")
"""Fields of the loop in which a run may differ from its prefix."""


def check_loop(loop: Any, field: str) -> None:
    """Raise BadConfig where another length would change more than the length."""
    if loop.schedule != "wsd":
        raise BadConfig(f"pretrain: {field} with schedule={loop.schedule}", "set schedule=wsd: it has a stable phase")
    if loop.patience:
        raise BadConfig(
            f"pretrain: {field} with patience {loop.patience}: an early stop leaves out the decay",
            "set pretrain.patience=0",
        )
    if loop.wall_minutes:
        raise BadConfig(f"pretrain: {field} with wall_minutes", "give the budget in steps, tokens or FLOPs")
    if loop.warmup_share:
        raise BadConfig(
            f"pretrain: {field} with warmup_share {loop.warmup_share:g}: the warm-up would depend on the length",
            "give warmup_steps or warmup_tokens",
        )


def check_prefix(own: Mapping[str, Any], seed: int, note: Mapping[str, Any]) -> None:
    """Raise BadConfig where the prefix trained in another way than this run would.

    Args:
        own: this run's loop, resolved, as plain data.
        note: the prefix's training.json.
    """
    theirs = {**note.get("loop", {}), "seed of the samples": note.get("seed")}
    mine = {**own, "seed of the samples": seed}
    changed = [f"{name} {theirs.get(name)} → {mine[name]}" for name in mine if theirs.get(name) != mine[name]]
    changed = [line for line in changed if line.split(" ")[0] not in LENGTHS]
    if changed:
        raise BadConfig(f"pretrain: prefix was trained otherwise: {', '.join(changed)}", "only the budget may differ")


def begin(prefix: Path, scratch: Path, decay_start: int) -> None:
    """Put the prefix's state where training looks for a checkpoint, if it has none yet. On rank 0.

    Raises:
        BadData: the prefix has kept no state.
        BadConfig: it went further than this run's decay begins.
    """
    from modeling.checkpoints import layout

    steps = layout.steps(prefix / FOLDER)
    if not steps:
        raise BadData("pretrain: prefix has no state of its stable phase", "make it with keep_stable=true")
    if steps[-1] > decay_start:
        raise BadConfig(
            f"pretrain: prefix went {steps[-1]} steps before its decay, this run's decay begins after {decay_start}",
            "give this run a longer budget than its prefix",
        )
    if layout.steps(scratch):
        return
    partial = layout.partial(scratch, steps[-1])
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(layout.final(prefix / FOLDER, steps[-1]), partial)
    partial.rename(layout.final(scratch, steps[-1]))


def keep(scratch: Path, out: Path) -> None:
    """Move the state of the stable phase into the artifact. On rank 0, after training.

    Raises:
        BadData: it could not be written while training went on (a full disk, say).
    """
    from modeling.checkpoints import layout

    if not layout.steps(scratch / FOLDER):
        raise BadData("pretrain: the state at the end of the stable phase is not there", "run the stage again")
    shutil.copytree(scratch / FOLDER, out / FOLDER)
