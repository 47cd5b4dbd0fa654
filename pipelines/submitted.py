"""Runs that were submitted and whose driver has not begun: where their job stands, and how to stop it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from cluster.errors import UserError
from pipelines.runs import RunRecord
from pipelines.submit import job_info, stop

STATES = {"FAILED": "failed", "STOPPED": "cancelled", "SUCCEEDED": "failed"}
"""What a run is whose job ended so, before its driver took the record over."""
LAST_LINES = 4


def follow_up(records: Iterable[RunRecord]) -> None:
    """Ask Ray for the jobs of submitted runs: note where they stand, and close the records of those that ended.

    A cluster that does not answer is noted, and asked once.
    """
    silent: dict[str, UserError] = {}
    for record in records:
        address = record.info.get("submitted")
        if record.state() != "submitted" or not address:
            continue
        try:
            if address in silent:
                raise silent[address]
            info = job_info(address, record.name)
        except UserError as error:
            silent[address] = error
            record.notice(f"where its job stands is not known: {error.message}", error.remedy)
            continue
        if info is None:
            record.notice(f"Ray at {address} knows no such job (yet, or any more)", f"triptych cancel {record.name}")
        elif not info.status.is_terminal():
            record.notice(f"its job is {info.status.value.lower()}: {_first(info)}", f"triptych cancel {record.name}")
        else:
            _close(record, address, info)


def _close(record: RunRecord, address: str, info: Any) -> None:
    """The job has ended; unless its driver has written meanwhile, so has the run."""
    now = RunRecord.load(record.store, record.name)
    record.info, record.status = now.info, now.status
    if record.state() != "submitted":
        return
    if info.status.value == "SUCCEEDED":
        said, remedy = "its job succeeded without a word in this store", "the cluster sees another store: check --store"
    else:
        said = f"its job {info.status.value.lower()} before the run began: {_last(info)}"
        remedy = f"all it said: ray job logs --address {address} {record.name}"
    record.notice(said, remedy)
    record.finish(STATES[info.status.value])


def _first(info: Any) -> str:
    return next(iter(str(info.message or "").strip().splitlines()), "")


def _last(info: Any) -> str:
    """The end of what Ray says of a job; of a failed one that is the end of its log."""
    return "\n".join(str(info.message or "").strip().splitlines()[-LAST_LINES:])


def cancel_submitted(record: RunRecord, seconds: float = 40) -> str:
    """Stop the job of a submitted run; returns the run's state. A driver that has begun meanwhile cancels by itself.

    Raises:
        Unreachable: the cluster does not answer; the driver, should it begin, finds the request in the store.
    """
    store, address = record.store, record.info.get("submitted")
    store.write_json(f"{record.folder}/cancel", {"asked": True})
    if address:
        stop(address, record.name)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            record = RunRecord.load(store, record.name)
            if record.state() not in ("submitted", "running"):
                return record.state()
            info = job_info(address, record.name) if record.state() == "submitted" else None
            if record.state() == "submitted" and (info is None or info.status.is_terminal()):
                break
            time.sleep(0.3)
    record = RunRecord.load(store, record.name)
    if record.state() == "submitted":
        record.finish("cancelled")
    return record.state()
