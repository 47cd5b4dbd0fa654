"""Measurements of trained models, read from a CSV file and checked: parameters, tokens, FLOPs, loss.

Two of params, tokens and flops are enough: the third follows from C = 6·N·D (Kaplan et al. 2020, section 2.1). Where
all three stand in the file, the file's FLOPs are believed, since counts differ by what they leave out (attention, the
output layer), and that moves exponents (Porian et al. 2024).
"""

from __future__ import annotations

import csv
import difflib
import fnmatch
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import BadConfig, BadData
from tasks.scaling.slots import Slots

NUMBERS = ("params", "tokens", "flops", "loss", "unique_tokens")
SHOWN = 5
"""Rows that a message names."""
DATASET_VALUES = 40
"""A text column with more values than this tells runs apart, not data sets."""


class Columns(NamedTuple):
    """The file's names of what is measured."""

    params: str = "params"
    tokens: str = "tokens"
    loss: str = "loss"
    flops: str = "flops"
    unique_tokens: str = "unique_tokens"
    run: str = "run"
    unit: str = "unit"


STANDARD = Columns()
Row = tuple[int, list[str]]
"""A line's number and its cells."""


class _Table(NamedTuple):
    path: Path
    digest: str
    header: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Points:
    """Checked measurements; every array has one entry a point, float64, all numbers positive and finite."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    """In `unit`; fits keep it."""
    lines: np.ndarray
    """The point's line in the file, the header being line 1."""
    unique_tokens: np.ndarray | None = None
    """Tokens of the data without repetition; `tokens` counts every epoch."""
    run: np.ndarray | None = None
    """Whose training curve a point is on."""
    slots: Slots | None = None
    unit: str = ""
    """Of the losses, as the file says it; empty: it does not, and nats per token are meant."""
    flops_given: bool = False
    source: str = ""
    digest: str = ""
    """BLAKE2b of the file's bytes."""
    warnings: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops_factor(self) -> float:
        """C / (N·D), the median: 6, where the file does not count otherwise."""
        return float(np.median(self.flops / (self.params * self.tokens))) if self.flops_given else 6.0

    def take(self, chosen: np.ndarray) -> Points:
        """Some of the points."""
        arrays = {
            name: None if (column := getattr(self, name)) is None else column[chosen]
            for name in (*NUMBERS, "lines", "run")
        }
        slots = self.slots and self.slots._replace(at=self.slots.at[chosen])
        return replace(self, **arrays, slots=slots)

    def named(self, chosen: np.ndarray) -> str:
        """The lines of some points, for a message."""
        lines = [str(n) for n in self.lines[chosen]]
        return "line " + ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


def points_of(loss: Any, *, params: Any = None, tokens: Any = None, flops: Any = None, **more: Any) -> Points:
    """Points from arrays; one of params, tokens and flops may be left out.

    Raises:
        BadData: a value is not positive and finite.
    """
    given = {
        "params": params,
        "tokens": tokens,
        "flops": flops,
        "loss": loss,
        "unique_tokens": more.pop("unique_tokens", None),
    }
    values = {name: None if v is None else np.asarray(v, dtype=float) for name, v in given.items()}
    lines = np.asarray(more.pop("lines", np.arange(2, len(values["loss"]) + 2)))
    return _points(values, lines, **more)


def read_points(
    path: str | Path, columns: Columns = STANDARD, where: Sequence[str] = (), *, skip_invalid: bool = False
) -> Points:
    """The measurements of a CSV file (comma, semicolon or tab; a header).

    Args:
        path: the file.
        columns: the file's names.
        where: `column=value` each, all of which a row must meet; `*` and `?` in a value stand for any text.
        skip_invalid: leave out rows whose numbers are missing, not finite or not positive, with a warning.

    Raises:
        BadConfig: a named column or a filter that the file has not.
        BadData: no file, no rows, or values that cannot be measurements.
    """
    table = _read(Path(path).expanduser())
    found = _found(table.path, table.header, columns)
    return _measured(table, found, _filtered(table.path, table.header, table.rows, where), skip_invalid)


def read_variants(
    path: str | Path, by: str, columns: Columns = STANDARD, where: Sequence[str] = (), *, skip_invalid: bool = False
) -> dict[str, Points]:
    """{value: measurements} of a file whose column `by` tells variants apart, in the order of the file.

    Raises:
        BadConfig: no such column, fewer than two values in it, or more than `DATASET_VALUES`; and what `read_points`
            raises.
        BadData: a row without a value; and what `read_points` raises.
    """
    table = _read(Path(path).expanduser())
    found = _found(table.path, table.header, columns)
    if by not in table.header:
        raise BadConfig(
            f"--by {by}: {table.path} has no column {by!r}",
            f"{_near(by, table.header)}it has: {', '.join(table.header)}",
        )
    at = table.header.index(by)
    split: dict[str, list[Row]] = {}
    for line, row in _filtered(table.path, table.header, table.rows, where):
        if not (value := row[at].strip()):
            raise BadData(f"{table.path}, line {line}: {by} is missing", "say which variant this row is of")
        split.setdefault(value, []).append((line, row))
    if len(split) < 2:
        raise BadConfig(
            f"--by {by}: all rows of {table.path} have one value, {next(iter(split))!r}: there is nothing to compare",
            "name a column that tells variants apart, or a second file with --compare",
        )
    if len(split) > DATASET_VALUES:
        raise BadConfig(
            f"--by {by}: {len(split)} values in {table.path}, at most {DATASET_VALUES} variants are compared",
            f"name a column that tells variants apart; choose rows with --where {by}=…",
        )
    return {value: _measured(table, found, rows, skip_invalid) for value, rows in split.items()}


def _read(path: Path) -> _Table:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise BadData(f"{path}: {error.strerror or error}", "name a CSV file of measurements") from None
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text (byte {error.start})", "name a CSV file of measurements") from None
    lines = text.splitlines()
    if not lines or not lines[0].strip():
        raise BadData(f"{path} is empty", "the first line names the columns: params,tokens,loss")
    separator = max(",;\t", key=lines[0].count)
    reader = csv.reader(lines, delimiter=separator)
    header = [name.strip() for name in next(reader)]
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise BadData(f"{path} has the column {twice[0]!r} more than once")
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    for line, row in rows:
        if len(row) != len(header):
            raise BadData(f"{path}, line {line}: {len(row)} values for {len(header)} columns")
    return _Table(path, hashlib.blake2b(raw, digest_size=16).hexdigest(), header, rows)


def _measured(table: _Table, found: dict[str, str], rows: list[Row], skip_invalid: bool) -> Points:
    """The points of some of a file's rows."""
    path, digest, header, _ = table
    warnings = _mixed(header, rows, set(found.values()))
    values, kept, skipped = _numbers(path, header, rows, found, skip_invalid)
    run, units = None, [""]
    if "run" in found:
        run = np.array([row[header.index(found["run"])] for _, row in kept])
    if "unit" in found:
        units = list(dict.fromkeys(row[header.index(found["unit"])].strip() for _, row in kept))
        if len(units) > 1:
            raise BadData(
                f"{path} has losses of {len(units)} units ({', '.join(units)}): one law cannot be fitted to them",
                f"choose with --where {found['unit']}={units[0]}",
            )
    return _points(
        values,
        np.array([line for line, _ in kept]),
        run=run,
        unit=units[0],
        source=str(path),
        digest=digest,
        warnings=(*warnings, *skipped),
    )


def _found(path: Path, header: list[str], columns: Columns) -> dict[str, str]:
    """{our name: the file's} of the columns that are there."""
    found = {ours: name for ours, name in columns._asdict().items() if name in header}
    for ours, name in columns._asdict().items():
        if ours not in found and name != Columns._field_defaults[ours]:
            raise BadConfig(f"{path} has no column {name!r}", f"{_near(name, header)}it has: {', '.join(header)}")
    if "loss" not in found:
        raise BadConfig(f"{path} has no column 'loss'", f"name it with --loss; it has: {', '.join(header)}")
    if len(known := [n for n in ("params", "tokens", "flops") if n in found]) < 2:
        missing = [n for n in ("params", "tokens", "flops") if n not in known]
        raise BadConfig(
            f"{path} has {' and '.join(known) or 'none'} of params, tokens and flops; two are needed",
            f"name another with --{' or --'.join(missing)}; it has: {', '.join(header)}",
        )
    return found


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def _filtered(path: Path, header: list[str], rows: list[Row], where: Sequence[str]) -> list[Row]:
    for rule in where:
        column, equals, value = rule.partition("=")
        if not equals:
            raise BadConfig(f"--where {rule!r} is not of the form column=value")
        if column not in header:
            raise BadConfig(
                f"--where {rule!r}: {path} has no column {column!r}",
                f"{_near(column, header)}it has: {', '.join(header)}",
            )
        at = header.index(column)
        # only * and ? are special: file patterns with [ ] or { } stand for themselves
        pattern = value.replace("[", "[[]")
        left = [item for item in rows if fnmatch.fnmatchcase(item[1][at].strip(), pattern)]
        if rows and not left:
            values = list(dict.fromkeys(row[at].strip() for _, row in rows))
            raise BadConfig(
                f"--where {rule!r} leaves no row of {path}",
                f"{_near(value, values)}values of {column}: {', '.join(values[:10])}{' …' if len(values) > 10 else ''}",
            )
        rows = left
    if not rows:
        raise BadData(f"{path} has a header and no rows")
    return rows


def _mixed(header: list[str], rows: list[Row], used: set[str]) -> list[str]:
    """A warning for each text column whose values split the rows: several data sets, metrics or set-ups in one file."""
    out = []
    for at, name in enumerate(header):
        if name in used:
            continue
        values = Counter(row[at].strip() for _, row in rows)
        if not 1 < len(values) <= min(DATASET_VALUES, len(rows) // 3) or min(values.values()) < 2:
            continue
        if all(_is_number(value) for value in values if value):
            continue
        names = ", ".join(list(values)[:4]) + (" …" if len(values) > 4 else "")
        out.append(
            f"mixed data: {name!r} has {len(values)} values ({names}), and one law is fitted through all of them; "
            f"choose with --where {name}={next(iter(values))}"
        )
    return out


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(
    path: Path, header: list[str], rows: list[Row], found: dict[str, str], skip: bool
) -> tuple[dict[str, np.ndarray | None], list[Row], list[str]]:
    """Columns of numbers; a row whose numbers cannot be measurements is an error, or left out."""
    at = {ours: header.index(name) for ours, name in found.items() if ours in NUMBERS}
    kept, table, wrong = [], [], []
    for line, row in rows:
        numbers = {}
        for ours, column in at.items():
            cell = row[column].strip()
            try:
                numbers[ours] = float(cell)
            except ValueError:
                wrong.append(
                    f"line {line}: {found[ours]} is {cell!r}, not a number"
                    if cell
                    else f"line {line}: {found[ours]} is missing"
                )
                break
            if not math.isfinite(numbers[ours]) or numbers[ours] <= 0:
                what = "not finite" if not math.isfinite(numbers[ours]) else "not positive"
                wrong.append(f"line {line}: {found[ours]} is {cell}, {what}")
                break
        else:
            kept.append((line, row))
            table.append(numbers)
    told = "; ".join(wrong[:SHOWN]) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    if wrong and not skip:
        raise BadData(f"{path}: {told}", "correct these rows, or leave them out with --skip-invalid")
    if not kept:
        raise BadData(f"{path} has no row that can be used: {told}")
    values = {n: np.array([row[n] for row in table]) if n in at else None for n in NUMBERS}
    return values, kept, [f"{len(wrong)} rows left out: {told}"] if wrong else []


def _points(
    values: dict[str, np.ndarray | None],
    lines: np.ndarray,
    *,
    run: np.ndarray | None = None,
    unit: str = "",
    source: str = "",
    digest: str = "",
    warnings: Sequence[str] = (),
) -> Points:
    told = list(warnings)
    for name, column in values.items():
        if column is not None and not (np.isfinite(column) & (column > 0)).all():
            bad = int(np.flatnonzero(~(np.isfinite(column) & (column > 0)))[0])
            raise BadData(
                f"{source or 'measurements'}, line {lines[bad]}: {name} is {column[bad]}, expected a positive number"
            )
    params, tokens, flops, loss = (values[n] for n in ("params", "tokens", "flops", "loss"))
    if loss is None or sum(v is not None for v in (params, tokens, flops)) < 2:
        raise BadData("loss and two of params, tokens and flops are needed")
    given = flops is not None
    if params is None:
        params = flops / (6 * tokens)
    elif tokens is None:
        tokens = flops / (6 * params)
    elif flops is None:
        flops = 6 * params * tokens
    elif (off := float(np.median(flops / (6 * params * tokens)))) > 1.1 or off < 0.9:
        told.append(f"flops are {off:.2f} times 6·params·tokens (median): the file's own count is used")
    points = Points(
        params=params, tokens=tokens, flops=flops, loss=loss, lines=lines, unique_tokens=values.get("unique_tokens"),
        run=run, unit=unit, flops_given=given, source=source, digest=digest,
    )  # fmt: skip
    points, more = _once(points)
    return replace(points, warnings=(*told, *more))


def _once(points: Points) -> tuple[Points, list[str]]:
    """Exact duplicates count once; equal models whose losses lie apart are told."""
    told = []
    known = [points.params, points.tokens, points.flops, points.loss]
    if points.unique_tokens is not None:
        known.append(points.unique_tokens)
    _, first = np.unique(np.column_stack(known), axis=0, return_index=True)
    if len(first) < len(points):
        again = np.ones(len(points), bool)
        again[first] = False
        told.append(
            f"duplicates: {again.sum()} rows repeat others exactly and count once "
            f"({points.named(np.flatnonzero(again))})"
        )
        points = points.take(np.sort(first))
    key = [points.params, points.tokens] + ([points.unique_tokens] if points.unique_tokens is not None else [])
    _, group = np.unique(np.column_stack(key), axis=0, return_inverse=True)
    group = group.ravel()
    log_loss = np.log(points.loss)
    high, low = np.full(group.max() + 1, -np.inf), np.full(group.max() + 1, np.inf)
    np.maximum.at(high, group, log_loss)
    np.minimum.at(low, group, log_loss)
    if (apart := (high - low)[group]).max() > 0.03:
        wide = np.flatnonzero(apart > 0.03)
        told.append(
            f"mixed data? {len(wide)} points share params and tokens with others, and their losses differ by up to "
            f"{100 * (math.exp(apart.max()) - 1):.0f} %: more than seeds do ({points.named(wide)})"
        )
    return points, told
