"""Which share of the positions has a label, by objective: what planning needs to count FLOPs and memory.

Expected values; what a batch really has is drawn.
"""

from __future__ import annotations

from tasks.objectives.settings import (
    Masked,
    ObjectiveSettings,
    Permutation,
    Prefix,
    ReplacedTokens,
)


def label_share(objective: ObjectiveSettings, length_tokens: int, architecture: str) -> float:
    """Labelled positions / positions at which labels may stand: the decoder's of an encoder-decoder, or the row's."""
    if isinstance(objective, Masked | ReplacedTokens):
        most = objective.max_predictions / length_tokens if objective.max_predictions else 1.0
        return min(objective.mask_rate, most)
    if isinstance(objective, Permutation):
        return objective.target_share
    if architecture == "encoder-decoder" or not objective.paired:
        return 1.0
    if isinstance(objective, Prefix):  # the row is cut at a place drawn evenly
        return 1 - (objective.least_share + objective.most_share) / 2
    return objective.lengths(length_tokens)[1] / objective.joint_length(length_tokens)
