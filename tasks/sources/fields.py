"""Named fields of a record: which of them are the text, which is the id, and what of the others is kept as meta."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.errors import BadData
from tasks.sources.base import Document, Piece, ReadOptions, Tally, place

_LONGEST_META = 1000  # characters of a string
_ABSENT = object()
encode_meta = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode


class Fields:
    """The fields that `text_field` and `id_field` name.

    `title,text` joins several texts by a blank line; a null or empty one is left out, but each must be there, so that
    a misspelt name does not pass. `body.text` is a field inside a field, unless a field has that very name.
    """

    def __init__(self, options: ReadOptions) -> None:
        self.texts = [name.strip() for name in options.text_field.split(",") if name.strip()]
        self.id = options.id_field
        self.only = self.texts[0] if len(self.texts) == 1 else None

    def used(self, names: Iterable[str]) -> set[str]:
        """Those of the record's own fields that hold texts or the id."""
        there = set(names)
        return {name if name in there else name.split(".", 1)[0] for name in (*self.texts, self.id)} & there

    def check(self, names: Sequence[str], name: str, where: str = "") -> None:
        """Whether a table with these columns can have the fields; `where`: the columns are told, for messages.

        Raises:
            BadData: a text field is not there, nor an id that was asked for; or one of them is there twice.
        """
        there = set(names)
        asked = [*self.texts, *([] if self.id == ReadOptions.id_field else [self.id])]
        for field in asked:
            if field not in there and field.split(".", 1)[0] not in there:
                setting = "text_field" if field in self.texts else "id_field"
                raise BadData(f"{name}: no column {field!r}{where}", missing_field(field, names, setting))
        for field in self.used(names):
            if (count := list(names).count(field)) > 1:
                raise BadData(f"{name}: {count} columns are named {field!r}{where}", "give each its own name")

    def document(self, record: Mapping[str, Any], piece: Piece, number: int, tally: Tally) -> Document | None:
        """The document of record `number` of a piece, or None where it is counted as bad.

        Other scalar fields become meta.

        Raises:
            BadData: more bad records than allowed; names the nearest field where one is missing.
        """
        text = record.get(self.only) if self.only else None
        if type(text) is not str:
            text = self._joined(record, piece, number, tally)
            if text is None:
                return None
        own = record.get(self.id)
        used = (self.only, self.id) if self.only in record else (*self.texts, self.id)
        if own is None and "." in self.id:
            own = _inside(record, self.id)
            own = None if own is _ABSENT else own
        meta = {key: value for key, value in record.items() if key not in used and _kept(value)}
        identity = "" if own is None else str(own)
        return Document(identity, text, piece.name, encode_meta(meta) if meta else "{}", line=number)

    def _joined(self, record: Mapping[str, Any], piece: Piece, number: int, tally: Tally) -> str | None:
        found = []
        for name in self.texts:
            value = _inside(record, name)
            if value is _ABSENT:
                tally.bad(f"no field {name!r}", place(piece, number), missing_field(name, record))
                return None
            if not isinstance(value, str) and not (value is None and len(self.texts) > 1):
                tally.bad(f"field {name!r} is {_kind(value)}, expected a string", place(piece, number))
                return None
            if value:
                found.append(value)
        return "\n\n".join(found)


def _inside(record: Mapping[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def missing_field(wanted: str, fields: Iterable[str], setting: str = "text_field") -> str:
    """The remedy for a missing field."""
    there = [str(name)[:80] for name in fields]
    near = difflib.get_close_matches(wanted, there, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(there[:20]) + ("…" if len(there) > 20 else "")
    return f"{hint}fields found: {shown}; set {setting}=NAME"


def _kept(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return len(value) <= _LONGEST_META
    if kind is int:
        return value.bit_length() <= 64
    return kind is bool or (kind is float and value == value and abs(value) != float("inf"))


def _kind(value: Any) -> str:
    return {
        type(None): "null",
        dict: "an object",
        list: "a list",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }.get(type(value), type(value).__name__)
