"""Pretrain on real examples: the artifact's files, exact continuation, two workers under Ray Train."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from cluster.errors import BadConfig, Cancelled
from modeling.architecture import preset
from modeling.checkpoint import load_model
from modeling.schedule import LoopConfig
from tasks.base import Artifact, Runtime
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.pretrain import Pretrain, shape_of
from tasks.tokenizer import TrainTokenizer
from tasks.training import TOKENIZER_FILES
from tests.tasks.jobs import make_job, torchrun
from tests.tasks.small_model import SomeModel, tokenizer_folder
from tests.tasks.stage import FolderContext, digests, run_stage

CORPUS = Ingest(source="corpus.jsonl")
TOKENIZER = TrainTokenizer(corpus=CORPUS)
EXAMPLES = MakeExamples(
    corpus=CORPUS, tokenizer=TOKENIZER, length_tokens=24, objective={"kind": "mlm", "mask_rate": 0.2}
)
FILES = {"config.json", "metrics.jsonl", "model.safetensors", "tokenizer-info.json", "tokenizer.json", "training.json"}
FILES |= {"samples.json", "updates.jsonl"}
SHAPE = preset("modern-tiny", layers=2, width=32, heads=2, ff_width=64, max_length=32, init_std=0.1)
LOOP = LoopConfig(steps=40, batch_size=16, peak_lr=1e-2, log_every_steps=10)
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text that counts upwards: every word follows from its neighbours, so there is much to learn."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    starts = [rng.randrange(10) for _ in range(400)]
    texts = [" ".join(NUMBERS[(start + n) % 10] for n in range(rng.randint(10, 60))) for start in starts]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    source = Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.1, duplicates="keep")
    corpus = run_stage(source, folder / "corpus").out
    tokenizer = tokenizer_folder(folder / "tokenizer", NUMBERS)
    out = run_stage(EXAMPLES, folder / "examples", corpus=corpus, tokenizer=tokenizer).out
    return {"examples": out, "tokenizer": tokenizer}


def task(**fields) -> Pretrain:
    return Pretrain(**{"examples": EXAMPLES, "tokenizer": TOKENIZER, "model": SHAPE, "loop": LOOP, **fields})


@pytest.fixture(scope="module")
def plain(inputs, tmp_path_factory) -> FolderContext:
    return run_stage(task(), tmp_path_factory.mktemp("plain") / "model", **inputs)


def test_the_model_learns_and_its_files_are_complete(plain):
    assert {p.name for p in plain.out.iterdir()} == FILES
    rows = [json.loads(line) for line in (plain.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert set(rows[0]) == {"step", "loss", "learning_rate", "grad_norm", "tokens"}
    metrics = plain.metrics
    assert metrics["validation_loss"] < metrics["unigram_entropy"] - 0.5
    assert metrics["validation_accuracy"] > 0.4
    assert metrics["loss"] == rows[-1]["loss"]
    note = json.loads((plain.out / "training.json").read_text())
    assert note["final"]["validation_loss"] == metrics["validation_loss"]
    assert note["parameters"]["total"] == metrics["parameters"]
    model = load_model(plain.out)
    info = json.loads((plain.out / "tokenizer-info.json").read_text())
    assert model.config.vocab_size == info["vocab_size"]
    assert plain.timings["tokens_per_second"] > 0
    config = plain.placement["deepspeed_config"]
    assert (config["train_batch_size"], plain.placement["micro_batch_used"]) == (16, 16)
    assert json.loads(plain.files["deepspeed.json"]) == config
    assert any("1 worker, 1 × 16 sequences each a step" in line and '"stage": 0' in line for line in plain.logged)


def test_the_artifact_is_a_function_of_config_and_inputs(plain, inputs, tmp_path):
    again = run_stage(task(), tmp_path / "again", **inputs)
    assert digests(again.out) == digests(plain.out)
    other = run_stage(task(seed=1), tmp_path / "other", **inputs)
    assert digests(other.out)["model.safetensors"] != digests(plain.out)["model.safetensors"]


def test_what_is_watched_is_told_and_changes_no_byte(plain, inputs, tmp_path):
    names = {name for _, values in plain.metrics_seen for name in values}
    assert {
        "loss",
        "step_seconds/backward",
        "update_ratio/encoder.01",
        "layer_grad_norm/tokens",
        "memory/gradients",
    } <= names
    assert {"step_data_seconds", "step_communication_seconds", "memory/optimizer_state"} <= set(plain.timings)
    (memory,) = (values for _, values in plain.metrics_seen if "memory/gradients" in values)
    for part in ("parameters", "gradients", "master_weights", "optimizer_state", "buffers"):
        predicted = plain.placement["memory_predicted"][part]
        assert predicted == memory[f"memory/predicted/{part}"]
        assert predicted == pytest.approx(memory[f"memory/{part}"], rel=0.001)  # a count of steps for each weight
    assert [name for name in plain.files if name.endswith(".html")] == [
        f"samples/step-{step:08d}.html" for step in (8, 16, 24, 32, 40)
    ]
    samples = json.loads((plain.out / "samples.json").read_text())
    last = [piece for row in samples[-1]["samples"] for piece in row["pieces"] if isinstance(piece, dict)]
    assert sum(piece["top"][0][0] == piece["truth"] for piece in last) > len(last) / 3, "the model has learnt to count"
    rows = [json.loads(line) for line in (plain.out / "updates.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    unwatched = Runtime(layer_updates=0, samples=0, profile_steps="3:4")
    other = run_stage(task(runtime=unwatched), tmp_path / "other", **inputs)
    assert set(other.files) == {"deepspeed.json", "profile/trace.json.gz"}
    kept = FILES - {"samples.json", "updates.jsonl"}
    assert digests(other.out) == {name: digest for name, digest in digests(plain.out).items() if name in kept}


class Interrupted(FolderContext):
    """Asks for a stop after some looks, like a user's Ctrl-C."""

    looks = 15

    def cancelled(self) -> bool:
        self.looks -= 1
        return self.looks == 0


def test_cancelled_and_continued_gives_the_same_files(plain, inputs, tmp_path):
    context = Interrupted(tmp_path / "model", Runtime(), inputs)
    with pytest.raises(Cancelled, match="after step 15 of 40"):
        task().run(context)
    assert not (context.out / "model.safetensors").exists()
    checkpoint = context.scratch / "step-00000015" / "model"  # a usable model
    assert {p.name for p in checkpoint.iterdir()} == {"config.json", "model.safetensors", *TOKENIZER_FILES}
    assert load_model(checkpoint).config.width == SHAPE.width
    metrics = task().run(context)
    assert context.timings["resumed_from"] == 15
    assert digests(context.out) == digests(plain.out)
    assert metrics == plain.metrics


def test_a_budget_in_flops_is_what_training_spends_also_where_rows_are_padded(inputs, tmp_path):
    examples = EXAMPLES.model_copy(update={"packing": "doc-sentences"})
    corpus = inputs["examples"].parent / "corpus"
    out = run_stage(examples, tmp_path / "examples", corpus=corpus, tokenizer=inputs["tokenizer"]).out
    loop = LoopConfig(flops=2e9, batch_size=8, log_every_steps=100)
    stage = task(examples=examples, loop=loop)
    found = run_stage(stage, tmp_path / "model", examples=out, tokenizer=inputs["tokenizer"])
    rows = [json.loads(line) for line in (found.out / "metrics.jsonl").read_text().splitlines()]
    tokens, steps = rows[-1]["tokens"], rows[-1]["step"]
    assert tokens < 0.9 * steps * 8 * 24, "of the places that rows have"
    # up to the last step, and to what a batch has of the rows' mean number of tokens
    assert found.metrics["training_flops"] == pytest.approx(2e9, rel=0.05) and steps > 40


def test_mismatches_are_refused_before_anything_runs(inputs, tmp_path):
    with pytest.raises(BadConfig, match="examples have 24 tokens, model.max_length is 16"):
        task(model=preset("modern-tiny", max_length=16))
    with pytest.raises(BadConfig, match=r"'mlm' does not fit model.architecture 'decoder'\n  it trains encoder$"):
        task(model=preset("modern-tiny", architecture="decoder"))
    with pytest.raises(BadConfig, match="neither init nor model"):
        task(model=None)
    with pytest.raises(BadConfig, match="pretrain.batch_size is 16, less than the 17 workers"):
        task(runtime=Runtime(workers=17))
    with pytest.raises(BadConfig, match="keep_stable with patience 3"):
        task(loop=LoopConfig(steps=40, schedule="wsd", validate_every_steps=5, patience=3), keep_stable=True)
    made = {"corpus": CORPUS, "tokenizer": TOKENIZER, "length_tokens": 24}
    pairs = MakeExamples(**made, objective={"kind": "mlm", "pairs": "nsp"})
    with pytest.raises(BadConfig, match="pairs of segments, model.token_types is 1"):
        task(examples=pairs, model=SHAPE.model_copy(update={"token_types": 1}))
    for kind, fields, words in (
        ("permutation", {}, "needs model.positions 'transformer-xl', found 'rotary'"),
        ("rtd", {"positions": "transformer-xl", "norm_placement": "post"}, "'transformer-xl' has none"),
    ):
        examples = MakeExamples(**made, objective={"kind": kind})
        with pytest.raises(BadConfig, match=words):
            task(examples=examples, model=SHAPE.model_copy(update=fields))
    with pytest.raises(ValueError, match="warmup_tokens 200 is more than tokens 100"):
        LoopConfig(tokens=100, warmup_tokens=200)
    other = tmp_path / "tokenizer"
    other.mkdir()
    (other / "tokenizer-info.json").write_text(json.dumps({"vocab_size": 77}))
    with pytest.raises(BadConfig, match="the tokenizer has 77 tokens"):
        run_stage(task(), tmp_path / "wrong", examples=inputs["examples"], tokenizer=other)


def test_a_preset_name_stands_for_its_fields():
    assert task(model="bert-mini") == task(model=preset("bert-mini"))
    assert task(model={"preset": "bert-mini", "layers": 2}).model.layers == 2


def test_going_on_from_a_model_begins_where_it_ended(plain, inputs, tmp_path):
    loop = LoopConfig(steps=1, batch_size=16, peak_lr=1e-9, log_every_steps=1)
    more = task(init=SomeModel(), model=None, loop=loop)
    found = run_stage(more, tmp_path / "more", init=plain.out, **inputs)
    assert math.isclose(found.metrics["validation_loss"], plain.metrics["validation_loss"], rel_tol=1e-4)
    assert json.loads((found.out / "training.json").read_text())["init"] == "pretrained"
    with pytest.raises(BadConfig, match=r"the tokenizer has 500 tokens, init has embeddings of"):
        shape_of(None, Artifact("k", "model", plain.out, {}, {}, {}), 500, "pretrain")
    with pytest.raises(BadConfig, match=r"model differs from init in layers 3 \(init: 2\)"):
        other = task(init=SomeModel(), model=SHAPE.model_copy(update={"layers": 3}), loop=loop)
        run_stage(other, tmp_path / "other", init=plain.out, **inputs)


@pytest.mark.slow
def test_two_workers_under_ray_train_give_the_same_curve(plain, inputs, tmp_path):
    from cluster.connect import connect, shutdown

    mine = connect(None, import_paths=[str(Path(__file__).resolve().parents[2])])
    try:
        runtime = Runtime(workers=2, zero_stage=2, cpus=1, samples=0)
        two = run_stage(task(runtime=runtime), tmp_path / "two", **inputs)
    finally:
        if mine:
            shutdown()
    assert {p.name for p in two.out.iterdir()} == FILES - {"samples.json"}
    curves = [
        [json.loads(line)["loss"] for line in (context.out / "metrics.jsonl").read_text().splitlines()]
        for context in (plain, two)
    ]
    # 40 steps of Adam at a high rate: rounding of 1e-7 in the gradients grows to 1e-3 of the loss.
    assert all(math.isclose(a, b, rel_tol=5e-3) for a, b in zip(*curves, strict=True))
    assert math.isclose(two.metrics["validation_loss"], plain.metrics["validation_loss"], rel_tol=5e-3)
    job = make_job(tmp_path / "job", task(runtime=runtime), inputs)
    done = torchrun(job, tmp_path / "site", 2)
    assert done.returncode == 0, done.stderr
    assert digests(job / "model") == digests(two.out)


def test_auto_precision_without_such_instructions_is_fp32_and_says_so(plain, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling.precision.processor_has_bf16", lambda: False)
    auto = run_stage(task(loop=LOOP.model_copy(update={"precision": "auto"})), tmp_path / "auto", **inputs)
    assert json.loads((auto.out / "training.json").read_text())["precision"] == "fp32"
    assert any("precision auto: fp32" in line for line in auto.logged)
    assert (auto.out / "model.safetensors").read_bytes() == (plain.out / "model.safetensors").read_bytes()
