"""Parity with transformers' own models on random weights: imports, exports, round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from modeling.architecture import TransformerConfig
from modeling.checkpoint import build_model, load_model, save_model
from modeling.hub import export_model, import_into, import_model
from modeling.hub.family import OUTPUT_ONLY, TRAINING_ONLY, WRITTEN_OUT, canonical
from tests.modeling.hub_models import (
    CASES,
    LM,
    SHAPE,
    T5_OPTIONS,
    TOLERANCE,
    agree,
    batch_of,
    loaded,
    our_model,
    randomised,
    their_model,
)

# ---------------------------------------------------------------- theirs to ours, and back


@pytest.mark.parametrize("name", CASES)
def test_an_imported_model_gives_their_logits_and_all_their_bytes_back(name: str, tmp_path: Path) -> None:
    theirs, hub_class = their_model(name), CASES[name].hub_class
    theirs.save_pretrained(tmp_path / "theirs")
    config, head, state = import_model(tmp_path / "theirs")
    ours = build_model(config, head).eval()
    ours.load_state_dict(state)
    agree(ours, theirs, config)

    import_into(tmp_path / "theirs", tmp_path / "ours")
    agree(load_model(tmp_path / "ours"), theirs, config, seed=1)
    found = export_model(tmp_path / "ours", tmp_path / "back")
    assert (found["architecture"], found["left_out"]) == (hub_class, [])
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    agree(ours, loaded(tmp_path / "back", hub_class), config)


@pytest.mark.parametrize("name", ["bert-pairs", "albert-pairs"])
def test_pair_heads_agree(name: str, tmp_path: Path) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    config, head, state = import_model(tmp_path)
    ours = build_model(config, head).eval()
    ours.load_state_dict(state)
    batch = batch_of(config, "right")
    with torch.inference_mode():
        mine, out = ours.pair(ours.hidden(batch)[:, 0]), theirs(**batch)
    other = out.seq_relationship_logits if "seq_relationship_logits" in out else out.sop_logits
    torch.testing.assert_close(mine, other, **TOLERANCE)


def test_a_bias_over_the_vocabulary_travels_with_bart(tmp_path: Path) -> None:
    case = CASES["bart"]
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**case.theirs))
    model.save_pretrained(tmp_path / "none")
    assert not import_model(tmp_path / "none").config.head_bias
    their_model("bart").save_pretrained(tmp_path / "some")
    assert import_model(tmp_path / "some").config.head_bias


def test_t5_1_1_as_it_was_released_has_a_matrix_of_its_own(tmp_path: Path) -> None:
    """transformers 5 writes it tied; the released files say tie_word_embeddings false and hold both matrices."""
    theirs = their_model("t5-1.1")
    theirs.lm_head.weight = nn.Parameter(torch.randn(theirs.lm_head.weight.shape) * 0.25)
    as_released(theirs, tmp_path / "theirs")
    config, head, state = import_model(tmp_path / "theirs")
    assert not config.tie_embeddings and not config.head_scale and config.activation == "geglu-tanh"
    ours = build_model(config, head).eval()
    ours.load_state_dict(state)
    agree(ours, theirs, config)
    import_into(tmp_path / "theirs", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["tie_word_embeddings"] is False and back["feed_forward_proj"] == "gated-gelu"
    agree(ours, loaded(tmp_path / "back", "T5ForConditionalGeneration"), config)


def as_released(model: Any, folder: Path) -> None:
    folder.mkdir()
    config = {**model.config.to_dict(), "tie_word_embeddings": False}
    del config["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(config))
    embedded = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    tensors = {name: value.clone() for name, value in model.state_dict().items() if name not in embedded}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def test_older_files_have_other_names_and_more_of_them(tmp_path: Path) -> None:
    """GPT-2 was released without a prefix and with its masks, BERT with gamma, beta, and a pooler beside the MLM."""
    for name, change in {
        "gpt2": lambda n: n.removeprefix("transformer."),
        "bert": lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    }.items():
        theirs = their_model(name)
        theirs.save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        old = {change(key): value for key, value in load_file(file).items()}
        more = {
            "gpt2": {"h.0.attn.bias": torch.ones(1, 1, 24, 24).tril()},
            "bert": {
                "bert.pooler.dense.weight": torch.randn(32, 32),
                "bert.embeddings.position_ids": torch.arange(24)[None],
                "cls.predictions.decoder.weight": old.get(
                    "bert.embeddings.word_embeddings.weight", torch.zeros(1)
                ).clone(),
            },
        }[name]
        save_file({**old, **more}, str(file), metadata={"format": "pt"})
        config, head, state = import_model(tmp_path / name)
        ours = build_model(config, head).eval()
        ours.load_state_dict(state)
        agree(ours, theirs, config)
        found = import_into(tmp_path / name, tmp_path / "ours" / name)
        export_model(tmp_path / "ours" / name, tmp_path / "back" / name)
        back = load_file(tmp_path / "back" / name / "model.safetensors")
        assert len(found["left"]) == (1 if name == "gpt2" else 2)
        assert all(torch.equal(back[key], {**old, **more}[key]) for key in found["left"] if key in more)


def test_a_bare_trunk_has_no_head_and_goes_back_as_one(tmp_path: Path) -> None:
    theirs = randomised(transformers.BertModel(transformers.BertConfig(**CASES["bert"].theirs)), 3)
    theirs.save_pretrained(tmp_path / "theirs")
    config, head, _ = import_model(tmp_path / "theirs")
    assert head == {"name": "", "settings": {}} and config.width == 32
    import_into(tmp_path / "theirs", tmp_path / "ours")
    assert export_model(tmp_path / "ours", tmp_path / "back")["architecture"] == "BertModel"
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_shards_and_half_precision_are_read(tmp_path: Path) -> None:
    theirs = their_model("gpt2")
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = import_model(tmp_path / "one"), import_model(tmp_path / "many")
    assert one.config == many.config and all(torch.equal(one.state[key], many.state[key]) for key in one.state)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = import_model(tmp_path / "half").state
    assert all(value.dtype == torch.float32 for value in half.values())
    assert all(torch.equal(half[key], one.state[key].bfloat16().float()) for key in half)


# ---------------------------------------------------------------- ours to theirs, and back

QWEN3 = {"architecture": "decoder", "head_bias": False}
OURS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", {"token_types": 2}, LM),
    "bert, no segments": ("BertForMaskedLM", {"layers": 3, "vocab_size": 64}, LM),
    "bert, next sentence": ("BertForPreTraining", {"token_types": 2}, {**LM, "settings": {"pairs": "nsp"}}),
    "bert, shared layers": ("BertForMaskedLM", {"layers": 3, "share_layers": True}, LM),
    "roberta": ("RobertaForMaskedLM", {"position_offset": 2, "norm_eps": 1e-5, "vocab_size": 101}, LM),
    "electra": (
        "ElectraForPreTraining",
        {"embedding_width": 12, "token_types": 2},
        {"name": "discriminator", "settings": {}},
    ),
    "electra, generator": ("ElectraForMaskedLM", {"embedding_width": 48, "tie_embeddings": False}, LM),
    "albert": ("AlbertForMaskedLM", {"share_layers": True, "embedding_width": 12, "activation": "gelu-tanh"}, LM),
    "albert, order": (
        "AlbertForPreTraining",
        {"share_layers": True, "embedding_width": 12, "token_types": 2},
        {**LM, "settings": {"pairs": "sop", "kind": "mlm"}},
    ),
    "gpt2": ("GPT2LMHeadModel", {"preset": "gpt2-124M"}, LM),
    "gpt2, untied": ("GPT2LMHeadModel", {"preset": "gpt2-124M", "tie_embeddings": False, "vocab_size": 66}, LM),
    "gpt": ("OpenAIGPTLMHeadModel", {"preset": "gpt", "ff_width": 128}, LM),
    "qwen3": ("Qwen3ForCausalLM", {"preset": "modern-base", **QWEN3}, LM),
    "qwen3, untied": (
        "Qwen3ForCausalLM",
        {"preset": "modern-base", **QWEN3, "tie_embeddings": False, "vocab_size": 131, "head_size": 18, "heads": 3},
        LM,
    ),
    "qwen3, another base": (
        "Qwen3ForCausalLM",
        {"preset": "modern-base", **QWEN3, "activation": "geglu", "rotary_base": 700.0, "head_size": 6},
        LM,
    ),
    "qwen3, shared layers": ("Qwen3ForCausalLM", {"preset": "modern-base", **QWEN3, "share_layers": True}, LM),
    "t5": ("T5ForConditionalGeneration", {"preset": "t5-small", "head_size": 5, "decoder_layers": 1, **T5_OPTIONS}, LM),
    "t5, shared stacks": (
        "T5ForConditionalGeneration",
        {"preset": "t5-small", "head_size": 8, "share_stacks": True, **T5_OPTIONS},
        LM,
    ),
    "t5.1.1": ("T5ForConditionalGeneration", {"preset": "t5.1.1-small", "head_size": 8, **T5_OPTIONS}, LM),
    "t5, tied without scale": (
        "T5ForConditionalGeneration",
        {"preset": "t5-small", "head_size": 8, "head_scale": False, **T5_OPTIONS},
        LM,
    ),
    "bart": ("BartForConditionalGeneration", {"preset": "bart-base"}, LM),
    "bart, with a bias": (
        "BartForConditionalGeneration",
        {"preset": "bart-base", "head_bias": True, "decoder_layers": 1},
        LM,
    ),
    "bart, untied": ("BartForConditionalGeneration", {"preset": "bart-base", "tie_embeddings": False}, LM),
    "roberta, untied": ("RobertaForMaskedLM", {"position_offset": 1, "tie_embeddings": False}, LM),
    "albert, untied": (
        "AlbertForMaskedLM",
        {"share_layers": True, "embedding_width": 12, "tie_embeddings": False},
        LM,
    ),
    "mass": ("BartForConditionalGeneration", {"preset": "mass-base"}, LM),
}


@pytest.mark.parametrize("name", OURS)
def test_an_exported_model_gives_our_logits_and_all_our_bytes_back(name: str, tmp_path: Path) -> None:
    hub_class, fields, head = OURS[name]
    config = TransformerConfig.model_validate({**SHAPE, **fields})
    ours = our_model(config, head, seed=len(name)).eval()
    save_model(tmp_path / "ours", ours, config, head)
    found = export_model(tmp_path / "ours", tmp_path / "theirs")
    assert (found["architecture"], found["left_out"]) == (hub_class, [])
    agree(ours, loaded(tmp_path / "theirs", hub_class), config)

    back, back_head, state = import_model(tmp_path / "theirs")
    if not config.share_stacks and (not config.share_layers or "albert" in name):
        own = ours.state_dict()
        assert own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)
    inert = TRAINING_ONLY | WRITTEN_OUT | (OUTPUT_ONLY if back_head["name"] == "discriminator" else frozenset())
    before, after = canonical(config), canonical(back)
    assert not {key for key in before if before[key] != after[key] and key not in inert}
    assert back_head["name"] == head["name"] and back_head["settings"].get("pairs") == head["settings"].get("pairs")


def test_the_auto_classes_find_the_model(tmp_path: Path) -> None:
    for name, auto in {
        "bert": "AutoModelForMaskedLM",
        "gpt2": "AutoModelForCausalLM",
        "qwen3": "AutoModelForCausalLM",
        "t5": "AutoModelForSeq2SeqLM",
    }.items():
        hub_class, fields, head = OURS[name]
        config = TransformerConfig.model_validate({**SHAPE, **fields})
        save_model(tmp_path / name, build_model(config, head), config, head)
        export_model(tmp_path / name, tmp_path / f"{name}-hub")
        model = getattr(transformers, auto).from_pretrained(tmp_path / f"{name}-hub")
        assert type(model).__name__ == hub_class and model.dtype == torch.float32


def test_a_boundary_head_is_left_out_and_named(tmp_path: Path) -> None:
    head = {"name": "language-model", "settings": {"kind": "mlm", "span_boundary": True, "span_max": 2}}
    config = TransformerConfig(**SHAPE)
    save_model(tmp_path / "ours", build_model(config, head), config, head)
    found = export_model(tmp_path / "ours", tmp_path / "theirs")
    assert found["architecture"] == "BertForMaskedLM" and all(key.startswith("boundary.") for key in found["left_out"])
    assert found["left_out"]
