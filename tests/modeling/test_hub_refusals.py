"""What the Hub's families cannot express, and folders that are none of theirs: refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling.architecture import TransformerConfig, model_config, preset
from modeling.checkpoint import build_model, save_model
from modeling.errors import ConfigError
from modeling.hub import FAMILIES, export_model, family_of, import_model
from modeling.hub.family import PUBLISHED, TRAINING_ONLY, WRITTEN_OUT
from tests.modeling.hub_models import LM, SHAPE, their_model


def save(folder: Path, head: Mapping[str, Any] = LM, **fields: Any) -> Path:
    config = TransformerConfig.model_validate({**SHAPE, **fields})
    save_model(folder, build_model(config, head), config, head)
    return folder


def test_a_model_of_no_family_is_refused_by_its_fields(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", preset="modern-tiny", heads=2, width=128)
    with pytest.raises(ConfigError) as caught:
        export_model(folder, tmp_path / "b")
    message = str(caught.value)
    # of the kinds that are encoders XLNet's has the fewest other differences
    for part in ("tried albert, bert", "nearest is xlnet: norm is rmsnorm, expected layernorm", "positions is rotary"):
        assert part in message
    assert message.endswith("set these fields as expected, or train a published shape: model=bert-mini")
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"activation": "swiglu"}, "activation is swiglu, expected gelu or gelu-tanh or relu"),
        ({"head_size": 16}, "head_size is 16, expected width / heads = 8"),
        ({"head_transform": False}, "head_transform is false, expected true"),
        ({"qk_norm": True}, "qk_norm is true, expected false"),
        ({"architecture": "prefix-lm"}, "gpt2: architecture is prefix-lm, expected decoder"),
        ({"architecture": "decoder", "norm_placement": "pre", "head_transform": False}, "head_bias is true"),
    ],
)
def test_the_field_in_the_way_is_named(fields: dict[str, Any], part: str) -> None:
    config = TransformerConfig.model_validate({**SHAPE, **fields})
    if config.architecture == "prefix-lm":
        config = preset("gpt2-124M", architecture="prefix-lm", vocab_size=90)
    with pytest.raises(ConfigError, match="no family of the Hub can express this model") as caught:
        family_of(config, LM)
    assert part in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), PUBLISHED.items())
def test_the_shape_that_a_refusal_advises_can_be_exported(kind: tuple[str, str], name: str) -> None:
    config, head = preset(name, vocab_size=90), {"name": kind[1], "settings": {}}
    assert config.architecture == kind[0] and family_of(config, head)
    changed_config = TransformerConfig.model_validate({**SHAPE, "architecture": kind[0], "positions": "none"})
    with pytest.raises(ConfigError, match=f"set these fields as expected, .*: model={name}$"):
        family_of(changed_config, head)


@pytest.mark.parametrize("name", ["prefix-lm-base", "word2vec", "elmo"])
def test_an_architecture_without_a_class_gets_no_false_advice(name: str) -> None:
    with pytest.raises(
        ConfigError, match="the Hub has no class for architecture .*, only for decoder, encoder, "
    ) as said:
        family_of(model_config(name).with_vocabulary(90), LM)
    assert str(said.value).count("architecture is") == (name == "prefix-lm-base"), "not once for each of the families"


def test_robertas_positions_begin_after_the_pad_id() -> None:
    config = TransformerConfig(**SHAPE, position_offset=2)
    assert family_of(config, LM, {"pad": 1}).model_type == "roberta"
    with pytest.raises(ConfigError, match=r"position_offset is 2, expected the pad id \+ 1 = 1"):
        family_of(config, LM, {"pad": 0})


def test_a_full_folder_is_not_written_into(tmp_path: Path) -> None:
    folder = save(tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="full exists and is not empty"):
        export_model(folder, tmp_path / "full")
    for to in ("full/notes.txt/hub", "full/notes.txt/deep/hub"):
        with pytest.raises(ConfigError, match="hub cannot be written: .*Not a directory"):
            export_model(folder, tmp_path / to)
    (tmp_path / "empty").mkdir()
    export_model(folder, tmp_path / "empty")
    assert {"config.json", "model.safetensors"} <= {path.name for path in (tmp_path / "empty").iterdir()}
    assert not list(tmp_path.glob(".*"))


def changed(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


@pytest.mark.parametrize(
    ("name", "fields", "part"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"hidden_act": "silu"}, "hidden_act is 'silu', expected 'gelu' or 'gelu_new' or 'relu'"),
        ("bert", {"is_decoder": True}, "is_decoder is True, expected False"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, "expected BertForMaskedLM or BertForPreTraining"),
        ("bert", {"model_type": "bort"}, "model_type is 'bort', expected one of albert, bert"),
        ("bert", {"num_hidden_layers": "two"}, "not a config of bert"),
        ("roberta", {"hidden_act": "relu"}, "activation is relu, expected gelu"),
        ("roberta", {"pad_token_id": None}, "pad_token_id is None, expected an id"),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups is 2, expected 1"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True, expected False"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj is 'gated-relu'"),
        ("bart", {"decoder_ffn_dim": 50}, "decoder_ffn_dim is 50, expected encoder_ffn_dim = 40"),
        ("bart", {"scale_embedding": True}, "scale_embedding is True, expected False"),
    ],
)
def test_an_option_that_we_do_not_have_is_named(name: str, fields: dict[str, Any], part: str, tmp_path: Path) -> None:
    their_model(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        import_model(changed(tmp_path, **fields))
    assert part in str(caught.value) and "config.json" in str(caught.value)


def test_tensors_that_are_missing_unexpected_or_of_another_shape_are_named(tmp_path: Path) -> None:
    their_model("bert").save_pretrained(tmp_path)
    file, key = tmp_path / "model.safetensors", "bert.encoder.layer.1.attention.self.key.weight"
    tensors = load_file(file)

    def message(**changes: Tensor | None) -> str:
        kept = {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}
        save_file({name: value for name, value in kept.items() if value is not None}, str(file))
        with pytest.raises(ConfigError) as caught:
            import_model(tmp_path)
        return str(caught.value)

    spelled = key.replace(".", "__")
    assert f"1 tensors are missing: {key}" in message(**{spelled: None})
    assert "1 tensors are not expected: bert.adapter" in message(bert__adapter=torch.zeros(2))
    assert f"{key} [3, 32]" in message(**{spelled: torch.zeros(3, 32)})
    assert "does not fit transformer.encoder.positions.weight [24, 32]" in message(
        bert__embeddings__position_embeddings__weight=torch.zeros(20, 32)
    )


def test_stacks_with_embeddings_of_their_own_are_refused(tmp_path: Path) -> None:
    theirs = their_model("bart-untied")
    theirs.model.decoder.embed_tokens.weight.data.add_(1)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not expected: model.decoder.embed_tokens.weight"):
        import_model(tmp_path)


def test_folders_that_are_no_model_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config.json: no such file"):
        import_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="model.safetensors: no such file"):
        import_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="holds pytorch_model.bin, a pickle.*save_pretrained"):
        import_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="model.safetensors: not a readable safetensors file"):
        import_model(tmp_path)


# ---------------------------------------------------------------- the tables themselves


def test_every_field_of_ours_is_accounted_for() -> None:
    """A new field of TransformerConfig must be fixed, translated or known to be inert in every family."""
    by_hand = {
        "head_size",
        "embedding_width",
        "decoder_layers",
        "position_offset",
        "max_length",
        "token_types",
        "ff_width",
        "head_bias",
    }
    conditional = {"relative_buckets", "relative_max_distance", "rotary_base", *TRAINING_ONLY, *WRITTEN_OUT}
    for name in FAMILIES:
        family = FAMILIES.load(name)()
        known = {*family.fixed, *(pair.ours for pair in family.fields)} | by_hand | conditional
        assert set(TransformerConfig.model_fields) - known == set(), name


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "xlnet"])
def test_defaults_are_those_of_transformers(name: str) -> None:
    family = FAMILIES.load(name)()
    theirs = transformers.AutoConfig.for_model(name).to_dict()
    ours_alone = {"n_positions"} if name == "t5" else set()
    for pair in family.fields:
        if pair.theirs not in ours_alone:
            assert theirs[pair.theirs] == pair.default, pair.theirs
    for key, values in family.accepted.items():
        assert theirs.get(key, values[0]) == values[0], key
