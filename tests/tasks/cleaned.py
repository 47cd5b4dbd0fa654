"""A cleaning step on texts, without a stage around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.cleaning import STEPS
from tasks.cleaning.base import Verdict
from tasks.cleaning.settings import parse


def step(kind: str, **settings: Any) -> Any:
    """The step of a kind with these settings."""
    return STEPS.load(kind)(parse({"kind": kind, **settings}), {})


def verdict(kind: str, text: str, **settings: Any) -> Verdict:
    """What a step makes of one text."""
    (found,) = step(kind, **settings).clean([text])
    assert isinstance(found, Verdict) and isinstance(found.counts, Mapping)
    return found


def left(kind: str, text: str, **settings: Any) -> str | None:
    """What a step leaves of one text; None: nothing."""
    return verdict(kind, text, **settings).text


def reasons(kind: str, texts: Sequence[str], **settings: Any) -> list[str]:
    """Why each text goes or changes."""
    return [found.reason for found in step(kind, **settings).clean(texts)]
