"""A model's parameters as names and shapes, from its config alone: what planning counts, without torch.

The names are those of the modules' `named_parameters()`, each weight once where layers share it; a test compares
both for every preset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from modeling.architecture import TransformerConfig, generator_config

Shapes = dict[str, tuple[int, ...]]

CLASSIFIER: Mapping[str, Any] = {"name": "classifier", "settings": {"labels": 2, "pooling": "mean"}}
"""As a head's description: what fine-tuning puts on a trunk; a span extractor has two outputs as well."""


def parameter_shapes(config: Any, head: Mapping[str, Any]) -> Shapes:
    """{name: shape} of the parameters of a model with a head.

    Args:
        config: any model's config, with its vocabulary.
        head: {name, settings} as in a saved model's config.json, or `CLASSIFIER`.
    """
    name, settings = head["name"], head["settings"]
    if name == "classifier":
        return _under("transformer", _trunk(config)) | _classifier(config, settings)
    if not isinstance(config, TransformerConfig):
        return _elmo(config) if config.architecture == "bilstm" else _word_vectors(config, biases=name == "glove")
    if name == "replaced-token-detection":
        return _electra(config)
    trunk = _under("transformer", _transformer(config))
    if name == "discriminator":
        return trunk | _discriminator(config)
    return trunk | _under("head", _output_layer(config)) | _language_extras(config, settings)


def count(shapes: Shapes) -> int:
    """Numbers in all of them."""
    return sum(map(math.prod, shapes.values()))


def _under(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    weight = {f"{name}.weight": (outputs, inputs)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def _norm(name: str, config: TransformerConfig, width: int = 0) -> Shapes:
    shape = (width or config.width,)
    return {f"{name}.weight": shape} | ({} if config.norm == "rmsnorm" else {f"{name}.bias": shape})


def _transformer(config: TransformerConfig) -> Shapes:
    shapes: Shapes = {"tokens.weight": (config.padded_vocab_size, config.token_width)}
    if config.positions == "transformer-xl":
        return shapes | _under("encoder", _relative_stack(config))
    two = config.architecture == "encoder-decoder"
    if two or config.architecture == "encoder":
        shapes |= _under("encoder", _stack(config, config.layers))
    if two:
        layers = config.decoder_layers or config.layers
        shapes |= _under("decoder", _stack(config, layers, cross=True, own_blocks=not config.share_stacks))
    elif config.architecture != "encoder":
        shapes |= _under("decoder", _stack(config, config.layers))
    return shapes


def _stack(config: TransformerConfig, layers: int, *, cross: bool = False, own_blocks: bool = True) -> Shapes:
    D, E, inner = config.width, config.token_width, config.heads * config.head_width
    shapes: Shapes = {}
    if config.positions == "learned":
        shapes["positions.weight"] = (config.max_length + config.position_offset, E)
    if config.token_types:
        shapes["token_types.weight"] = (config.token_types, E)
    if config.normalises_embeddings:
        shapes |= _norm("embedding_norm", config, E)
    if config.embedding_width not in (0, D):
        shapes |= _linear("project", E, D)
    if config.positions == "relative":
        shapes["relative.weight"] = (config.relative_buckets, config.heads)
    attention = _linear("attention.qkv", D, 3 * inner, config.bias)
    attention |= _linear("attention.output", inner, D, config.bias)
    if config.qk_norm:
        attention |= {f"attention.{side}_norm.weight": (config.head_width,) for side in ("query", "key")}
    block = _norm("attention_norm", config) | attention | _norm("ff_norm", config) | _feed_forward(config)
    for number in range((1 if config.share_layers else layers) if own_blocks else 0):
        shapes |= _under(f"blocks.{number}", block)
    for number in range(layers if cross else 0):
        reached = _norm("norm", config) | _linear("query", D, inner, config.bias)
        reached |= _linear("key_value", D, 2 * inner, config.bias) | _linear("output", inner, D, config.bias)
        shapes |= _under(f"cross.{number}", reached)
    if config.norm_placement == "pre":
        shapes |= _norm("final_norm", config)
    return shapes


def _feed_forward(config: TransformerConfig) -> Shapes:
    branches = 2 if "glu" in config.activation else 1
    first = _linear("ff.input", config.width, branches * config.ff_width, config.bias)
    return first | _linear("ff.output", config.ff_width, config.width, config.bias)


def _relative_stack(config: TransformerConfig) -> Shapes:
    """XLNet's: no linear layer of its attention has a bias, three biases are learnt beside them."""
    D, inner = config.width, config.heads * config.head_width
    shapes: Shapes = {"mask_embedding": (D,)}
    if config.normalises_embeddings:
        shapes |= _norm("embedding_norm", config)
    attention = _linear("query", D, inner, False) | _linear("key_value", D, 2 * inner, False)
    attention |= _linear("position", D, inner, False) | _linear("output", inner, D, False)
    attention |= {"content_bias": (inner,), "position_bias": (inner,)}
    if config.token_types:
        attention |= {"segment_bias": (inner,), "segments": (2, inner)}
    block = _under("attention", attention) | _norm("attention_norm", config)
    block |= _feed_forward(config) | _norm("ff_norm", config)
    for number in range(1 if config.share_layers else config.layers):
        shapes |= _under(f"blocks.{number}", block)
    return shapes


def _output_layer(config: TransformerConfig) -> Shapes:
    D, E, V = config.width, config.token_width, config.padded_vocab_size
    shapes: Shapes = {}
    if config.head_transform:
        shapes |= _linear("dense", D, E) | _norm("norm", config, E)
    if not config.tie_embeddings:
        shapes |= _linear("matrix", E if config.head_transform else D, V, False)
    return shapes | ({"bias": (V,)} if config.head_bias else {})


def _language_extras(config: TransformerConfig, settings: Mapping[str, Any]) -> Shapes:
    D, E = config.width, config.token_width
    shapes: Shapes = {}
    if settings.get("span_boundary"):
        boundary: Shapes = {"places.weight": (4 * int(settings["span_max"]) + 1, D)}
        boundary |= _linear("first", 3 * D, D) | {"first_norm.weight": (D,), "first_norm.bias": (D,)}
        boundary |= _linear("second", D, E) | {"second_norm.weight": (E,), "second_norm.bias": (E,)}
        shapes |= _under("boundary", boundary)
    if settings.get("pairs", "none") != "none":
        shapes |= _linear("pair.pooler", D, D) | _linear("pair.classifier", D, 2)
    return shapes


def _discriminator(config: TransformerConfig) -> Shapes:
    return _linear("dense", config.width, config.width) | _linear("classifier", config.width, 1)


def _electra(config: TransformerConfig) -> Shapes:
    """Discriminator and generator; tables of tokens, positions and segments are the discriminator's."""
    first = _under("transformer", _transformer(config)) | _discriminator(config)
    small = generator_config(config)
    shared = ("tokens.weight", "encoder.positions.weight", "encoder.token_types.weight")
    second = {name: shape for name, shape in _transformer(small).items() if name not in shared}
    head = _under("generator_head", _output_layer(small))
    return _under("discriminator", first) | _under("generator", second) | head


def _bilstm(config: Any) -> Shapes:
    P, H = config.projection, config.hidden
    layer = {"weight_input": (4 * H, P), "weight_state": (4 * H, P), "bias": (4 * H,), "projection": (P, H)}
    shapes: Shapes = {"tokens.weight": (config.padded_vocab_size, P)}
    for number in range(config.layers):
        shapes |= _under(f"forwards.{number}", layer) | _under(f"backwards.{number}", layer)
    return shapes


def _elmo(config: Any) -> Shapes:
    return _under("bilstm", _bilstm(config)) | _linear("output", config.projection, config.padded_vocab_size)


def _word_vectors(config: Any, *, biases: bool) -> Shapes:
    V, D = config.padded_vocab_size, config.width
    tables: Shapes = {"tokens.weight": (V, D), "contexts.weight": (V, D)}
    return tables | ({"token_bias": (V,), "context_bias": (V,)} if biases else {})


def _trunk(config: Any) -> Shapes:
    """What a task's head stands on (`modeling.trunks`)."""
    if config.architecture == "bilstm":
        return _under("bilstm", _bilstm(config)) | {"mix.weights": (config.layers + 1,), "mix.gamma": (1,)}
    if config.architecture == "word-vectors":
        return {"tokens.weight": (config.padded_vocab_size, config.width)}
    return _transformer(config)


def _classifier(config: Any, settings: Mapping[str, Any]) -> Shapes:
    pooler = _linear("pooler", config.width, config.width) if settings.get("pooling") == "cls" else {}
    return pooler | _linear("classifier", config.width, int(settings["labels"]))
