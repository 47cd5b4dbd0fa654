"""Which documents a row of examples comes from, and which rows a document went into.

`<split>-documents.arrow` has a row per document of the corpus's split, in its order, so a document's number is its
place there: id (string), first_token and tokens (int64: text tokens before it in the split, and its own; separators
do not count), first_row and last_row (int64: the raw rows that hold its tokens). That is some 32 bytes and the id for
each document, nothing for each row or token. Rows are null where they are not known: those of sentence pairs mix
documents at random, GloVe's are pairs of words.

With static masking a raw row becomes `copies` rows side by side. Where rows overlap, the token that two rows share
counts for the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import BadData
from tasks.corpus_reader import read_batches

_ROWS_PER_BATCH = 1 << 16


def documents_name(split: str) -> str:
    """The file of a split."""
    return f"{split}-documents.arrow"


class DocumentWriter:
    """Writes the file while rows are made: tells it the documents' tokens and the rows' as both come along.

    Args:
        folder: the artifact. corpus: the corpus that gives the ids.
        located: whether rows hold documents one after another; otherwise rows are not said.
    """

    def __init__(self, folder: Path, corpus: Path, split: str, located: bool) -> None:
        import pyarrow as pa

        self.located = located
        self._ids = _Ids(corpus, split)
        kinds = {"id": pa.string(), "first_token": pa.int64(), "tokens": pa.int64()}
        self._schema = pa.schema([*kinds.items(), ("first_row", pa.int64()), ("last_row", pa.int64())])
        self._file = pa.ipc.new_file(str(folder / documents_name(split)), self._schema)
        self._held: list[Any] = []
        self._held_rows = 0
        self._sizes: list[np.ndarray] = []  # of documents whose rows are not known yet
        self._begin = 0  # text tokens before these
        self._row_ends = np.empty(0, dtype=np.int64)  # text tokens up to the end of rows, from row `_row` on
        self._row = 0
        self._end = 0  # text tokens of all rows

    def documents(self, tokens: np.ndarray) -> None:
        """The next documents have so many text tokens each: int64 [N]."""
        self._sizes.append(tokens)
        if not self.located:
            self._settle(len(tokens), known=False)

    def rows(self, tokens: np.ndarray) -> None:
        """The next rows hold so many text tokens each that no row before them holds: int64 [N]."""
        if not self.located:
            return
        ends = self._end + np.cumsum(tokens)
        self._row_ends = np.concatenate([self._row_ends, ends])
        if len(ends):
            self._end = int(ends[-1])
        sizes = np.concatenate([*self._sizes, np.empty(0, dtype=np.int64)])
        # A document without a token is settled with the one after it.
        settled = int(np.searchsorted(self._begin + np.cumsum(sizes), self._end, side="right"))
        while settled and not sizes[settled - 1]:
            settled -= 1
        self._sizes = [sizes]
        self._settle(settled, known=True)

    def close(self) -> None:
        """Write the rest and finish the file."""
        self._settle(sum(map(len, self._sizes)), known=self.located)
        if self._held_rows:
            self._flush(self._held_rows)
        self._file.close()

    def _settle(self, count: int, known: bool) -> None:
        """Write the first `count` documents that wait."""
        if not count:
            return
        sizes = np.concatenate(self._sizes)
        now, self._sizes = sizes[:count], [sizes[count:]]
        ends = self._begin + np.cumsum(now)
        begins = ends - now
        columns = {"first_token": begins, "tokens": now}
        if known:
            first = np.searchsorted(self._row_ends, begins, side="right")
            last = np.maximum(first, np.searchsorted(self._row_ends, ends - 1, side="right"))
            columns |= {"first_row": self._row + first, "last_row": self._row + last}
            done = int(first[-1])
            self._row_ends, self._row = self._row_ends[done:], self._row + done
        self._begin = int(ends[-1])
        self._write(count, columns)

    def _write(self, count: int, columns: dict[str, np.ndarray]) -> None:
        import pyarrow as pa

        arrays = [self._ids.take(count)]
        for field in self._schema.names[1:]:
            arrays.append(pa.array(columns[field]) if field in columns else pa.nulls(count, pa.int64()))
        self._held.append(pa.table(arrays, schema=self._schema))
        self._held_rows += count
        while self._held_rows >= _ROWS_PER_BATCH:
            self._flush(_ROWS_PER_BATCH)

    def _flush(self, count: int) -> None:
        """A record batch; of one size, and made anew, so that its bytes do not tell how the documents came."""
        import pyarrow as pa

        table = pa.concat_tables(self._held)
        columns = [pa.array(column.to_pylist(), column.type) for column in table.slice(0, count).columns]
        self._file.write_batch(pa.record_batch(columns, schema=self._schema))
        self._held, self._held_rows = [table.slice(count)], self._held_rows - count


class _Ids:
    """The ids of a split's documents, in order."""

    def __init__(self, corpus: Path, split: str) -> None:
        self._batches = (batch.column(0) for batch in read_batches(corpus, split, columns=("id",)))
        self._split, self._rest = split, None

    def take(self, count: int) -> Any:
        import pyarrow as pa

        parts, missing = [], count
        while missing:
            if self._rest is None or not len(self._rest):
                self._rest = next(self._batches, None)
                if self._rest is None:
                    raise BadData(
                        f"the {self._split} split of the corpus has fewer ids than texts", "make the corpus again"
                    )
            parts.append(self._rest.slice(0, missing).cast(pa.string()))
            self._rest = self._rest.slice(len(parts[-1]))
            missing -= len(parts[-1])
        return pa.concat_arrays(parts) if parts else pa.array([], pa.string())


class Document(NamedTuple):
    """A document of a split; see the module. Rows are of the files, copies included; None where nothing is said."""

    number: int
    id: str
    first_token: int
    tokens: int
    first_row: int | None
    last_row: int | None


class Documents:
    """Reads `<split>-documents.arrow`.

    Args:
        path: of the file. copies: rows that the shards have for each raw row.

    Raises:
        BadData: the file is missing or damaged.
    """

    def __init__(self, path: Path, copies: int = 1) -> None:
        import pyarrow as pa

        try:
            with pa.memory_map(str(path)) as source:
                self._table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise BadData(f"{path.name}: not readable ({error})", "run the stage that makes it again") from None
        self.copies = copies
        self.located = bool(len(self._table)) and not self._table.column("first_row").null_count

    def __len__(self) -> int:
        """Documents."""
        return len(self._table)

    def __getitem__(self, number: int) -> Document:
        id_, *facts = (self._table.column(name)[number].as_py() for name in self._table.schema.names)
        if facts[2] is not None:
            facts[2:] = [facts[2] * self.copies, (facts[3] + 1) * self.copies - 1]
        return Document(number, id_, *facts)

    def of_row(self, row: int) -> list[Document]:
        """The documents whose text a row holds, in order; none where that is not known."""
        if not self.located:
            return []
        first, last, tokens = self._columns
        begin = int(np.searchsorted(last, row // self.copies, side="left"))
        end = int(np.searchsorted(first, row // self.copies, side="right"))
        return [self[number] for number in range(begin, end) if tokens[number]]

    @property
    def _columns(self) -> Iterator[np.ndarray]:
        return (self._table.column(name).to_numpy() for name in ("first_row", "last_row", "tokens"))
