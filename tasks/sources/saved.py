"""Batches of parts that outlive a crash: `tasks.shards.saved_map` for parts whose results come in many pieces.

A part may be a large compressed file that only one worker can read, so its documents come as a stream of batches;
each is saved in the stage's scratch as it comes. When the stage runs again, saved batches are read and the rest is
made: a part that was cut off is read anew from its beginning, since a compressed stream cannot be entered in its
middle, but what is saved of it is passed without being sent. `read` is pure, so a resumed stage sees the same batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.errors import Cancelled
from cluster.parallel import flat_map_ordered
from tasks.base import Context
from tasks.shards import read_saved, write_saved
from tasks.sources.base import Part
from tasks.sources.batches import Batch

_FOLDER_PARTS = 1000  # in one folder


@dataclass
class _Taken:
    """A part on its way: its number, how many of its batches are saved, and whether those are all."""

    number: int
    part: Part
    saved: int
    whole: bool
    given: int = 0


def saved_batches(
    ctx: Context, name: str, parts: Iterable[Part], read: Callable[[Part], Iterable[Batch]], *, here: bool
) -> Generator[tuple[Part, Batch], None, None]:
    """(part, batch) for each batch of `read(part)`, in order, on any number of workers.

    Args:
        name: of the folder in the scratch.
        parts: the same in the same order whenever the stage runs; consumed lazily.
        read: a picklable pure function that ends in a batch with `last`. A batch with a failure is not saved.
        here: as `cluster.parallel.flat_map_ordered`.

    Raises:
        Cancelled: the run was asked to stop; what is saved stays.
    """
    folder = ctx.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    there = _counts(folder)
    order: deque[_Taken] = deque()

    def missing() -> Iterator[tuple[Part, int]]:
        for number, part in enumerate(parts):
            saved = there.get(number, 0)
            whole = saved > 0 and _read(_path(folder, number, saved - 1)).last
            order.append(_Taken(number, part, saved, whole))
            if not whole:
                yield part, saved

    def stored(taken: _Taken) -> Iterator[tuple[Part, Batch]]:
        while taken.given < taken.saved:
            taken.given += 1
            yield taken.part, _read(_path(folder, taken.number, taken.given - 1))

    def wholes() -> Iterator[tuple[Part, Batch]]:
        while order and order[0].whole:
            yield from stored(order[0])
            order.popleft()

    most = ctx.runtime.most_workers
    with closing(flat_map_ordered(partial(_rest, read), missing(), max_in_flight=most, here=here)) as made:
        for batch in made:
            if ctx.cancelled():
                raise Cancelled(f"{name} was cancelled")
            yield from wholes()
            taken = order[0]
            yield from stored(taken)
            if batch.failure is None:
                _write(_path(folder, taken.number, taken.given), batch)
                taken.given += 1
                taken.saved += 1
            if batch.last:
                order.popleft()
            yield taken.part, batch
        yield from wholes()


def _rest(read: Callable[[Part], Iterable[Batch]], item: tuple[Part, int]) -> Iterator[Batch]:
    """The batches of a part behind those that are saved."""
    part, saved = item
    for number, batch in enumerate(read(part)):
        if number >= saved:
            yield batch


def _path(folder: Path, number: int, batch: int) -> Path:
    return folder / f"{number // _FOLDER_PARTS:06d}" / f"{number:09d}-{batch:06d}.arrow"


def _counts(folder: Path) -> dict[int, int]:
    """{part: how many of its batches are saved}."""
    found: dict[int, int] = {}
    for path in sorted(folder.glob("*/*.arrow")):
        number = int(path.stem.split("-")[0])
        found[number] = found.get(number, 0) + 1
    return found


def _write(path: Path, batch: Batch) -> None:
    path.parent.mkdir(exist_ok=True)
    facts = {name: value for name, value in batch._asdict().items() if name != "table"}
    write_saved(path, batch.table, facts, compression="lz4")  # text: the corpus once more


def _read(path: Path) -> Batch:
    found = read_saved(path)
    return Batch(table=found.table, **found.facts)
