"""Who may look at whom: attention masks of every architecture, from what a batch says."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Visibility(NamedTuple):
    """What a query may attend to.

    Attributes:
        allowed: bool, broadcasts to [B, 1, Lq, Lk]; None: everything (or everything before, if causal).
        causal: a key after the query is hidden, which `allowed` then says too, if it is given: kernels have a
            faster way for it.
    """

    allowed: Tensor | None = None
    causal: bool = False


EVERYTHING = Visibility()


def self_visibility(
    length: int,
    *,
    causal: bool,
    device: torch.device,
    attention_mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    prefix_mask_BL: Tensor | None = None,
    past: int = 0,
) -> Visibility:
    """Of a sequence over itself.

    Args:
        length: queries; with a cache they are the last `length` of past + length keys.
        attention_mask_BL: 1 or True where a key may be attended to, [B, past + length].
        segment_ids_BL: equal numbers see each other: documents packed into one row.
        prefix_mask_BL: True where every query may look, also earlier ones: the prefix of a prefix LM.
    """
    padding = key_mask(attention_mask_BL)
    if causal and length == 1 and segment_ids_BL is None:
        return Visibility(padding)  # a single last query sees all keys
    # At a row's end padding is out of sight of all that matters, so a causal row needs no mask for it; but
    # a row may also begin with padding (generation), which the mask must hide.
    if not causal or segment_ids_BL is not None or prefix_mask_BL is not None or past or padding is not None:
        allowed = padding
        if causal:
            keys = torch.arange(past + length, device=device)
            before = keys[None, :] <= keys[past:, None]
            if prefix_mask_BL is not None:
                before = before | prefix_mask_BL.bool()[:, None, None, :]
            allowed = before if allowed is None else before & allowed
        if segment_ids_BL is not None:
            same = segment_ids_BL[:, None, past:, None] == segment_ids_BL[:, None, None, :]
            allowed = same if allowed is None else same & allowed
        return Visibility(allowed, causal=causal and prefix_mask_BL is None and not past)
    return Visibility(causal=True)


def cross_visibility(
    attention_mask_BL: Tensor | None, segment_ids_BL: Tensor | None = None, decoder_segment_ids_BL: Tensor | None = None
) -> Visibility:
    """Of a decoder over the encoder's states: all but padding, and in packed rows the same document only."""
    allowed = key_mask(attention_mask_BL)
    if segment_ids_BL is not None and decoder_segment_ids_BL is not None:
        same = decoder_segment_ids_BL[:, None, :, None] == segment_ids_BL[:, None, None, :]
        allowed = same if allowed is None else same & allowed
    return Visibility(allowed)


def key_mask(attention_mask_BL: Tensor | None) -> Tensor | None:
    """[B, 1, 1, L] bool, or None where nothing is masked: attention without a mask is faster.

    Looking at the values would stall a GPU's queue, so there the mask is used as given.
    """
    if attention_mask_BL is None or (attention_mask_BL.device.type == "cpu" and bool(attention_mask_BL.all())):
        return None
    return attention_mask_BL.bool()[:, None, None, :]
