"""Causal language modelling: each token once a label, documents apart, padding without loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.objectives.base import IGNORED, Vocabulary
from tests.tasks.paired_rows import EOS, PAD, ROLES, assert_golden, draw, objective, rows_for, vocabulary


def test_worked_example() -> None:
    assert_golden("causal")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(2, 40), apart=st.booleans())
def test_labels_and_documents_token_by_token(seed: int, length: int, apart: bool) -> None:
    tokens = rows_for("causal", length, 6, seed, separators=0.2)
    found = draw(objective("causal", length, documents_apart=apart), tokens)
    assert set(found) == {"input_ids", "labels", "attention_mask"} | (
        {"segment_ids", "position_ids"} if apart else set()
    )
    for at, row in enumerate(tokens.tolist()):
        document = position = 0
        for i in range(length):
            if i and row[i] == EOS:
                document, position = document + 1, 0
            assert found["input_ids"][at, i] == row[i]
            assert found["labels"][at, i] == (row[i + 1] if row[i + 1] != PAD else IGNORED)
            assert found["attention_mask"][at, i] == (row[i] != PAD)
            if apart:
                assert (found["segment_ids"][at, i], found["position_ids"][at, i]) == (document, position)
            position += 1


def test_a_label_is_of_the_own_document_or_its_end() -> None:
    tokens = rows_for("causal", 50, 30, 0, separators=0.1, padded=False)
    found = draw(objective("causal", 50), tokens)
    segments, labels = found["segment_ids"], found["labels"]
    crosses = segments[:, 1:] != segments[:, :-1]  # the document ends at this place
    assert crosses.any() and (labels[:, :-1][crosses] == EOS).all()
    # What follows the separator is predicted from the separator, which is of the same document.
    assert (found["position_ids"][:, 1:][crosses] == 0).all()


def test_every_token_of_the_stream_is_a_label_once() -> None:
    stream = np.arange(5, 5 + 4 * 8 + 1)
    rows = np.stack([stream[i * 8 : i * 8 + 9] for i in range(4)])
    assert draw(objective("causal", 8), rows)["labels"].ravel().tolist() == stream[1:].tolist()


@pytest.mark.parametrize("end", [3, 5, 8])
def test_one_token_for_padding_and_end_of_text(end: int) -> None:
    """As GPT-2's release: separators inside the row count, those at its end are padding."""
    words = vocabulary()
    words = Vocabulary(words.size, ROLES | {"pad": EOS}, words.special, words.starts_word)
    row = np.array([[EOS, 11, EOS, 12, 13, 14, 15, 16, 17]])
    row[0, end:] = EOS
    found = draw(objective("causal", 8, words), row)
    expected = [11, EOS, 12, 13, 14, 15, 16, 17][: end - 1] + [IGNORED] * (9 - end)
    if end == 3:  # … EOS EOS: where the text ended in a separator cannot be told from padding
        expected[1] = IGNORED
    assert found["labels"][0].tolist() == expected
    assert found["attention_mask"][0].tolist() == [i < (end if end != 3 else 2) for i in range(8)]
