"""Writing a corpus artifact: documents in, Parquet shards of each split out, with their counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARD_BYTES = 64 << 20  # of text per Parquet shard
ROW_GROUP_BYTES = 8 << 20  # of text per row group: what a reader holds at a time


class Shards:
    """Parquet shards of about `SHARD_BYTES` of text per split; row groups and shards end where the text says.

    splits: {"train" | "validation": {"documents", "bytes" of UTF-8 text, "shards"}} of what was written so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits = {name: {"documents": 0, "bytes": 0, "shards": 0} for name in ("train", "validation")}
        self.held: dict[str, list[Any]] = {"train": [], "validation": []}
        self.held_bytes = {"train": 0, "validation": 0}
        self.in_shard = {"train": 0, "validation": 0}
        self.files: dict[str, Any] = {}

    def write(self, table: Any) -> None:
        """Take documents: columns id, text, source, meta (strings), validation (bool); others are left out.

        What is written depends on how the documents are cut into tables only through their row groups, so give
        tables that are the same on every run.
        """
        import pyarrow.compute as pc

        chosen = table.column("validation")
        kept = table.select(["id", "text", "source", "meta"])
        for split, mask in (("train", pc.invert(chosen)), ("validation", chosen)):
            rows = kept.filter(mask)
            if not len(rows):
                continue
            size = pc.sum(pc.binary_length(rows.column("text"))).as_py()
            self.splits[split]["documents"] += len(rows)
            self.splits[split]["bytes"] += size
            self.held[split].append(rows)
            self.held_bytes[split] += size
            if self.held_bytes[split] >= ROW_GROUP_BYTES:
                self._flush(split)

    def _flush(self, split: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.held[split]:
            return
        rows = pa.concat_tables(self.held[split]).combine_chunks()
        if split not in self.files:
            number = self.splits[split]["shards"]
            self.files[split] = pq.ParquetWriter(
                self.folder / f"{split}-{number:05d}.parquet",
                rows.schema,
                version="2.6",
                compression="zstd",
                compression_level=3,
                use_dictionary=["source"],
                write_statistics=False,
            )
            self.splits[split]["shards"] += 1
        self.files[split].write_table(rows, row_group_size=len(rows))
        self.in_shard[split] += self.held_bytes[split]
        self.held[split], self.held_bytes[split] = [], 0
        if self.in_shard[split] >= SHARD_BYTES:
            self._end_shard(split)

    def _end_shard(self, split: str) -> None:
        if split in self.files:
            self.files.pop(split).close()
            self.in_shard[split] = 0

    def close(self) -> None:
        """Write what is held; without it the last documents are missing."""
        for split in self.splits:
            self._flush(split)
            self._end_shard(split)
