"""Counting parameters and floating-point operations, and the share of a device's peak that is used (MFU).

Model FLOPs are those of the matrix products that the mathematics needs (PaLM, appendix B): recomputation
does not count, embedding look-ups do not either, and the output matrix counts at labelled positions only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from modeling.architecture import TransformerConfig, generator_config
from modeling.hardware import gpu_of_device

if TYPE_CHECKING:  # planning counts FLOPs, too, and imports no torch
    import torch
    from torch import nn


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s at `precision` (fp32, bf16 or fp16): a GPU's from its data sheet, a CPU's as measured.

    None for a GPU that is not in the table (`modeling.hardware`), or has no tensor cores for the precision.
    """
    if device.type == "cpu":
        return measured_peak(precision)
    import torch

    found = gpu_of_device(torch.cuda.get_device_name(device))
    peak = found.tflops.get(precision) if found is not None else None
    return None if peak is None else peak * 1e12


def measured_peak(precision: str, size: int = 1024, tries: int = 5) -> float:
    """The best FLOP/s of `tries` square matrix products on this process's threads (a tenth of a second).

    A CPU has no data sheet to go by (clock, cores that others use, AMX): MFU is against what it gives here.
    """
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    left, right = torch.full((size, size), 0.5, dtype=dtype), torch.full((size, size), 0.25, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(tries + 1):  # the first one warms up
            begun = time.perf_counter()
            torch.matmul(left, right)
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


GROUPS = (
    "embedding",
    "position",
    "token_type",
    "attention",
    "cross_attention",
    "feed_forward",
    "recurrent",
    "norm",
    "head",
)
"""Groups of parameters; every one belongs to one of them."""

_TRUNK_PARTS = {
    "tokens": "embedding",
    "contexts": "embedding",  # word vectors' second table
    "token_bias": "embedding",
    "context_bias": "embedding",
    "project": "embedding",  # a factorised embedding is two matrices
    "positions": "position",
    "relative": "position",
    "mask_embedding": "position",  # where XLNet's query stream starts: a place without a token
    "token_types": "token_type",
    "embedding_norm": "norm",
    "final_norm": "norm",
    "forwards": "recurrent",
    "backwards": "recurrent",
}
_BLOCK_PARTS = {"attention": "attention", "ff": "feed_forward"}
_VOCABULARY_HEADS = {("matrix", "weight"), ("head", "bias"), ("generator_head", "bias")}
"""Ends of the paths of an output layer's parameters that have an entry for each token."""
_ELMOS_OUTPUT = ("output.weight", "output.bias")  # whole paths: a block's layers have the same ends


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Parameters by group: those of `GROUPS`, total and non_embedding.

    A tied output matrix counts once, under embedding; so do layers that are shared. `non_embedding` is what
    Kaplan et al. call N: all but token, position and segment embeddings and the output layer's matrix and bias, so
    that it is the same whether these are tied or not. Padded rows of the vocabulary count.
    """
    return count_by_group((name, parameter.shape) for name, parameter in model.named_parameters())


def count_by_group(parameters: Iterable[tuple[str, Iterable[int]]]) -> dict[str, int]:
    """`parameter_counts` of names and shapes, such as those of `modeling.shapes`."""
    groups = dict.fromkeys(GROUPS, 0)
    non_embedding = 0
    for name, shape in parameters:
        size = math.prod(shape)
        groups[parameter_group(name)] += size
        non_embedding += 0 if is_embedding(name) else size
    return {**groups, "non_embedding": non_embedding, "total": sum(groups.values())}


def is_embedding(name: str) -> bool:
    """Whether a parameter, by its path, grows with vocabulary, positions or segments: not of Kaplan et al.'s N."""
    if parameter_group(name) in ("embedding", "position", "token_type"):
        return True
    *_, layer, own = ("", *name.split("."))
    return (layer, own) in _VOCABULARY_HEADS or name in _ELMOS_OUTPUT


def parameter_group(name: str) -> str:
    """Which of `GROUPS` a parameter is in, by its path.

    Trunks stand below `transformer`, `discriminator`, `generator` or `bilstm`, or alone.
    """
    parts = name.split(".")
    while parts[0] in ("discriminator", "transformer", "generator", "bilstm", "encoder", "decoder"):
        parts = parts[1:]
    if parts[0] in _TRUNK_PARTS:
        return _TRUNK_PARTS[parts[0]]
    if parts[0] == "blocks":
        return _BLOCK_PARTS.get(parts[2], "norm")
    if parts[0] == "cross":
        return "norm" if parts[2] == "norm" else "cross_attention"
    return "head"


# ---------------------------------------------------------------- FLOPs

_PLAIN = {"name": "language-model", "settings": {}}


def forward_flops_per_token(
    config: Any, length: int, label_share: float, *, target_length: int = 0, head: Mapping[str, Any] = _PLAIN
) -> float | None:
    """Multiply-adds × 2 of a forward pass, per token of a row; None for word vectors, which have no formula here.

    All scores of attention count, also those that a causal mask hides (PaLM does the same, some halve them).
    Layers that share weights cost as much as others.

    Args:
        length: tokens of a row; of an encoder-decoder those of the encoder.
        label_share: labelled positions / all positions, of both sides: the output layer runs there alone.
        target_length: tokens of the decoder, or that follow in the same row (prefix LM). "Per token" is of
            length + target_length.
        head: {name, settings} as in a saved model's config.json: ELECTRA's generator, SpanBERT's boundary head and
            XLNet's second stream cost something, too.
    """
    if not isinstance(config, TransformerConfig):
        formula = getattr(config, "forward_flops_per_token", None)
        return formula(length, label_share) if formula is not None else None
    tokens = length + target_length
    if head["name"] == "replaced-token-detection":
        generator = generator_config(config)
        both = _trunk(generator, length, target_length) + _trunk(config, length, target_length)
        generated = label_share * _output(generator, {}) - _not_read(generator, 1.0, label_share)
        return both / tokens + generated + _discriminator(config)
    if head["name"] == "discriminator":
        return _trunk(config, length, target_length) / tokens + _discriminator(config)
    if head["name"] == "permutation-language-model":
        return _two_streams(config, tokens, label_share) + label_share * _output(config, {})
    places = target_length / tokens if config.architecture == "encoder-decoder" else 1.0
    read = label_share * _output(config, head["settings"]) - _not_read(config, places, label_share)
    return _trunk(config, length, target_length) / tokens + read


def training_flops_per_token(
    config: Any, length: int, label_share: float, *, target_length: int = 0, head: Mapping[str, Any] = _PLAIN
) -> float | None:
    """Forward and backward: three times the forward pass. Arguments as of `forward_flops_per_token`."""
    forward = forward_flops_per_token(config, length, label_share, target_length=target_length, head=head)
    return None if forward is None else 3 * forward


def _trunk(config: TransformerConfig, length: int, target_length: int) -> float:
    """A row's FLOPs up to the hidden states."""
    two = config.architecture == "encoder-decoder"
    first, second = (length, target_length) if two else (length + target_length, 0)
    layer = _projections(config) + _feed_forward(config)
    flops = config.layers * first * (layer + _scores(config, first))
    if two:
        D, inner = config.width, config.heads * config.head_width
        cross = 2 * (2 * D * inner) + _scores(config, first)  # queries and output; keys and values are per input
        keys_and_values = 2 * 2 * D * inner
        layers = config.decoder_layers or config.layers
        flops += layers * (second * (layer + _scores(config, second) + cross) + first * keys_and_values)
    if config.embedding_width not in (0, config.width):
        flops += (first + second) * 2 * config.token_width * config.width
    return flops


def _not_read(config: TransformerConfig, places: float, label_share: float) -> float:
    """What the last block spares, per token, at places that no loss reads: all after its last attention.

    Args:
        places: share of the tokens that the last stack sees: the decoder's, or all.
    """
    if config.positions == "transformer-xl":
        return 0.0
    over_the_encoder = config.architecture == "encoder-decoder"  # that attention is computed whole
    output = 0.0 if over_the_encoder else 2 * config.width * config.heads * config.head_width
    return (places - label_share) * (_feed_forward(config) + output)


def _projections(config: TransformerConfig) -> float:
    """Queries, keys, values and output of one token in one layer."""
    return 2 * 4 * config.width * config.heads * config.head_width


def _feed_forward(config: TransformerConfig) -> float:
    matrices = 3 if "glu" in config.activation else 2
    return 2 * matrices * config.width * config.ff_width


def _scores(config: TransformerConfig, keys: int) -> float:
    """QKᵀ and the weighted sum of V, of one query."""
    return 4 * keys * config.heads * config.head_width


def _two_streams(config: TransformerConfig, length: int, label_share: float) -> float:
    """XLNet, per token: a content stream, whose last layer gives keys and values only, and queries at the labels.

    A score has a term for the position, of length distances (2 · length are projected, once per row).
    """
    D, inner = config.width, config.heads * config.head_width
    attended = _scores(config, length) + 2 * length * inner
    stream = 2 * 2 * D * inner + attended + _feed_forward(config)  # queries and output
    keys_and_values, distances = 2 * 2 * D * inner, 2 * 2 * D * inner
    content = config.layers * (keys_and_values + distances) + (config.layers - 1) * stream
    return content + label_share * config.layers * stream


def _output(config: TransformerConfig, settings: Mapping[str, Any]) -> float:
    """The output layer at one label, and the boundary head, whose labels are the same."""
    D, E, V = config.width, config.token_width, config.padded_vocab_size
    flops = 2 * E * V + 2 * D * E if config.head_transform else 2 * (E if config.tie_embeddings else D) * V
    if settings.get("span_boundary"):
        flops += 2 * (3 * D * D + D * E) + 2 * E * V
    return flops


def _discriminator(config: TransformerConfig) -> float:
    return 2 * (config.width**2 + config.width)
