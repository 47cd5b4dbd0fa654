"""One transformer for every architecture, built from `TransformerConfig`.

A `Stack` is embeddings and blocks. Encoder, decoder and prefix LM have one and differ in who may look at whom
(`modeling.masks`); an encoder-decoder has two, and the second also attends to the first's states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modeling.architecture import PRESETS, TransformerConfig, preset
from modeling.blocks import Block, CrossAttention, norm_layer, take
from modeling.cache import Cache
from modeling.errors import ConfigError
from modeling.masks import EVERYTHING, Visibility, cross_visibility, self_visibility
from modeling.positions import near_bias, relative_bucket, rotary_turns

__all__ = ["PRESETS", "Stack", "Transformer", "TransformerConfig", "init_weights", "norm_layer", "preset"]


class Stack(nn.Module):
    """Embedded tokens to hidden states: positions, segments and norm of the embeddings, blocks, final norm.

    Args:
        layers: blocks to run through.
        causal: a token sees those before it only.
        cross: each block also attends to another stack's states.
        own_blocks: False for a stack that is lent another one's blocks.
    """

    def __init__(
        self, config: TransformerConfig, layers: int, *, causal: bool, cross: bool = False, own_blocks: bool = True
    ) -> None:
        super().__init__()
        self.config, self.layers = config, layers
        # A prefix sees itself whole, so its distances have two directions (T5's code: unless "fully autoregressive").
        self.two_directions = not causal or config.architecture == "prefix-lm"
        E = config.token_width
        rows = config.max_length + config.position_offset
        self.positions = nn.Embedding(rows, E) if config.positions == "learned" else None
        self.token_types = nn.Embedding(config.token_types, E) if config.token_types else None
        self.embedding_norm = norm_layer(config, E) if config.normalises_embeddings else None
        self.project = nn.Linear(E, config.width) if config.embedding_width not in (0, config.width) else None
        self.relative = nn.Embedding(config.relative_buckets, config.heads) if config.positions == "relative" else None
        distinct = (1 if config.share_layers else layers) if own_blocks else 0
        self.blocks = nn.ModuleList(Block(config) for _ in range(distinct))
        self.cross = nn.ModuleList(CrossAttention(config) for _ in range(layers)) if cross else None
        # Post-norm has normalised the last sum already.
        self.final_norm = norm_layer(config) if config.norm_placement == "pre" else None
        self.dropout = nn.Dropout(config.dropout)
        if config.positions == "rotary":
            # As pairs of floats: moving a module to another dtype or device keeps no complex buffers whole.
            self.register_buffer("rotary", torch.view_as_real(rotary_turns(config)), persistent=False)

    def forward(
        self,
        x_BLE: Tensor,
        visible: Visibility,
        *,
        token_type_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        cache: Cache | None = None,
        memory_BLD: Tensor | None = None,
        over: Visibility = EVERYTHING,
        blocks: nn.ModuleList | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] of embedded tokens; `memory_BLD` and `over`: the encoder's states and their mask.

        With `at`: states [N, D] of these places of B·L only, with which the last block is spared the others.
        """
        L, past = x_BLE.shape[1], cache.length if cache is not None else 0
        if self.config.max_length < past + L:
            raise ConfigError(
                f"a sequence has {past + L} tokens, but model.max_length is {self.config.max_length}",
                "shorten the examples or raise model.max_length",
            )
        x = self._embed(x_BLE, past, token_type_ids_BL, position_ids_BL)
        turn = self._turn(past, L, position_ids_BL)
        bias = self._bias(past, L, x.device)
        blocks = self.blocks if blocks is None else blocks
        for n in range(self.layers):
            reached = None
            if self.cross is not None and memory_BLD is not None:
                layer = self.cross[n]
                pair = cache.cross[n] if cache is not None else None
                if pair is None:
                    pair = layer.keys_and_values(memory_BLD)
                if cache is not None:
                    cache.cross[n] = pair
                reached = (layer, pair, over)
            own = cache.own[n] if cache is not None else None
            x = blocks[n % len(blocks)](x, visible, turn, bias, own, reached, at if n == self.layers - 1 else None)
        return x if self.final_norm is None else self.final_norm(x)

    def _embed(
        self, x_BLE: Tensor, past: int, token_type_ids_BL: Tensor | None, position_ids_BL: Tensor | None
    ) -> Tensor:
        if self.positions is not None:
            first = self.config.position_offset + past
            if position_ids_BL is None:
                x_BLE = x_BLE + self.positions.weight[first : first + x_BLE.shape[1]]
            else:
                x_BLE = x_BLE + self.positions(position_ids_BL + self.config.position_offset)
        if self.token_types is not None:
            types = self.token_types.weight[0] if token_type_ids_BL is None else self.token_types(token_type_ids_BL)
            x_BLE = x_BLE + types
        if self.embedding_norm is not None:
            x_BLE = self.embedding_norm(x_BLE)
        x_BLE = self.dropout(x_BLE)
        return x_BLE if self.project is None else self.project(x_BLE)

    def _turn(self, past: int, length: int, position_ids_BL: Tensor | None) -> Tensor | None:
        if self.config.positions != "rotary":
            return None
        turns = torch.view_as_complex(self.rotary.float())  # a model cast to bfloat16 has them so too
        return turns[past : past + length] if position_ids_BL is None else turns[position_ids_BL][:, None]

    def first_bias(self) -> Tensor:
        """What `relative_init` near begins with, [buckets, H]."""
        config = self.config
        return near_bias(config.relative_buckets, config.relative_max_distance, config.heads, self.two_directions)

    def _bias(self, past: int, length: int, device: torch.device) -> Tensor | None:
        """[1, H, Lq, Lk]: what each head adds to the score of a key at some distance from the query."""
        if self.relative is None:
            return None
        keys = torch.arange(past + length, device=device)
        config = self.config
        bucket = relative_bucket(
            keys[None, :] - keys[past:, None],
            config.relative_buckets,
            config.relative_max_distance,
            bidirectional=self.two_directions,
        )
        return self.relative(bucket).permute(2, 0, 1)[None]


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
        self.tokens = nn.Embedding(config.padded_vocab_size, config.token_width)
        self.encoder: nn.Module | None = None
        self.decoder: Stack | None = None
        if config.positions == "transformer-xl":
            from modeling.transformer_xl import RelativeStack

            self.encoder = RelativeStack(config)
        elif config.architecture in ("encoder", "encoder-decoder"):
            self.encoder = Stack(config, config.layers, causal=False)
        if config.architecture == "encoder-decoder":
            layers = config.decoder_layers or config.layers
            self.decoder = Stack(config, layers, causal=True, cross=True, own_blocks=not config.share_stacks)
        elif config.architecture in ("decoder", "prefix-lm"):
            self.decoder = Stack(config, config.layers, causal=True)
        self.reset()

    def reset(self) -> None:
        """Draw the weights anew, as the config says."""
        config = self.config
        for name, module in self.named_modules():
            if config.init == "fan-in":
                _init_fan_in(name, module, config)
            else:
                init_weights(module, config.init_std)
        with torch.no_grad():
            self.tokens.weight[config.vocab_size :].zero_()  # never an input, never predicted
            for stack in (self.encoder, self.decoder):
                if isinstance(stack, Stack) and stack.relative is not None and config.relative_init == "near":
                    stack.relative.weight.copy_(stack.first_bias())
            for name, parameter in self.named_parameters():
                if name.endswith("output.weight") and (".blocks." in name or ".cross." in name):
                    if config.zero_init_residual:
                        parameter.zero_()
                    elif config.scaled_init_residual:
                        parameter.mul_((2 * config.depth) ** -0.5)

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        token_type_ids_BL: Tensor | None = None,
        position_ids_BL: Tensor | None = None,
        *,
        segment_ids_BL: Tensor | None = None,
        prefix_mask_BL: Tensor | None = None,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] of the one stack, or of the encoder; with `at` [N, D], of these places of B·L.

        Args:
            input_ids_BL: int64 ids below vocab_size.
            attention_mask_BL: 1 or True where a token may be attended to, [B, L] (with a cache: [B, past + L]);
                None: everywhere.
            token_type_ids_BL: segment embeddings' ids; None: 0.
            position_ids_BL: positions; None: 0…L−1.
            segment_ids_BL: tokens of different numbers do not see each other (documents packed into one row).
            prefix_mask_BL: prefix LM: True on the part that every token sees.
            cache: of a decoder: the tokens before these; these are added to it.
            at: int64 [N]; not for positions transformer-xl.

        Raises ConfigError for a sequence longer than max_length.
        """
        stack = self.encoder if self.encoder is not None else self.decoder
        assert stack is not None
        if self.encoder is not None and cache is not None:
            raise ConfigError(f"a cache needs a decoder, found {self.config.architecture}", "use decode()")
        visible = self_visibility(
            input_ids_BL.shape[1],
            causal=self.encoder is None,
            device=input_ids_BL.device,
            attention_mask_BL=attention_mask_BL,
            segment_ids_BL=segment_ids_BL,
            prefix_mask_BL=prefix_mask_BL,
            past=cache.length if cache is not None else 0,
        )
        more: dict[str, Any] = {} if cache is None else {"cache": cache}
        if at is not None:
            more["at"] = at
        return stack(
            self.tokens(input_ids_BL),
            visible,
            token_type_ids_BL=token_type_ids_BL,
            position_ids_BL=position_ids_BL,
            **more,
        )

    def decode(
        self,
        decoder_input_ids_BL: Tensor,
        memory_BLD: Tensor,
        attention_mask_BL: Tensor | None = None,
        decoder_attention_mask_BL: Tensor | None = None,
        *,
        segment_ids_BL: Tensor | None = None,
        decoder_segment_ids_BL: Tensor | None = None,
        decoder_position_ids_BL: Tensor | None = None,
        cache: Cache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] of an encoder-decoder's second stack; with `at` [N, D], of these places of B·L.

        Args:
            memory_BLD: `forward`'s states of the inputs; attention_mask_BL, segment_ids_BL: those of the inputs.
            decoder_…: as their namesakes of `forward`.
        """
        if self.encoder is None or self.decoder is None:
            raise ConfigError(f"decode needs architecture encoder-decoder, found {self.config.architecture}")
        visible = self_visibility(
            decoder_input_ids_BL.shape[1],
            causal=True,
            device=decoder_input_ids_BL.device,
            attention_mask_BL=decoder_attention_mask_BL,
            segment_ids_BL=decoder_segment_ids_BL,
            past=cache.length if cache is not None else 0,
        )
        return self.decoder(
            self.tokens(decoder_input_ids_BL),
            visible,
            position_ids_BL=decoder_position_ids_BL,
            cache=cache,
            memory_BLD=memory_BLD,
            over=cross_visibility(attention_mask_BL, segment_ids_BL, decoder_segment_ids_BL),
            blocks=self.encoder.blocks if self.config.share_stacks else None,
            at=at,
        )

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take the trunk out of a saved model's state dict, whatever its head.

        Raises ConfigError where a weight is missing or of another shape.
        """
        prefix = "transformer."
        found = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for name, value in self.state_dict().items():
            if name not in found or found[name].shape != value.shape:
                shape = tuple(found[name].shape) if name in found else "nothing"
                raise ConfigError(f"{name} is {shape}, the model expects {tuple(value.shape)}")
        self.load_state_dict(found)

    def new_cache(self) -> Cache:
        """An empty cache for the decoder."""
        if self.decoder is None:
            raise ConfigError(f"a cache needs a decoder, found architecture {self.config.architecture}")
        return Cache(self.decoder.layers)


def hidden_states(transformer: nn.Module, batch: dict[str, Tensor], at: Tensor | None = None) -> Tensor:
    """Hidden states [B, L, D] where a batch's labels stand: at the decoder's tokens if there are two stacks.

    With `at`: states [N, D] of these places of B·L only.

    Rows are padded at their end, where a causal stack needs no mask for it.
    """
    config = transformer.config
    causal = config.architecture == "decoder"
    more = {}
    if "segment_ids" in batch:
        more["segment_ids_BL"] = batch["segment_ids"]
    if config.architecture == "prefix-lm" and "prefix_mask" in batch:
        more["prefix_mask_BL"] = batch["prefix_mask"]
    decodes = config.architecture == "encoder-decoder" and "decoder_input_ids" in batch
    later = at is not None and (decodes or config.positions == "transformer-xl")
    if at is not None and not later:
        more["at"] = at
    hidden_BLD = transformer(
        batch["input_ids"],
        None if causal else batch.get("attention_mask"),
        batch.get("token_type_ids"),
        batch.get("position_ids"),
        **more,
    )
    if not decodes:
        return take(hidden_BLD, at if later else None)
    return transformer.decode(
        batch["decoder_input_ids"],
        hidden_BLD,
        batch.get("attention_mask"),
        segment_ids_BL=batch.get("segment_ids"),
        decoder_segment_ids_BL=batch.get("decoder_segment_ids"),
        decoder_position_ids_BL=batch.get("decoder_position_ids"),
        at=at,
    )


def init_weights(module: nn.Module, std: float) -> None:
    """Normal(0, std) for matrices, zero for biases.

    BERT's code cuts the normal at two deviations, which changes nothing measurable and takes minutes for
    large models.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _init_fan_in(name: str, module: nn.Module, config: TransformerConfig) -> None:
    """1/√inputs for matrices, so that scores need no scaling; queries by 1/√head size more (T5's released code)."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=config.width**-0.5 if name.endswith("relative") else 1.0)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        inner = config.heads * config.head_width
        with torch.no_grad():
            if name.endswith("qkv"):
                module.weight[:inner].mul_(config.head_width**-0.5)
            elif name.endswith("query"):
                module.weight.mul_(config.head_width**-0.5)
