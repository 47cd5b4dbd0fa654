"""What a user means by MODEL: a folder, an artifact's key, RUN/STAGE, a run, or `latest`; as a local model folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cluster.errors import BadConfig
from cluster.files import cache_folder
from pipelines.runs import RunRecord

CONFIG = "config.json"
PRETRAINED = "pretrain"  # the stage that a run's name stands for, where it made several models
IMPORT_CACHE_BYTES = 50 << 30
MOST_NAMED = 8


def find_model(name: str, store: str | None = None) -> Path:
    """The local folder of a model, in Triptych's layout, not to be written to.

    Args:
        name: in this order: a folder with a config.json (ours, or one of the Hugging Face Hub, which is imported into
            the cache), the key of an artifact or its unique beginning, `RUN/STAGE`, a run (its stage `pretrain`, or
            its only model), `latest`.
        store: URL of the store; None: $TRIPTYCH_STORE or ./runs. It is opened only where `name` is no folder.

    Raises:
        BadConfig: nothing of that name, several things, or something that is no model.
        ConfigError: a folder of the Hub with a model that Triptych does not have.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return _local(folder)
    is_path = name.startswith((".", "/", "~"))
    if is_path or (folder.is_dir() and any(folder.iterdir())):
        found = "no config.json in it" if folder.is_dir() else "no such folder"
        if is_path or "/" not in name:
            raise BadConfig(f"{name}: {found}", "give a model's folder, an artifact's key, RUN/STAGE, RUN or latest")
    from pipelines.cli_options import store_at

    return _stored(name, store_at(store))


def _stored(name: str, store: Any) -> Path:
    """The folder of an artifact in the store, fetched if the store is remote."""
    from pipelines.show import find_manifest

    what, _, stage = name.partition("/")
    try:
        record, manifest = find_manifest(store, what, stage or None)
    except BadConfig as error:
        raise BadConfig(f"model {name}: no folder with a config.json, and {error.message}", error.remedy) from None
    if record is not None and not stage:
        manifest = _model_of(store, record)
    if manifest is None:
        raise BadConfig(f"{name} has no artifact in the store {store.url}", "its stage is not done")
    if manifest.get("kind") != "model":
        raise BadConfig(
            f"{name} is a {manifest.get('kind')} (stage {manifest.get('stage')}), expected a model",
            "`triptych show RUN` lists a run's stages",
        )
    return Path(store.fetch(manifest, cache_folder() / "artifacts"))


def _model_of(store: Any, record: RunRecord) -> dict[str, Any]:
    """The manifest of the model that a run stands for."""
    keys = {name: entry["key"] for name, entry in record.status["stages"].items() if entry.get("key")}
    manifests = store.manifests(keys.values())
    models = {name: manifests[key] for name, key in keys.items() if manifests.get(key, {}).get("kind") == "model"}
    if PRETRAINED in models:
        return models[PRETRAINED]
    if len(set(keys[name] for name in models)) == 1:
        return next(iter(models.values()))
    if not models:
        raise BadConfig(
            f"run {record.name} ({record.state()}) has made no model yet",
            f"its stages: {', '.join(list(keys)[:MOST_NAMED]) or 'none'}",
        )
    named = sorted(models, key=lambda name: (not name.startswith(PRETRAINED), list(models).index(name)))
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    raise BadConfig(
        f"run {record.name} made {len(models)} models and none is stage {PRETRAINED!r}",
        f"name one: {', '.join(f'{record.name}/{stage}' for stage in named[:MOST_NAMED])}{more}",
    )


def _local(folder: Path) -> Path:
    """A folder with a config.json: itself if it is ours, or what it is imported to."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadConfig(f"{folder / CONFIG}: not readable as JSON ({error})", "give a model's folder") from None
    if isinstance(config, dict) and isinstance(config.get("model"), dict):
        return folder
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadConfig(
            f"{folder / CONFIG}: neither a Triptych model (keys model, head) nor one of the Hub (key model_type)",
            "give a model's folder",
        )
    return _imported(folder)


def _imported(folder: Path) -> Path:
    """The import of a folder of the Hub's layout, kept in the cache until a file of it, or the importer, changes."""
    from cluster.store_cache import FolderCache
    from modeling import hub

    files = sorted(path for path in folder.resolve().iterdir() if path.is_file())
    stats = [path.stat() for path in files]
    seen = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in zip(files, stats, strict=True)]
    digest = hashlib.blake2b(json.dumps(seen).encode(), digest_size=32)
    for path in sorted(Path(hub.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    cache = FolderCache(cache_folder() / "imported", IMPORT_CACHE_BYTES)

    def fill(new: Path) -> None:
        hub.import_into(folder, new)

    return cache.get(digest.hexdigest(), sum(stat.st_size for stat in stats), fill)
