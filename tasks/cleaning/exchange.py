"""Bringing rows with equal keys together: on Ray Data where there is a cluster, through files on disk elsewhere.

    for found in exchange(ctx, tables, PrepareRows(...), pairs_of, ctx.work / "exchange"):

`prepare` gives each table a column `key` (uint64, uniformly distributed: a hash). Rows are sent to partitions by the
key's highest bits, and `work` sees a partition whole. In both ways the same functions see the same rows, though in no
fixed order: so `work` sorts, and what is made of its results must not depend on their order. Then the outcome is the
same on any number of workers.

Memory in this process is a table and a partition. On Ray the shuffle runs in a helper task that holds no core, and this
process gives its own core back while it waits for it; so a stage on a cluster of one core gets its exchange done, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from cluster.errors import Cancelled
from cluster.parallel import in_ray
from tasks.base import Context

PARTITION_BITS = 5
"""32 partitions: ten million documents of 17 bands make some 130 MB in each."""
HERE_BYTES = 8 << 20
"""Tables of fewer bytes are exchanged in this process: starting Ray Data's workers takes seconds."""

Prepare = Callable[[Any], Any]
Work = Callable[[Any], Any]


def exchange(
    ctx: Context,
    tables: Iterable[Any],
    prepare: Prepare,
    work: Work,
    folder: Path,
    *,
    here_bytes: int = HERE_BYTES,
) -> Generator[Any, None, None]:
    """Yield `work(rows)` of every partition that has rows.

    Args:
        ctx: of the stage: how many workers there may be, and whether it is to stop.
        tables: Arrow tables of one schema, consumed once.
        prepare: a picklable pure function from such a table to the rows to bring together, with a column `key`.
        work: a picklable pure function from all rows of a partition, in any order, to a table.
        folder: for temporary files, new.
        here_bytes: less data than this stays in this process.

    Raises:
        Cancelled: the run was asked to stop.
    """
    waiting = iter(tables)
    held: list[Any] = []
    size = 0
    if in_ray():
        for table in waiting:
            held.append(table)
            size += table.nbytes
            if size >= here_bytes:
                break
    if in_ray() and size >= here_bytes:
        found = _on_ray(_drained(held, waiting), prepare, work, ctx.runtime.most_workers)
    else:
        found = _here(chain(held, waiting), prepare, work, folder)
    with closing(found):
        for rows in found:
            if ctx.cancelled():
                raise Cancelled("the comparison of documents was cancelled")
            yield rows


def _drained(held: list[Any], more: Iterator[Any]) -> Iterator[Any]:
    while held:
        yield held.pop(0)
    yield from more


# ---------------------------------------------------------------- in this process


def _here(tables: Iterable[Any], prepare: Prepare, work: Work, folder: Path) -> Generator[Any, None, None]:
    """Partitions as files, then one after another."""
    import pyarrow as pa

    folder.mkdir(parents=True)
    try:
        for path in _written(tables, prepare, folder):
            with pa.memory_map(str(path)) as source:
                rows = pa.ipc.open_file(source).read_all()
                yield work(rows)
                del rows
            path.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _written(tables: Iterable[Any], prepare: Prepare, folder: Path) -> list[Path]:
    """The rows in one file for each partition that has any."""
    import numpy as np
    import pyarrow as pa

    files: dict[int, Any] = {}
    try:
        for table in tables:
            rows = prepare(table)
            part = _partition(rows)
            order = np.argsort(part, kind="stable")
            rows, ends = rows.take(order), np.cumsum(np.bincount(part, minlength=1 << PARTITION_BITS))
            for number, (begin, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
                if begin < end:
                    if number not in files:
                        files[number] = pa.ipc.new_file(str(folder / f"{number:03d}.arrow"), rows.schema)
                    files[number].write_table(rows.slice(begin, end - begin))
    finally:
        for file in files.values():
            file.close()
    return [folder / f"{number:03d}.arrow" for number in sorted(files)]


def _partition(rows: Any) -> Any:
    """The partition of each row: int64 [N]."""
    import numpy as np

    keys = rows.column("key").to_numpy()
    return (keys >> np.uint64(64 - PARTITION_BITS)).astype(np.int64)


# ---------------------------------------------------------------- on Ray Data


def _on_ray(tables: Iterable[Any], prepare: Prepare, work: Work, workers: int | None) -> Generator[Any, None, None]:
    import ray

    refs = [ray.put(table) for table in tables]
    helper = ray.remote(_shuffle).options(
        num_cpus=0,
        max_retries=0,
        name="exchange",
        num_returns="streaming",
        _generator_backpressure_num_objects=2,
    )
    stream = helper.remote(refs, prepare, work, workers)
    try:
        for ref in stream:
            yield ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(cause := getattr(error, "cause", None), Exception):
            raise cause from None
        raise
    finally:
        ray.cancel(stream)


def _shuffle(refs: list[Any], prepare: Prepare, work: Work, workers: int | None) -> Iterator[Any]:
    """In the helper: a Ray Data pipeline over the tables; its results, one by one."""
    import logging

    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if workers:
        limits = ray.data.ExecutionResources.for_limits(cpu=workers)
        context.execution_options.resource_limits = limits
    rows = ray.data.from_arrow_refs(refs).map_batches(
        _Prepared(prepare), batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    found = rows.groupby("part", num_partitions=1 << PARTITION_BITS).map_groups(_Worked(work), batch_format="pyarrow")
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        if len(table):
            yield table


class _Prepared:
    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare
        self.__name__ = "prepare"

    def __call__(self, table: Any) -> Any:
        import numpy as np
        import pyarrow as pa

        rows = self.prepare(table)
        return rows.append_column("part", pa.array(_partition(rows).astype(np.int32)))


class _Worked:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.__name__ = "work"

    def __call__(self, rows: Any) -> Any:
        return self.work(rows.drop_columns(["part"]))
