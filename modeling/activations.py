"""What a forward pass keeps for the backward pass, in bytes, from the config: a formula beside each module's code.

The method is that of Korthikanti et al. 2022 (arXiv:2205.05198, section 4): for each operation, what its gradient
needs. Their 34·s·b·h bytes of a layer and 5·a·s²·b of its attention are of fp16 throughout, with dropout and with
attention weights kept. Ours differ:

- the residual stream, norms and the optimizer stay in fp32, matrix products are in 2 bytes (autocast); so the
  weights' 2-byte copies are kept from the forward to the backward pass, at every ZeRO stage;
- attention on a GPU is fused and keeps no weights, but for learnt biases (T5); on a CPU `modeling.kernels` keeps them
  where it writes the products out: for learnt biases, too, in bf16, and of long causal rows;
- logits are made at labelled positions only, and not kept (`modeling.cross_entropy`): instead the gradients of the
  states and of the output matrix are, from the forward pass on;
- the last block works on labelled positions only, after its attention.

Letters: B rows of a micro-batch, L their tokens, N labelled ones, D width, H heads, I = H · head size, F feed-forward,
V vocabulary, E embeddings' width. s: bytes of a matrix product's operand, 2 or 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from modeling.architecture import TransformerConfig, generator_config
from modeling.shapes import parameter_shapes

FP32 = 4
PLAIN_ATTENTION_BYTES, FLASH_SCORES_FP32 = 1 << 28, 192 * 192  # as in modeling.kernels, which imports torch
CAUSAL_TILE = {2: 256, 4: 128}
LOSS_ROWS, LOSS_KEPT_BYTES, PLAIN_LOSS_BYTES = 512, 1 << 28, 1 << 30  # as in modeling.cross_entropy


@dataclass(frozen=True)
class Workload:
    """What one worker computes at once.

    Attributes:
        head: {name, settings} of `modeling.heads`, or `modeling.shapes.CLASSIFIER`.
        rows: sequences of a micro-batch.
        length, target_length: tokens of a row; the second of a decoder of its own (0: there is none).
        label_share: labelled positions / all those at which labels may stand.
        checkpointing: blocks keep their input only and compute the rest again.
        device: cuda or cpu: their attention and norms keep different things.
    """

    config: Any
    head: Mapping[str, Any]
    precision: str
    rows: int
    length: int
    target_length: int = 0
    label_share: float = 1.0
    checkpointing: bool = False
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def s(self) -> int:
        """Bytes of a matrix product's operand."""
        return FP32 if self.precision == "fp32" else 2

    @property
    def tokens(self) -> int:
        """Of the rows, both sides."""
        return self.rows * (self.length + self.target_length)


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass leaves behind or needs for a moment.

    Attributes:
        kept: for the backward pass.
        casts: the weights' 2-byte copies; 0 in fp32.
        loss: what the output layer keeps: gradients of its states and matrix, or on a GPU few logits.
        working: the largest short-lived tensors: a block of logits, or those of a block's backward pass.
    """

    kept: int
    casts: int
    loss: int
    working: int

    @property
    def total(self) -> int:
        return self.kept + self.casts + self.loss + self.working


def activations(work: Workload) -> Activations:
    """Of a forward pass over one micro-batch."""
    config, name = work.config, work.head["name"]
    if not isinstance(config, TransformerConfig):
        return _lstm(work) if config.architecture == "bilstm" else _word_vectors(work)
    if name == "replaced-token-detection":
        small = generator_config(config)
        first = activations(replace(work, config=small, head={"name": "language-model", "settings": {}}))
        second = activations(replace(work, head={"name": "discriminator", "settings": {}}))
        N = round(work.label_share * work.rows * work.length)
        drawn = N * config.padded_vocab_size * (3 * FP32 + work.s)  # probabilities to sample from, without gradient
        return Activations(
            first.kept + second.kept,
            first.casts + second.casts,
            first.loss + second.loss,
            max(first.working, second.working, drawn),
        )
    kept, working = (_two_streams if name == "permutation-language-model" else _stacks)(work)
    end, loss, block = _head(work)
    casts = _casts(work)
    if work.checkpointing:  # autocast holds them until the forward pass ends; then one block's are made again
        working, casts = max(working + casts / config.layers, casts + block), 0
    return Activations(round(kept + end), casts, round(loss), round(max(working, block)))


def _casts(work: Workload) -> int:
    """Autocast's copies of the linear layers' weights and biases; embeddings and norms have none."""
    if work.s == FP32:
        return 0
    total = 0
    for name, shape in parameter_shapes(work.config, work.head).items():
        parts = name.split(".")
        matrix = len(shape) == 2 and not {"tokens", "positions", "token_types", "relative", "matrix", "places"} & {
            *parts
        }
        total += 2 * shape[0] * shape[1] if matrix else 0
    return total


# ---------------------------------------------------------------- stacks


def _stacks(work: Workload) -> tuple[float, float]:
    """(kept, working) of one stack, or of an encoder and a decoder."""
    config, B = work.config, work.rows
    reads_all = work.head["name"] in ("discriminator", "classifier")
    last = 1.0 if reads_all else work.label_share
    if config.architecture != "encoder-decoder":
        L = work.length + work.target_length
        return _stack(work, config.layers, L, causal=config.architecture != "encoder", last=last)
    if not work.target_length:  # a task's model reads the encoder only
        return _stack(work, config.layers, work.length, causal=False, last=1.0)
    first, working = _stack(work, config.layers, work.length, causal=False, last=1.0)
    layers = config.decoder_layers or config.layers
    second, other = _stack(work, layers, work.target_length, causal=True, last=last, memory=work.length)
    copies = layers if config.norm == "layernorm" and work.s != FP32 else 1  # fp32 states are cast again by each layer
    memory = B * work.length * work.s * config.width * copies
    return first + second + memory, max(working, other)


def _stack(work: Workload, layers: int, L: int, *, causal: bool, last: float, memory: int = 0) -> tuple[float, float]:
    """(kept, working): embeddings, blocks, final norm. `last`: share of positions that the last block goes on with."""
    config, T = work.config, work.rows * L
    E, D = config.token_width, config.width
    kept = 0.0
    if config.normalises_embeddings:
        kept += T * FP32 * E
    if config.dropout:
        kept += T * E * _mask_bytes(work, FP32)
    if config.embedding_width not in (0, D):
        kept += T * work.s * E
    if config.positions == "relative":  # the bias of all heads and the buckets it was looked up by
        kept += L * L * (FP32 * config.heads + 8)
    attention, rest = _block(work, L, causal, memory)
    branches = 2 if "glu" in config.activation else 1
    working = T * work.s * (branches * config.ff_width + 2 * D)
    if work.checkpointing:  # a block's inputs, and for the backward pass all of one block
        kept += layers * (T * FP32 * D + 2 * work.rows * memory * work.s * config.heads * config.head_width)
        working += attention + rest
    else:
        kept += layers * attention + (layers - 1 + last) * rest
    if config.norm_placement == "pre":
        kept += last * T * FP32 * D
    return kept, working


def _mask_bytes(work: Workload, size: int) -> int:
    """Of a dropout's mask per element: a byte on a GPU, on a CPU the scaled noise in the tensor's own type."""
    return 1 if work.device == "cuda" else size


def _block(work: Workload, L: int, causal: bool, memory: int) -> tuple[float, float]:
    """(up to and with attention, after it): what a block keeps of all positions."""
    config, s, T = work.config, work.s, work.rows * L
    D, F = config.width, config.ff_width
    learnt = config.positions == "relative"
    # Norm's input in fp32 (pre-norm: before attention; post-norm: after), operand of the product, the product's own.
    norm, operand, dropout = FP32 * D, s * D, _mask_bytes(work, s) * D if config.dropout else 0
    attention = T * operand + _attention(work, L, L, causal=causal, learnt_bias=learnt)
    attention += T * norm if config.norm_placement == "pre" else 0
    output = s * config.heads * config.head_width + dropout
    if memory:  # one more attention, over the encoder's states, with its norm
        attention += T * (output + norm + operand) + _attention(work, L, memory, causal=False, learnt_bias=False)
    rest = T * (output + (norm if config.norm_placement == "post" else 0))
    inner = {"relu": s * F}.get(config.activation, 2 * s * F)  # its input and its output, of ReLU the output alone
    if config.activation == "gelu-tanh" and work.device == "cpu" and s == FP32:
        inner = 3 * s * F  # and the sigmoid in it (modeling.nonlinearities)
    inner = 4 * s * F if "glu" in config.activation else inner
    rest += T * (norm + operand + inner + dropout)
    return attention, rest


def _attention(work: Workload, L: int, K: int, *, causal: bool, learnt_bias: bool) -> float:
    """What attention keeps between its two linear layers, its output left out: `modeling.kernels.attention`."""
    config, B, s = work.config, work.rows, work.s
    H, inner = config.heads, config.heads * config.head_width
    queries, keys = B * L * inner, 2 * B * K * inner
    scores = B * H * L * K
    if work.device == "cuda":
        kept = s * (queries + keys)
        if config.positions == "rotary" or config.qk_norm:
            kept += s * (queries + keys / 2)  # turned or normalised copies beside the product's output
        if config.qk_norm and s != FP32:
            kept += FP32 * (queries + keys / 2)  # what the norms are computed from
        if learnt_bias:
            softmax = FP32 + (s if s != FP32 else 0)  # and its cast
            return kept + s * queries + scores * (softmax + ((1 + s) if config.dropout else 0))
        return kept + FP32 * B * H * L
    normed = FP32 * (queries + keys / 2) if config.qk_norm else 0
    if config.dropout:
        if learnt_bias:
            return normed + s * (2 * queries + keys) + scores * (FP32 + (s if s != FP32 else 0) + 2 * s)
        return normed + FP32 * (queries + keys + 3 * scores)
    flash = s == FP32 and not learnt_bias and not (causal and L * K > FLASH_SCORES_FP32)
    if flash or s * scores > PLAIN_ATTENTION_BYTES:
        # Copies of queries and keys; the result is laid out like such queries, and copied for the output layer.
        turned = s * (2 * queries + keys / 2) if config.positions == "rotary" or config.qk_norm else 0
        return normed + turned + s * (queries + keys) + FP32 * B * H * L
    share = 1.0
    if causal and L == K:
        step = CAUSAL_TILE[s]
        share = sum((last - max(0, last - step)) * last for last in range(L, 0, -step)) / (L * L)
    return normed + s * (queries + keys + share * scores)


def _two_streams(work: Workload) -> tuple[float, float]:
    """XLNet (`modeling.transformer_xl`): weights of both streams are kept, on any device; distances once a layer."""
    config, s, B, L = work.config, work.s, work.rows, work.length
    D, H, F, inner = config.width, config.heads, config.ff_width, config.heads * config.head_width
    T, Q = B * L, round(work.label_share * B * L)
    masks = _mask_bytes(work, s) * D if config.dropout else 0

    def attended(queries: int) -> float:
        weights = s + ((_mask_bytes(work, s) + s) if config.dropout else 0)
        return queries * (4 * s * inner + H * L * weights)

    # Of a stream: output's operand and mask, two norms' inputs, feed-forward
    forward = s * inner + 2 * masks + 2 * FP32 * D + 2 * s * D + 2 * s * F
    seen = T * (3 * s * inner + s * D) + 2 * L * s * (inner + D)
    layer = seen + attended(T) + T * forward + attended(Q) + Q * (forward + s * D)
    last = seen + attended(Q) + Q * (forward + s * D)
    embedded = T * FP32 * D * (2 if config.normalises_embeddings else 1)
    if work.checkpointing:
        return embedded + config.layers * (T + Q) * FP32 * D, layer + T * s * (F + 2 * D)
    scores = 4 * s * B * H * L * L  # positions of twice the length, and their gradient
    return embedded + (config.layers - 1) * layer + last, scores


# ---------------------------------------------------------------- heads


def _head(work: Workload) -> tuple[float, float, float]:
    """(kept, kept by the loss, its short-lived block of logits) of what stands on the trunk."""
    config, s, head = work.config, work.s, work.head
    places = work.rows * (work.target_length if work.target_length and _decodes(config) else _joint(work))
    D, E, V = config.width, config.token_width, config.padded_vocab_size
    if head["name"] == "classifier":
        return work.rows * work.length * FP32 * D, 0.0, 0.0
    if head["name"] == "discriminator":
        return places * (3 * s * D + 2 * FP32), 0.0, 0.0
    N = work.label_share * places
    kept = N * (s * D + (3 * s * E if config.head_transform else 0))
    passes = 2 if head["settings"].get("span_boundary") else 1
    width = E if config.head_transform or config.tie_embeddings else D
    loss, block = _output_loss(work, N, V, width)
    if passes == 2:
        kept += N * (3 * s * D + 4 * s * D + 4 * s * E)
    return kept, passes * loss, block


def _decodes(config: Any) -> bool:
    return bool(config.architecture == "encoder-decoder")


def _joint(work: Workload) -> int:
    return work.length + work.target_length


def _output_loss(work: Workload, N: float, V: int, width: int) -> tuple[float, float]:
    """(kept, short-lived) of `modeling.cross_entropy`.

    Few logits on a GPU are kept whole, as logarithms of probabilities; many are made and dropped block by block, and
    the gradients of states and matrix are kept.
    """
    s = work.s
    cast = V * width * s if s != FP32 else 0
    if work.device == "cuda" and FP32 * N * V <= PLAIN_LOSS_BYTES:
        return N * V * FP32 + cast, N * V * (FP32 + s)
    at_once = max(LOSS_ROWS, PLAIN_LOSS_BYTES // (FP32 * V)) if work.device == "cuda" else LOSS_ROWS
    rows = max(at_once, LOSS_KEPT_BYTES // (V * s))
    return N * width * s + V * width * FP32, cast + min(N, rows) * V * s + min(N, at_once) * V * FP32


# ---------------------------------------------------------------- before the transformer


def _lstm(work: Workload) -> Activations:
    """ELMo: of each layer and direction the input, four gates, cell (and its tanh), both outputs of every step.

    In fp32: cuDNN takes no mixed types. What cuDNN keeps is taken to be the same.
    """
    config, T = work.config, work.rows * work.length
    P, H, V = config.projection, config.hidden, config.padded_vocab_size
    layer = T * FP32 * (7 * H + 4 * P)
    kept = 2 * config.layers * (T * FP32 * 2 * P if work.checkpointing else layer)
    if work.device == "cpu" and work.s != FP32:  # torch's loop casts the projection again at every step
        kept += 2 * config.layers * work.length * 2 * P * H
    loss, block = _output_loss(work, work.label_share * T, V, P) if work.head["name"] != "classifier" else (0.0, 0.0)
    working = T * FP32 * 4 * H + (layer if work.checkpointing else 0)
    return Activations(kept, 0, round(2 * loss), round(max(working, block)))


def _word_vectors(work: Workload) -> Activations:
    """Vectors looked up and their scores; dense gradients of both tables are counted with the gradients."""
    config, T, settings = work.config, work.rows * work.length, work.head["settings"]
    D = config.width
    if work.head["name"] == "classifier":
        return Activations(T * FP32 * D, 0, 0, 0)
    if work.head["name"] == "glove":
        return Activations(T * FP32 * (2 * D + 8), 0, 0, T * FP32 * D)
    offsets, targets = 2 * int(settings.get("window", 5)) + 1, 1 + int(settings.get("negatives", 5))
    block = max(16, offsets - 1)
    around = (block + offsets - 1) / block
    kept = T * work.s * ((targets + around) * D + 4 * targets * offsets)
    return Activations(round(kept), 0, 0, round(T * FP32 * targets * (block + offsets - 1)))
