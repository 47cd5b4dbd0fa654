"""The table of results, from scores written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cluster.errors import BadConfig, BadData
from tasks.base import Artifact, Runtime, Task
from tasks.report import Report, markdown, results
from tests.tasks.small_model import SomeModel, SomeScore
from tests.tasks.stage import FolderContext, digests


class SomeBaseline(Task):
    produces: ClassVar[str] = "baseline"


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


def test_one_seed_has_no_spread() -> None:
    """Not a spread of 0.000, which would be the most certain figure of the table."""
    rows = results(scores([0.8], [0.6, 0.5]))
    assert rows[0]["pretrained"]["spread"] is None and rows[0]["random"]["spread"] == 0.05
    (line,) = [line for line in markdown(rows).splitlines() if line.startswith(f"| {rows[0]['task']}")]
    assert "| 0.800 | 0.550 ± 0.050 |" in line


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
        return [self.input(name) for name in self._inputs if name.startswith(field)]


def test_the_artifact(tmp_path: Path) -> None:
    published = {"published": {"BERT-base (test)": 0.889}, "published_metric": "f1"}
    found = [{**s, **published} for s in scores([0.8, 0.8], [0.6, 0.6])] + scores([0.5, 0.5], [0.5, 0.5], "rte")
    folders = {}
    for number, each in enumerate(found):
        folders[f"scores-{number}"] = tmp_path / f"score-{number}"
        folders[f"scores-{number}"].mkdir()
        (folders[f"scores-{number}"] / "score.json").write_text(json.dumps(each))
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
    assert "| 0.800 | – | – | – | 1 | – |" in text


def model_and_baseline(folder: Path, final: dict[str, float]) -> dict[str, Path]:
    training = {"objective": {"kind": "mlm"}, "parameters": {"total": 1_234_567}, "final": {"tokens": 5000, **final}}
    files = {
        "models-0/training.json": training,
        "models-0/config.json": {"model": {"architecture": "encoder"}, "head": {}},
        "baselines-0/baseline.json": {"unigram_nats": 6.5, "ngram_nats": 4.25, "order": 3},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    return {"models-0": folder / "models-0", "baselines-0": folder / "baselines-0"}


@pytest.mark.parametrize(
    ("final", "loss"),
    [
        ({"loss": 9.0, "validation_loss": 3.5}, 3.5),
        # of several losses the one on tokens, which the baselines can be compared with
        ({"loss": 9.0, "validation_loss": 38.0, "validation_loss_generator": 3.25}, 3.25),
        ({"loss": 9.0, "validation_loss": 4.1, "validation_loss_tokens": 3.75, "validation_loss_pairs": 0.35}, 3.75),
        ({"loss": 9.0}, 9.0),
    ],
)
def test_pretraining_beside_its_baselines(tmp_path: Path, final: dict[str, float], loss: float) -> None:
    task = Report(models=(SomeModel(),), baselines=(SomeBaseline(),))
    task.run(ManyScores(tmp_path / "out", model_and_baseline(tmp_path, final)))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["rows"] == [] and found["pretraining"][0]["loss"] == loss
    text = (tmp_path / "out" / "results.md").read_text()
    shown = f"{loss:.3f}" if len(final) > 1 else f"{loss:.3f} (in training)"  # which is not of held-out text
    assert f"| mlm | encoder | 1,234,567 | 5,000 | {shown} | 6.500 | 4.250 (3-gram) |" in text


def test_a_loss_of_pairs_of_words_is_no_cross_entropy_of_tokens(tmp_path: Path) -> None:
    """word2vec's and GloVe's stand beside the n-gram's by their names alone."""
    folders = model_and_baseline(tmp_path, {"validation_loss": 2.75, "loss": 2.7})
    training = folders["models-0"] / "training.json"
    note = json.loads(training.read_text())
    training.write_text(json.dumps({**note, "objective": {"kind": "skip-gram"}}))
    Report(models=(SomeModel(),), baselines=(SomeBaseline(),)).run(ManyScores(tmp_path / "out", folders))
    assert "| 2.750 (of pairs) | 6.500 | 4.250 (3-gram) |" in (tmp_path / "out" / "results.md").read_text()


def test_a_model_without_baseline_is_shown_as_such(tmp_path: Path) -> None:
    folders = model_and_baseline(tmp_path, {"loss": 2.0})
    del folders["baselines-0"]
    Report(models=(SomeModel(),)).run(ManyScores(tmp_path / "out", folders))
    assert "| 2.000 (in training) | – | – |" in (tmp_path / "out" / "results.md").read_text()


def test_mistakes_are_named() -> None:
    with pytest.raises(BadConfig, match="neither scores nor models"):
        Report()
    with pytest.raises(BadConfig, match="2 baselines for 1 models"):
        Report(models=(SomeModel(),), baselines=(SomeBaseline(), SomeBaseline()))
