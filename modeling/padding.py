"""Batches without the padding that all of their rows end with, and without masks that hide nothing.

Rows are as long as the longest may be; a micro-batch needs no more than its own longest has. What a mask hides
changes nothing, so the loss is the same but for the order of sums. A mask that hides nothing has a price on a GPU,
where nobody looks at it: its fastest attention kernels take none.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

ONE_SIDE = (
    "input_ids", "attention_mask", "labels", "token_type_ids", "segment_ids", "position_ids", "prefix_mask",
    "original_ids", "uniforms",
)  # fmt: skip
DECODER_SIDE = (
    "decoder_input_ids", "decoder_attention_mask", "labels", "decoder_segment_ids", "decoder_position_ids",
)  # fmt: skip
TURNED_SIDE = ("turned_input_ids", "turned_attention_mask", "turned_token_type_ids")
MASKS = ("attention_mask", "decoder_attention_mask", "turned_attention_mask")
OF_ROWS = ("pair_labels",)
"""[B]: nothing to cut."""
MULTIPLE = 8
"""Lengths are rounded up to it: kernels like that, and there are fewer different ones."""


def trimmed(batch: dict[str, Tensor], rows: Mapping[str, np.ndarray], multiple: int = MULTIPLE) -> dict[str, Tensor]:
    """The batch with each side's columns cut after the last that a row's attention mask shows.

    A mask that then shows all goes, too. Labels of whole rows, [B], stay, and with them masks, which say over what
    states are averaged. A batch with other keys than the objectives' of tokens (word vectors, permutations) is left as
    it is, and so is a side without a mask.

    Args:
        batch: on any device.
        rows: the same on the host, or its masks alone: looking at a GPU's would stall its queue.
        multiple: of which lengths are.
    """
    two = "decoder_input_ids" in batch
    sides = [("attention_mask", tuple(name for name in ONE_SIDE if not (two and name == "labels")))]
    if two:
        sides.append(("decoder_attention_mask", DECODER_SIDE))
    if "turned_input_ids" in batch:
        sides.append(("turned_attention_mask", TURNED_SIDE))
    if not set(batch) <= {*OF_ROWS, *(name for _, names in sides for name in names)}:
        return batch
    out = dict(batch)
    for mask, names in sides:
        if mask not in rows:
            continue
        length = _shown(rows[mask], multiple)
        if length < rows[mask].shape[1]:
            out |= {name: batch[name][:, :length] for name in names if name in batch and batch[name].dim() > 1}
        if rows[mask][:, :length].all() and "labels" in batch and batch["labels"].dim() > 1:
            out.pop(mask, None)
    return out


def _shown(mask_BL: np.ndarray, multiple: int) -> int:
    """Columns up to the last that any row shows, rounded up; at least one."""
    columns = np.flatnonzero(mask_BL.any(0))
    last = int(columns[-1]) + 1 if len(columns) else 1
    return -(-last // multiple) * multiple
