"""near-duplicates: one of the documents that say almost the same stays; or all stay in the same split.

Workers sign documents (`minhash`). An exchange brings the documents together of which a band of values agrees
(`exchange`: on Ray Data), the stage's process compares their signatures and joins those that are similar into clusters.
Of a cluster the document with the smallest digest of its text stays: that depends neither on the order of the corpus
nor on documents outside the cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from tasks.base import Context
from tasks.cleaning.base import CorpusStep, Documents, Verdict
from tasks.cleaning.clusters import Ints
from tasks.cleaning.exchange import HERE_BYTES, exchange
from tasks.cleaning.minhash import Banding, buckets, choose_banding, signatures
from tasks.cleaning.near_search import Records, Search, signatures_of
from tasks.cleaning.settings_corpus import NearDuplicatesSettings
from tasks.cleaning.words import grams, word_hashes


class NearDuplicates(CorpusStep):
    """See the module. Documents without a word (`words`) are nobody's duplicate."""

    folder = "minhash"
    here_bytes = HERE_BYTES

    settings: NearDuplicatesSettings

    @property
    def banding(self) -> Banding:
        """Bands and rows, given or chosen."""
        chosen = self.settings
        if chosen.bands:
            return Banding(chosen.bands, chosen.rows)
        return choose_banding(chosen.values, chosen.threshold, chosen.miss_weight)

    def sign(self, documents: Documents) -> pa.Table:
        """document, digest of the text (uint64), validation, signature (2 bytes a value), shingles (list of uint32).

        The shingles, hashes of 32 bits in no order, are empty lists where estimates are trusted.
        """
        shingles = grams(word_hashes(documents.texts), self.settings.shingle_words, short=True)
        signed = signatures(shingles, self.settings.values)
        there = np.flatnonzero(np.diff(shingles.offsets))
        digests = [_digest(documents.texts[n]) for n in there.tolist()]
        width = 2 * self.settings.values
        if self.settings.verify == "shingles":
            hashes, offsets = (shingles.hashes >> np.uint64(32)).astype(np.uint32), shingles.offsets[[0, *(there + 1)]]
        else:
            hashes, offsets = np.empty(0, np.uint32), np.zeros(len(there) + 1, np.int64)
        packed = pa.py_buffer(signed[there].astype("<u2").tobytes())
        return pa.table(
            {
                "document": pa.array((there + documents.first).astype(np.uint64)),
                "digest": pa.array(digests, pa.uint64()),
                "validation": pa.array(np.asarray(documents.validation, dtype=bool)[there]),
                "signature": pa.Array.from_buffers(pa.binary(width), len(there), [None, packed]),
                "shingles": pa.LargeListArray.from_arrays(offsets, hashes),
            }
        )

    def decide(self, signatures: Iterable[pa.Table], ctx: Context) -> NearDuplicatesFound:
        """Find the clusters.

        Raises:
            Cancelled: the run was asked to stop.
        """
        folder = ctx.work / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        with closing(Records(folder, self.settings.values)) as records:
            search = Search(records, self.settings.threshold, exact=self.settings.verify == "shingles")
            found = exchange(
                ctx,
                records.kept(signatures),
                partial(in_buckets, self.banding),
                together,
                folder / "buckets",
                here_bytes=self.here_bytes,
            )
            with closing(found):
                for groups in found:
                    search.compare(groups)
            return self._chosen(search, records)

    def _chosen(self, search: Search, records: Records) -> NearDuplicatesFound:
        search.clusters.grow(records.documents)
        documents, roots = search.clusters.members()
        digests, validation = records.facts(documents)
        order = np.lexsort((documents, digests, roots))
        first = np.ones(len(order), dtype=bool)
        first[1:] = np.diff(roots[order]) != 0
        sizes = np.diff(np.append(np.flatnonzero(first), len(order)))
        chosen = order[np.repeat(np.flatnonzero(first), sizes)]  # of each in `order`: the place of who stays
        stays, split = np.empty(len(order), dtype=bool), np.empty(len(order), dtype=bool)
        stays[order], split[order] = chosen == order, validation[chosen]
        banding = self.banding
        facts = {
            "bands": banding.bands,
            "rows": banding.rows,
            "found_at_threshold": round(banding.found(self.settings.threshold), 4),
            "clusters": len(sizes),
            "documents_in_clusters": len(documents),
            "largest_cluster": int(sizes.max()) if len(sizes) else 0,
            "clusters_across_splits": _mixed_clusters(roots, validation),
            "candidate_pairs": search.pairs,
            "buckets_too_large_for_all_pairs": search.hubs,
        }
        return NearDuplicatesFound(facts, self.settings.action, documents, stays, split)


class NearDuplicatesFound:
    """Who is in a cluster: documents [M] in order, whether each stays, and whether who stays is for validation."""

    def __init__(
        self, facts: Mapping[str, Any], action: str, documents: Ints, stays: np.ndarray, validation: np.ndarray
    ) -> None:
        self.facts = facts
        self.action, self.documents, self.stays, self.validation = action, documents, stays, validation

    def slice(self, first: int, count: int) -> NearDuplicatesFound:
        part = slice(*np.searchsorted(self.documents, (first, first + count)).tolist())
        return NearDuplicatesFound(
            {}, self.action, self.documents[part], self.stays[part].copy(), self.validation[part].copy()
        )

    def verdicts(self, documents: Documents) -> list[Verdict]:
        out = [Verdict(text) for text in documents.texts]
        for number, stays, validation in zip(
            (self.documents - documents.first).tolist(), self.stays.tolist(), self.validation.tolist(), strict=True
        ):
            if self.action == "drop":
                if not stays:
                    out[number] = Verdict(None, "near duplicate")
                continue
            split = "validation" if validation else "train"
            moved = bool(documents.validation[number]) != validation
            reason = f"moved to {split}, where its near duplicate is" if moved else ""
            out[number] = Verdict(documents.texts[number], reason, {"near duplicate kept": 1}, split if moved else "")
        return out


def _digest(text: str) -> int:
    """Another than the one that splits are drawn by: the smallest of a cluster would mostly be held out."""
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(raw, digest_size=8, person=b"near-duplicates").digest(), "big")


def _mixed_clusters(roots: Ints, validation: np.ndarray) -> int:
    """Clusters with documents of both splits."""
    return len(np.intersect1d(roots[validation], roots[~validation]))


# ---------------------------------------------------------------- in workers of the exchange


def in_buckets(banding: Banding, table: pa.Table) -> pa.Table:
    """A row for each band of each document: key (the bucket), document, digest."""
    keys = buckets(signatures_of(table), banding)
    columns = {"key": keys.reshape(-1)}
    for name in ("document", "digest"):
        columns[name] = np.repeat(table.column(name).to_numpy(), banding.bands)
    return pa.table(columns)


def together(rows: pa.Table) -> pa.Table:
    """The rows of buckets with more than one document, by bucket, digest and document."""
    keys, digests, documents = (rows.column(name).to_numpy() for name in ("key", "digest", "document"))
    order = np.lexsort((documents, digests, keys))
    keys = keys[order]
    same = keys[1:] == keys[:-1]
    more = np.zeros(len(keys), dtype=bool)
    more[1:] |= same
    more[:-1] |= same
    return pa.table({"key": keys[more], "document": documents[order][more]})
