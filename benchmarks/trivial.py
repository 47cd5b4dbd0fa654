"""Stages that cost nothing, so that what is measured is the machinery around them.

Recipes for `triptych run benchmarks/trivial.py:chain n=100` and `…:wide n=1000`: each stage writes one
file with one number, as each stage of the peers' DAGs does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pipelines import Pipeline
from tasks.base import Context, Corpus, Task


class Touch(Task):
    """Writes its number into a file; `after` is what it waits for."""

    produces: ClassVar[str] = "corpus"

    number: int
    after: tuple[Corpus, ...] = ()

    def run(self, ctx: Context) -> Mapping[str, Any]:
        before = sum(int((part.path / "number.txt").read_text()) for part in ctx.inputs("after")) if self.after else 0
        (ctx.out / "number.txt").write_text(f"{max(before, self.number)}\n")
        return {"number": self.number}


def chain(n: int = 100) -> Pipeline:
    """`n` stages, each reading the one before."""
    stage = Touch(number=0, name="s0000")
    for number in range(1, n):
        stage = Touch(number=number, after=(stage,), name=f"s{number:04d}")
    return Pipeline(stage)


def wide(n: int = 1000) -> Pipeline:
    """`n` stages that need nothing of each other."""
    return Pipeline([Touch(number=number, name=f"s{number:04d}") for number in range(n)])
