"""Optimizers against their papers' formulas, written out; parameter groups; what can be said in a config."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from modeling.architecture import model_config, preset
from modeling.checkpoint import build_model
from modeling.errors import ConfigError
from modeling.heads.base import NEVER, OUTPUT_BIASES
from modeling.heads.language import LanguageModel
from modeling.optimizers import OPTIMIZERS, SETTINGS
from modeling.optimizers.groups import make_optimizer, parameter_groups
from modeling.optimizers.muon import orthogonalised
from modeling.optimizers.settings import check_stage, parse
from modeling.schedule import LoopConfig

LR, STEPS = 0.01, 4
RNG = np.random.default_rng(0)
START = RNG.normal(size=(3, 5)).astype(np.float32)
GRADIENTS = RNG.normal(size=(STEPS, 3, 5)).astype(np.float32)


def stepped(settings, shape=(3, 5), decays=True, **flags):
    """The weights after each step of the optimizer on the fixed gradients."""
    settings = parse(settings)
    weight = torch.nn.Parameter(torch.from_numpy(START.copy()).reshape(shape))
    decay = settings.weight_decay if decays else 0.0
    group = {"params": [weight], "weight_decay": decay, "lr_scale": 1.0, "decays": decays, "matrices": False, **flags}
    optimizer = OPTIMIZERS.load(settings.kind)([group], settings, LR)
    found = []
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient.copy()).reshape(shape)
        optimizer.step()
        found.append(weight.detach().numpy().reshape(3, 5).copy())
    return found


def check(found, expected):
    # fp32 against float64: a few roundings of 6e-8 a step
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-6)


def adam(weight_decay, betas, eps, corrected, lamb=False):
    w, m, v, found = START.astype(np.float64), 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS.astype(np.float64), 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        c1, c2 = (1 - betas[0] ** t, 1 - betas[1] ** t) if corrected else (1, 1)
        u = (m / c1) / (np.sqrt(v / c2) + eps) + weight_decay * w
        ratio = np.linalg.norm(w) / np.linalg.norm(u) if lamb else 1.0
        w = w - LR * ratio * u
        found.append(w)
    return found


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_and_bert_s_variant_without_bias_correction(corrected):
    found = stepped({"kind": "adamw", "bias_correction": corrected, "weight_decay": 0.1, "betas": (0.9, 0.999)})
    check(found, adam(0.1, (0.9, 0.999), 1e-6, corrected))


@pytest.mark.parametrize("corrected", [True, False])
def test_lamb_s_step_is_as_long_as_the_tensor_and_plain_where_nothing_decays(corrected):
    settings = {"kind": "lamb", "bias_correction": corrected, "weight_decay": 0.1}
    found = stepped(settings)
    check(found, adam(0.1, (0.9, 0.999), 1e-6, corrected, lamb=True))
    assert np.linalg.norm(found[0] - START) == pytest.approx(LR * np.linalg.norm(START), rel=1e-5)
    check(stepped(settings, decays=False), adam(0.0, (0.9, 0.999), 1e-6, corrected))


def test_lion():
    w, m, expected = START.astype(np.float64), 0.0, []
    for g in GRADIENTS.astype(np.float64):
        w = w - LR * (np.sign(0.9 * m + 0.1 * g) + 0.2 * w)
        m = 0.99 * m + 0.01 * g
        expected.append(w)
    check(stepped({"kind": "lion", "weight_decay": 0.2}), expected)


def test_adafactor_factors_second_moments_and_clips_updates():
    w, row, column, expected = START.astype(np.float64), 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS.astype(np.float64), 1):
        kept = 1 - t**-0.8
        row = kept * row + (1 - kept) * (g * g + 1e-30).mean(1, keepdims=True)
        column = kept * column + (1 - kept) * (g * g + 1e-30).mean(0, keepdims=True)
        u = g / np.sqrt(row * column / row.mean())
        u = u / max(1.0, math.sqrt((u * u).mean()))
        w = w - LR * max(1e-3, math.sqrt((w * w).mean())) * u
        expected.append(w)
    check(stepped("adafactor"), expected)

    bias = torch.nn.Parameter(torch.tensor([1e-3, 1e-3, NEVER]))  # of a vocabulary padded by one
    group = {"params": [bias], "weight_decay": 0.0}
    optimizer = OPTIMIZERS.load("adafactor")([group], parse("adafactor"), LR)
    bias.grad = torch.tensor([1.0, 1.0, 0.0])
    optimizer.step()
    assert torch.allclose(bias, torch.tensor([1e-3 - 1e-5, 1e-3 - 1e-5, NEVER]), rtol=1e-3)


def test_muon_is_torch_s_on_matrices_and_adamw_elsewhere():
    found = stepped({"kind": "muon", "weight_decay": 0.1}, matrices=True)
    weight = torch.nn.Parameter(torch.from_numpy(START.copy()))
    library = torch.optim.Muon([weight], lr=LR, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for gradient, mine in zip(GRADIENTS, found, strict=True):
        weight.grad = torch.from_numpy(gradient.copy())
        library.step()
        # torch iterates in bf16, whose 8 bits are 4e-3 of an update of at most 0.2 · √5 · lr = 4.5e-3, over four steps
        np.testing.assert_allclose(mine, weight.detach().numpy(), rtol=0, atol=2e-4)
    check(stepped({"kind": "muon", "weight_decay": 0.0}), adam(0.0, (0.9, 0.98), 1e-6, True))
    for shape in ((8, 3), (3, 8), (6, 6)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=torch.manual_seed(0)), 5))
        assert values.min() > 0.6 and values.max() < 1.3


def names_of(model, settings):
    named = {id(p): name for name, p in model.named_parameters()}
    return [(group, [named[id(p)] for p in group["params"]]) for group in parameter_groups(model, settings)]


def test_decay_groups_and_layer_rates_cover_every_weight_once():
    model = LanguageModel(preset("bert-tiny", layers=2, width=32, heads=2, ff_width=64, vocab_size=90))
    everything = sorted(name for name, _ in model.named_parameters())
    (decayed, matrices), (plain, vectors) = names_of(model, parse("adamw"))
    assert (decayed["weight_decay"], plain["weight_decay"], plain["lr_scale"]) == (0.01, 0.0, 1.0)
    assert sorted(matrices + vectors) == everything
    assert "transformer.tokens.weight" in matrices and all("bias" in n or "norm" in n for n in vectors)
    spared = parse({"no_decay": ["vectors", "embeddings"]})
    still = [name for group, names in names_of(model, spared) if not group["decays"] for name in names]
    assert "transformer.tokens.weight" in still

    scales = {n: group["lr_scale"] for group, ns in names_of(model, parse({"layer_lr_decay": 0.5})) for n in ns}
    assert sorted(scales) == everything
    assert scales["head.dense.weight"] == 1.0 and scales["transformer.encoder.blocks.1.ff.input.weight"] == 0.5
    assert (
        scales["transformer.encoder.blocks.0.attention.qkv.bias"] == 0.25
        and scales["transformer.tokens.weight"] == 0.125
    )

    muon = {n for group, ns in names_of(model, parse("muon")) if group["matrices"] for n in ns}
    assert muon == {n for n in everything if ".blocks." in n and n.endswith("weight") and "norm" not in n}


@pytest.mark.parametrize("kind", ["adamw", "lamb", "lion", "muon", "adafactor"])
@pytest.mark.parametrize("name", ["bert-tiny", "electra-small", "elmo"])
def test_padded_rows_stay_impossible_where_everything_else_decays(kind, name):
    """Decay would bring their output bias of −10⁴ to 0, and make LAMB's step on that tensor 1 / decay times as long."""
    heads = {"electra-small": "replaced-token-detection", "elmo": "bidirectional-lm"}
    shape = {"elmo": {"width": 16, "hidden": 12}}.get(name, {"width": 32, "heads": 2, "ff_width": 64, "max_length": 8})
    config = model_config({"preset": name, "layers": 1, "vocab_size": 90, **shape})
    model = build_model(config, {"name": heads.get(name, "language-model"), "settings": {}})
    settings = parse({"kind": kind, "weight_decay": 0.5, "no_decay": []})
    optimizer = make_optimizer(model, settings, 0.1)
    biases = [p for path, p in model.named_parameters() if path in OUTPUT_BIASES]
    assert len(biases) == 1 and len(biases[0]) == 128
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        biases[0].grad[90:] = 0.0
        optimizer.step()
    assert biases[0][90:].max() == NEVER
    assert 0 < -biases[0][:90].mean() <= 0.31, "three steps, none longer than Adam's"
    others = [p for path, p in model.named_parameters() if path not in OUTPUT_BIASES]
    assert {id(p) for g in optimizer.param_groups if g["decays"] for p in g["params"]} == set(map(id, others))


def test_names_stand_for_settings_and_mistakes_are_named():
    assert set(OPTIMIZERS) == set(SETTINGS)
    assert LoopConfig(optimizer="lamb").optimizer == SETTINGS.load("lamb")()
    assert parse({"preset": "lion", "weight_decay": 1}).weight_decay == 1
    assert parse({"eps": 1e-8}).kind == "adamw"
    with pytest.raises(ConfigError, match="unknown optimizer 'lam'; did you mean 'lamb'"):
        parse("lam")
    with pytest.raises(ConfigError, match="unknown key 'momentun'; did you mean 'momentum'"):
        parse({"kind": "muon", "momentun": 0.9})
    with pytest.raises(ConfigError, match="'adafactor' does not work at ZeRO stage 2: .*; set .*=0"):
        check_stage(parse("adafactor"), 2)
