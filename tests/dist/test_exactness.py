"""One global batch, one mathematics: whatever the ranks, the ZeRO stage and the split into micro-batches."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from modeling.heads.language import LanguageModel
from modeling.transformer import preset
from tests.dist.ranks import BATCH, LENGTH, VOCABULARY, global_batch, run_ranks, train

# With this optimizer a step subtracts the gradient itself (to 1e-3 of it): lr · m / (√v + eps), lr = eps = 1e3.
PLAIN = {"kind": "adamw", "eps": 1e3, "weight_decay": 0.0}
GRADIENT = {"steps": 1, "peak_lr": 1e3, "optimizer": PLAIN, "clip_norm": 0.0, "preset": "bert-tiny"}
LAMB = {"kind": "lamb", "weight_decay": 0.1}
STEPS = {
    "uncorrected": {"optimizer": {"kind": "adamw", "bias_correction": False}},
    "layers": {"optimizer": {"kind": "adamw", "layer_lr_decay": 0.5, "no_decay": ["vectors", "embeddings"]}},
    "lamb": {"optimizer": LAMB, "peak_lr": 1e-2},
    "lion": {"optimizer": "lion", "peak_lr": 1e-3},
    "muon": {"optimizer": "muon", "peak_lr": 1e-2},
    "adafactor": {"optimizer": "adafactor", "peak_lr": 1e-2},
    "growing": {"batch_from": 2, "micro_batch": 2, "steps": 8},
}
STAGES = [
    *(("uncorrected", 2), ("layers", 3), ("lion", 1), ("lion", 3), ("adafactor", 0), ("growing", 0), ("growing", 2)),
    *((name, stage) for name in ("lamb", "muon") for stage in range(4)),
    ("growing", 3),
]
TWO_RANKS = [
    {"name": "gradient-0", "stage": 0, **GRADIENT},
    {"name": "gradient-2", "stage": 2, "micro_batch": 1, **GRADIENT},
    {"name": "gradient-pairs", "stage": 2, "pairs": True, **GRADIENT},
    {"name": "zero-0", "stage": 0},
    {"name": "zero-1", "stage": 1},
    {"name": "zero-2", "stage": 2},
    {"name": "zero-2-split", "stage": 2, "micro_batch": 3},
    {"name": "zero-3", "stage": 3},
    {"name": "zero-2-again", "stage": 2},
    {"name": "validated-0", "stage": 0, "validate_every": 2},
    {"name": "validated-3", "stage": 3, "validate_every": 2},
    *({"name": f"{name}-{stage}", "stage": stage, **STEPS[name]} for name, stage in STAGES),
    {"name": "zero-2-bf16", "stage": 2, "precision": "bf16"},
    {"name": "auto-one-of-two", "stage": 2, "precision": "auto", "bf16_ranks": [0]},
    {"name": "auto-both", "stage": 2, "precision": "auto", "bf16_ranks": [0, 1]},
]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    results = run_ranks(2, folder, TWO_RANKS)
    assert results is not None, (folder / "rank-1.log").read_text()
    return folder, {scenario["name"]: result for scenario, result in zip(TWO_RANKS, results, strict=True)}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, train(folder, name="plain")


def plain_gradients(pairs: bool = False) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over the labels of the global batch, by torch alone; of the sum of both means."""
    config = preset("bert-tiny", layers=2, width=32, heads=2, ff_width=64, vocab_size=VOCABULARY, dropout=0.0)
    config = config.model_copy(update={"max_length": LENGTH})
    torch.manual_seed(0)
    model = LanguageModel(config, pairs=pairs)
    batch = {name: torch.from_numpy(array) for name, array in global_batch(0, pairs).items()}
    hidden = model.hidden(batch)
    loss = cross_entropy(model.logits(hidden).flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)
    if pairs:
        loss = loss + cross_entropy(model.pair(hidden[:, 0]), batch["pair_labels"], ignore_index=-100)
    loss.backward()
    return {name: p.detach() - p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["gradient-0", "gradient-2", "gradient-pairs"])
def test_gradients_of_two_ranks_with_unequal_masks_are_those_of_the_global_batch(two_ranks, name):
    folder, _ = two_ranks
    counts = (global_batch(0)["labels"] != -100).sum(1)
    assert counts[: BATCH // 2].sum() != counts[BATCH // 2 :].sum()
    found, expected = load_file(folder / name / "model.safetensors"), plain_gradients("pairs" in name)
    for key, value in expected.items():
        # Steps are g / (1 + |g|/1e3), |g| < 1: 1e-3 of the step; and weights of 1 carry 6e-8 of rounding.
        torch.testing.assert_close(found[key], value, rtol=0, atol=2e-4, msg=lambda m, key=key: f"{key}: {m}")
    step = torch.cat([(found[k] - v).flatten() for k, v in expected.items() if found[k].dim() == 2])
    assert step.abs().mean() < 1e-6


def losses(result) -> np.ndarray:
    return np.array([row["loss"] for row in result["history"]])


@pytest.mark.parametrize("name", ["zero-0", "zero-1", "zero-2", "zero-2-split", "zero-3"])
def test_every_zero_stage_and_split_gives_the_curve_of_one_rank(one_rank, two_ranks, name):
    # Sums in another order differ by 1e-7; six steps of Adam, which divides by small numbers, make 1e-5 of it.
    expected = one_rank[1]
    found = two_ranks[1][name]
    np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-5)
    norms = [[row["grad_norm"] for row in result["history"]] for result in (found, expected)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-3)
    assert [row["tokens"] for row in found["history"]] == [row["tokens"] for row in expected["history"]]
    assert found["labels"] == expected["labels"]


@pytest.mark.parametrize("name", ["validated-0", "validated-3"])
def test_validation_is_the_same_on_two_ranks_and_does_not_disturb_training(two_ranks, tmp_path, name):
    stage = name[-1]
    folder, results = two_ranks
    validated, plain = (folder / each / "model.safetensors" for each in (name, f"zero-{stage}"))
    assert validated.read_bytes() == plain.read_bytes()
    rows = [row for row in results[name]["history"] if "validation_loss" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    expected = train(tmp_path, name="one", validate_every=2)["history"][1::2]
    for figure in ("validation_loss", "validation_accuracy", "validation_perplexity"):
        np.testing.assert_allclose([r[figure] for r in rows], [r[figure] for r in expected], rtol=2e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same on one rank without ZeRO, each once."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def of(name: str):
        if name not in found:
            found[name] = train(folder, name=name, **STEPS[name])
        return found[name]

    return of


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_every_optimizer_and_a_growing_batch_give_the_curve_of_one_rank(alone, two_ranks, name, stage):
    expected, found = alone(name), two_ranks[1][f"{name}-{stage}"]
    np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-5)  # as above
    assert [row["tokens"] for row in found["history"]] == [row["tokens"] for row in expected["history"]]
    assert losses(expected).max() < 3  # ln 90 is 4.5; nothing ran away


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize("stage", [0, 1])
def test_micro_batches_on_one_rank(one_rank, tmp_path, micro_batch, stage):
    found = train(tmp_path, name="split", stage=stage, micro_batch=micro_batch)
    np.testing.assert_allclose(losses(found), losses(one_rank[1]), rtol=2e-5)


def test_the_same_seed_gives_the_same_bytes(one_rank, two_ranks, tmp_path):
    train(tmp_path, name="again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (one_rank[0] / "plain/model.safetensors").read_bytes()
    first, again = (two_ranks[0] / name / "model.safetensors" for name in ("zero-2", "zero-2-again"))
    assert first.read_bytes() == again.read_bytes()


def test_bf16_stays_near_fp32_with_fp32_weights(two_ranks):
    folder, results = two_ranks
    # bf16 keeps 8 bits: a relative error of 0.4 % in the products, less in the mean loss.
    np.testing.assert_allclose(losses(results["zero-2-bf16"]), losses(results["zero-2"]), rtol=1e-2)
    assert all(w.dtype == torch.float32 for w in load_file(folder / "zero-2-bf16/model.safetensors").values())


def test_auto_is_one_precision_for_all_ranks(two_ranks):
    """bf16 where all of their processors have it."""
    folder, results = two_ranks
    for auto, same in (("auto-one-of-two", "zero-2"), ("auto-both", "zero-2-bf16")):
        assert results[auto]["precision"] == results[same]["precision"]
        assert list(losses(results[auto])) == list(losses(results[same]))
        first, again = (folder / name / "model.safetensors" for name in (auto, same))
        assert first.read_bytes() == again.read_bytes()
