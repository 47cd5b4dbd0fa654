"""Which stage goes next: the longest way first, groups of workers find their cores free, nothing starves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import BadConfig
from cluster.store import Store
from pipelines.graph import Pipeline
from pipelines.placement import Placement
from pipelines.pool import InlinePool
from pipelines.session import Request, make_plan
from pipelines.sweep import PRUNED
from tasks.base import Runtime
from tests.recipes.toy import Count, Read, Steps


class TwoCores(InlinePool):
    """A pool that says it has two cores; nothing runs on it here."""

    slots = 2.0


def placed(
    tmp_path: Path, text: Path, states: dict[str, str], runtime: Runtime, planned: str = ""
) -> tuple[Placement, Any]:
    read = Read(source=str(text))
    words = Count(corpus=read, name="words")
    side = [Count(corpus=read, counter="letters", seconds=s, name=f"side-{s}") for s in (1, 2)]
    group = Steps(model=words, runtime=runtime, name="group")
    last = Steps(model=words, steps=3, name="last")
    request = Request(Pipeline([*side, group, last]), store=str(tmp_path / "store"))
    plan = make_plan(request, Store(request.store))
    plan.steps["group"].state = planned or plan.steps["group"].state
    pool = TwoCores(Store(request.store), lambda events: None)
    return Placement(plan.steps, pool, lambda name: states.get(name, "pending")), plan


def test_what_leads_to_the_longest_way_goes_first(tmp_path: Path, text: Path) -> None:
    placement, _ = placed(tmp_path, text, {}, Runtime(workers=2))
    names = ["side-1", "side-2", "words"]
    placement.sort(names)
    assert names[0] == "words"


def test_cores_are_kept_for_a_group_that_starts_next(tmp_path: Path, text: Path) -> None:
    one = Runtime()
    placement, _ = placed(tmp_path, text, {"read": "done", "words": "running"}, Runtime(workers=2))
    assert placement.room([one]).kept_from(one)
    placement, _ = placed(tmp_path, text, {"read": "done"}, Runtime(workers=2))
    assert not placement.room([one]).kept_from(one)  # its inputs are not at work yet
    placement, _ = placed(tmp_path, text, {"read": "done", "words": "running"}, Runtime(workers=1))
    assert not placement.room([one]).kept_from(one)


def test_a_group_at_work_leaves_no_queue_and_quick_stages_make_one(tmp_path: Path, text: Path) -> None:
    one, group = Runtime(), Runtime(workers=2)
    placement, _ = placed(tmp_path, text, {}, group)
    assert placement.room([group]).full_for(one)
    assert not placement.room([one]).full_for(one)
    assert placement.room([one, one]).full_for(one)
    for _ in range(6):
        placement.took(0.01)
    assert not placement.room([one, one]).full_for(one)
    assert placement.room([group]).full_for(one)
    placement.took(3.0)
    assert placement.room([one, one]).full_for(one)


def test_what_can_never_be_placed_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(BadConfig, match="stage group asks for 3 CPU cores, the Ray cluster has 2"):
        placed(tmp_path, text, {}, Runtime(workers=3))
    with pytest.raises(BadConfig, match="asks for 1 GPUs"):
        placed(tmp_path, text, {}, Runtime(gpus=1))
    placed(tmp_path, text, {}, Runtime(workers=3, gpus=1), planned=PRUNED)  # is never to be
