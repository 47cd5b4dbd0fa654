"""Hugging Face's models and ours at the same configuration and with the same weights.

Theirs get their fastest settings: SDPA attention, no cache, no outputs beside the loss, and torch's fused tanh
GELU where their default (`gelu_new`) is a chain of element-wise operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modeling.architecture import TransformerConfig
from modeling.heads.base import IGNORE
from modeling.heads.language import LanguageModel

Batch = dict[str, Tensor]


class Size(NamedTuple):
    """Shape of a model and of its batches; `targets`: tokens of the decoder's side, of an encoder-decoder."""

    layers: int
    width: int
    vocabulary: int
    rows: int
    length: int
    targets: int = 0

    @property
    def heads(self) -> int:
        return self.width // 64

    @property
    def tokens(self) -> int:
        """Of one batch, both sides."""
        return self.rows * (self.length + self.targets)


class Pair(NamedTuple):
    """Both models, with equal weights, and one batch as each takes it."""

    ours: LanguageModel
    theirs: nn.Module
    our_batch: Batch
    their_batch: Batch


def mlm(size: Size) -> Pair:
    """BERT, 15 % of the tokens masked."""
    from transformers import BertConfig, BertForMaskedLM

    theirs = BertForMaskedLM(
        BertConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
    )
    ours = LanguageModel(
        TransformerConfig(**_shape(size), token_types=2, norm_eps=theirs.config.layer_norm_eps, ff_width=4 * size.width)
    )
    _copy(theirs, ours, _bert_names(size.layers))
    ids = torch.randint(5, size.vocabulary, (size.rows, size.length))
    labels = torch.full_like(ids, IGNORE)
    masked = torch.rand(ids.shape).argsort(1) < round(0.15 * size.length)
    labels[masked] = ids[masked]
    batch = {"input_ids": ids.masked_fill(masked, 4), "labels": labels, "token_type_ids": torch.zeros_like(ids)}
    batch["attention_mask"] = torch.ones_like(ids)
    return Pair(ours, theirs, batch, batch)


def causal(size: Size) -> Pair:
    """GPT-2, every token but the first a label."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=size.length,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="sdpa",
        )
    )
    ours = LanguageModel(
        TransformerConfig(
            **_shape(size),
            architecture="decoder",
            ff_width=4 * size.width,
            norm_placement="pre",
            norm_eps=theirs.config.layer_norm_epsilon,
            activation="gelu-tanh",
            head_transform=False,
            head_bias=False,
        )
    )
    _copy(theirs, ours, _gpt2_names(size.layers), transposed=("c_attn", "c_proj", "c_fc"))
    ids = torch.randint(0, size.vocabulary, (size.rows, size.length))
    shifted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORE)], 1)
    return Pair(ours, theirs, {"input_ids": ids, "labels": shifted}, {"input_ids": ids, "labels": ids})


def seq2seq(size: Size) -> Pair:
    """T5 1.1, every target a label."""
    from transformers import T5Config, T5ForConditionalGeneration

    ff_width = -(-8 * size.width // 3 // 64) * 64  # three matrices, as T5 1.1 has them: 768 to 2048
    theirs = T5ForConditionalGeneration(
        T5Config(
            vocab_size=size.vocabulary,
            d_model=size.width,
            d_kv=64,
            d_ff=ff_width,
            num_layers=size.layers,
            num_heads=size.heads,
            feed_forward_proj="gated-gelu_pytorch_tanh",
            dropout_rate=0.0,
            tie_word_embeddings=False,
            use_cache=False,
            pad_token_id=0,
            decoder_start_token_id=0,
            attn_implementation="sdpa",
        )
    )
    ours = LanguageModel(
        TransformerConfig(
            **_shape(size),
            architecture="encoder-decoder",
            ff_width=ff_width,
            norm="rmsnorm",
            norm_placement="pre",
            norm_eps=theirs.config.layer_norm_epsilon,
            positions="relative",
            activation="geglu-tanh",
            bias=False,
            attention_scale=False,
            tie_embeddings=False,
            head_transform=False,
            head_bias=False,
        )
    )
    # Theirs ties the output matrix whatever the config says, which T5 1.1 does not: both get one of their own. And
    # theirs starts at deviation 1: the loss is far above ln V, and its gradients underflow, with which fp32 arithmetic
    # is several times slower. Both get the deviation that ours starts with.
    theirs.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach() * size.width**-0.5)
    _copy(theirs, ours, _t5_names(size.layers))
    ids = torch.randint(1, size.vocabulary, (size.rows, size.length))
    labels = torch.randint(1, size.vocabulary, (size.rows, size.targets))
    decoder_ids = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    our_batch = {"input_ids": ids, "decoder_input_ids": decoder_ids, "labels": labels}
    return Pair(ours, theirs, our_batch, {"input_ids": ids, "labels": labels})


PAIRS = {"mlm": mlm, "causal": causal, "seq2seq": seq2seq}


def _shape(size: Size) -> dict[str, int]:
    return {
        "vocab_size": size.vocabulary,
        "layers": size.layers,
        "width": size.width,
        "heads": size.heads,
        "max_length": 512,
    } | ({"max_length": size.length} if not size.targets and size.length > 512 else {})


Names = Iterator[tuple[str, tuple[str, ...]]]
"""(our parameter, theirs, one above the other)."""


def _with_bias(ours: str, *theirs: str) -> Names:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs)


def _bert_names(layers: int) -> Names:
    of = "bert.embeddings."
    yield "transformer.tokens.weight", (f"{of}word_embeddings.weight",)
    yield "transformer.encoder.positions.weight", (f"{of}position_embeddings.weight",)
    yield "transformer.encoder.token_types.weight", (f"{of}token_type_embeddings.weight",)
    yield from _with_bias("transformer.encoder.embedding_norm", f"{of}LayerNorm")
    for n in range(layers):
        our, their = f"transformer.encoder.blocks.{n}", f"bert.encoder.layer.{n}"
        self_ = f"{their}.attention.self"
        yield from _with_bias(f"{our}.attention.qkv", *(f"{self_}.{part}" for part in ("query", "key", "value")))
        yield from _with_bias(f"{our}.attention.output", f"{their}.attention.output.dense")
        yield from _with_bias(f"{our}.attention_norm", f"{their}.attention.output.LayerNorm")
        yield from _with_bias(f"{our}.ff.input", f"{their}.intermediate.dense")
        yield from _with_bias(f"{our}.ff.output", f"{their}.output.dense")
        yield from _with_bias(f"{our}.ff_norm", f"{their}.output.LayerNorm")
    yield from _with_bias("head.dense", "cls.predictions.transform.dense")
    yield from _with_bias("head.norm", "cls.predictions.transform.LayerNorm")
    yield "head.bias", ("cls.predictions.bias",)


def _gpt2_names(layers: int) -> Names:
    yield "transformer.tokens.weight", ("transformer.wte.weight",)
    yield "transformer.decoder.positions.weight", ("transformer.wpe.weight",)
    for n in range(layers):
        our, their = f"transformer.decoder.blocks.{n}", f"transformer.h.{n}"
        yield from _with_bias(f"{our}.attention_norm", f"{their}.ln_1")
        yield from _with_bias(f"{our}.attention.qkv", f"{their}.attn.c_attn")
        yield from _with_bias(f"{our}.attention.output", f"{their}.attn.c_proj")
        yield from _with_bias(f"{our}.ff_norm", f"{their}.ln_2")
        yield from _with_bias(f"{our}.ff.input", f"{their}.mlp.c_fc")
        yield from _with_bias(f"{our}.ff.output", f"{their}.mlp.c_proj")
    yield from _with_bias("transformer.decoder.final_norm", "transformer.ln_f")


def _t5_names(layers: int) -> Names:
    yield "transformer.tokens.weight", ("shared.weight",)
    yield "head.matrix.weight", ("lm_head.weight",)
    for stack in ("encoder", "decoder"):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield f"transformer.{stack}.relative.weight", (bias,)
        yield f"transformer.{stack}.final_norm.weight", (f"{stack}.final_layer_norm.weight",)
        for n in range(layers):
            our, their = f"transformer.{stack}.blocks.{n}", f"{stack}.block.{n}.layer"
            own, last = f"{their}.0", f"{their}.{2 if stack == 'decoder' else 1}"
            yield f"{our}.attention_norm.weight", (f"{own}.layer_norm.weight",)
            yield f"{our}.attention.qkv.weight", tuple(f"{own}.SelfAttention.{part}.weight" for part in "qkv")
            yield f"{our}.attention.output.weight", (f"{own}.SelfAttention.o.weight",)
            yield f"{our}.ff_norm.weight", (f"{last}.layer_norm.weight",)
            yield f"{our}.ff.input.weight", tuple(f"{last}.DenseReluDense.wi_{part}.weight" for part in "01")
            yield f"{our}.ff.output.weight", (f"{last}.DenseReluDense.wo.weight",)
            if stack == "decoder":
                cross, attention = f"transformer.decoder.cross.{n}", f"{their}.1.EncDecAttention"
                yield f"{cross}.norm.weight", (f"{their}.1.layer_norm.weight",)
                yield f"{cross}.query.weight", (f"{attention}.q.weight",)
                yield f"{cross}.key_value.weight", tuple(f"{attention}.{part}.weight" for part in "kv")
                yield f"{cross}.output.weight", (f"{attention}.o.weight",)


@torch.no_grad()
def _copy(theirs: nn.Module, ours: nn.Module, names: Names, transposed: tuple[str, ...] = ()) -> None:
    """Their weights into ours; raises where a parameter of either is left over."""
    source, target = theirs.state_dict(), dict(ours.named_parameters())
    done: set[str] = set()
    for our, parts in names:
        turn = any(f".{name}.weight" in parts[0] for name in transposed)
        value = torch.cat([source[part].T if turn else source[part] for part in parts])
        target.pop(our)[: len(value)].copy_(value)
        done.update(parts)
    left = {name for name, _ in theirs.named_parameters()} - done
    if target or left:
        raise RuntimeError(f"not copied: ours {sorted(target)}, theirs {sorted(left)}")
