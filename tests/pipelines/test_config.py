"""Settings: defaults of the recipe < scale < YAML file < key=value, section by section."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.errors import BadConfig
from modeling.architecture import preset
from pipelines.config import Recipe, find_recipe, parse_word, resolve
from pipelines.graph import Pipeline


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a.b=3", {"a": {"b": 3}}),
        ("a=1e-3", {"a": 1e-3}),
        ("a=[x,y]", {"a": ["x", "y"]}),
        ("a=true", {"a": True}),
        ("a=", {"a": ""}),
        ("a=null", {"a": None}),
        ("a=s3://bucket/x=1.jsonl", {"a": "s3://bucket/x=1.jsonl"}),
        ("a=2018-01-01", {"a": "2018-01-01"}),
        ("a={b: 1}", {"a": {"b": 1}}),
    ],
)
def test_words(word: str, value: object) -> None:
    assert parse_word(word) == value


@pytest.mark.parametrize("word", ["a", "=1", "a b=1", "a..b=1"])
def test_words_of_another_form_are_refused(word: str) -> None:
    with pytest.raises(BadConfig, match="key=value"):
        parse_word(word)


def test_a_partial_override_keeps_the_recipes_own_defaults() -> None:
    recipe = find_recipe("quickstart")
    plain, changed = resolve(recipe), resolve(recipe, ["pretrain.steps=7", "model.layers=3"])
    assert changed.pretrain == plain.pretrain.model_copy(update={"steps": 7})
    assert changed.model == plain.model.model_copy(update={"layers": 3})


def test_scale_then_file_then_words(tmp_path: Path) -> None:
    recipe = find_recipe("bert")
    file = tmp_path / "c.yaml"
    file.write_text("pretrain: {steps: 11, batch_size: 4}\nscale: gpu\n")
    made = resolve(recipe, ["corpus=x", "pretrain.steps=12"], str(file))
    gpu = resolve(recipe, ["corpus=x", "scale=gpu"])
    assert made.scale == "gpu"
    assert (made.pretrain.steps, made.pretrain.batch_size) == (12, 4)
    assert made.pretrain.peak_lr == gpu.pretrain.peak_lr != resolve(recipe, ["corpus=x"]).pretrain.peak_lr


def test_a_preset_replaces_the_model_and_fields_change_it() -> None:
    recipe = find_recipe("quickstart")
    assert resolve(recipe, ["model=bert-mini"]).model == preset("bert-mini")
    assert resolve(recipe, ["model=bert-mini", "model.layers=2"]).model == preset("bert-mini", layers=2)
    assert resolve(recipe, ["model.preset=bert-mini"]).model == preset("bert-mini")


def test_every_scale_of_bert_is_a_valid_config_with_the_published_budget_for_paper() -> None:
    recipe = find_recipe("bert")
    made = {scale: resolve(recipe, ["corpus=x", f"scale={scale}"]) for scale in ("cpu", "gpu", "base", "paper")}
    paper = made["paper"]
    assert (paper.pretrain.steps, paper.pretrain.batch_size, paper.examples.length_tokens) == (1_000_000, 256, 512)
    assert (paper.pretrain.peak_lr, paper.pretrain.warmup_steps) == (1e-4, 10_000)
    assert (paper.model.layers, paper.model.width) == (12, 768)
    assert (paper.examples.masking, paper.examples.duplication) == ("static", 10)


def test_another_budget_replaces_the_scale_s_and_an_optimizer_is_a_name_and_fields(
    tmp_path: Path,
) -> None:
    recipe = find_recipe("bert")
    made = resolve(recipe, ["corpus=x", "pretrain.tokens=1e9", "pretrain.warmup_tokens=1e6"]).pretrain
    assert (made.steps, made.tokens, made.warmup_share, made.warmup_tokens) == (0, 10**9, 0, 10**6)
    with pytest.raises(BadConfig, match="steps and tokens are both given"):
        resolve(recipe, ["corpus=x", "pretrain.tokens=1e9", "pretrain.steps=5"])
    made = resolve(recipe, ["corpus=x", "pretrain.optimizer=lamb", "pretrain.optimizer.eps=1e-8"]).pretrain
    assert (made.optimizer.kind, made.optimizer.eps) == ("lamb", 1e-8)
    paper = resolve(recipe, ["corpus=x", "scale=paper", "pretrain.optimizer.weight_decay=0.1"]).pretrain.optimizer
    assert (paper.kind, paper.bias_correction, paper.weight_decay) == ("adamw", False, 0.1)
    with pytest.raises(BadConfig, match="unknown optimizer 'adam'; did you mean 'adamw'"):
        resolve(recipe, ["corpus=x", "pretrain.optimizer=adam"])
    t5 = find_recipe("t5")
    (tmp_path / "a.txt").write_text("text")
    paper = resolve(t5, [f"corpus={tmp_path / 'a.txt'}", "scale=paper", "placement.zero_stage=2"])
    with pytest.raises(BadConfig, match="'adafactor' does not work at ZeRO stage 2.*placement.zero_stage=0"):
        t5.build(paper)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune.of.docs-library.epoch=5"], "unknown key 'finetune.of.docs-library.epoch'; did you mean 'epochs'"),
        (["finetune={of: {docs-library: {epoch: 5}}}"], "unknown key 'finetune.of.docs-library.epoch'"),
        (["finetune.of.docs-library.epochs=0"], "finetune.of.docs-library.epochs: input should be greater"),
        (["finetune.of.docs-library.keep=best"], "of.docs-library: keep=best needs validation on the way"),
        (["finetune.of.docs-librry.epochs=5"], "finetune.of.docs-librry: unknown downstream task 'docs-librry'; did"),
        (["pretrain.batch-size=32"], "unknown key 'pretrain.batch-size'; did you mean 'batch_size'"),
        (["downstream=sst2"], "downstream: expected a list, found 'sst2'; give downstream=[sst2]"),
        (["pretrain.steps=yes"], "pretrain.steps: expected a number, found True"),
        (["finetune.of.docs-library.epochs=true"], "finetune.of.docs-library.epochs: expected a number, found True"),
        (["pretrain.peak_lr=inf"], "pretrain.peak_lr: input should be a finite number"),
        (["pretrain.guard.deviations=nan"], "pretrain.guard.deviations: input should be a finite number"),
        (["placement.resources.tpu-v5=yes"], "placement.resources: expected a number, found True"),
    ],
)
def test_what_does_not_fit_is_told_by_its_path(words: list[str], said: str) -> None:
    with pytest.raises(BadConfig, match=re.escape(said)):
        resolve(find_recipe("quickstart"), words)


def test_nearest_names_below_a_dict_of_sections() -> None:
    with pytest.raises(BadConfig, match=r"unknown key 'variants.a.famly'; did you mean 'family'"):
        resolve(find_recipe("scaling"), ["corpus=x", "variants.a.famly=decoder"])


def test_names_with_a_dash_are_set_from_the_command_line() -> None:
    made = resolve(find_recipe("quickstart"), ["corpus.open-web=a.jsonl", "placement.resources.tpu-v5=2"])
    assert made.corpus[0].name == "open-web" and made.placement.resources == {"tpu-v5": 2}


def test_a_task_s_own_settings_are_the_given_ones_over_the_loop_s() -> None:
    words = ["finetune.of.docs-library.epochs=2", "finetune.loop.optimizer=lamb", "finetune.loop.patience=2"]
    more = ["finetune.loop.validate_every_steps=9", "finetune.of.docs-library.optimizer.eps=1e-5"]
    made = resolve(find_recipe("quickstart"), words + more)
    own, other = (made.finetune.loop_of(task) for task in ("docs-library", "docs-acceptability"))
    assert (own.epochs, other.epochs, own.patience, other) == (2, 5, 2, made.finetune.loop)
    assert (own.optimizer.kind, own.optimizer.eps, other.optimizer.eps) == ("lamb", 1e-5, 1e-6)
    assert made.finetune.value_of("docs-library", "train_examples") == 300
    assert made.finetune.value_of("cola", "length_tokens") == 128
    stored = made.model_dump(mode="json")
    assert stored["finetune"]["of"]["docs-library"] == {"epochs": 2, "optimizer": {"eps": 1e-5}, "train_examples": 300}
    assert type(made).model_validate(stored) == made
    again = resolve(find_recipe("quickstart"), ["finetune.of.docs-library.optimizer=lion"]).finetune
    assert again.loop_of("docs-library").optimizer.kind == "lion"


def test_a_task_that_is_not_chosen_keeps_its_settings() -> None:
    recipe = find_recipe("quickstart")
    made = resolve(recipe, ["downstream=[docs-library]", "finetune.of.cola.epochs=3"])
    assert {"docs-acceptability", "cola"} < set(made.finetune.of)


RECIPE = """from pathlib import Path
import json
from pipelines import Pipeline

def helper(size):
    return json.loads(size)

def fails(size: str = "{") -> Pipeline:
    return helper(size)

def imports() -> Pipeline:
    import nowhere
"""


def test_a_recipe_of_the_user_s_that_fails_is_told_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "failing_recipe.py"
    file.write_text(RECIPE)
    for name, line, what in (("fails", 6, "JSONDecodeError"), ("imports", 12, "ModuleNotFoundError")):
        recipe = find_recipe(f"{file}:{name}")
        with pytest.raises(BadConfig, match=rf"failing_recipe.py:{name} failed: {what}: ") as raised:
            recipe.build(resolve(recipe))
        assert raised.value.remedy == f"see {file}, line {line}"
    (tmp_path / "unfinished_recipe.py").write_text("def f(:\n")
    with pytest.raises(
        BadConfig, match=r"does not import: SyntaxError[^\n]*\n  see [^\n]*unfinished_recipe.py, line 1"
    ):
        find_recipe(f"{tmp_path / 'unfinished_recipe.py'}:f")


def test_a_bug_in_a_recipe_of_ours_keeps_its_traceback() -> None:
    def ours() -> Pipeline:
        raise ZeroDivisionError

    recipe = Recipe("ours", "ours", ours)
    with pytest.raises(ZeroDivisionError):
        recipe.build(resolve(recipe))
