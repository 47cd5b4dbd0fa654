"""Qwen3, whose heads keep rotary pairs in another order than ours: order, generation, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling.architecture import TransformerConfig, preset
from modeling.checkpoint import build_model, save_model
from modeling.errors import ConfigError
from modeling.generation import Generation, generate
from modeling.hub import export_model, family_of, import_into, import_model
from modeling.hub.mapping import from_hub, to_hub
from modeling.hub.qwen3 import Pairs, Qwen3
from tests.modeling.hub_models import LM, agree, loaded, our_model, randomised, their_model

MODERN = {"architecture": "decoder", "head_bias": False, "activation": "swiglu"}
SHAPE = {"vocab_size": 90, "layers": 2, "width": 32, "ff_width": 48, "max_length": 24}
SMALL = {**MODERN, "preset": "modern-base", **SHAPE}


def decoder(**fields: Any) -> TransformerConfig:
    return TransformerConfig.model_validate({**SMALL, "heads": 4, **fields})


def test_pairs_change_order_in_queries_and_keys_alone() -> None:
    """Two heads of six rows; a number says head, pair, and part of the pair."""
    theirs = torch.tensor([0.0, 10, 20, 1, 11, 21, 100, 110, 120, 101, 111, 121])
    ours = torch.tensor([0.0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121])
    pairs = Pairs(6)
    assert torch.equal(pairs.join([theirs]), ours) and torch.equal(pairs.split(ours, 1)[0], theirs)
    q, k, v = (theirs[:, None] * 1000 + torch.arange(3) + n for n in range(3))
    whole = pairs.join([q, k, v])
    assert torch.equal(whole[:12], ours[:, None] * 1000 + torch.arange(3)) and torch.equal(whole[24:], v)
    assert all(torch.equal(*both) for both in zip(pairs.split(whole, 3), (q, k, v), strict=True))


def test_every_tensor_has_one_place_and_keeps_its_bytes() -> None:
    for config in (decoder(), decoder(heads=3, head_size=10, tie_embeddings=False)):
        model = our_model(config, LM, seed=3)
        mapping = Qwen3().state_map(config, LM)
        state = model.state_dict()
        assert {each.ours for each in mapping.rules} == state.keys()
        back, left = from_hub(to_hub(state, mapping), mapping, {k: v.shape for k, v in state.items()}, "")
        assert not left and all(torch.equal(back[k].view(torch.int32), v.view(torch.int32)) for k, v in state.items())


@pytest.mark.parametrize("tied", [True, False])
def test_both_write_the_same_text(tied: bool, tmp_path: Path) -> None:
    """Greedy, three prompts in one batch: padding at the left counts for no position in either."""
    from transformers import AutoModelForCausalLM

    config = decoder(heads=3, head_size=14, vocab_size=101, tie_embeddings=tied)
    ours = our_model(config, LM, seed=11).eval()
    save_model(tmp_path / "ours", ours, config, LM)
    export_model(tmp_path / "ours", tmp_path / "theirs")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    ids = torch.randint(101, (3, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :8] = 0, 0
    written = generate(ours, ids, attention_mask=mask, settings=Generation(max_new_tokens=12, temperature=0))
    expected = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert written == expected[:, 9:].tolist()
    assert len({token for row in written for token in row}) > 8  # else they would agree by saying one thing


def changed(folder: Path, **fields: Any) -> Path:
    """With fields of config.json changed, or taken out where they are None."""
    path = folder / "config.json"
    found = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))
    return folder


def test_both_spellings_of_the_rotary_base_are_read_and_written(tmp_path: Path) -> None:
    theirs = their_model("qwen3-odd-heads")
    theirs.save_pretrained(tmp_path / "new")
    theirs.save_pretrained(tmp_path / "old")
    changed(tmp_path / "old", rope_parameters=None, rope_theta=500.0)
    config, head, state = import_model(tmp_path / "old")
    assert config.rotary_base == 500.0 and config == import_model(tmp_path / "new").config
    ours = build_model(config, head).eval()
    ours.load_state_dict(state)
    agree(ours, theirs, config)
    changed(tmp_path / "old", rope_theta=None)
    assert import_model(tmp_path / "old").config.rotary_base == 10_000.0  # theirs, too
    agree(ours_of(tmp_path / "old"), loaded(tmp_path / "old", "Qwen3ForCausalLM"), config)
    import_into(tmp_path / "new", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500.0
    assert written["num_key_value_heads"] == written["num_attention_heads"] == 3


def ours_of(folder: Path) -> Any:
    config, head, state = import_model(folder)
    model = build_model(config, head).eval()
    model.load_state_dict(state)
    return model


def test_a_matrix_of_its_own_is_the_default_and_a_kept_tied_one_is_known(tmp_path: Path) -> None:
    their_model("qwen3").save_pretrained(tmp_path / "own")
    assert not import_model(changed(tmp_path / "own", tie_word_embeddings=None)).config.tie_embeddings
    tensors = load_file(tmp_path / "own" / "model.safetensors")
    del tensors["lm_head.weight"]
    save(tmp_path / "own" / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match=r"1 tensors are missing: lm_head\.weight"):
        import_model(tmp_path / "own")
    tied = their_model("qwen3-tied")
    tied.save_pretrained(tmp_path / "tied")
    file = tmp_path / "tied" / "model.safetensors"
    tensors = load_file(file)
    save(file, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    config, _, _ = import_model(tmp_path / "tied")
    assert config.tie_embeddings
    agree(ours_of(tmp_path / "tied"), tied, config)


def save(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, str(file), metadata={"format": "pt"})


def test_a_bare_trunk_goes_both_ways(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3Model

    theirs = randomised(Qwen3Model(Qwen3Config(**their_model("qwen3").config.to_dict())), 3)
    theirs.save_pretrained(tmp_path / "theirs")
    assert import_model(tmp_path / "theirs").head == {"name": "", "settings": {}}
    import_into(tmp_path / "theirs", tmp_path / "ours")
    assert export_model(tmp_path / "ours", tmp_path / "back")["architecture"] == "Qwen3Model"
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2, expected num_attention_heads = 4"),
        ({"attention_bias": True}, "attention_bias is True, expected False"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window is True, expected False"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has 'sliding_attention', expected 'full_attention' alone",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
            "rope_parameters.rope_type is 'yarn', expected 'default'",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type is 'linear', expected 'default'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
            "rope_parameters is by type of layer ('full_attention'), expected one for all",
        ),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'silu' or 'gelu' or 'gelu_new'"),
    ],
)
def test_an_option_that_we_do_not_have_is_named(fields: dict[str, Any], part: str, tmp_path: Path) -> None:
    their_model("qwen3").save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        import_model(changed(tmp_path, **fields))
    assert part in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"activation": "gelu"}, "nearest is qwen3: activation is gelu, expected swiglu or geglu or geglu-tanh"),
        ({"qk_norm": False}, "nearest is qwen3: qk_norm is false, expected true"),
        ({"head_bias": True}, "nearest is qwen3: head_bias is true, expected false"),
        (
            {"embedding_width": 16, "tie_embeddings": False},
            "nearest is qwen3: embedding_width is 16, expected width = 32",
        ),
    ],
)
def test_a_decoder_that_is_almost_one_is_told_what_is_in_the_way(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        family_of(decoder(**fields), LM)
    assert part in str(caught.value)
    assert "set these fields as expected, or train a published shape: model=gpt2-124M" in str(caught.value)


def test_what_matters_only_in_training_is_no_obstacle() -> None:
    config = decoder(zero_init_residual=False, scaled_init_residual=True, init="fan-in", dropout=0.1, init_std=0.3)
    assert family_of(config, LM).model_type == "qwen3"
    assert family_of(preset("modern-base", **MODERN, vocab_size=9), LM).model_type == "qwen3"
