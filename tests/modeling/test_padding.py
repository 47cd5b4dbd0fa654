"""Padding that all rows of a micro-batch end with is cut off, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeling.heads.base import IGNORE
from modeling.heads.electra import ReplacedTokenDetection
from modeling.heads.language import LanguageModel
from modeling.padding import trimmed
from modeling.transformer import TransformerConfig, preset

SMALL = {"layers": 2, "width": 32, "heads": 2, "ff_width": 48, "max_length": 64, "vocab_size": 70, "dropout": 0.0}
LENGTHS = np.array([5, 17, 1, 9])


def rows(lengths: np.ndarray, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(1, 70, (len(lengths), width)))
    return ids, torch.arange(width) < torch.from_numpy(lengths)[:, None]


def batch_for(architecture: str) -> dict[str, torch.Tensor]:
    ids, mask = rows(LENGTHS, 60, 0)
    labels = torch.where(mask, ids, IGNORE)
    if architecture != "encoder-decoder":
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        return batch | ({"prefix_mask": torch.arange(60) < 4} if architecture == "prefix-lm" else {})
    targets, shown = rows(LENGTHS[::-1].copy() // 2 + 1, 40, 1)
    own = {"labels": torch.where(shown, targets, IGNORE), "decoder_input_ids": targets}
    return {"input_ids": ids, "attention_mask": mask, "decoder_attention_mask": shown, **own}


def on_host(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in batch.items()}


@pytest.mark.parametrize("positions", ["learned", "relative", "rotary"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "prefix-lm", "encoder-decoder"])
def test_the_loss_and_its_gradients_stay(architecture: str, positions: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(**SMALL, architecture=architecture, positions=positions))
    whole = batch_for(architecture)
    if "prefix_mask" in whole:
        whole["prefix_mask"] = whole["prefix_mask"].expand(4, 60) & whole["attention_mask"]
    short = trimmed(whole, on_host(whole))
    assert short["input_ids"].shape == (4, 24)  # 17, rounded up
    if architecture == "encoder-decoder":
        assert short["labels"].shape == short["decoder_attention_mask"].shape == (4, 16)  # 9
    found = []
    for batch in (whole, short):
        model.zero_grad()
        loss, count = model(batch)
        loss.backward()
        found.append((loss.item(), int(count), [p.grad.clone() for p in model.parameters()]))
    assert found[0][1] == found[1][1]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_electras_draws_stay_with_their_places() -> None:
    torch.manual_seed(0)
    small = {**SMALL, "embedding_width": 16, "generator_share": 0.5}
    model = ReplacedTokenDetection(preset("electra-small", **small))
    ids, mask = rows(LENGTHS, 60, 0)
    labels = torch.where(mask & (torch.rand(ids.shape) < 0.4), ids, IGNORE)
    whole = {"input_ids": torch.where(labels >= 0, 4, ids), "labels": labels, "attention_mask": mask}
    whole |= {"original_ids": ids, "uniforms": torch.rand(ids.shape)}
    short = trimmed(whole, on_host(whole))
    assert short["uniforms"].shape == (4, 24)
    torch.testing.assert_close(model(whole).loss_sum, model(short).loss_sum)


def test_labels_of_whole_rows_stay() -> None:
    """As a classifier's micro-batches have them, of which another part of the batch had the longest row."""
    batch = {**batch_for("encoder"), "labels": torch.tensor([0, 1, 1, 0])}
    cut = trimmed(batch, on_host(batch))
    assert cut["input_ids"].shape == (4, 24) and cut["labels"].tolist() == [0, 1, 1, 0]


def test_what_is_not_known_or_has_nothing_to_cut_is_left_alone() -> None:
    batch = batch_for("encoder")
    assert trimmed({**batch, "ranks": batch["labels"]}, on_host(batch))["input_ids"].shape == (4, 60)
    full = {**batch, "attention_mask": torch.ones(4, 60, dtype=torch.bool)}
    assert trimmed(full, on_host(full))["input_ids"] is full["input_ids"]
    nothing = {**batch, "attention_mask": torch.zeros(4, 60, dtype=torch.bool), "pair_labels": torch.zeros(4)}
    cut = trimmed(nothing, on_host(nothing))
    assert cut["labels"].shape == (4, 8) and cut["pair_labels"].shape == (4,)
    assert trimmed(batch, {})["input_ids"].shape == (4, 60)


def test_a_mask_that_hides_nothing_goes() -> None:
    batch = batch_for("encoder-decoder")
    ones = torch.ones(4, 60, dtype=torch.bool)
    assert set(batch) - set(trimmed({**batch, "attention_mask": ones}, on_host({**batch, "attention_mask": ones}))) == {
        "attention_mask"
    }
    equal = {**batch, "attention_mask": torch.arange(60).expand(4, 60) < 16}  # whole once it is cut
    assert "attention_mask" not in trimmed(equal, on_host(equal))
    classified = {"input_ids": batch["input_ids"], "attention_mask": ones, "labels": torch.zeros(4, dtype=torch.long)}
    assert "attention_mask" in trimmed(classified, on_host(classified))
