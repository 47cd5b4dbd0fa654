"""Every recipe: valid at every scale before anything runs, and run to its end on a small text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.store import Store
from modeling.errors import ConfigError
from pipelines import run
from pipelines.config import find_recipe, resolve, validate
from pipelines.recipes import RECIPES
from pipelines.recipes.scale import dial
from pipelines.session import Request, make_plan
from tasks.pretrain import Pretrain

PRETRAINING = [name for name in RECIPES if name not in ("quickstart", "tokenizers", "scaling")]
TINY = [
    "tokenizer.vocab_size=400",
    "tokenizer.min_frequency=1",
    "examples.length_tokens=32",
    "pretrain.steps=2",
    "pretrain.batch_size=4",
    "pretrain.precision=fp32",
    "pretrain.log_every_steps=1",
    "placement.workers=1",
    "ingest.validation_share=0.2",
]


@pytest.mark.parametrize("scale", ["cpu", "gpu", "base", "paper"])
@pytest.mark.parametrize("name", PRETRAINING)
def test_every_scale_is_a_pipeline(name: str, scale: str) -> None:
    """Building it checks the objective against the architecture, the tokenizer's tokens and the lengths."""
    recipe = find_recipe(name)
    config = resolve(recipe, ["corpus=installed-docs", f"scale={scale}"])
    names = [task.stage or task.name for task in recipe.build(config).roots()]
    assert "pretrain" in names and config.pretrain.peak_lr > 0
    assert bool(config.placement.gpus) == bool(config.finetune_placement.gpus) == (scale != "cpu")


@pytest.mark.parametrize("name", [*PRETRAINING, "quickstart"])
def test_one_seed_is_of_weights_and_samples(name: str) -> None:
    """`seed` is of both; `pretrain.seed` of the weights alone."""
    recipe, corpus = find_recipe(name), [] if name == "quickstart" else ["corpus=installed-docs"]
    for words, expected in (([], (0, 0)), (["seed=7"], (7, 7)), (["seed=7", "pretrain.seed=3"], (7, 3))):
        roots = recipe.build(resolve(recipe, [*corpus, *words])).roots()
        assert {(task.seed, task.loop.seed) for task in roots if isinstance(task, Pretrain)} == {expected}


@pytest.mark.parametrize("words", [[], ["seed=7", "placement.workers=2", "pretrain.optimizer=lion"]])
@pytest.mark.parametrize("name", [*PRETRAINING, "quickstart", "scaling"])
def test_what_was_given_is_the_same_call_again(name: str, words: list[str], tmp_path: Path) -> None:
    """As `rerun` and a submitted job make it: some defaults depend on whether a value was set at all."""
    recipe, corpus = find_recipe(name), [] if name == "quickstart" else ["corpus=installed-docs"]
    first = resolve(recipe, [*corpus, *words])
    again = validate(recipe.section()[0], first.model_dump(mode="json", exclude_unset=True))
    assert again == first
    assert again.model_dump(mode="json", exclude_unset=True) == first.model_dump(mode="json", exclude_unset=True)
    if name != "scaling":
        return  # the others take a while to plan
    store = Store(str(tmp_path / "store"))
    plans = [make_plan(Request(recipe.build(c), recipe=name), store).keys() for c in (first, again)]
    assert plans[0] == plans[1]


def test_one_dial_gives_the_rest() -> None:
    cpu, gpu, base = dial("cpu"), dial("gpu"), dial("base")
    assert [s["model"]["width"] for s in (cpu, gpu, base)] == [128, 512, 768]
    for scale in (cpu, gpu, base):
        N = 12 * scale["model"]["layers"] * scale["model"]["width"] ** 2
        batch_tokens = scale["pretrain"]["batch_size"] * scale["examples"]["length_tokens"]
        share = 10 if scale is cpu else 20
        assert scale["pretrain"]["steps"] == share * N // batch_tokens
        assert scale["pretrain"]["peak_lr"] == pytest.approx(0.512 / scale["model"]["width"], rel=1e-3)
    assert base["model"]["layers"] * base["model"]["width"] ** 2 * 12 == 84_934_656  # GPT-2 small without embeddings


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of a small grammar, several to a document."""
    rng = random.Random(0)
    subjects, verbs = ["The cat", "A dog", "Mary", "The king of France", "In 1815 Paul"], ["saw", "liked", "built"]
    things = ["a house", "the river", "three old books", "nothing at all", "the town of Paris"]
    documents = [
        " ".join(f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(things)}." for _ in range(12))
        for _ in range(150)
    ]
    path = tmp_path_factory.mktemp("corpus") / "small.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_runs_to_its_end(name: str, text: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.getbasetemp() / "recipes"
    recipe = find_recipe(name)
    config = resolve(recipe, [f"corpus={text}", *TINY])
    result = run(recipe.build(config), store=str(store), tracking="off", address="inline", recipe=name)
    assert result.state == "done", result.record and result.record.status
    found = json.loads((result.path("report") / "results.json").read_text())["pretraining"]
    (row,) = found
    assert 0 < row["loss"] < 50 and 0 < row["ngram"] < row["unigram"] < 7
    assert row["objective"] == config.objective.kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset", "auto"), [("bert", "bert-tiny", "AutoModelForPreTraining"), ("t5", "t5-small", "T5Model")]
)
def test_a_model_goes_to_the_hub_and_back_into_a_run(
    name: str, preset: str, auto: str, text: Path, tmp_path: Path
) -> None:
    import transformers

    from modeling.hub import export_model

    recipe = find_recipe(name)
    small = [f"model.preset={preset}", "model.width=32", "model.heads=2", "model.head_size=16", "model.ff_width=64"]
    settings = {"store": str(tmp_path / "store"), "tracking": "off", "address": "inline", "recipe": name}
    first = run(recipe.build(resolve(recipe, [f"corpus={text}", *TINY, *small, "model.layers=1"])), **settings)
    assert first.state == "done", first.record and first.record.status
    exported = tmp_path / "exported"
    export_model(first.path("pretrain"), exported)
    assert getattr(transformers, auto).from_pretrained(exported).num_parameters() > 0
    more = [*(word for word in TINY if not word.startswith("tokenizer.")), "pretrain.peak_lr=1e-9", f"init={exported}"]
    second = run(recipe.build(resolve(recipe, [f"corpus={text}", *more])), **settings)
    assert second.state == "done", second.record and second.record.status
    losses = [
        json.loads((each.path("pretrain") / "training.json").read_text())["final"]["validation_loss"]
        for each in (first, second)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # it begins where the first ended


@pytest.mark.parametrize(
    ("recipe", "words", "named"),
    [
        ("bert", ["model.heads=3"], "width 128 is not a multiple of heads 3"),
        ("bert", ["examples.length_tokens=512"], "examples have 512 tokens, model.max_length is 128"),
        ("bert", ["objective=causal"], "objective 'causal' does not fit model.architecture 'encoder'"),
        ("t5", ["objective=causal"], "objective 'causal' does not fit model.architecture 'encoder-decoder'"),
        ("gpt2", ["objective=mlm"], "needs"),
        ("t5", ["tokenizer.kind=bpe"], "needs"),
        ("gpt2", ["objective.mask_rte=0.3"], "mask_rte"),
        ("bert", ["objective.mask_rte=0.3"], "did you mean 'mask_rate'"),
        ("bert", ["objective=mml"], "did you mean 'mlm'"),
        ("bert", ["model=bert-mnii"], "did you mean 'bert-mini'"),
        ("bert", ["objective.span_boundary=true"], "span_boundary needs unit span"),
        ("bert", ["init=/nowhere"], "/nowhere"),
        ("bert", ["pretrain.batch_size=1", "placement.workers=2"], "pretrain.batch_size is 1, less than the 2 workers"),
        ("bert", ["model.token_types=1", "objective.pairs=nsp", "objective.documents_apart=false"], "token_types is 1"),
        ("bert", ["pretrain.tokens=100000", "pretrain.warmup_tokens=10000000"], "warmup_tokens 10000000 is more than"),
        ("xlnet", ["model.positions=rotary"], "needs model.positions 'transformer-xl', found 'rotary'"),
        ("xlnet", ["model=bert-mini"], "needs model.positions 'transformer-xl', found 'learned'"),
        ("electra", ["model=xlnet-base"], "'transformer-xl' has none"),
        ("bert", ["init=/nowhere", "tokenizer_from=/there"], "brings its own tokenizer"),
        ("bert", ["tokenizer_from.sorce=/there"], "did you mean 'source'"),
        (
            "bert",
            ["init=/there", "model.layers=3"],
            "init brings its own model, so model.layers would",
        ),
        ("bert", ["init=/there", "model=bert-mini"], "init brings its own model, so model would count for nothing"),
        ("t5", ["tokenizer_from=/there", "tokenizer.vocab_size=9"], "so tokenizer.vocab_size would count for nothing"),
        ("gpt2", ["downstream=[docs-library]", "finetune.pooling=cls"], "pooling: cls takes the first token"),
        ("word2vec", ["downstream=[docs-library]", "finetune.pooling=last"], "pooling: last takes the last token"),
        ("bert", ["downstream=[docs-library]", "finetune.lm_weight=0.5"], "encoder predicts no next token"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(recipe: str, words: list[str], named: str) -> None:
    found = find_recipe(recipe)
    with pytest.raises((UserError, ConfigError)) as raised:
        pipeline = found.build(resolve(found, ["corpus=installed-docs", *words]))
        for task in pipeline.roots():
            if getattr(task, "init", None) is not None:
                task.init.external()
    assert named in str(raised.value)
