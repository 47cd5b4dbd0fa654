"""Arguments and helpers that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or your own file.py:function.")]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value]…",
        help="Settings, for instance pretrain.steps=200; and tracking=URI of MLflow, or off "
        "[default: $TRIPTYCH_TRACKING, or SQLite beside the store].",
    ),
]
ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE.yaml", help="Settings from a YAML file.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="Artifact store, any fsspec URL. [default: ./runs]")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="A running Ray cluster: auto, HOST:PORT; inline: no Ray."),
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", metavar="STAGE", help="Make this stage and what it needs, nothing else.")
]
ForceOption = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="Make this stage again although it is cached.")
]
KeepGoingOption = Annotated[
    bool, typer.Option("--keep-going", help="After a failure go on with all that does not depend on it.")
]
SkipMemoryCheckOption = Annotated[
    bool, typer.Option("--skip-memory-check", help="Start although training is predicted not to fit into memory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, its unique beginning, or latest.")]
StageArgument = Annotated[str, typer.Argument(metavar="STAGE", help="A stage's name.")]


def store_at(url: str | None) -> Any:
    """The store that a command means: --store, $TRIPTYCH_STORE or ./runs."""
    from cluster.store import Store
    from pipelines.session import environment_store

    return Store(url or environment_store())


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def build(recipe: str, words: list[str] | None, file: str | None, *, label: str | None = None, **settings: Any) -> Any:
    """The `Request` of a command line."""
    import os

    from pipelines.config import find_recipe, resolve, validate
    from pipelines.session import Request, environment_store
    from pipelines.submit import RESOLVED

    words = list(words or [])
    tracking = [w.partition("=")[2] for w in words if w.startswith("tracking=")]
    words = [w for w in words if not w.startswith("tracking=")]
    found = find_recipe(recipe)
    if file and file == os.environ.get(RESOLVED):  # what `submit` sent: no scale or default may go under it
        import yaml

        config = validate(found.section()[0], yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    else:
        config = resolve(found, words, file)
        if settings.get("address") not in (None, "inline"):  # stages run in other folders there
            from pipelines.sending import with_absolute_paths

            given = with_absolute_paths(recipe, config.model_dump(mode="json", exclude_unset=True))
            config = validate(found.section()[0], given)
    settings["store"] = settings.get("store") or environment_store()
    return Request(
        pipeline=found.build(config),
        recipe=found.name,
        label=label or os.environ.get("TRIPTYCH_LABEL") or found.label,
        config=config.model_dump(mode="json"),
        given=config.model_dump(mode="json", exclude_unset=True),
        import_paths=(found.folder,) if found.folder else (),
        words=tuple(words),
        file=str(Path(file).resolve()) if file else None,
        tracking=tracking[-1] if tracking else os.environ.get("TRIPTYCH_TRACKING"),
        **settings,
    )


def rebuild(record: Any, store: str, **settings: Any) -> Any:
    """The `Request` of a recorded run, with the code as it is now.

    Raises:
        BadConfig: the run was started from Python, so there is no recipe to call again.
    """
    from cluster.errors import BadConfig
    from pipelines.config import find_recipe, validate
    from pipelines.session import Request

    info = record.info
    if not info.get("label"):
        raise BadConfig(
            f"run {record.name} was started from Python; its recipe is not known by name",
            "call pipelines.run again from there, with force=[…] or only=[…]",
        )
    found = find_recipe(info["label"])
    kind, _ = found.section()
    config = validate(kind, info.get("given", info["config"]))
    settings.setdefault("tracking", info.get("tracking") or "off")
    return Request(
        pipeline=found.build(config),
        recipe=info["recipe"],
        label=info["label"],
        config=config.model_dump(mode="json"),
        given=config.model_dump(mode="json", exclude_unset=True),
        import_paths=(found.folder,) if found.folder else (),
        words=tuple(info.get("words") or ()),
        file=info.get("file"),
        store=store,
        **settings,
    )
