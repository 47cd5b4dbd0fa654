"""Keys and values of the tokens that are already there, so that generating one more costs one token's work."""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """One attention layer's keys and values, [B, H, T, head size] each, in buffers that grow by doubling."""

    def __init__(self) -> None:
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(self, k_BHLd: Tensor, v_BHLd: Tensor) -> tuple[Tensor, Tensor]:
        """Add L tokens; returns all keys and values so far."""
        first, last = self.length, self.length + k_BHLd.shape[2]
        if self._buffers is None or last > self._buffers[0].shape[2]:
            B, H, _, d = k_BHLd.shape
            grown = tuple(new.new_empty(B, H, max(64, 2 * last), d) for new in (k_BHLd, v_BHLd))
            if self._buffers is not None:
                for to, old in zip(grown, self._buffers, strict=True):
                    to[:, :, :first] = old[:, :, :first]
            self._buffers = (grown[0], grown[1])
        keys, values = self._buffers
        keys[:, :, first:last], values[:, :, first:last] = k_BHLd, v_BHLd
        self.length = last
        return keys[:, :, :last], values[:, :, :last]

    def reorder(self, rows_B: Tensor) -> None:
        """Row b becomes what row rows_B[b] was (beam search); the number of rows may change."""
        if self._buffers is not None:
            self._buffers = (self._buffers[0].index_select(0, rows_B), self._buffers[1].index_select(0, rows_B))


class Cache:
    """Caches of a decoder's layers: over itself, and over the encoder's states (computed once)."""

    def __init__(self, layers: int) -> None:
        self.own = [LayerCache() for _ in range(layers)]
        self.cross: list[Tensor | None] = [None] * layers

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.own[0].length

    def reorder(self, rows_B: Tensor) -> None:
        """See `LayerCache.reorder`; the encoder's keys and values too."""
        for layer in self.own:
            layer.reorder(rows_B)
        self.cross = [None if pair is None else pair.index_select(1, rows_B) for pair in self.cross]
