"""Models of transformers and their batches, for tests of imports and exports.

Tolerance of logits 1e-5: both sides compute in float32 with the same formulas, in another order; logits are of
order 1, so differences are a few of float32's steps (6e-8) times the depth. Weights have a deviation of 0.15: at 0.25
T5 1.1, whose scores nothing scales down, is off by 2e-5 from its own result in float64, and so are we from ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from modeling.architecture import TransformerConfig
from modeling.checkpoint import build_model
from modeling.heads.electra import Discriminator

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
LM = {"name": "language-model", "settings": {}}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Case(NamedTuple):
    """A class of theirs at some shape; `our` fields make the same family in ours."""

    hub_class: str
    config_class: str
    theirs: dict[str, Any]


def bert(layers: int, width: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "vocab_size": vocab}
    return {**shape, "intermediate_size": 40, "max_position_embeddings": 24, **more}


def gpt(layers: int, width: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {"n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": vocab, "n_positions": 24, **more}


def t5(layers: int, width: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    shape = {"num_layers": layers, "d_model": width, "num_heads": heads, "vocab_size": vocab, "d_ff": 40}
    # few buckets and a short reach, so that short rows use all of them
    return {**shape, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, **more}


def bart(layers: int, width: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    shape = {"encoder_layers": layers, "d_model": width, "vocab_size": vocab, "max_position_embeddings": 24}
    both = {
        f"{stack}_{what}": n
        for stack in ("encoder", "decoder")
        for what, n in (("attention_heads", heads), ("ffn_dim", 40))
    }
    return {**shape, "decoder_layers": layers, **both, **more}


def qwen3(layers: int, width: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {**bert(layers, width, heads, vocab), "num_key_value_heads": heads, "head_dim": 8, **more}


UNTIED = {"tie_word_embeddings": False}
CASES = {
    "bert": Case("BertForMaskedLM", "BertConfig", bert(2, 32, 4, 90)),
    "bert-relu": Case("BertForMaskedLM", "BertConfig", bert(1, 24, 2, 64, hidden_act="relu", type_vocab_size=3)),
    "bert-untied": Case("BertForMaskedLM", "BertConfig", bert(3, 16, 1, 130, **UNTIED)),
    "bert-pairs": Case("BertForPreTraining", "BertConfig", bert(2, 32, 4, 90, hidden_act="gelu_new")),
    "roberta": Case("RobertaForMaskedLM", "RobertaConfig", bert(2, 32, 2, 101, type_vocab_size=1)),
    "roberta-pad-0": Case("RobertaForMaskedLM", "RobertaConfig", bert(1, 30, 3, 70, pad_token_id=0)),
    "electra": Case("ElectraForPreTraining", "ElectraConfig", bert(2, 32, 4, 90, embedding_size=12)),
    "electra-wide": Case(
        "ElectraForPreTraining", "ElectraConfig", bert(1, 32, 2, 90, embedding_size=32, hidden_act="relu")
    ),
    "electra-generator": Case("ElectraForMaskedLM", "ElectraConfig", bert(2, 16, 2, 90, embedding_size=24)),
    "electra-untied": Case("ElectraForMaskedLM", "ElectraConfig", bert(1, 16, 2, 65, embedding_size=24, **UNTIED)),
    "albert": Case("AlbertForMaskedLM", "AlbertConfig", bert(3, 32, 4, 90, embedding_size=12)),
    "albert-pairs": Case(
        "AlbertForPreTraining", "AlbertConfig", bert(2, 24, 2, 66, embedding_size=48, hidden_act="gelu")
    ),
    "gpt2": Case("GPT2LMHeadModel", "GPT2Config", gpt(2, 32, 4, 90)),
    "gpt2-untied": Case(
        "GPT2LMHeadModel", "GPT2Config", gpt(3, 24, 2, 65, n_inner=40, activation_function="relu", **UNTIED)
    ),
    "gpt": Case("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", gpt(2, 32, 4, 90)),
    "qwen3": Case("Qwen3ForCausalLM", "Qwen3Config", qwen3(2, 32, 4, 90)),
    "qwen3-tied": Case("Qwen3ForCausalLM", "Qwen3Config", qwen3(1, 24, 2, 64, head_dim=16, tie_word_embeddings=True)),
    "qwen3-odd-heads": Case(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        qwen3(3, 20, 3, 131, head_dim=10, rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    ),
    "qwen3-gelu": Case(
        "Qwen3ForCausalLM", "Qwen3Config", qwen3(2, 16, 1, 70, hidden_act="gelu_new", rms_norm_eps=1e-3)
    ),
    "t5": Case("T5ForConditionalGeneration", "T5Config", t5(2, 32, 4, 90, d_kv=8)),
    "t5-narrow-heads": Case("T5ForConditionalGeneration", "T5Config", t5(3, 32, 3, 70, d_kv=5, num_decoder_layers=2)),
    "t5-1.1": Case(
        "T5ForConditionalGeneration", "T5Config", t5(2, 24, 2, 90, d_kv=16, feed_forward_proj="gated-gelu", **UNTIED)
    ),
    "bart": Case("BartForConditionalGeneration", "BartConfig", bart(2, 32, 4, 90)),
    "bart-untied": Case("BartForConditionalGeneration", "BartConfig", bart(1, 24, 2, 70, **UNTIED)),
    "bart-uneven": Case(
        "BartForConditionalGeneration", "BartConfig", bart(2, 24, 2, 70, decoder_layers=1, activation_function="relu")
    ),
}


def randomised(model: nn.Module, seed: int, scale: float = 0.15) -> nn.Module:
    """Every weight random, norms and biases too, so that each has its part in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or not value.numel() or not torch.isfinite(value).all():
                continue
            if isinstance(value, nn.Parameter) or name == "final_logits_bias":
                is_norm = name.endswith("weight") and value.dim() == 1
                value.copy_(torch.randn(value.shape, generator=generator) * scale + is_norm)
    return model.eval()


def their_model(name: str) -> Any:
    case = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, case.config_class)(**case.theirs)
    model = randomised(getattr(transformers, case.hub_class)(config), seed=len(name))
    if name == "bart-untied":  # it then has three embeddings, of which we have one
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_tokens.weight.data.copy_(model.model.shared.weight)
    return model


def our_model(config: TransformerConfig, head: Mapping[str, Any], seed: int, scale: float = 0.15) -> nn.Module:
    """With padded vocabulary rows as training leaves them: weights zero, bias at its floor."""
    model = build_model(config, head)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    randomised(model, seed, scale)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in ("transformer.tokens.weight", "head.matrix.weight", "head.bias"):
                value[config.vocab_size :] = kept[name][config.vocab_size :]
    return model


def batch_of(config: TransformerConfig, side: str, seed: int = 0) -> dict[str, Tensor]:
    """Three rows of 13 tokens, two of them padded at `side`; ids other than any pad id below 3."""
    generator = torch.Generator().manual_seed(seed)

    def ids(rows: int, length: int) -> Tensor:
        return torch.randint(3, config.vocab_size, (rows, length), generator=generator)

    mask = torch.ones(3, 13, dtype=torch.long)
    for row, padded in ((1, 4), (2, 9)):
        mask[row, slice(-padded, None) if side == "right" else slice(0, padded)] = 0
    pad = max(0, config.position_offset - 1) if config.architecture == "encoder" else 0
    batch = {"input_ids": torch.where(mask.bool(), ids(3, 13), pad), "attention_mask": mask}
    if config.token_types > 1:
        batch["token_type_ids"] = torch.randint(0, config.token_types, (3, 13), generator=generator)
    if config.architecture == "encoder-decoder":
        batch["decoder_input_ids"] = ids(3, 7)
    elif side == "left":
        # RoBERTa counts positions from the first real token; generate() gives GPT-2 the same
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return batch


def our_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    config = model.config
    with torch.inference_mode():
        if isinstance(model, Discriminator):
            return model.replaced_logits(dict(batch))
        hidden = model.transformer(
            batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids"), batch.get("position_ids")
        )
        if config.architecture == "encoder-decoder":
            hidden = model.transformer.decode(batch["decoder_input_ids"], hidden, batch["attention_mask"])
        return model.logits(hidden)[..., : config.vocab_size]


def their_logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    given = dict(batch)
    offset = model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0
    if "position_ids" in given:
        given["position_ids"] = given["position_ids"] + offset
    with torch.inference_mode():
        out = model(**given)
    return out.logits if "logits" in out else out.prediction_logits


def real(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits where no padding stands; a decoder's rows have none here."""
    return logits if "decoder_input_ids" in batch else logits[batch["attention_mask"].bool()]


def agree(ours: Any, theirs: Any, config: TransformerConfig, seed: int = 0) -> None:
    for side in ("right", "left"):
        batch = batch_of(config, side, seed)
        mine, other = real(our_logits(ours, batch), batch), real(their_logits(theirs, batch), batch)
        assert other.std() > 0.1  # else agreement would say little
        torch.testing.assert_close(mine, other, **TOLERANCE)


def loaded(folder: Path, hub_class: str) -> Any:
    model, info = getattr(transformers, hub_class).from_pretrained(folder, output_loading_info=True)
    assert not {k: v for k, v in info.items() if v}, info
    return model.eval()


SHAPE = {"vocab_size": 90, "layers": 2, "width": 32, "heads": 4, "ff_width": 40, "max_length": 24}
T5_OPTIONS = {"relative_buckets": 8, "relative_max_distance": 10}
