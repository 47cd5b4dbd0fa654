"""NGramBaseline: what an n-gram model reaches on the examples that a model is validated on.

Counts are of the training split's raw rows (one copy of each), the first `max_tokens` tokens of them; the model is
`tasks.kneser_ney`. The cross-entropy is measured on `validation_sequences` validation examples, evenly over the split,
at the positions where these have a label, each token given the true tokens left of it in its row. A masked model sees
both sides, but with gaps; so this is a mark to pass, not a bound.

Where labels do not stand at the rows' own positions (inputs and targets; word vectors) all ordinary tokens of the same
rows are measured, and `measured_at` says so. Labels that are special tokens (an end of text) are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from tasks.base import Context, Examples, Task

if TYPE_CHECKING:
    import numpy as np

    from tasks.example_reader import ExampleReader

_ROWS_AT_ONCE = 1024


class NGramBaseline(Task):
    """Cross-entropy of a unigram and an n-gram model on the tokens that a model is validated on."""

    produces: ClassVar[str] = "baseline"
    stage: ClassVar[str] = "baseline"

    examples: Examples
    order: int = Field(3, ge=1, le=7, description="tokens of the longest n-gram")
    max_tokens: int = Field(20_000_000, ge=1, description="training tokens to count, at most; 100 bytes each")
    validation_sequences: int = Field(2000, ge=1, description="validation examples to measure on, as in pretraining")

    @model_validator(mode="after")
    def _has_rows(self) -> NGramBaseline:
        objective = getattr(self.examples, "objective", None)
        if objective is not None:
            check_rows(objective, getattr(self.examples, "masking", "dynamic"))
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Write `baseline.json`: unigram_nats, ngram_nats, order, tokens, positions, measured_at.

        unigram_nats, ngram_nats: mean of -log p per token; null where no example is held out. tokens: ordinary ones
        counted for training. positions: tokens measured on.

        Raises:
            BadConfig: the examples hold no rows of text.
            BadData: there is nothing to count, or no held-out example has a label at an ordinary token.
        """
        import numpy as np

        from tasks.example_reader import ExampleReader, spread
        from tasks.kneser_ney import NGramModel

        folder = ctx.input("examples").path
        train = ExampleReader(folder, "train", 0)
        held_out = train.info["sequences"]["validation"]
        check_rows(train.settings, train.info["masking"])
        special = train.vocabulary.special
        ctx.progress(0, 3, "steps")
        rows = first_rows(train, self.max_tokens)
        # A unigram model is the same estimator at order 1, on occurrences.
        unigram, ngram = NGramModel(rows, special, 1), NGramModel(rows, special, self.order)
        ctx.progress(1, 3, "steps")
        del rows
        if not ngram.tokens:
            raise BadData("the training rows have no ordinary tokens", "use more text")
        told = {"order": self.order, "tokens": ngram.tokens}

        if not held_out:
            ctx.log("no example is held out, so nothing is measured: raise validation_share or use more text")
            return _write(
                ctx, {"unigram_nats": None, "ngram_nats": None, "positions": 0, "measured_at": "nothing"} | told
            )
        validation = ExampleReader(folder, "validation", 0)
        nats, positions, kinds = [0.0, 0.0], 0, set()
        chosen_rows = spread(held_out, self.validation_sequences)
        for begin in range(0, len(chosen_rows), _ROWS_AT_ONCE):
            if ctx.cancelled():
                raise Cancelled("the n-gram baseline was cancelled")
            own = chosen_rows[begin : begin + _ROWS_AT_ONCE]
            tokens, counted, kind = measured(validation, own)
            kinds.add(kind)
            chosen = counted[~special[tokens]]
            for number, model in enumerate((unigram, ngram)):
                nats[number] -= float(np.log(model.probabilities(tokens)[-1][chosen]).sum())
            positions += int(chosen.sum())
            ctx.progress(1 + 2 * (begin + len(own)) / len(chosen_rows), 3, "steps")
        if not positions:
            raise BadData("the validation examples have no label at an ordinary token", "raise validation_share")
        facts = told | {
            "unigram_nats": round(nats[0] / positions, 6),
            "ngram_nats": round(nats[1] / positions, 6),
            "positions": positions,
            "measured_at": "labels" if kinds == {"labels"} else "all ordinary tokens",
        }
        return _write(ctx, facts)


def _write(ctx: Context, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`baseline.json`, and the figures of it that are metrics."""
    (ctx.out / "baseline.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    names = ("unigram_nats", "ngram_nats", "tokens", "positions")
    return {name: facts[name] for name in names if facts[name] is not None}


def check_rows(objective: Any, masking: str) -> None:
    """Raise BadConfig where examples hold no rows of text to count."""
    if objective.kind == "glove":
        raise BadConfig("baseline: GloVe's examples are pairs of words, not text", "leave the baseline out")
    if masking == "static" and objective.paired:
        raise BadConfig(
            f"baseline: with masking=static the examples of {objective.kind!r} hold inputs and targets, not text",
            "set masking=dynamic",
        )


def raw_rows(reader: ExampleReader, indices: np.ndarray) -> np.ndarray:
    """The rows as they were before masking: [N, R]."""
    import numpy as np

    from tasks.objectives.settings import Causal, Masked, ReplacedTokens

    if not reader.static:
        return reader.rows("tokens", indices)
    rows = reader.rows("input_ids", indices)
    labels = reader.rows("labels", indices)
    if isinstance(reader.settings, Masked | ReplacedTokens):
        rows = np.where(labels >= 0, labels, rows)
    if isinstance(reader.settings, Causal):
        last = labels[:, -1:]
        rows = np.concatenate([rows, np.where(last >= 0, last, reader.vocabulary.pad)], axis=1)
    return rows


def first_rows(reader: ExampleReader, max_tokens: int) -> np.ndarray:
    """Raw rows of the split from its beginning, one copy of each, with `max_tokens` ordinary tokens at most.

    The first row is always there.
    """
    import numpy as np

    special = reader.vocabulary.special
    copies = reader.info["duplication"] if "copy" not in reader.file.columns else 1
    rows: list[np.ndarray] = []
    left = max_tokens
    for begin in range(0, len(reader), _ROWS_AT_ONCE * copies):
        indices = np.arange(begin, min(begin + _ROWS_AT_ONCE * copies, len(reader)), copies)
        if "copy" in reader.file.columns:
            indices = indices[reader.rows("copy", indices) == 0]
        found = raw_rows(reader, indices)
        ordinary = np.cumsum(np.count_nonzero(~special[found], axis=1))
        keep = max(int(np.searchsorted(ordinary, left, side="right")), 0 if rows else 1)
        rows.append(found[:keep])
        left -= int(ordinary[keep - 1]) if keep else 0
        if keep < len(found):
            break
    return np.concatenate(rows)


def measured(reader: ExampleReader, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """(raw rows [N, R], bool [N, R] of the tokens to measure, how they were found) of validation examples."""
    import numpy as np

    pairs = np.stack([np.zeros_like(index), index], axis=1)
    rows = raw_rows(reader, index)
    everywhere = np.ones(rows.shape, dtype=bool)
    if reader.settings.paired:
        return rows, everywhere, "all"
    batch = reader.batch(pairs)
    labels = batch.get("labels", batch.get("labels_forward"))
    if labels is None:
        return rows, everywhere, "all"
    # A label is its position's own token, or the next one.
    for ahead in (0, 1):
        width = min(labels.shape[1], rows.shape[1] - ahead)
        there, expected = labels[:, :width], rows[:, ahead : ahead + width]
        is_label = there >= 0
        if (labels[:, width:] < 0).all() and (there[is_label] == expected[is_label]).all():
            counted = np.zeros(rows.shape, dtype=bool)
            counted[:, ahead : ahead + width] = is_label
            return rows, counted, "labels"
    return rows, everywhere, "all"
