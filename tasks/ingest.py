"""Ingest: documents from files or from the installed libraries, deduplicated, split, and stored as Parquet.

Parts of the source (files, pieces of large files, bundles of small ones or of modules) are read in parallel; their
documents are joined in order by one process that drops duplicates and writes the shards. So memory is bounded by a
few batches plus 16 bytes of digest per document, and the shards are the same on any number of workers. What was read
is saved as it comes, so a stage that is killed goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Unreachable
from cluster.files import COMPRESSION_SUFFIXES, File, base_name, expand, is_remote, local_path, names, split_list
from tasks.base import Context, Task
from tasks.corpus_writer import Shards
from tasks.sources import SOURCES
from tasks.sources.base import Part, ReadOptions, check_bad, located
from tasks.sources.batches import Batch, read_part, with_ids
from tasks.sources.saved import saved_batches

_NAMES_LOGGED = 5
_DOCS = "installed-docs"

_SUFFIXES = {
    ".txt": "text", ".text": "text", ".md": "text", ".tokens": "text", ".raw": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
    ".warc": "warc", ".wet": "warc",
}  # fmt: skip


class Ingest(Task):
    """Read a corpus. The artifact is described in `docs/architecture.md` (kind `corpus`)."""

    produces: ClassVar[str] = "corpus"
    stage: ClassVar[str] = "ingest"

    # The place is not the identity: the key covers what `external` says of the content.
    source: str | tuple[str, ...] = Field(
        _DOCS,
        description="installed-docs; or files: a path, URL, glob, folder, or a comma list of these",
        json_schema_extra={"identity": False},
    )
    format: Annotated[str, SOURCES] = Field(
        "auto", description="the reader; auto goes by the files' suffixes, which must agree"
    )
    text_field: str = Field(
        "text",
        description="the field or column that holds the text; title,text joins several, body.text is one inside body",
    )
    id_field: str = Field("id", description="the field or column that holds a document's id, if there is one")
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
            values = {**values, "format": format_of(values.get("source", _DOCS))}
        if isinstance(values, dict) and values["format"] == _DOCS:
            values = {"validation_share": 0.1, **values}
        return values

    @model_validator(mode="after")
    def _possible(self) -> Ingest:
        """What can be known before anything is read. Raises BadConfig."""
        if not self.text_field.replace(",", "").strip():
            raise BadConfig(f"text_field={self.text_field!r} names no field", "name the field that holds the text")
        if self.max_document_chars < self.min_document_chars:
            raise BadConfig(
                f"min_document_chars={self.min_document_chars} is above max_document_chars={self.max_document_chars}",
                "no document could be kept: change one of them",
            )
        if self.format == _DOCS and (files := [url for url in split_list(self.source) if url != _DOCS]):
            raise BadConfig(f"format={_DOCS} reads no files, and source names {files[0]}", "give the files' format")
        return self

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
            id_field=self.id_field,
            documents=self.documents,
            invalid_utf8=self.invalid_utf8,
            max_bad_records=self.max_bad_records,
            min_document_chars=self.min_document_chars,
            max_document_chars=self.max_document_chars,
        )
        reader = SOURCES.load(self.format)()
        files = reader.files(self.source)
        _forget_others(ctx, files)
        parts = reader.parts(files, options)
        total = sum(max(0, file.size) for file in files)
        if not files:
            parts = list(parts)
            total = len(parts)
        counts = _Counts(self.max_bad_records)
        writer = Shards(ctx.out)
        seen = _seen() if self.duplicates == "drop" else None
        read = partial(read_part, self.format, options, self.validation_share)
        here = not (files and all(is_remote(file.url) for file in files))
        try:
            with closing(saved_batches(ctx, "read", parts, read, here=here)) as batches:
                for part, batch in batches:
                    table = _without_duplicates(counts.add(part, batch), seen, counts)
                    counts.add_kept(table)
                    writer.write(table)
                    done, unit = (counts.read / 1e6, "MB") if files else (counts.read, "parts")
                    ctx.progress(done, max(done, total / 1e6 if files else total), unit, documents=counts.documents)
        except BadData:
            _check_unchanged(files, reader, self.source)  # the true reason, if it is one
            raise
        _check_unchanged(files, reader, self.source)
        writer.close()
        for line in counts.bad_at:
            ctx.log(f"bad record: {line}")
        shown = [name for name in names([file.url for file in files]) if name not in counts.gave]
        if shown:
            more = f" and {len(shown) - _NAMES_LOGGED:,} more" if len(shown) > _NAMES_LOGGED else ""
            ctx.log(f"no document in {', '.join(shown[:_NAMES_LOGGED])}{more}")
        if not counts.documents:
            skipped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.skipped.items()))
            raise BadData(
                f"the corpus is empty: no document in {max(1, len(files))} file(s) of {_shown(self.source)}"
                + (f" (skipped: {skipped})" if skipped else ""),
                "name files that hold text",
            )
        facts = counts.facts(writer) | {"files": {"read": len(files), "without_documents": len(shown)}}
        label = ", ".join(map(base_name, split_list(self.source)))[:100]
        ctx.dataset(label, source=_shown(self.source), documents=counts.documents, bytes=facts["bytes"])
        (ctx.out / "corpus.json").write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return {name: facts[name] for name in ("documents", "bytes", "words", "duplicates")} | {
            "bad_records": counts.bad,
            "validation_documents": facts["splits"]["validation"]["documents"],
        }


def format_of(source: Any) -> str:
    """The format of a source by its files' suffixes, compression aside; folders are looked into.

    Raises:
        BadConfig: no suffix says it; lists the formats. Or they say several, of which one reader would make documents
            that are lines of JSON, say.
    """
    if not isinstance(source, str | list | tuple):
        return "text"  # the field's own check names the wrong type
    given = split_list(source)
    if not given:
        raise BadConfig("source: no file named", f"give a path, a URL or a glob, or {_DOCS}")
    if _DOCS in given:
        if len(given) > 1:
            raise BadConfig(
                f"source: {_DOCS} beside files: {_shown(source)}", "give each a corpus of its own, and mix them"
            )
        return _DOCS
    found: dict[str, str] = {}
    for url in given:
        for file in _that_tell(url):
            if kind := _by_suffix(file):
                found.setdefault(kind, file)
    if len(found) > 1:
        (kind, one), (other, two) = list(found.items())[:2]
        raise BadConfig(
            f"source: files of several formats: {base_name(one)} is {kind}, {base_name(two)} is {other}",
            "name those of one format, as with FOLDER/*.jsonl, and give each format a corpus of its own; "
            "or set format for all of them",
        )
    if found:
        return next(iter(found))
    raise BadConfig(
        f"source: the name {given[0]!r} does not tell its format",
        f"set format to one of {', '.join(SOURCES)}",
    )


def _that_tell(url: str) -> list[str]:
    """What tells the format of a path, URL, folder or glob: itself if it has a suffix, else the files behind it."""
    if _by_suffix(url) and (is_remote(url) or not local_path(url).is_dir()):
        return [url]
    try:
        return expand(url)
    except BadConfig:
        import difflib

        if difflib.get_close_matches(url, [_DOCS], cutoff=0.7):
            raise BadConfig(f"source: no such source {url!r}", f"did you mean {_DOCS!r}?") from None
        raise


def _by_suffix(url: str) -> str:
    name = base_name(url).lower()
    for suffix in COMPRESSION_SUFFIXES:
        name = name.removesuffix(suffix)
    return next((known for suffix, known in _SUFFIXES.items() if name.endswith(suffix)), "")


def _forget_others(ctx: Context, files: Sequence[File]) -> None:
    """Drop what an earlier attempt saved of files that are not these any more."""
    note = ctx.scratch / "files.json"
    now = json.dumps([(base_name(file.url), file.size, file.stamp) for file in files])
    if note.is_file() and note.read_text() == now:
        return
    shutil.rmtree(ctx.scratch / "read", ignore_errors=True)
    note.write_text(now)


def _check_unchanged(before: Sequence[File], reader: Any, source: Any) -> None:
    """Look at the files again after reading them.

    Raises:
        BadData: one is another than before, or gone.
        Unreachable: a server does not say; the stage is tried again, from what is saved.
    """
    remedy = "wait until its writer is done, and run again"
    try:
        now = {file.url: file for file in reader.files(source)}
    except BadConfig as error:
        if any(is_remote(file.url) for file in before):
            raise Unreachable(error.message, error.remedy) from None
        raise BadData(f"the source changed while it was read: {error.message}", remedy) from None
    for file in before:
        if now.get(file.url) != file:
            found = now.get(file.url)
            how = "is gone" if found is None else f"had {file.size:,} bytes, has {found.size:,}"
            if found is not None and found.size == file.size:
                how = "was written again"
            raise BadData(f"{base_name(file.url)} changed while it was read: it {how}", remedy)


def _shown(source: str | tuple[str, ...]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


# ---------------------------------------------------------------- writing, in the stage's process


def _seen() -> Any:
    from tasks.sources.seen import Seen  # NumPy

    return Seen()


def _without_duplicates(table: Any, seen: Any, counts: _Counts) -> Any:
    if seen is None or not len(table):
        return table
    first = seen.first(table.column("same"))
    if first.all():
        return table
    import pyarrow as pa

    counts.duplicates += int((~first).sum())
    return table.filter(pa.array(first))


class _Counts:
    """The figures of `corpus.json`, gathered batch by batch."""

    def __init__(self, max_bad_records: int) -> None:
        self.max_bad_records = max_bad_records
        self.documents = self.characters = self.words = self.duplicates = self.read = 0
        self.skipped: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.bad = 0
        self.bad_at: list[str] = []
        self.sources: dict[str, Counter[str]] = {}
        self.gave: set[str] = set()
        """Files of which a document came, be it a duplicate."""
        self.lines_before = 0
        """In the file of the part that is read, before that part."""

    def add(self, part: Part, batch: Batch) -> Any:
        """Count a batch; its documents, with their ids.

        Raises:
            BadData: the part could not be read, or there are more bad records than `max_bad_records` in all.
        """
        before = self.lines_before = self.lines_before if part.continues else 0
        self.skipped.update(batch.skipped)
        self.skipped.update(batch.bad)
        self.repaired.update(batch.repaired)
        self.bad += sum(batch.bad.values())
        self.bad_at = (self.bad_at + [located(line, before) for line in batch.bad_at])[:5]
        message, remedy = batch.failure or ("", "")
        check_bad(self.bad, self.bad_at, self.max_bad_records, located(remedy, before))
        if batch.failure is not None:
            raise BadData(located(message, before), located(remedy, before))
        if batch.last:
            self.read += part.size
            self.lines_before += batch.lines
        self.gave.update(batch.table.column("source").unique().to_pylist())
        return with_ids(batch.table, before)

    def add_kept(self, table: Any) -> None:
        import pyarrow.compute as pc

        self.documents += len(table)
        self.characters += pc.sum(table.column("chars")).as_py() or 0
        self.words += pc.sum(table.column("words")).as_py() or 0
        sizes = table.select(["source"]).append_column("size", pc.binary_length(table.column("text")))
        for row in sizes.group_by("source").aggregate([("size", "sum"), ("size", "count")]).to_pylist():
            self.sources.setdefault(row["source"], Counter()).update(bytes=row["size_sum"], documents=row["size_count"])

    def facts(self, writer: Shards) -> dict[str, Any]:
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
