"""Counters of the toy pipeline."""

from __future__ import annotations

from collections import Counter


def words(text: str) -> dict[str, int]:
    return dict(Counter(text.split()))


def letters(text: str) -> dict[str, int]:
    return dict(Counter(text))
