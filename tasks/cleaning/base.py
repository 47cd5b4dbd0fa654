"""What a cleaning step is.

A `DocumentStep` looks at one document at a time, so a worker runs several of them over a slice of the corpus in one
pass. A `CorpusStep` needs all documents: workers `sign` slices, the stage's process brings the signatures together
and `decide`s, and workers apply the decision to the same slices. Both are pure functions of their settings and of the
documents, in their order: no clock, no random state, no dependence on workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from tasks.base import Context


class Verdict(NamedTuple):
    """What becomes of a document.

    text: what is left of it; None: it is dropped. reason: of a drop or a change, a few words that documents share
    ("fewer than 5 sentences"), since they are counted; empty: untouched. counts: what was changed how often
    ({"e-mail address": 2}). split: "train" or "validation" where the document must move there.
    """

    text: str | None
    reason: str = ""
    counts: Mapping[str, int] = {}
    split: str = ""


class Documents(NamedTuple):
    """A slice of the corpus as steps see it: texts [N], the number of the first in the corpus, validation [N]."""

    texts: Sequence[str]
    first: int
    validation: Sequence[bool]


class DocumentStep:
    """A step on single documents.

    Args:
        settings: the step's section of `tasks.cleaning.settings`.
        evaluation: texts that must not be learnt (downstream tasks' validation and test rows), by task; empty but for
            steps whose settings say `needs_evaluation`.
    """

    def __init__(self, settings: Any, evaluation: Mapping[str, Sequence[str]]) -> None:
        self.settings = settings

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict for each text, in order."""
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        """Figures for the corpus's `funnel` that are known before a document is seen."""
        return {}

    def shown(self, text: str) -> str:
        """A text as a report's samples may show it; steps that take secrets out blot them out."""
        return text


class Decision(Protocol):
    """What a `CorpusStep` decided; sent to workers slice by slice, so it must be picklable and small."""

    def verdicts(self, documents: Documents) -> list[Verdict]:
        """A verdict for each document of the slice it was cut for."""


class CorpusStep:
    """A step that compares documents with each other."""

    folder: ClassVar[str] = ""
    """Name of what `sign` writes, for the scratch."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def sign(self, documents: Documents) -> Any:
        """An Arrow table of what must be compared: rows carry the document's number in the corpus. In a worker."""
        raise NotImplementedError

    def decide(self, signatures: Iterable[Any], ctx: Context) -> Decided:
        """Bring the signatures of all slices, in order, together. In the stage's process."""
        raise NotImplementedError


class Decided(Protocol):
    """All decisions of a `CorpusStep`."""

    facts: Mapping[str, Any]
    """Figures for the corpus's `funnel` (clusters, candidate pairs, …)."""

    def slice(self, first: int, count: int) -> Decision:
        """The part for documents first … first + count - 1."""
