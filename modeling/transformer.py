"""One transformer for every architecture, built from `TransformerConfig`.

Queries, keys and values come from one matrix product; a padding mask is used only where there is
padding; what is not a matrix product is in `modeling.kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.architecture import PRESETS, TransformerConfig, preset
from modeling.errors import ConfigError
from modeling.kernels import attention, rms_norm, rotate

__all__ = ["PRESETS", "Attention", "Block", "FeedForward", "Transformer", "TransformerConfig", "norm_layer", "preset"]


def norm_layer(config: TransformerConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps)


class RMSNorm(nn.Module):
    """Normalises by the root mean square (Zhang and Sennrich 2019); its output is ready for a matrix product."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return rms_norm(x, self.weight, self.eps, dtype)


def rotary_turns(config: TransformerConfig) -> Tensor:
    """e^(i·p·θ_j), θ_j = base^(−2j/head_width), for position p and pair j: complex64 [max_length, head_width/2].

    Su et al. 2021 (arXiv:2104.09864), equation 34, with pairs (2j, 2j + 1) as there.
    """
    half = config.head_width // 2
    frequencies = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(config.max_length, dtype=torch.float64), frequencies)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), bidirectional."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.output = nn.Linear(config.width, config.width, bias=config.bias)
        self.query_norm = RMSNorm(config.head_width, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_width, config.norm_eps) if config.qk_norm else None

    def forward(self, x_BLD: Tensor, mask: Tensor | None, turn: Tensor | None) -> Tensor:
        B, L, D = x_BLD.shape
        q, k, v = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q, torch.float32), self.key_norm(k, torch.float32)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        out = attention(q.to(v.dtype), k.to(v.dtype), v, mask, self.dropout if self.training else 0.0)
        return self.output(out.transpose(1, 2).reshape(B, L, D))


class FeedForward(nn.Module):
    """Two linear layers around an activation, or a gated one (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        branches = 2 if config.activation.endswith("glu") else 1
        self.input = nn.Linear(config.width, branches * config.ff_width, bias=config.bias)
        self.output = nn.Linear(config.ff_width, config.width, bias=config.bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        h = self.input(x_BLD)
        if self.activation == "gelu":
            h = F.gelu(h)
        elif self.activation == "relu":
            h = F.relu(h)
        else:
            gate, value = h.chunk(2, -1)
            h = (F.gelu(gate) if self.activation == "geglu" else F.silu(gate)) * value
        return self.output(h)


class Block(nn.Module):
    """Attention and feed-forward, each with a residual; the norm before (pre) or after the sum (post)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm_placement == "pre"
        self.attention_norm, self.attention = norm_layer(config), Attention(config)
        self.ff_norm, self.ff = norm_layer(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, mask: Tensor | None, turn: Tensor | None) -> Tensor:
        if self.pre:
            x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD), mask, turn))
            return x_BLD + self.dropout(self.ff(self.ff_norm(x_BLD)))
        x_BLD = self.attention_norm(x_BLD + self.dropout(self.attention(x_BLD, mask, turn)))
        return self.ff_norm(x_BLD + self.dropout(self.ff(x_BLD)))


class Transformer(nn.Module):
    """Token ids to hidden states; heads (`modeling.heads`) stand on it.

    Raises ConfigError where the config has no vocabulary yet.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ConfigError(
                "model.vocab_size is 0: expected the tokenizer's size",
                "use config.with_vocabulary(size) before building the model",
            )
        self.config = config
        self.tokens = nn.Embedding(config.padded_vocab_size, config.width)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_length, config.width) if learned else None
        self.token_types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        # Post-norm normalises the embeddings and needs no final norm; pre-norm the other way round.
        self.norm = norm_layer(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        if config.positions == "rotary":
            # As pairs of floats: moving a module to another dtype or device keeps no complex buffers whole.
            self.register_buffer("rotary", torch.view_as_real(rotary_turns(config)), persistent=False)
        self.apply(self._init)
        if config.zero_init_residual:
            for block in self.blocks:
                nn.init.zeros_(block.attention.output.weight)
                nn.init.zeros_(block.ff.output.weight)

    def _init(self, module: nn.Module) -> None:
        init_weights(module, self.config.init_std)

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        token_type_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D].

        Args:
            input_ids_BL: int64 ids below vocab_size.
            attention_mask_BL: 1 or True where a token may be attended to; None: everywhere.
            token_type_ids_BL: segment ids; None: segment 0.
            position_ids_BL: positions; None: 0…L−1.

        Raises ConfigError for a sequence longer than max_length.
        """
        L = input_ids_BL.shape[1]
        if self.config.max_length < L:
            raise ConfigError(
                f"a sequence has {L} tokens, but model.max_length is {self.config.max_length}",
                "shorten the examples or raise model.max_length",
            )
        x_BLD = self.tokens(input_ids_BL)
        if self.positions is not None:
            x_BLD = x_BLD + (self.positions.weight[:L] if position_ids_BL is None else self.positions(position_ids_BL))
        if self.token_types is not None:
            types = self.token_types.weight[0] if token_type_ids_BL is None else self.token_types(token_type_ids_BL)
            x_BLD = x_BLD + types
        pre = self.config.norm_placement == "pre"
        x_BLD = self.dropout(x_BLD if pre else self.norm(x_BLD))
        mask = self._attention_mask(attention_mask_BL)
        turn = self._turn(L, position_ids_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, mask, turn)
        return self.norm(x_BLD) if pre else x_BLD

    @staticmethod
    def _attention_mask(attention_mask_BL: Tensor | None) -> Tensor | None:
        """[B, 1, 1, L] bool, or None where nothing is masked: attention without a mask is faster.

        Looking at the values would stall a GPU's queue, so there the mask is used as given.
        """
        if attention_mask_BL is None or (attention_mask_BL.device.type == "cpu" and bool(attention_mask_BL.all())):
            return None
        return attention_mask_BL.bool()[:, None, None, :]

    def _turn(self, length: int, position_ids_BL: Tensor | None) -> Tensor | None:
        if self.config.positions != "rotary":
            return None
        turns = torch.view_as_complex(self.rotary)
        return turns[:length] if position_ids_BL is None else turns[position_ids_BL][:, None]


def init_weights(module: nn.Module, std: float) -> None:
    """Normal(0, std) for matrices, zero for biases.

    BERT's code cuts the normal at two deviations, which changes nothing measurable and takes minutes for
    large models.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
