"""Union-find over all documents of a corpus, on arrays: 8 bytes a document."""

from __future__ import annotations

from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Clusters:
    """Documents 0 … n - 1, each alone at first. Which clusters result does not depend on the order of joining."""

    def __init__(self) -> None:
        self.parent: Ints = np.empty(0, dtype=np.int64)

    def grow(self, documents: int) -> None:
        """Make room for documents 0 … `documents` - 1."""
        if documents > len(self.parent):
            self.parent = np.concatenate([self.parent, np.arange(len(self.parent), documents)])

    def roots(self, documents: Ints) -> Ints:
        """The smallest document of each one's cluster: int64 [M]."""
        at = documents
        while True:
            up = self.parent[at]
            if np.array_equal(up, at):
                break
            at = up
        self.parent[documents] = at  # the next look-up is one step
        return at

    def join(self, left: Ints, right: Ints) -> None:
        """Put left[i] and right[i] into one cluster, for every i."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
            # of several that claim a root, the smallest gets it; the others come again
            np.minimum.at(self.parent, high, low)
            left, right = low, high

    def members(self) -> tuple[Ints, Ints]:
        """(documents, roots) of all clusters of more than one, in order of documents."""
        everyone = np.arange(len(self.parent))
        roots = self.roots(everyone)
        joined = np.zeros(len(roots), dtype=bool)
        apart = roots != everyone
        joined[apart] = joined[roots[apart]] = True
        documents = np.flatnonzero(joined)
        return documents, roots[documents]
