"""Which digests were seen before, in 16 bytes each: sorted runs that are merged as they grow."""

from __future__ import annotations

from typing import Any


class Seen:
    """A growing set of 16-byte digests, asked for a batch at a time.

    Runs of like size are merged (a log-structured merge tree), so n digests cost O(n log n) time in all and no more
    than twice their own bytes while two runs become one. A Python set would take about 110 bytes for each.
    """

    def __init__(self) -> None:
        self.runs: list[Any] = []
        """Sorted arrays of records (high, low: uint64), each at least twice as long as the next."""

    def first(self, digests: Any) -> Any:
        """Whether each digest is the first of its kind, here and in all calls before; adds them.

        Args:
            digests: an Arrow chunked array of 16-byte binaries, without nulls.

        Returns:
            A NumPy array of bool [N].
        """
        import numpy as np

        raw = b"".join(digests.to_pylist())
        pairs = np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: of equal ones the first stays first
        high, low = pairs[order, 0], pairs[order, 1]
        new = np.ones(len(order), bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        for run_high, run_low in self.runs:
            at = np.searchsorted(run_high, high)
            # high halves are equal by chance once in 2**64 pairs: what follows is a step at most
            while len(check := np.flatnonzero(new & (at < len(run_high)))):
                check = check[run_high[at[check]] == high[check]]
                if not len(check):
                    break
                same = run_low[at[check]] == low[check]
                new[check[same]] = False
                at[check[~same]] += 1
                if same.all():
                    break
        if new.any():
            self.runs.append((high[new], low[new]))
            while len(self.runs) > 1 and len(self.runs[-2][0]) < 2 * len(self.runs[-1][0]):
                self._merge()
        result = np.empty(len(order), bool)
        result[order] = new
        return result

    def _merge(self) -> None:
        import numpy as np

        (high, low), (more_high, more_low) = self.runs[-2:]
        high, low = np.concatenate((high, more_high)), np.concatenate((low, more_low))
        order = np.argsort(high, kind="stable")
        self.runs[-2:] = [(high[order], low[order])]
