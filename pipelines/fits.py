"""What `triptych fit` makes of files, and leaves behind: a folder of pictures and numbers, and a run in MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

EXPERIMENT = "triptych-fit"


class Comparing(NamedTuple):
    """What the command line says of variants."""

    files: tuple[str, ...] = ()
    """Beside the first."""
    by: str | None = None
    """A column whose values are the variants of the first file."""
    budgets: tuple[float, ...] = ()
    """FLOPs; empty: multiples of what was measured."""
    comparable: bool = True
    """Whether the losses of all variants are of one unit and one examination."""

    @property
    def wanted(self) -> bool:
        return bool(self.files) or self.by is not None

    def check(self, approach: str) -> None:
        """What is wrong before any file is read.

        Raises:
            BadConfig: options without a comparison, or an approach that cannot be compared.
        """
        from cluster.errors import BadConfig

        if not self.wanted:
            if self.budgets or not self.comparable:
                word = "--at" if self.budgets else "--not-comparable"
                raise BadConfig(f"{word} is given, and nothing to compare", "add --compare OTHER.csv or --by COLUMN")
        elif approach in ("kaplan", "over-training", "data-constrained"):
            raise BadConfig(f"--approach {approach} cannot be compared", "take 3, 2, 1 or all")

    def check_units(self, variants: Mapping[str, Any]) -> None:
        """Raises BadConfig where losses are to be compared and are of different units."""
        from tasks.scaling.compare import check_units

        if self.wanted and self.comparable:
            check_units({name: points.unit for name, points in variants.items()})

    def settings(self) -> dict[str, Any]:
        """For the record; nothing where nothing is compared."""
        if not self.wanted:
            return {}
        return {"compare": list(self.files), "by": self.by, "at": list(self.budgets), "comparable": self.comparable}


def result_of(fitted: Mapping[str, Any], comparing: Comparing) -> dict[str, Any]:
    """What `--json` prints: {fit: object} of one file; of several also `variants`, each of that form, and `comparison`.

    With `--compare` the fits of the first file stand at the top as they do alone; with `--by` there is no fit of the
    whole file.

    Raises:
        BadConfig: no two variants have a fit by one approach, or budgets that are none.
    """
    from tasks.scaling.variants import compare_fits

    parts = {name: each.as_json() for name, each in fitted.items()}
    first: dict[str, Any] = next(iter(parts.values()))
    if not comparing.wanted:
        return first
    found = compare_fits(fitted, comparable=comparing.comparable, budgets=comparing.budgets or None)
    return {**({} if comparing.by else first), "variants": parts, "comparison": found}


def pictures_of(fitted: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """(file name, SVG): of one file its pictures; of several each one's in a folder of its name, and `compare.svg`."""
    from tasks.scaling.plots import comparison_picture, pictures
    from tasks.scaling.variants import laws_of

    drawn = []
    safe = _safe(fitted)
    for name, each in fitted.items():
        folder = f"{safe[name]}/" if len(fitted) > 1 else ""
        drawn += [(folder + file, data) for file, data in pictures(each.points, each.found)]
    compared = result.get("comparison", {}).get("approach_3")
    if compared and compared["winners"]:
        points = {name: each.points for name, each in fitted.items()}
        drawn.append(("compare.svg", comparison_picture(laws_of(fitted, "approach_3"), points, compared)))
    return drawn


def _safe(names: Iterable[str]) -> dict[str, str]:
    """Variants' names as those of folders, and in metrics; `+5` and `5` stay two."""
    out: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "variant"
        taken, number = {each.lower() for each in out.values()}, 1
        safe = plain
        while safe.lower() in taken:
            number += 1
            safe = f"{plain}-{number}"
        out[name] = safe
    return out


def write_folder(folder: Path, result: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> None:
    """fit.json and the pictures.

    Raises:
        BadConfig: the folder cannot be written.
    """
    from cluster.errors import BadConfig

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fit.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        for name, data in pictures:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    except OSError as error:
        raise BadConfig(f"--out {folder}: {error.strerror or error}", "name a folder that can be written") from None


def open_tracker(uri: str | None, store: str | None) -> Any:
    """A tracker that was checked to answer; None where tracking is off."""
    from cluster.store import Store
    from cluster.tracking import Tracker
    from pipelines.session import TRACKING_OFF, default_tracking, environment_store

    if uri == TRACKING_OFF:
        return None
    tracker = Tracker(uri or default_tracking(Store(store or environment_store())), EXPERIMENT)
    tracker.check()
    return tracker


def track(
    tracker: Any,
    variants: Mapping[str, Any],
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """One finished MLflow run: settings, the data sets, estimates as metrics, pictures.

    Returns:
        Its run id; empty where it could not be written.
    """
    first = next(iter(variants.values()))
    name = Path(first.source).stem or "fit"
    sources = dict.fromkeys(points.source for points in variants.values())
    digests = dict.fromkeys(points.digest for points in variants.values())
    tags = {"triptych.fit": " ".join(sources), "triptych.data": " ".join(digests)}
    tracker.start_run(name if len(sources) == 1 else " ".join(Path(s).stem for s in sources), tags, settings)
    for source in sources:
        read = [points for points in variants.values() if points.source == source]
        tracker.run.dataset(
            Path(source).stem or "fit",
            source=source,
            digest=read[0].digest,
            profile={
                "points": sum(len(points) for points in read),
                "largest_flops": max(float(points.flops.max()) for points in read),
            },
            context="fit",
        )
    tracker.artifact(("fit.json", json.dumps(result, indent=2)))
    for file, data in pictures:
        tracker.artifact((f"plots/{file}", data))
    tracker.end_run("FINISHED", {**metrics(result), **comparison_metrics(result)})
    whole = tracker.close(timeout=300)  # a new database takes MLflow long on a busy machine
    return str(tracker.run.known_run_id) if whole else ""


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """{fit.parameter: value} with the limits of the intervals."""
    out: dict[str, float] = {}
    for name, part in result.items():
        if "params" not in part:  # refused, or not a fit
            continue
        values = {**part["params"], **{k: part[k] for k in ("exponent_N", "exponent_D", "objective") if k in part}}
        out |= {f"{name}.{key}": float(value) for key, value in values.items()}
        for key, (low, high) in part["ci95"].items():
            out |= {f"{name}.{key}.low": low, f"{name}.{key}.high": high}
    return out


def comparison_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """{variant.fit.parameter: value} of each variant, and {comparison.fit.A.B.what: value} with the limits."""
    out: dict[str, float] = {}
    safe = _safe(result.get("variants", {}))
    for name, part in result.get("variants", {}).items():
        out |= {f"{safe[name]}.{key}": value for key, value in metrics(part).items()}
    for approach, found in result.get("comparison", {}).items():
        for pair in found["pairs"]:
            head = f"comparison.{approach}.{safe[pair['a']]}.{safe[pair['b']]}"
            rows = [(f"{key}.difference", row) for key, row in pair["exponents"].items()]
            # no + in the name of a metric
            rows += [(f"loss.difference.{row['flops']:.3g}".replace("+", ""), row) for row in pair["losses"]]
            for key, row in rows:
                out[f"{head}.{key}"] = row["difference"]
                if row["ci95"]:
                    out |= {f"{head}.{key}.low": row["ci95"][0], f"{head}.{key}.high": row["ci95"][1]}
            for cross in (pair["crossover"] or {"found": ()})["found"]:
                if cross["flops"]:
                    out[f"{head}.crossover.{safe[cross['after']]}"] = cross["flops"]
    return out
