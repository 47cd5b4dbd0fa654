"""`triptych submit`: what travels with a run to a cluster (its config, with absolute paths), and the record left."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig, UserError
from cluster.files import is_remote, local_path, split_list
from cluster.store import Store
from cluster.tracking_uri import redact
from pipelines.config import find_recipe, validate
from pipelines.opening import request_facts
from pipelines.runs import RunRecord, new_name
from pipelines.session import TRACKING_OFF, Request, default_tracking
from pipelines.submit import CONFIG_FILE, client, ended, follow, submit
from pipelines.submitted import follow_up

SQLITE = "sqlite:///"


def send(request: Request, address: str, *, wait: bool) -> int:
    """Submit a request; with `wait` follow it to its end. Returns the exit code.

    Raises:
        BadConfig: the cluster could not reach the store.
        Unreachable: no job server answers at `address`.
    """
    import typer
    import yaml

    where = Store(request.store)
    if where.in_process:
        raise BadConfig(f"store {where.url} lives inside one process", "give the cluster a folder or an object store")
    if where.local_root is None and not request.tracking:
        typer.echo(
            f"warning: tracking is not set, and beside the store {where.url} there is no place for MLflow's database: "
            "it will be lost with the job's temporary folder. Give tracking=http://HOST:PORT of an MLflow server (or "
            "TRIPTYCH_TRACKING), or tracking=off.",
            err=True,
        )
    label = request.label
    inside = label if not request.import_paths else f"{Path(label.rpartition(':')[0]).name}:{label.rpartition(':')[2]}"
    arguments = [inside, "--config", CONFIG_FILE, "--store", where.url]
    tracking = _absolute_tracking(request.tracking or default_tracking(where))
    if request.tracking:
        arguments.append(f"tracking={tracking}")
    for flag, values in (("--only", request.only), ("--force", request.force)):
        for value in values:
            arguments += [flag, value]
    if request.keep_going:
        arguments.append("--keep-going")
    if not request.check_memory:
        arguments.append("--skip-memory-check")
    config = yaml.safe_dump(with_absolute_paths(label, request.given), sort_keys=False, allow_unicode=True)
    client(address)  # before anything is written
    name = new_name(request.recipe)
    facts = {**request_facts(request), "store": where.url, "submitted": address}
    facts["tracking"] = None if tracking == TRACKING_OFF else redact(tracking)
    paths = list(request.import_paths)
    with _left_for_the_driver(where, name, facts):
        submit(address, name=name, arguments=arguments, label=label, config=config, import_paths=paths)
    typer.echo(f"submitted {name} to {address}")
    if not wait:
        return 0
    try:
        for text in follow(address, name):
            typer.echo(text, nl=False)
    except KeyboardInterrupt:
        typer.echo(f"\nleft; the run goes on: triptych status {name}, triptych cancel {name}")
        return 0
    status, code = ended(address, name)
    follow_up([RunRecord.load(where, name)])
    typer.echo(f"{name}: {status.rpartition('.')[2].lower()}")
    return code


class _left_for_the_driver:
    """A record in state `submitted` that the driver takes over; it goes again where the job was not taken."""

    def __init__(self, store: Store, name: str, facts: Mapping[str, Any]) -> None:
        self.store, self.name, self.facts = store, name, facts

    def __enter__(self) -> None:
        RunRecord.submitted(self.store, self.name, self.facts)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):  # after Ctrl-C nobody knows whether it was taken
            self.store.delete(f"runs/{self.name}")


def _absolute_tracking(uri: str) -> str:
    """A SQLite database named by a relative path, by its absolute one: a job has another cwd."""
    path = uri.removeprefix(SQLITE)
    return f"{SQLITE}{Path(path).absolute()}" if path != uri and not path.startswith("/") else uri


# ---------------------------------------------------------------- paths


def with_absolute_paths(label: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's config as JSON, with the absolute path of every file, folder or glob of this machine that it names.

    A text is a path where something of that name is here and its field takes the absolute path instead: the name of
    an objective stays what it is, though a folder here may be called so. What a recipe has by default is a path only
    where it looks like one (`data/a.jsonl`).
    """
    kind, _ = find_recipe(label).section()
    found: dict[str, Any] = {**config}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}
    plain = {name: d.model_dump(mode="json") if hasattr(d, "model_dump") else d for name, d in defaults.items()}
    for place, text in _texts(found):
        path = absolute_path(text)
        if path == text or (_at(plain, place) == text and not any(c in text for c in "/.*")):
            continue
        changed = _with(found, place, path)
        try:
            validate(kind, changed)
        except UserError:
            continue
        found = changed
    return found


def absolute_path(text: str) -> str:
    """`text` with an absolute path for each path or glob of a comma list that is here; URLs as they are."""
    parts = split_list(text)
    paths = [_absolute(part) for part in parts]
    return text if paths == parts else ",".join(paths)


def _absolute(text: str) -> str:
    if is_remote(text) or "\0" in text or len(text) > 4096:
        return text
    path = local_path(text)
    try:
        if path.exists():
            return os.path.abspath(path)
        if any(c in text for c in "*?[") and next(glob.iglob(str(path), recursive=True), None) is not None:
            return str(path) if path.is_absolute() else os.path.join(glob.escape(os.getcwd()), path)
    except OSError:  # a text that is too long for a name
        pass
    return text


def _texts(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(place, text) of every text in nested dictionaries and lists."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*place, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _texts(item, (*place, number))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for part in place:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _with(value: Any, place: tuple[Any, ...], text: str) -> Any:
    """A copy with another text at `place`."""
    if not place:
        return text
    first, *rest = place
    if isinstance(value, Mapping):
        return {**value, first: _with(value[first], tuple(rest), text)}
    return [_with(item, tuple(rest), text) if n == first else item for n, item in enumerate(value)]
