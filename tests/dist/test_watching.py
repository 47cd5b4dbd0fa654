"""What is watched is right at every ZeRO stage, and watching changes nothing."""

import gzip
import json

import pytest
import torch
from safetensors.torch import load_file

from modeling.heads.language import LanguageModel
from modeling.layer_updates import layer_of
from modeling.memory_use import PARTS as MEMORY
from modeling.step_clock import PARTS as STEP
from modeling.transformer import preset
from tests.dist.ranks import LENGTH, VOCABULARY, first_predictions, run_ranks, train

STAGES = (0, 1, 2, 3)
# Dropout, so that a random number drawn by what watches would show in the weights.
RUN = {"dropout": 0.1, "preset": "bert-tiny", "micro_batch": 2}
TWO = [{"name": f"zero-{stage}", "stage": stage, "watched": True, **RUN} for stage in STAGES]
TWO += [{"name": f"fp16-{stage}", "stage": stage, "precision": "fp16", "watched": True, **RUN} for stage in (0, 2)]
TWO += [{"name": f"alone-{stage}", "stage": stage, **RUN} for stage in (2, 3)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    results = run_ranks(2, folder, TWO)
    assert results is not None, (folder / "rank-0.log").read_text()
    return folder, {scenario["name"]: result for scenario, result in zip(TWO, results, strict=True)}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, train(folder, name="watched", watched=True, **RUN)


def untrained(name: str = "bert-tiny") -> LanguageModel:
    """The model that `train` trains, as it begins."""
    torch.manual_seed(0)
    config = preset(name, layers=2, width=32, heads=2, ff_width=64, vocab_size=VOCABULARY, dropout=0.0)
    return LanguageModel(config.model_copy(update={"max_length": LENGTH}))


def test_watching_changes_no_byte(one_rank, two_ranks, tmp_path):
    train(tmp_path, name="alone", **RUN)
    assert (tmp_path / "alone/model.safetensors").read_bytes() == (
        one_rank[0] / "watched/model.safetensors"
    ).read_bytes()
    for stage in (2, 3):
        first, again = (two_ranks[0] / f"{name}-{stage}/model.safetensors" for name in ("zero", "alone"))
        assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("name", ["modern-tiny", "bert-tiny"])
def test_updates_of_layers_are_those_of_the_weights(tmp_path, name):
    """Of the first step, from the weights before and after it; without the output biases of padded rows."""
    found = train(tmp_path, name="one", preset=name, steps=1, watched=True, clip_norm=0.0)["updates"]
    before = dict(untrained(name).named_parameters())
    if "head.bias" in before:
        assert before["head.bias"][VOCABULARY:].numel() > 0
        before["head.bias"].data[VOCABULARY:] = 0.0
    after = load_file(tmp_path / "one/model.safetensors")
    squares: dict[str, list[float]] = {}
    for name, weight in before.items():
        moved, size = squares.setdefault(layer_of(name), [0.0, 0.0])
        change = (after[name] - weight.detach()).double()
        change = (change[:VOCABULARY] if name == "head.bias" else change).square().sum().item()
        squares[layer_of(name)] = [moved + change, size + weight.detach().double().square().sum().item()]
    assert [row["step"] for row in found] == [1]
    assert set(found[0]["layers"]) == set(squares)
    for layer, (moved, size) in squares.items():
        ratio, norm, grad = found[0]["layers"][layer]
        # float32 sums of squares, and five digits are kept
        assert ratio == pytest.approx((moved / size) ** 0.5 if size else 0.0, rel=2e-4)
        assert norm == pytest.approx(size**0.5, rel=1e-4)
        assert grad > 0


@pytest.mark.parametrize("stage", STAGES)
def test_updates_of_layers_are_the_same_at_every_stage(two_ranks, stage):
    rows, expected = two_ranks[1][f"zero-{stage}"]["updates"], two_ranks[1]["zero-0"]["updates"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row, other in zip(rows, expected, strict=True):
        assert list(row["layers"]) == list(other["layers"])
        for layer, figures in row["layers"].items():
            # as the loss curves of the stages, and five digits are kept
            assert figures == pytest.approx(other["layers"][layer], rel=2e-3), layer


def test_gradients_of_layers_together_have_the_global_norm(one_rank, two_ranks):
    results = {"one": one_rank[1], **{name: r for name, r in two_ranks[1].items() if r["updates"]}}
    for name, result in results.items():
        norms = {row["step"]: row["grad_norm"] for row in result["history"]}
        assert len(result["updates"]) >= 2, "of a step whose gradients overflow there is nothing to say"
        for row in result["updates"]:
            together = sum(figures[2] ** 2 for figures in row["layers"].values()) ** 0.5
            assert together == pytest.approx(norms[row["step"]], rel=1e-4), name  # five digits are kept


def test_memory_by_part_is_what_the_paper_says(two_ranks):
    """Ψ fp32 parameters: 4 + 4 + 4 + 8 bytes each (ZeRO, section 3.1), half of what a stage divides by two ranks."""
    count = sum(p.numel() for p in untrained().parameters())
    shares = {0: (4, 4, 0, 8), 1: (4, 2, 2, 4), 2: (4, 2, 2, 4), 3: (2, 2, 2, 4)}
    for stage, per_parameter in shares.items():
        ranks = two_ranks[1][f"zero-{stage}"]["memory"]
        for part, share in zip(MEMORY, per_parameter, strict=False):
            mean = sum(rank[part] for rank in ranks) / 2 / count
            # Adam's step counters; a gradient that lies across the border of two shares is whole on both; at stage 3
            # tensors this small stay whole on every rank, beside their shares.
            most = {"optimizer_state": 0.01, "gradients": 0.4, "parameters": 4 if stage == 3 else 0}.get(part, 0)
            assert share <= mean <= share + most, (stage, part)
        assert all(rank["offloaded"] == 0 and rank["peak_rss"] > 1e8 for rank in ranks)


def test_times_are_of_every_part(one_rank, two_ranks):
    for result in (one_rank[1], *two_ranks[1].values()):
        assert set(result["step_seconds"]) == set(STEP)
        assert all(result["step_seconds"][part] > 0 for part in ("data", "forward", "backward", "optimizer", "other"))
    assert all(result["step_seconds"]["communication"] > 0 for result in two_ranks[1].values())


@pytest.mark.parametrize("stage", STAGES)
def test_samples_come_from_the_weights_as_they_are(two_ranks, stage):
    result = two_ranks[1][f"zero-{stage}"]
    assert [row["step"] for row in result["samples"]] == [3, 6]
    model = untrained()
    model.load_state_dict(load_file(two_ranks[0] / f"zero-{stage}/model.safetensors"))
    assert result["samples"][-1]["samples"] == first_predictions(model.eval())


def test_the_profiler_writes_a_trace(one_rank, two_ranks):
    for path in (one_rank[0] / "watched-trace.json.gz", two_ranks[0] / "zero-3-trace.json.gz"):
        with gzip.open(path) as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert "aten::mm" in names


def test_layers_by_name():
    assert layer_of("transformer.encoder.blocks.3.attention.qkv.weight") == "encoder.03"
    assert layer_of("transformer.decoder.cross.11.query.weight") == "decoder.11"
    assert layer_of("transformer.tokens.weight") == "tokens"
    assert layer_of("transformer.encoder.final_norm.weight") == "encoder.final_norm"
    assert layer_of("head.dense.bias") == "head"
    assert layer_of("generator.transformer.encoder.blocks.0.ff.input.weight") == "generator.encoder.00"
