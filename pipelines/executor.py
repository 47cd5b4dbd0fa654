"""Runs a plan: claims stages, places them, hears their outcomes, decides what happens next.

All state that matters is in the store, so the driver may die at any moment. Within one driver every
stage goes `pending → waiting | running → done | cached | failed | skipped | pruned | cancelled`; `waiting`
means that another driver is at work on the same key and its result will be shared, `pruned` that a sweep
does not need the stage.

What is tried again depends on the class of the error: `pipelines.retries`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.errors import UserError
from cluster.faults import oom_kills
from cluster.leases import Claim, Held, Owner
from cluster.store import Store
from pipelines.graph import Node
from pipelines.live import ENDED, WELL, Live, job
from pipelines.placement import Placement
from pipelines.plan import CACHED, Plan, changed_inputs, other_inputs
from pipelines.pool import Outcome, Pool
from pipelines.retries import decide
from pipelines.runs import RunRecord
from pipelines.sweep import PRUNED, pruned
from pipelines.worker import Event

GRACE_SECONDS = 8.0


class Executor:
    """Runs the steps of a plan that are not cached.

    Args:
        plan: what to do.
        record: the run's record, kept up to date.
        pool: where stages run.
        tracker: callbacks `started(name, facts)`, `metric`, `ended`, `cached` (`pipelines.tracked.Tracked`).
        notify: called after every change, for the display.
        keep_going: after a failure, go on with all that does not depend on it.
        facts: added to every manifest (git commit, recipe).
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        record: RunRecord,
        pool: Pool,
        tracker: Any,
        *,
        notify: Callable[[], None] = lambda: None,
        keep_going: bool = False,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.record = record
        self.pool = pool
        self.tracker = tracker
        self.notify = notify
        self.keep_going = keep_going
        self.facts = facts or {}
        self.owner = Owner.here(record.name)
        self.live = {
            name: Live(
                step.node, runtime=step.node.task.runtime, forced=step.state != CACHED and step.manifest is not None
            )
            for name, step in plan.steps.items()
        }
        self.tickets: dict[int, str] = {}
        self.cancelling = 0  # 1: asked, 2: asked twice
        self._stop_beats = threading.Event()
        self._beats: threading.Thread | None = None
        self._lost: set[str] = set()
        self._failed = False
        sweep = plan.graph.pipeline.sweep
        ranks = sweep.ranks(plan.graph) if sweep is not None else {}
        self.placement = Placement(plan.steps, pool, lambda name: self.live[name].state, ranks)
        self._decided_at = -1
        self._children: dict[str, list[str]] = {}
        for live in self.live.values():
            for parent in live.node.parents:
                self._children.setdefault(parent, []).append(live.node.name)
        self._open = {name: sum(p in self.live for p in live.node.parents) for name, live in self.live.items()}
        self._ready = [name for name, count in self._open.items() if not count]

    # -- the loop -----------------------------------------------------------------------------------

    def run(self) -> bool:
        """Run until every stage has ended. True when nothing failed and nothing was cancelled."""
        self._beats = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        self._beats.start()
        asked = time.monotonic()
        cancelled_at = 0.0
        try:
            while True:
                if self.cancelling and not cancelled_at:
                    cancelled_at = time.monotonic()
                    self._cancel(force=False)
                if cancelled_at and (self.cancelling > 1 or time.monotonic() - cancelled_at > GRACE_SECONDS):
                    self._cancel(force=True)
                if not self.cancelling:
                    self._start_ready()
                if not self.tickets and (self._stopped() or not self._waiting()):
                    break
                outcomes, events = self.pool.wait(0.25 if self.tickets else 0.05)
                for event in events:
                    self.event(event)
                for ticket, outcome in outcomes:
                    self._ended(self.tickets.pop(ticket), outcome)
                if not self.tickets and all(self.live[n].not_before > time.monotonic() for n in self._ready):
                    time.sleep(0.1)  # everything left waits for another driver, or for a pause to end
                self.record.write(every=1.0 if len(self.live) < 200 else 3.0)
                self.notify()
                if time.monotonic() - asked > 1.0:
                    asked = time.monotonic()
                    if self.record.cancel_asked():
                        self.cancelling = max(self.cancelling, 1)
        finally:
            self._stop_beats.set()
            self._release_all()
        self._close_open_stages()
        return all(live.state in WELL for live in self.live.values())

    def _waiting(self) -> bool:
        return any(live.state in ("waiting", "pending") for live in self.live.values()) and bool(self._ready)

    def take(self, events: list[Event]) -> None:
        """Take several events, as an inline pool hands them over."""
        for event in events:
            self.event(event)

    def event(self, event: Event) -> None:
        """Take a stage's progress, metric, file, checkpoint, split of the batch or decision; or a notice of the run."""
        name, kind = event.get("stage", ""), event["type"]
        if kind == "notice":
            self.record.notice(event["message"], event["remedy"])
        elif kind == "metric":
            self.tracker.metric(name, event["step"], event["values"])
            self.record.stage(name)["last"] = event["values"]
        elif kind == "file":
            self.tracker.file(name, event["name"], event["path"])
        elif kind == "saved":
            self.live[name].failures.gained = True
        elif kind == "at-work":
            self.live[name].failures.at_work.update(event["facts"])
            self.record.stage(name)["at_work"] = self.live[name].failures.at_work
        elif kind == "decision":
            self._decided(name, event["error"], event["message"], event["decision"])
        else:
            self.record.stage(name)["progress"] = {k: event[k] for k in ("done", "total", "unit", "shown")}
        self.notify()

    # -- starting -----------------------------------------------------------------------------------

    def _start_ready(self) -> None:
        """Take what is cached, then claim and place ready stages as `Placement` has room."""
        while self._take_cached() or self._prune():
            pass
        if self._stopped():
            return
        now = time.monotonic()
        self.placement.sort(self._ready)
        room = self.placement.room(self.live[name].runtime for name in self.tickets.values())
        queue, self._ready = self._ready, []
        later: list[str] = []
        for position, name in enumerate(queue):
            live = self.live[name]
            if room.full_for(live.runtime):
                later.extend(queue[position:])
                break
            if live.not_before > now or room.kept_from(live.runtime):
                later.append(name)
            elif self._start(live):
                room.take(live.runtime)
            elif live.state == "waiting":
                later.append(name)
        self._ready = later + self._ready  # `_start` may have made more stages ready

    def _take_cached(self) -> bool:
        """Take the ready stages that are cached; True when that made others ready.

        Before anything starts: what is urgent may be behind a cached stage.
        """
        queue, self._ready = self._ready, []
        others = []
        for name in queue:
            live, step = self.live[name], self.plan.steps[name]
            if step.manifest is None or live.forced or self._inputs_changed(live.node, step.manifest):
                others.append(name)
            else:
                self._take(live, step.manifest, "cached", step.reason)
        more = bool(self._ready)
        self._ready = others + self._ready
        return more

    def _prune(self) -> bool:
        """Give up the runs of a sweep that what is made has made needless; True when that made others ready."""
        made = {name: live.manifest for name, live in self.live.items() if live.manifest is not None}
        if self.plan.graph.pipeline.sweep is None or len(made) == self._decided_at:
            return False
        self._decided_at = len(made)
        before = len(self._ready)
        there = {name for name, step in self.plan.steps.items() if step.manifest is not None}
        for name, why in pruned(self.plan.graph, made).items():
            live = self.live.get(name)
            if live is None or live.state not in ("pending", "waiting") or name in there or live.forced:
                continue
            self._state(live, PRUNED, reason=why)
            self._ready = [other for other in self._ready if other != name]
            before = min(before, len(self._ready))
            self._open_children(name)
        return len(self._ready) > before

    def _stopped(self) -> bool:
        return bool(self.cancelling) or (self._failed and not self.keep_going)

    def _start(self, live: Live) -> bool:
        """Claim a stage and submit it; True when it runs now."""
        name, node = live.node.name, live.node
        step = self.plan.steps[name]
        redo = step.manifest is not None  # forced, or made from other bytes of an input
        claimed = self.store.claim(node.key, self.owner, force=redo)
        if isinstance(claimed, Held):
            if live.state != "waiting":
                self._state(live, "waiting", held_by=str(claimed.owner))
            live.not_before = time.monotonic() + 0.5
            return False
        if not isinstance(claimed, Claim):  # published meanwhile by another driver
            found = claimed.manifest
            if not self._inputs_changed(node, found):
                self._take(live, found, "cached", "made by another run meanwhile")
                return False
            claimed = self.store.claim(node.key, self.owner, force=True)
            if not isinstance(claimed, Claim):
                live.not_before = time.monotonic() + 0.5
                live.state = "waiting"
                return False
        live.claim, live.oom_kills = claimed, oom_kills()
        live.failures.at_work = {}
        self.record.stage(name).pop("at_work", None)  # of the attempt before
        self._state(live, "running", attempt=live.attempt + 1, began=time.time(), reason=step.reason)
        self.tracker.started(node, live.runtime)
        handed = job(live, self.live, self.plan.graph, store_url=self.store.url, run=self.record.name, facts=self.facts)
        self.tickets[self.pool.submit(handed)] = name
        return True

    def _inputs_changed(self, node: Node, manifest: dict[str, Any]) -> list[str]:
        parents = [self.live[p] for p in node.parents if p in self.live]
        current = {p.node.key: p.manifest or {} for p in parents if p.state != PRUNED}
        changed = changed_inputs(node, manifest, self.plan.graph, current)
        return changed or other_inputs(node, manifest, self.plan.graph, current)

    # -- ending -------------------------------------------------------------------------------------

    def _ended(self, name: str, outcome: Outcome) -> None:
        live = self.live[name]
        if outcome["ok"]:
            live.claim = None
            self._take(live, outcome["manifest"], "done", "")
            return
        error = outcome["error"]
        if live.claim is not None:
            with contextlib.suppress(UserError):  # the store is away: the lease runs out by itself
                self.store.release(live.claim)
            live.claim = None
        if self.cancelling:
            self._state(live, "cancelled")
            self.tracker.ended(name, "KILLED", None)
            return
        if name in self._lost:
            error = {**error, "class": "lease"}
            self._lost.discard(name)
        if error["class"] == "worker" and oom_kills() > live.oom_kills:
            message = f"the kernel killed a process for lack of memory; {error['message']}"
            error = {**error, "class": "memory", "message": message}
        live.failures.failed_at((self.record.stage(name).get("progress") or {}).get("done", 0.0))
        decision = decide(error, live.runtime, live.failures)
        if decision.words:
            self._decided(name, error["class"], error["message"], decision.words)
        if decision.again:
            live.runtime = decision.runtime
            live.not_before = time.monotonic() + decision.pause_seconds
            live.attempt += 1
            self._state(live, "pending")
            self._ready.append(name)
            return
        self._failed = True
        if decision.remedy:
            error = {**error, "remedy": decision.remedy}
        self._state(live, "failed", error=error)
        self.tracker.ended(name, "FAILED", None, error=error)
        self._skip_descendants(name)

    def _decided(self, name: str, error: str, message: str, decision: str) -> None:
        """Into the record: what was decided about a stage, and why."""
        entry = {"time": time.time(), "error": error, "message": message[:500], "decision": decision}
        self.record.stage(name).setdefault("decisions", []).append(entry)

    def _take(self, live: Live, manifest: dict[str, Any], state: str, reason: str) -> None:
        """A stage's artifact is there: those that wait for it may start."""
        live.manifest = manifest
        seconds = manifest.get("timings", {}).get("seconds")
        facts = {"metrics": manifest.get("metrics", {}), "seconds": seconds, "made_by": manifest.get("run")}
        if reason or state == "cached":
            facts["reason"] = reason
        self._state(live, state, **facts)
        if state == "done" and seconds is not None:
            self.placement.took(seconds)
        if state == "cached":
            self.tracker.cached(live.node, manifest)
        else:
            self.tracker.ended(live.node.name, "FINISHED", manifest, node=live.node)
        self._open_children(live.node.name)

    def _open_children(self, name: str) -> None:
        """A stage has come to its end, made or pruned: those that waited for it alone are ready."""
        for child in self._children.get(name, ()):
            self._open[child] -= 1
            if not self._open[child] and self.live[child].state == "pending":
                self._ready.append(child)

    def _skip_descendants(self, name: str) -> None:
        for below in self.plan.graph.descendants([name]):
            live = self.live.get(below)
            if live is not None and live.state in ("pending", "waiting"):
                self._state(live, "skipped", reason=f"needs {name}, which failed")

    def _close_open_stages(self) -> None:
        for live in self.live.values():
            if live.state not in ENDED:
                self._state(live, "cancelled" if self.cancelling else "skipped", reason="the run stopped before it")

    def _state(self, live: Live, state: str, **facts: Any) -> None:
        live.state = state
        entry = self.record.stage(live.node.name)
        if state != "running":
            entry.pop("progress", None)
        if state in ENDED:
            facts.setdefault("ended", time.time())
        entry.update(state=state, **facts)

    # -- leases and cancelling ------------------------------------------------------------------------

    def _beat(self) -> None:
        pause = self.store.lease_ttl_seconds / 4
        while not self._stop_beats.wait(pause):
            claims = {live.node.name: live.claim for live in list(self.live.values()) if live.claim is not None}
            try:
                lost = self.store.heartbeat(list(claims.values()))
            except Exception:  # the store is away: the lease may run out, and `publish` will notice
                continue
            for name, claim in claims.items():
                if claim in lost and self.live[name].claim is claim:
                    self._lost.add(name)

    def _cancel(self, *, force: bool) -> None:
        for ticket in list(self.tickets):
            self.pool.cancel(ticket, force=force)

    def _release_all(self) -> None:
        for live in self.live.values():
            if live.claim is not None:
                try:
                    self.store.release(live.claim)
                except Exception:
                    continue  # it runs out by itself
                live.claim = None
