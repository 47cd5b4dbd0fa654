"""The table of results, from scores written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import BadData
from tasks.base import Artifact, Runtime
from tasks.report import Report, markdown, results
from tests.tasks.small_model import SomeScore
from tests.tasks.stage import FolderContext, digests


def score(task: str, init: str, seed: int, primary: float, **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "metric": "f1",
        "primary": primary,
        "init": init,
        "seed": seed,
        "split": "validation",
        "values": {"f1": primary, "accuracy": primary / 2},
        "others": {"test": {"f1": primary - 0.1}},
        "examples": 100,
        "train_examples": 1200,
        **more,
    }


def scores(pretrained: list[float], random: list[float], task: str = "mrpc") -> list[dict[str, Any]]:
    sides = {"pretrained": pretrained, "random": random}
    return [score(task, side, seed, value) for side, values in sides.items() for seed, value in enumerate(values)]


def test_medians_spreads_and_the_difference() -> None:
    (row,) = results(scores([0.8, 0.7, 0.75], [0.6, 0.5, 0.52]))
    assert row["pretrained"] == {"values": [0.8, 0.7, 0.75], "seeds": [0, 1, 2], "median": 0.75, "spread": 0.05}
    assert row["random"]["median"] == 0.52 and row["difference"] == 0.23 and row["pays"] is True
    assert row["others"]["accuracy"] == {"pretrained": 0.375, "random": 0.26}
    assert row["others"]["test.f1"] == {"pretrained": 0.65, "random": 0.42}


@pytest.mark.parametrize(
    ("pretrained", "random", "pays"),
    [
        ([0.8, 0.7, 0.75], [0.70, 0.60, 0.72], False),  # the ranges meet
        ([0.8, 0.7, 0.75], [0.40, 0.50, 0.42], True),
        ([0.5, 0.5], [0.6, 0.6], False),
        ([0.6], [0.5], None),  # one seed says nothing of the spread
        ([0.6], [], None),
    ],
)
def test_what_pays_is_said_only_beyond_the_spread(
    pretrained: list[float], random: list[float], pays: bool | None
) -> None:
    assert results(scores(pretrained, random))[0]["pays"] is pays


def test_rows_do_not_depend_on_the_order_of_seeds() -> None:
    found = scores([0.8, 0.7, 0.75], [0.6, 0.5, 0.52])
    assert results(found) == results(found[:3][::-1] + found[3:])


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BadData, match="two scores of the same seed"):
        results([score("rte", "random", 0, 0.5), score("rte", "random", 0, 0.6)])
    with pytest.raises(BadData, match="differ in examples: 100, 200"):
        results([score("rte", "random", 0, 0.5), score("rte", "random", 1, 0.5, examples=200)])


class ManyScores(FolderContext):
    def __init__(self, out: Path, folders: Mapping[str, Path]) -> None:
        super().__init__(out, Runtime(), folders)

    def inputs(self, field: str) -> list[Artifact]:
        return [self.input(name) for name in self._inputs]


def test_the_artifact(tmp_path: Path) -> None:
    published = {"published": {"BERT-base (test)": 0.889}, "published_metric": "f1"}
    found = [{**s, **published} for s in scores([0.8, 0.8], [0.6, 0.6])] + scores([0.5, 0.5], [0.5, 0.5], "rte")
    folders = {}
    for number, each in enumerate(found):
        folders[str(number)] = tmp_path / f"score-{number}"
        folders[str(number)].mkdir()
        (folders[str(number)] / "score.json").write_text(json.dumps(each))
    task = Report(scores=tuple(SomeScore() for _ in found))
    for name in ("one", "two"):
        metrics = task.run(ManyScores(tmp_path / name, folders))
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert metrics["tasks"] == 2 and metrics["tasks_that_pay"] == 1 and metrics["mrpc.pretrained"] == 0.8
    rows = json.loads((tmp_path / "one" / "results.json").read_text())["rows"]
    assert [row["task"] for row in rows] == ["mrpc", "rte"]
    text = (tmp_path / "one" / "results.md").read_text()
    assert "| mrpc | f1 | 1,200 | 0.800 ± 0.000 | 0.600 ± 0.000 | +0.200 | yes | 2 | BERT-base (test) 0.889 |" in text
    assert "| rte | f1 | 1,200 | 0.500 ± 0.000 | 0.500 ± 0.000 | +0.000 | no | 2 | – |" in text


def test_one_side_alone_is_shown_as_such() -> None:
    text = markdown(results(scores([0.8], [])))
    assert "| 0.800 ± 0.000 | – | – | – | 1 | – |" in text


def test_no_scores_is_a_mistake() -> None:
    with pytest.raises(ValidationError):
        Report(scores=())
