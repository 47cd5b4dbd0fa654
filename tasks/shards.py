"""Work in shards that outlive a crash: an ordered parallel map whose finished results lie in the stage's scratch.

    for shard in saved_map(ctx, "sign", slices(...), sign):
        ...                                     # in the order of the items, on any number of workers

A shard's result is an Arrow table of some MB and JSON facts. The stage's process writes it as one file, which
appears by a rename; when the stage runs again after a crash, what is there is read and the rest is made. A lost worker
costs its own shard alone. Since `work` must be a pure function of its item, a resumed stage gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cluster.errors import Cancelled
from cluster.parallel import map_ordered
from tasks.base import Context

Item = TypeVar("Item")

_FACTS = b"facts"


class Shard(NamedTuple):
    """What `work` makes of an item: an Arrow table and facts that JSON can hold."""

    table: Any
    facts: dict[str, Any]


def saved_map(
    ctx: Context,
    name: str,
    items: Iterable[Item],
    work: Callable[[Item], Shard],
    *,
    cpus: float = 1,
    here: bool = False,
) -> Generator[Shard, None, None]:
    """Yield `work(item)` of each item, in order; tables are memory-mapped from the stage's scratch.

    Args:
        name: of the pass, for its folder in the scratch; one per pass of a stage.
        items: the same in the same order whenever the stage runs; consumed lazily.
        work: a picklable pure function, run in a worker where there are any.
        cpus, here: as `cluster.parallel.map_ordered`.

    Raises:
        Cancelled: the run was asked to stop; what is finished stays.
    """
    folder = ctx.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    order: deque[tuple[int, bool]] = deque()  # (number, whether it is there) of the items taken

    def missing() -> Iterator[Item]:
        for number, item in enumerate(items):
            there = _path(folder, number).exists()
            order.append((number, there))
            if not there:
                yield item

    def ready() -> Iterator[Shard]:
        while order and order[0][1]:
            yield read_saved(_path(folder, order.popleft()[0]))

    with closing(map_ordered(work, missing(), cpus=cpus, max_in_flight=ctx.runtime.most_workers, here=here)) as made:
        for shard in made:
            if ctx.cancelled():
                raise Cancelled(f"{name} was cancelled")
            yield from ready()
            path = _path(folder, order.popleft()[0])
            write_saved(path, shard.table, shard.facts)
            del shard  # the mapped file takes its place, so that memory stays bounded
            yield read_saved(path)
        yield from ready()


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.arrow"


def write_saved(path: Path, table: Any, facts: Mapping[str, Any], compression: str | None = None) -> None:
    """A table with facts as an Arrow file that appears whole or not at all; a compressed one is read into memory."""
    import pyarrow as pa

    schema = table.schema.with_metadata({_FACTS: json.dumps(facts, ensure_ascii=False).encode()})
    temporary = path.with_suffix(".tmp")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as file:
        file.write_table(table.cast(schema))
    os.replace(temporary, path)


def read_saved(path: Path) -> Shard:
    """What `write_saved` wrote, memory-mapped."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    return Shard(table.replace_schema_metadata(None), json.loads(table.schema.metadata[_FACTS]))
