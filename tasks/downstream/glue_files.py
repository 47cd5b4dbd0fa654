"""GLUE's files in the layouts they are published in: TSV folders and the Hub's Parquet.

What goes wrong elsewhere, and is held here: the TSV files have *no* quoting (a quote is a letter), some
have no header or a byte-order mark or no newline at the end, a row of STS-B may carry two columns
more, lines end at LF alone (a form feed or U+2028 inside a sentence does not end a line), and the
corpora's own releases (CoLA raw, Microsoft's MRPC, the STS benchmark) differ from GLUE's copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import BadConfig, BadData
from tasks.downstream.spec import Downstream, Row, Splits, hold_out

_SHARD = r"(-\d+-of-\d+)?\.parquet"
PARQUET = {
    "train": re.compile(rf"^(.*/)?train({_SHARD}|/\d+\.parquet)$"),
    "validation": re.compile(rf"^(.*/)?(validation|validation[-_]matched)({_SHARD}|/\d+\.parquet)$"),
    "validation_mismatched": re.compile(rf"^(.*/)?validation[-_]mismatched({_SHARD}|/\d+\.parquet)$"),
}


@dataclass(frozen=True)
class TsvLayout:
    """One published set of files: base names by split (all of them needed but the `optional` splits).

    `columns` are the header's names in order; a file without a header is read by their places, unless
    `needs_header`. `held_out` cuts a split that the files lack from another, {split: (from, share)},
    by a hash of the `group` text, so that equal texts stay on one side.
    """

    title: str
    files: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    held_out: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    group: str = "text_a"
    needs_header: bool = False


@dataclass(frozen=True)
class Found:
    """Files of a task: the layout (None: Parquet) and paths on `fs` by split."""

    fs: Any
    layout: TsvLayout | None
    files: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class GlueTask(Downstream):
    """A task read from files. `aliases` gives a column's name in the TSV where it differs from the Hub's."""

    folders: tuple[str, ...] = ()
    text_a: str = ""
    text_b: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    skip_short: bool = False
    layouts: tuple[TsvLayout, ...] = ()

    def find(self, directory: str) -> Found:
        """The task's files below `directory` (GLUE's folder or the task's own); raises BadConfig where there are none.

        Folder and file names match in any case, folders also with or without hyphens and underscores.
        """
        fs, root, names = _listing(self.name, directory)
        wanted = [_plain(folder) for folder in self.folders]
        folders = {name.partition("/")[0] for name in names if "/" in name}
        own = sorted((f for f in folders if _plain(f) in wanted), key=lambda f: (wanted.index(_plain(f)), f))
        here = _plain(root.rstrip("/").rsplit("/", 1)[-1])
        if here in wanted or not own:
            own.append("")  # the directory is itself the task's folder
        for folder in own:
            inside = {n.lower(): n for n in (name.removeprefix(folder + "/") for name in names if _in(folder, name))}
            for layout in self.layouts:
                if all(n in inside for s, group in layout.files.items() if s not in layout.optional for n in group):
                    files = {s: tuple(inside[n] for n in g if n in inside) for s, g in layout.files.items()}
                    return Found(fs, layout, {s: _join(root, folder, g) for s, g in files.items() if g})
            files = {s: tuple(sorted(o for n, o in inside.items() if p.match(n))) for s, p in PARQUET.items()}
            if files["train"] and files["validation"]:
                return Found(fs, None, {s: _join(root, folder, g) for s, g in files.items() if g})
        raise self._missing(directory, names, [f for f in own if f])

    def _missing(self, directory: str, names: list[str], own: list[str]) -> BadConfig:
        layouts = [
            f"{layout.title} ({', '.join(n for s, g in layout.files.items() if s not in layout.optional for n in g)})"
            for layout in self.layouts
        ] + ["the Hub's Parquet (train-00000-of-00001.parquet, validation-00000-of-00001.parquet)"]
        inside = [n for n in names if any(_in(f, n) for f in own)] or [n.partition("/")[0] for n in names]
        found = sorted(dict.fromkeys(inside))
        shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "") or "nothing"
        return BadConfig(
            f"task {self.name!r}: directory {directory!r} has no data for it; looked for a folder "
            f"{' or '.join(self.folders)} (any case, hyphens optional) or these files in it; found: {shown}",
            f"put one of these layouts there: {'; '.join(layouts)}",
        )

    def fingerprints(self, directory: str) -> Mapping[str, Any]:
        """{"layout": title, "files": {split: [{name, size, checksum}]}} of what `read` would read."""
        from cluster.files import fingerprint

        found = self.find(directory)
        files = {s: [f for p in paths for f in fingerprint(_url(found.fs, p))] for s, paths in found.files.items()}
        return {"layout": found.layout.title if found.layout else "parquet", "files": files}

    def read(self, directory: str) -> tuple[Splits, dict[str, Any]]:
        """Rows by split, ids `split-number` in file order; raises BadData naming the file and line."""
        found = self.find(directory)
        splits: Splits = {}
        notes: dict[str, Any] = {"layout": found.layout.title if found.layout else "the Hub's Parquet"}
        for split, paths in found.files.items():
            rows: list[Row] = []
            for path in paths:
                records = self._tsv(found, path, notes) if found.layout else self._parquet(found, path)
                for a, b, label in records:
                    rows.append(Row(f"{split}-{len(rows)}", a, b if self.text_b else None, label))
            splits[split] = rows
        for split, (source, share) in (found.layout.held_out if found.layout else {}).items():
            splits[source], splits[split] = hold_out(splits[source], share, found.layout.group if found.layout else "")
            notes["held_out"] = f"{split} is {share:.0%} of {source}, cut by a hash of the text"
        return splits, notes

    def _tsv(self, found: Found, path: str, notes: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
        layout = found.layout
        assert layout is not None
        places: list[int] | None = None
        for number, line in _lines(found.fs, path):
            cells = line.split("\t")
            if places is None:
                header = self._places(cells)
                places = header or self._places(list(layout.columns))
                assert places is not None, f"the layout of {self.name} names no text or label column"
                if header:
                    continue
                if layout.needs_header:
                    raise BadData(f"{_base(path)}: the first line is not the header that {layout.title} has")
            if len(cells) <= max(places):
                if self.skip_short:
                    notes["skipped"] = notes.get("skipped", 0) + 1
                    continue
                raise BadData(
                    f"{_base(path)}, line {number}: {len(cells)} tab-separated fields, expected at least "
                    f"{max(places) + 1} ({', '.join(layout.columns)})",
                    "is the file cut off or of another layout?",
                )
            label = cells[places[2]].strip()
            if label == "-":  # MNLI: the annotators did not agree
                notes["skipped"] = notes.get("skipped", 0) + 1
                continue
            yield cells[places[0]], cells[places[1]], self._label(label, path, number)

    def _places(self, cells: list[str]) -> list[int] | None:
        """Places of (text_a, text_b or text_a, label) in a header line; None where it is not one."""
        lower = [cell.strip().lower() for cell in cells]
        places = []
        for column in (self.text_a, self.text_b or self.text_a, "label"):
            names = [n.lower() for n in (self.aliases.get(column), column) if n and n.lower() in lower]
            if not names:
                return None
            places.append(lower.index(names[0]))
        return places

    def _label(self, text: str, path: str, number: int) -> float:
        if text in self.labels:
            return float(self.labels.index(text))
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        expected = f"one of {', '.join(self.labels)} or its number" if self.labels else "a score from 0 to 5"
        fits = value in range(len(self.labels)) if self.labels else 0 <= value <= 5
        if not fits:
            raise BadData(f"{_base(path)}, line {number}: label {text!r}, expected {expected}")
        return value

    def _parquet(self, found: Found, path: str) -> Iterator[tuple[str, str, float]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = [self.text_a, self.text_b or self.text_a, "label"]
        try:
            with found.fs.open(path, "rb") as file:
                table = pq.read_table(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadData(f"{_base(path)}: not a readable Parquet file ({error})") from error
        missing = [c for c in columns if c not in table.column_names]
        if missing:
            raise BadData(
                f"{_base(path)}: no column {', '.join(missing)}; found {', '.join(table.column_names)}",
                f"task {self.name!r} reads the columns {', '.join(dict.fromkeys(columns))}",
            )
        for number, (a, b, label) in enumerate(zip(*(table[c].to_pylist() for c in columns), strict=True)):
            if a is None or b is None or label is None:
                raise BadData(f"{_base(path)}, row {number}: a null in {', '.join(dict.fromkeys(columns))}")
            yield a, b, self._label(str(label), path, number)


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _in(folder: str, name: str) -> bool:
    return name.startswith(folder + "/") if folder else True


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _join(root: str, folder: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("/".join(part for part in (root.rstrip("/"), folder, name) if part) for name in names)


def _url(fs: Any, path: str) -> str:
    from fsspec.implementations.local import LocalFileSystem

    return path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)


def _listing(task: str, directory: str) -> tuple[Any, str, list[str]]:
    """(file system, root path, names of the files up to three levels below it); raises BadConfig."""
    import fsspec

    if not directory:
        raise BadConfig(
            f"task {task!r} reads labelled files, and directory is empty",
            "give the folder that holds GLUE (downstream_dir=DIR in a recipe)",
        )
    try:
        fs, root = fsspec.core.url_to_fs(directory)
        exists = fs.isdir(root)
        names = sorted(n[len(root.rstrip("/")) + 1 :] for n in fs.find(root, maxdepth=3)) if exists else []
    except (OSError, ValueError, ImportError) as error:
        raise BadConfig(f"task {task!r}: cannot list directory {directory!r}: {error}") from error
    if not exists:
        raise BadConfig(f"task {task!r}: directory {directory!r} does not exist", "give the folder that holds GLUE")
    return fs, root, names


def _lines(fs: Any, path: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 file; skips a byte-order mark and empty lines."""
    with fs.open(path, "rb") as file:
        data = file.read()
    data = data.removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadData(
                f"{_base(path)}, line {number}: not UTF-8 ({error.reason} at byte {error.start})",
                "convert the file to UTF-8",
            ) from error
