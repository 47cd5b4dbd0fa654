"""Whose silence is held against them: not who has said that it failed, and nobody while the listener itself stood."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cluster import lines
from cluster.lines import Lines, Peer


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(lines, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def two(clock) -> Iterator[Lines]:
    with Lines() as found:
        for rank in (0, 1):
            found.peers[rank] = Peer(rank, 1000 + rank, "here", "node", socket.socket(), clock[0])
        yield found


def looks(two: Lines, clock: list[float], seconds: int, hears: tuple[int, ...] = ()) -> list[int]:
    """Look once a second, as the loop of a group does; the ranks that were found silent at the end."""
    silent: list[int] = []
    for _ in range(seconds):
        clock[0] += 1
        for rank in hears:
            two.peers[rank].heard = clock[0]
        silent = [peer.rank for peer in two.silent(6)]
    return silent


def test_who_says_nothing_for_too_long_is_silent(two, clock):
    assert looks(two, clock, 6, hears=(0,)) == []
    assert looks(two, clock, 1, hears=(0,)) == [1]


def test_who_has_failed_or_gone_is_not_silent(two, clock):
    two.peers[0].failed = "Timed out waiting 7200ms for recv operation to complete"
    two.peers[1].gone = True
    assert looks(two, clock, 60) == []


def test_while_the_listener_stood_still_nobody_is_silent(two, clock):
    looks(two, clock, 2, hears=(0, 1))
    clock[0] += 3600  # the machine slept
    assert two.silent(6) == []
    assert looks(two, clock, 6, hears=(0,)) == []
    assert looks(two, clock, 1, hears=(0,)) == [1]
