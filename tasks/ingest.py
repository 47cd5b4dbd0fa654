"""Ingest: documents from files or from the installed libraries, deduplicated, split, and stored as Parquet.

Parts of the source (files, or bundles of modules) are read in parallel; their documents are joined in
order by one process that drops duplicates and writes the shards. So memory is bounded by a few batches
plus 16 bytes of digest per document, and the shards are the same on any number of workers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from cluster.files import COMPRESSION_SUFFIXES, base_name, is_remote, local_path, split_list
from cluster.parallel import flat_map_ordered
from tasks.base import Context, Task
from tasks.sources import SOURCES
from tasks.sources.base import Part, ReadOptions, Tally, check_bad

if TYPE_CHECKING:
    from pathlib import Path

SHARD_BYTES = 64 << 20  # of text per Parquet shard
ROW_GROUP_BYTES = 8 << 20  # of text per row group: what a reader holds at a time
_BATCH_BYTES = 4 << 20  # of text per batch between a reading worker and the writer

_SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "text", ".tokens": "text", ".raw": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip


class Ingest(Task):
    """Read a corpus. The artifact is described in `docs/architecture.md` (kind `corpus`)."""

    produces: ClassVar[str] = "corpus"
    stage: ClassVar[str] = "ingest"

    # The place is not the identity: the key covers what `external` says of the content.
    source: str | tuple[str, ...] = Field(
        "installed-docs",
        description="installed-docs; or files: a path, URL, glob, folder, or a comma list of these",
        json_schema_extra={"identity": False},
    )
    format: Annotated[str, SOURCES] = Field("auto", description="the reader; auto goes by the files' suffix")
    text_field: str = Field("text", description="the field or column that holds the text")
    documents: Literal["auto", "blank-line", "line", "file"] = Field(
        "auto", description="what separates documents in plain text; see tasks/sources/text.py"
    )
    validation_share: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share held out, drawn by content hash; by module for installed-docs, where 0.1 is the default",
    )
    min_document_chars: int = Field(1, ge=0, description="shorter documents are skipped")
    max_document_chars: int = Field(5_000_000, ge=1, description="longer documents are skipped")
    duplicates: Literal["drop", "keep"] = Field("drop", description="exact duplicates: keep the first only, or all")
    invalid_utf8: Literal["error", "replace", "skip"] = Field(
        "error", description="what to do with bytes that are not UTF-8"
    )
    max_bad_records: int = Field(0, ge=0, description="unreadable records that may be skipped")

    @model_validator(mode="before")
    @classmethod
    def _concrete_format(cls, values: Any) -> Any:
        """`auto` becomes the format it stands for, so that both spellings are one stage."""
        if isinstance(values, dict) and values.get("format", "auto") == "auto":
            values = {**values, "format": format_of(values.get("source", "installed-docs"))}
        if isinstance(values, dict) and values["format"] == "installed-docs":
            values = {"validation_share": 0.1, **values}
        return values

    def external(self) -> Mapping[str, Any]:
        return SOURCES.load(self.format)().fingerprint(self.source)

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Read, deduplicate, split, write.

        Raises:
            BadData: nothing to read, a broken file, or more bad records than `max_bad_records`.
            BadConfig: a file that is not there.
        """
        options = ReadOptions(
            text_field=self.text_field,
            documents=self.documents,
            invalid_utf8=self.invalid_utf8,
            max_bad_records=self.max_bad_records,
            min_document_chars=self.min_document_chars,
            max_document_chars=self.max_document_chars,
        )
        parts = SOURCES.load(self.format)().parts(self.source)
        read = partial(read_part, self.format, options, self.validation_share)
        limit = ctx.runtime.workers if "workers" in ctx.runtime.model_fields_set else None
        remote = self.format != "installed-docs" and all(is_remote(str(part.at)) for part in parts)
        counts = _Counts()
        writer = _Shards(ctx.out)
        seen: set[bytes] | None = set() if self.duplicates == "drop" else None
        batches = flat_map_ordered(read, parts, max_in_flight=limit, here=not remote)
        try:
            for batch in batches:
                if ctx.cancelled():
                    raise Cancelled("ingest was cancelled")
                counts.add(batch)
                check_bad(counts.bad, counts.bad_at, self.max_bad_records)
                table = _without_duplicates(batch.table, seen, counts)
                counts.add_kept(table)
                writer.write(table)
                ctx.progress(counts.parts, len(parts), "parts", documents=counts.documents)
        finally:
            batches.close()
        writer.close()
        for line in counts.bad_at:
            ctx.log(f"bad record: {line}")
        if not counts.documents:
            skipped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.skipped.items()))
            raise BadData(
                f"the corpus is empty: no document in {len(parts)} part(s) of {_shown(self.source)}"
                + (f" (skipped: {skipped})" if skipped else ""),
                "name files that hold text",
            )
        facts = counts.facts(writer)
        label = ", ".join(map(base_name, split_list(self.source)))[:100]
        ctx.dataset(label, source=_shown(self.source), documents=counts.documents, bytes=facts["bytes"])
        (ctx.out / "corpus.json").write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return {name: facts[name] for name in ("documents", "bytes", "words", "duplicates")} | {
            "bad_records": counts.bad,
            "validation_documents": facts["splits"]["validation"]["documents"],
        }


def format_of(source: Any) -> str:
    """The format of a source by its first file's suffix, compression aside.

    Raises:
        BadConfig: the suffix says nothing; lists the formats.
    """
    if not isinstance(source, str | list | tuple):
        return "text"  # the field's own check names the wrong type
    first = next(iter(split_list(source)), "")
    if first == "installed-docs":
        return first
    name = base_name(first)
    if first and not is_remote(first) and local_path(first).is_dir():
        inside = sorted(p.name for p in local_path(first).rglob("*") if p.is_file() and not p.name.startswith("."))
        name = inside[0] if inside else name
    name = name.lower()
    for suffix in COMPRESSION_SUFFIXES:
        name = name.removesuffix(suffix)
    for suffix, known in _SUFFIXES.items():
        if name.endswith(suffix):
            return known
    import difflib

    if difflib.get_close_matches(first, ["installed-docs"], cutoff=0.7):
        raise BadConfig(f"source: no such source {first!r}", "did you mean 'installed-docs'?")
    raise BadConfig(
        f"source: the name {first!r} does not tell its format", f"set format to one of {', '.join(SOURCES)}"
    )


def _shown(source: str | tuple[str, ...]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


# ---------------------------------------------------------------- reading, in a worker


class Batch(NamedTuple):
    """Documents from a reading worker, and what it left out since its last batch."""

    table: Any
    """Arrow: id, text, source, meta, same (16 bytes), validation (bool), words (int32), chars (int32)."""
    skipped: dict[str, int]
    """Documents left out by choice: too short, too long."""
    bad: dict[str, int]
    repaired: dict[str, int]
    bad_at: list[str]
    last: bool
    """The part's last batch."""


def read_part(format_name: str, options: ReadOptions, validation_share: float, part: Part) -> Iterator[Batch]:
    """The documents of one part as batches of a few MB, with digest, split and counts."""
    from hashlib import blake2b

    tally = Tally(part.name, options)
    skipped: Counter[str] = Counter()
    rows: list[tuple[Any, ...]] = []
    size = 0
    # The split depends on the group's digest alone: it stays when documents are added.
    threshold = int(validation_share * 2**64)

    def batch(last: bool) -> Batch:
        bad, repaired, bad_at = tally.take()
        made = Batch(_table(rows), dict(skipped), bad, repaired, bad_at, last)
        skipped.clear()
        rows.clear()
        return made

    for document in SOURCES.load(format_name)().read(part, options, tally):
        text = document.text
        if not text or len(text) < options.min_document_chars or not text.strip():
            skipped["shorter than min_document_chars" if text.strip() else "empty"] += 1
            continue
        if len(text) > options.max_document_chars:
            skipped["longer than max_document_chars"] += 1
            continue
        try:
            raw = text.encode()
        except UnicodeEncodeError:  # JSON may hold half of a surrogate pair, which is no character
            raw = text.encode("utf-8", "replace")
            text = raw.decode()
        same = blake2b(document.same_as.encode("utf-8", "replace") or raw, digest_size=16).digest()
        group = blake2b(document.group.encode("utf-8", "replace") or raw, digest_size=8).digest()
        rows.append(
            (
                document.id,
                text,
                document.source,
                document.meta,
                same,
                int.from_bytes(group, "big") < threshold,
                len(text.split()),
                len(text),
            )
        )
        size += len(raw)
        if size >= _BATCH_BYTES:
            yield batch(last=False)
            size = 0
    yield batch(last=True)


def _table(rows: list[tuple[Any, ...]]) -> Any:
    import pyarrow as pa

    names = ["id", "text", "source", "meta", "same", "validation", "words", "chars"]
    types = [pa.string()] * 4 + [pa.binary(16), pa.bool_(), pa.int32(), pa.int32()]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)


# ---------------------------------------------------------------- writing, in the stage's process


def _without_duplicates(table: Any, seen: set[bytes] | None, counts: _Counts) -> Any:
    if seen is None:
        return table
    keep = []
    for digest in table.column("same").to_pylist():
        keep.append(digest not in seen)
        seen.add(digest)
    if all(keep):
        return table
    counts.duplicates += len(keep) - sum(keep)
    return table.filter(keep)


class _Counts:
    """The figures of `corpus.json`, gathered batch by batch."""

    def __init__(self) -> None:
        self.documents = self.characters = self.words = self.duplicates = self.parts = 0
        self.skipped: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.bad = 0
        self.bad_at: list[str] = []
        self.sources: dict[str, Counter[str]] = {}

    def add(self, batch: Batch) -> None:
        self.skipped.update(batch.skipped)
        self.skipped.update(batch.bad)
        self.repaired.update(batch.repaired)
        self.bad += sum(batch.bad.values())
        self.bad_at = (self.bad_at + batch.bad_at)[:5]
        self.parts += batch.last

    def add_kept(self, table: Any) -> None:
        import pyarrow.compute as pc

        self.documents += len(table)
        self.characters += pc.sum(table.column("chars")).as_py() or 0
        self.words += pc.sum(table.column("words")).as_py() or 0
        sizes = table.select(["source"]).append_column("size", pc.binary_length(table.column("text")))
        for row in sizes.group_by("source").aggregate([("size", "sum"), ("size", "count")]).to_pylist():
            self.sources.setdefault(row["source"], Counter()).update(bytes=row["size_sum"], documents=row["size_count"])

    def facts(self, writer: _Shards) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "bytes": sum(split["bytes"] for split in writer.splits.values()),
            "characters": self.characters,
            "words": self.words,
            "splits": writer.splits,
            "sources": {name: dict(count) for name, count in self.sources.items()},
            "skipped": dict(self.skipped),
            "repaired": dict(self.repaired),
            "duplicates": self.duplicates,
        }


class _Shards:
    """Parquet shards of about `SHARD_BYTES` of text per split; row groups and shards end where the text says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits = {name: {"documents": 0, "bytes": 0, "shards": 0} for name in ("train", "validation")}
        self.held: dict[str, list[Any]] = {"train": [], "validation": []}
        self.held_bytes = {"train": 0, "validation": 0}
        self.in_shard = {"train": 0, "validation": 0}
        self.files: dict[str, Any] = {}

    def write(self, table: Any) -> None:
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
        for split in self.splits:
            self._flush(split)
            self._end_shard(split)
