"""Measurements of trained models, read from a CSV file."""

from __future__ import annotations

import csv
import difflib
import fnmatch
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.errors import BadConfig, BadData
from tasks.scaling.points import NUMBERS, SHOWN, Points, checked_points

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
        run = np.array([row[header.index(found["run"])].strip() for _, row in kept])
    if "unit" in found:
        units = list(dict.fromkeys(row[header.index(found["unit"])].strip() for _, row in kept))
        if len(units) > 1:
            raise BadData(
                f"{path} has losses of {len(units)} units ({', '.join(units)}): one law cannot be fitted to them",
                f"choose with --where {found['unit']}={units[0]}",
            )
    return checked_points(
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
