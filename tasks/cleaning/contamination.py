"""decontaminate: runs of words that a document shares with an evaluation text are found, and taken out.

As GPT-3's training data were filtered (Brown et al. 2020, appendix C): runs of 13 words, lower-cased and without
punctuation; the shared run goes with 200 characters on each side; pieces of fewer than 200 characters go, too; and a
document that falls into more than ten pieces goes whole. Of evaluation texts of fewer than 13 words, those of at least
8 count as a whole: the document must have all of their words in a row. Shorter ones are counted and not looked for.

What differs from the paper: the pieces stay one document, a blank line between them; and a run that occurs in many
training documents counts like any other, since a document is judged by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings_corpus import DecontaminateSettings
from tasks.cleaning.words import Hashes, Ints, Words, grams, placed_words, word_hashes

_BITS_PER_RUN = 5  # the filter has 32 bits and more for a run, so that about 3 % of all others pass it
_MOST_BITS = 28
_LONGEST_WORD = 40


class Hit(NamedTuple):
    """A run of words that an evaluation text has, too: text[start:end]; `row` counts the task's texts from 0."""

    task: str
    row: int
    start: int
    end: int


class Decontaminate(DocumentStep):
    """See the module. `evaluation`: {task: texts}."""

    settings: DecontaminateSettings

    def __init__(self, settings: DecontaminateSettings, evaluation: Mapping[str, Sequence[str]]) -> None:
        super().__init__(settings, evaluation)
        self.tasks = sorted(evaluation)
        texts = [text for task in self.tasks for text in evaluation[task]]
        task = np.repeat(np.arange(len(self.tasks)), [len(evaluation[task]) for task in self.tasks])
        row = np.concatenate([np.arange(len(evaluation[task])) for task in self.tasks] or [np.empty(0, np.int64)])
        words = word_hashes(texts)
        counts = np.diff(words.offsets)
        self.too_short = {
            name: int(np.count_nonzero(counts[task == n] < settings.min_words)) for n, name in enumerate(self.tasks)
        }
        """Evaluation texts that are not looked for, by task."""
        lengths = np.minimum(counts, settings.words)
        self.index: dict[int, _Runs] = {}
        """Runs to look for, by their length in words."""
        for length in np.unique(lengths[lengths >= settings.min_words]).tolist():
            chosen = np.flatnonzero(lengths == length)
            runs = grams(_of(words, chosen), length, short=False)
            whose = np.repeat(chosen, np.diff(runs.offsets))
            self.index[length] = _Runs.of(runs.hashes, task[whose], row[whose])

    def facts(self) -> Mapping[str, Any]:
        """{"<task>: too short to look for": evaluation texts}."""
        return {f"{task}: too short to look for": count for task, count in self.too_short.items()}

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict for each text, in order; counts: runs shared, by task."""
        words = word_hashes(texts)
        found: dict[int, dict[str, int]] = {}  # {document: {task: runs}}
        runs: Counter[int] = Counter()
        for length, index in self.index.items():
            places = grams(words, length, short=False)
            hits = np.flatnonzero(index.holds(places.hashes))
            documents = np.searchsorted(places.offsets, hits, side="right") - 1
            runs.update(documents.tolist())
            which, task, _ = index.whose(places.hashes[hits])
            once = np.unique(np.stack([which, task]), axis=1)  # a run counts once for each task that has it
            pairs, counts = np.unique(np.stack([documents[once[0]], once[1]]), axis=1, return_counts=True)
            for document, number, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
                name = f"{self.tasks[number]}: hits"
                mine = found.setdefault(document, {})
                mine[name] = mine.get(name, 0) + count
        out = [Verdict(text) for text in texts]
        for document, number in runs.items():
            if number >= self.settings.min_hits:
                out[document] = self._verdict(texts[document], dict(sorted(found[document].items())))
        return out

    def _verdict(self, text: str, counts: Mapping[str, int]) -> Verdict:
        if self.settings.action == "drop":
            return Verdict(None, "shares text with an evaluation set", counts)
        pieces = self.pieces(text)
        if len(pieces) > self.settings.max_pieces:
            return Verdict(None, f"more than {self.settings.max_pieces} pieces between evaluation texts", counts)
        kept = [piece for piece in pieces if len(piece) >= self.settings.min_piece_chars]
        if not kept:
            return Verdict(None, "nothing left beside evaluation texts", counts)
        return Verdict("\n\n".join(kept), "evaluation text taken out", counts)

    def hits(self, text: str) -> list[Hit]:
        """All shared runs of a text, by place, length and evaluation text."""
        placed = placed_words(text)
        words = Words(placed.hashes, np.array([0, len(placed.hashes)]))
        out = []
        for length, index in self.index.items():
            runs = grams(words, length, short=False).hashes
            places = np.flatnonzero(index.holds(runs))
            which, task, row = index.whose(runs[places])
            starts, ends = placed.starts[places[which]], placed.ends[places[which] + length - 1]
            for name, *rest in zip(task.tolist(), row.tolist(), starts.tolist(), ends.tolist(), strict=True):
                out.append(Hit(self.tasks[name], *rest))
        return sorted(out, key=lambda hit: (hit.start, hit.end, hit.task, hit.row))

    def pieces(self, text: str) -> list[str]:
        """What is left of a text between the windows around shared runs; a window ends where a word ends."""
        pieces: list[str] = []
        at = 0
        margin = self.settings.window_chars
        for start, end in sorted({(hit.start, hit.end) for hit in self.hits(text)}):
            begin, stop = _word_begin(text, max(0, start - margin)), _word_end(text, min(len(text), end + margin))
            if begin > at:
                pieces.append(text[at:begin])
            at = max(at, stop)
        pieces.append(text[at:])
        return [stripped for piece in pieces if (stripped := piece.strip())]

    def shown(self, text: str) -> str:
        """How a report shows a text that has hits: the first shared run, whose it is, and what stands around it."""
        hits = self.hits(text)
        if not hits:
            return text
        first = hits[0]
        others = len({(hit.task, hit.row) for hit in hits}) - 1
        also = f" and {others:,} more" if others else ""
        run = text[first.start : first.end]
        return f"[{first.task}, text {first.row}{also}: “{run}”] {text[max(0, first.start - 60) :]}"


class _Runs(NamedTuple):
    """Hashes of runs of one length, sorted, with the evaluation texts that have them; and a filter over the hashes."""

    hashes: Hashes
    task: Ints
    row: Ints
    filter: np.ndarray[Any, np.dtype[np.uint8]]
    """A bit for each value of a hash's highest bits: whether any run has them. Most of a corpus needs no more."""
    bits: int

    @classmethod
    def of(cls, hashes: Hashes, task: Ints, row: Ints) -> _Runs:
        order = np.lexsort((row, task, hashes))
        hashes, task, row = hashes[order], task[order], row[order]
        new = np.append(True, (hashes[1:] != hashes[:-1]) | (task[1:] != task[:-1]))  # a task's first text is enough
        bits = min(_MOST_BITS, max(10, len(hashes).bit_length() + _BITS_PER_RUN))
        passed = np.zeros(1 << bits, dtype=bool)
        passed[(hashes >> np.uint64(64 - bits)).astype(np.int64)] = True
        return cls(hashes[new], task[new], row[new], np.packbits(passed, bitorder="little"), bits)

    def holds(self, hashes: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each is a run of an evaluation text: bool [M]."""
        high = hashes >> np.uint64(64 - self.bits)
        bit = (high & np.uint64(7)).astype(np.uint8)
        out = ((self.filter[(high >> np.uint64(3)).astype(np.int64)] >> bit) & 1).astype(bool)
        likely = np.flatnonzero(out)
        some = hashes[likely]
        place = np.minimum(np.searchsorted(self.hashes, some), len(self.hashes) - 1)
        out[likely] = self.hashes[place] == some
        return out

    def whose(self, hashes: Hashes) -> tuple[Ints, Ints, Ints]:
        """The texts that have these runs: (which of `hashes`, task, row), as long as there are texts."""
        left, right = (np.searchsorted(self.hashes, hashes, side=side) for side in ("left", "right"))
        which = np.repeat(np.arange(len(hashes)), right - left)
        at = left[which] + np.arange(len(which)) - np.repeat(np.cumsum(right - left) - (right - left), right - left)
        return which, self.task[at], self.row[at]


def _word_begin(text: str, at: int) -> int:
    """Where the word begins that `at` is in; `at` where that is far, as in scripts without spaces."""
    begin = at
    while begin > 0 and not text[begin - 1].isspace():
        begin -= 1
        if at - begin > _LONGEST_WORD:
            return at
    return begin


def _word_end(text: str, at: int) -> int:
    end = at
    while end < len(text) and not text[end].isspace():
        end += 1
        if end - at > _LONGEST_WORD:
            return at
    return end


def _of(words: Words, chosen: Ints) -> Words:
    """The words of the chosen documents."""
    counts = np.diff(words.offsets)
    mask = np.zeros(len(counts), dtype=bool)
    mask[chosen] = True
    return Words(words.hashes[np.repeat(mask, counts)], np.concatenate([[0], np.cumsum(counts[mask])]))
