"""ELMo's labels: every neighbour in both directions, and none across a border."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from tasks.objectives.base import IGNORED, Vocabulary
from tasks.objectives.bidirectional import BidirectionalLanguageModel
from tasks.objectives.settings import Bidirectional

GOLDEN = Path(__file__).parent.parent / "golden"
PAD, EOS, UNK = range(3)
V = 100


def made(apart: bool, length: int, roles: tuple[str, ...] = ("pad", "eos", "unk")) -> BidirectionalLanguageModel:
    known = {role: i for i, role in enumerate(("pad", "eos", "unk")) if role in roles}
    words = Vocabulary(V, known, np.arange(V) < 3, np.ones(V, dtype=bool))
    return BidirectionalLanguageModel(words, Bidirectional(documents_apart=apart), length)


def draw(tokens: np.ndarray, apart: bool) -> dict[str, np.ndarray]:
    return made(apart, tokens.shape[1]).draw(tokens, 0, np.zeros(len(tokens), int), np.arange(len(tokens)))


@pytest.mark.parametrize("apart", [False, True])
def test_worked_example(apart: bool) -> None:
    golden = json.loads((GOLDEN / "bidirectional.json").read_text())
    found = draw(np.array([golden["tokens"]], dtype=np.uint16), apart)
    prefix = "apart" if apart else "labels"
    assert found["input_ids"][0].tolist() == golden["tokens"]
    assert found["labels_forward"][0].tolist() == golden[f"{prefix}_forward"]
    assert found["labels_backward"][0].tolist() == golden[f"{prefix}_backward"]
    assert ("segment_ids" in found) == apart
    if apart:
        assert found["segment_ids"][0].tolist() == golden["segment_ids"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), length=st.integers(1, 40), apart=st.booleans())
def test_labels_against_a_plain_loop(seed: int, rows: int, length: int, apart: bool) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, V, (rows, length)).astype(np.uint16)
    tokens[rng.random((rows, length)) < 0.15] = EOS
    tokens[rng.random((rows, length)) < 0.05] = UNK
    for row, end in enumerate(rng.integers(0, length + 1, rows)):
        tokens[row, end:] = PAD
    found = draw(tokens, apart)
    for row in range(rows):
        for at in range(length):
            here = int(tokens[row, at])
            after = int(tokens[row, at + 1]) if at + 1 < length else PAD
            before = int(tokens[row, at - 1]) if at else PAD
            if after in (PAD, UNK) or here == PAD or (apart and here == EOS):
                after = IGNORED
            if before in (PAD, UNK) or here == PAD or (apart and before == EOS):
                before = IGNORED
            assert found["labels_forward"][row, at] == after
            assert found["labels_backward"][row, at] == before
    np.testing.assert_array_equal(found["attention_mask"], tokens != PAD)
    chosen = rng.permutation(rows)[: max(1, rows // 2)]
    part = draw(tokens[chosen], apart)
    for column in found:
        np.testing.assert_array_equal(part[column], found[column][chosen])


def test_a_tokenizer_without_eos_is_refused() -> None:
    with pytest.raises(BadConfig, match="'bidirectional' needs a eos token"):
        made(False, 8, ("pad",))


def test_one_token_for_padding_and_the_end_of_a_text() -> None:
    """Ends inside a row are labels in both directions; those at its end are padding."""
    words = Vocabulary(V, {"pad": EOS, "eos": EOS, "unk": UNK}, np.arange(V) < 3, np.ones(V, dtype=bool))
    tokens = np.array([[11, EOS, 12, 13, EOS, EOS]], dtype=np.uint16)
    made = BidirectionalLanguageModel(words, Bidirectional(documents_apart=False), 6)
    found = made.draw(tokens, 0, np.zeros(1, int), np.zeros(1, int))
    assert found["attention_mask"][0].tolist() == [True, True, True, True, False, False]
    assert found["labels_forward"][0].tolist() == [EOS, 12, 13, IGNORED, IGNORED, IGNORED]
    assert found["labels_backward"][0].tolist() == [IGNORED, 11, EOS, 12, IGNORED, IGNORED]
