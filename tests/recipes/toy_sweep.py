"""A small sweep for tests: runs of rising cost, some behind others, a sum of those that were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipelines import Pipeline
from pipelines.sweep import Sweep
from tasks.base import Context, Model, Produces, Task

LOG: list[int] = []
"""Costs, in the order in which runs were made."""


class Trial(Task):
    """Writes its cost."""

    produces: ClassVar[str] = "model"
    cost: int
    before: Model | None = None

    def run(self, ctx: Context) -> Mapping[str, Any]:
        LOG.append(self.cost)
        (ctx.out / "cost.txt").write_text(str(self.cost))
        return {"cost": self.cost}


class Total(Task):
    """The sum of what was made."""

    produces: ClassVar[str] = "total"
    partial: ClassVar[tuple[str, ...]] = ("trials",)
    trials: tuple[Model, ...] = Field(min_length=1)

    def run(self, ctx: Context) -> Mapping[str, Any]:
        total = sum(int((trial.path / "cost.txt").read_text()) for trial in ctx.inputs("trials"))
        (ctx.out / "total.txt").write_text(str(total))
        return {"total": total}


class After(Task):
    """Something behind one run alone."""

    trial: Model
    total: Annotated[Task, Produces("total")]

    def run(self, ctx: Context) -> Mapping[str, Any]:
        (ctx.out / "after.txt").write_text("")
        return {}


def sweep(most: int, costs: tuple[int, ...] = (1, 2, 3, 4, 5, 6), after: int | None = None) -> Pipeline:
    """Runs 3 and 5 are behind 1 and 3; nothing is needed once the costs made add up to `most`."""
    trials: dict[int, Trial] = {}
    for cost in sorted(costs):
        before = trials.get(cost - 2) if cost in (3, 5) else None
        trials[cost] = Trial(cost=cost, before=before, name=f"trial-{cost}")
    order = tuple(trials[cost] for cost in sorted(costs))

    def unneeded(made: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
        spent = sum(manifest["metrics"]["cost"] for manifest in made.values())
        return {n: f"{spent} is spent" for n in range(len(order)) if n not in made} if spent >= most else {}

    total = Total(trials=tuple(reversed(order)), name="total")
    more = () if after is None else (After(trial=trials[after], total=total, name="after"),)
    return Pipeline([total, *more], sweep=Sweep(order, unneeded))
