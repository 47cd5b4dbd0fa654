"""`triptych recipes RECIPE`: every default is what a run without words has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pipelines.config import Recipe, find_recipe, resolve
from pipelines.graph import Pipeline
from pipelines.listing import settings, type_text
from pipelines.recipes import RECIPES
from tasks.downstream import DOWNSTREAM
from tasks.ingest import Ingest
from tests.recipes.toy import ToyConfig


def leaves(config: BaseModel, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config:
        found |= leaves(value, f"{above}{name}.") if isinstance(value, BaseModel) else {f"{above}{name}": value}
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_every_default_is_what_a_run_without_words_has(name: str) -> None:
    recipe = find_recipe(name)
    listed = {s.path: s.default for s in settings(recipe)}
    run = leaves(resolve(recipe, ["corpus=installed-docs"]))
    assert listed == to_jsonable_python(run) | {"corpus": listed["corpus"]}


def test_bert_and_quickstart() -> None:
    bert = {s.path: s.default for s in settings(find_recipe("bert"))}
    assert (bert["pretrain.steps"], bert["pretrain.peak_lr"], bert["tokenizer.vocab_size"]) == (960, 0.004, 4096)
    assert (bert["placement.workers"], bert["model.token_types"], bert["objective.pairs"]) == (2, 2, "nsp")
    assert bert["corpus"] is None
    quick = {s.path: s for s in settings(find_recipe("quickstart"))}
    assert quick["finetune.of"].default["docs-library"] == {"train_examples": 300}
    assert quick["objective.mask_rate"].default == 0.2 and quick["pretrain.optimizer.eps"].default == 1e-6
    assert quick["objective.kind"].type.startswith("Literal['mlm', ") and "'causal'" in quick["objective.kind"].type
    assert quick["pretrain.steps"].type == "int" and "budget" in quick["pretrain.steps"].help


def test_a_section_without_a_default_is_listed_all_the_same() -> None:
    def mine(toy: ToyConfig, lines: int = 3) -> Pipeline:
        return Pipeline([Ingest(source=toy.source)])

    found = {s.path: s.default for s in settings(Recipe("mine", "mine", mine, Path()))}
    assert found["toy.source"] is None and found["toy.train.steps"] == 20 and found["lines"] == 3


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "int"),
        (tuple[str, ...] | None, "tuple[str, ...] | None"),
        (dict[str, int | float], "dict[str, int | float]"),
        (Literal["a", 2], "Literal['a', 2]"),
        (Annotated[str, DOWNSTREAM], f"Literal[{', '.join(map(repr, DOWNSTREAM))}]"),
        (Any, "Any"),
    ],
)
def test_types_are_short(kind: Any, text: str) -> None:
    assert type_text(kind) == text
