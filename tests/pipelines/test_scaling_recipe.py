"""The recipe `scaling`: what it plans at every scale, variants, and a sweep run to its end on a small text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.store import Store
from modeling.errors import ConfigError
from pipelines import run
from pipelines.config import find_recipe, resolve
from pipelines.session import Request, make_plan
from tasks.scaling import ladder

RECIPE = find_recipe("scaling")


def build(*words: str, corpus: str = "installed-docs") -> Any:
    return RECIPE.build(resolve(RECIPE, [f"corpus={corpus}", *words]))


def planned(tmp_path: Path, *words: str) -> dict[str, Any]:
    plan = make_plan(Request(build(*words), recipe="scaling"), Store(str(tmp_path / "store")))
    return {name: step.node.task for name, step in plan.steps.items()}


@pytest.mark.parametrize("scale", ["cpu", "gpu", "base", "paper"])
def test_every_scale_sweeps_twenty_models_over_two_decades(tmp_path, scale):
    stages = planned(tmp_path, f"scale={scale}")
    runs = {name: task for name, task in stages.items() if name.startswith("decoder-w")}
    budgets = sorted(task.loop.flops for task in runs.values())
    assert len(runs) >= 20
    assert budgets[-1] / budgets[0] == pytest.approx(500 if scale == "paper" else 100, rel=0.01)
    assert {"decoder-scaling", "encoder-scaling", "encoder-decoder-scaling", "decoder-next", "comparison"} <= set(
        stages
    )
    for name, task in runs.items():
        assert (task.prefix is not None) == any(
            other.model.width == task.model.width and other.loop.flops < task.loop.flops for other in runs.values()
        ), name


def test_families_with_few_labels_have_larger_batches_at_a_lower_rate(tmp_path):
    """A label in two to seven tokens: batches two to four times as large at half of the rate, positions by distance."""
    words = ("ladder.batch_tokens=1024", "ladder.smallest_flops=2e11", "ladder.lines=3")
    stages = planned(tmp_path, *words)
    dense, sparse = stages["decoder-w40-c2"], stages["encoder-w40-c2"]  # 81 k parameters each
    assert (dense.loop.batch_size, sparse.loop.batch_size) == (8, 16)
    assert sparse.loop.peak_lr == pytest.approx(dense.loop.peak_lr / 2**0.5, rel=0.01)  # √2 / 2
    two_stacks = stages["encoder-decoder-w40-c2"]
    assert (two_stacks.loop.batch_size, two_stacks.loop.peak_lr) == (16, sparse.loop.peak_lr)
    t5 = ("variants.t5.family=encoder-decoder", "variants.t5.objective.kind=span-corruption")
    spans = planned(tmp_path, *words, *t5)["t5-w40-c2"]
    assert (spans.loop.batch_size, spans.loop.peak_lr) == (32, dense.loop.peak_lr)  # √4 / 2
    assert [s.model.positions for s in (dense, sparse, two_stacks, spans)] == ["rotary", *["relative"] * 3]
    assert [s.model.relative_init for s in (dense, sparse, two_stacks, spans)] == ["normal", "near", "near", "normal"]


def test_an_encoder_decoder_models_language_where_compute_is_least(tmp_path):
    objectives = {
        scale: planned(tmp_path, "families=[encoder-decoder]", f"scale={scale}")[
            "encoder-decoder-next"
        ].examples.objective
        for scale in ("cpu", "gpu")
    }
    assert (objectives["cpu"].kind, objectives["gpu"].kind) == ("prefix", "span-corruption")
    assert objectives["cpu"].least_share == objectives["cpu"].most_share == 0.5
    runs = [name for name in planned(tmp_path) if name.startswith("encoder-decoder-w")]
    assert len(runs) >= 20 and {name[-2:] for name in runs} == {"c1", "c2", "c3", "c4", "c5"}


def test_a_rate_of_batches_said_for_a_variant_is_its_own(tmp_path):
    own = planned(tmp_path, "variants.m.family=encoder", "variants.m.ladder.batch_tokens=1024")
    assert own["m-w40-c4"].loop.batch_size == 8


def test_variants_differ_in_what_they_say(tmp_path):
    stages = planned(
        tmp_path,
        "variants.m15.family=encoder",
        "variants.m40.family=encoder",
        "variants.m40.objective.mask_rate=0.4",
        "variants.m40.ladder.aspect=16",
        "variants.m40.pretrain.clip_norm=0.5",
        "judge.kind=mlm",
    )
    first, second = stages["m15-w48-c5"], stages["m40-w48-c5"]
    assert (first.model.layers, second.model.layers) == (2, 3)
    assert second.examples.objective.mask_rate == 0.4
    assert (first.loop.clip_norm, second.loop.clip_norm) == (1.0, 0.5)
    assert first.judge.objective.mask_rate == second.judge.objective.mask_rate == 0.15
    assert stages["comparison"].comparable
    assert not planned(tmp_path, "families=[decoder,prefix-lm]")["comparison"].comparable


def test_losses_are_compared_where_they_are_of_one_kind(tmp_path):
    apart = ("variants.v1.tokenizer.vocab_size=1024", "variants.v2.tokenizer.vocab_size=2048")
    assert not planned(tmp_path, *apart)["comparison"].comparable
    assert planned(tmp_path, *apart, "fit.measure=validation_bits_per_byte")["comparison"].comparable
    other = ("variants.d.family=decoder", "variants.p.family=prefix-lm", "fit.measure=validation_bits_per_byte")
    assert not planned(tmp_path, *other)["comparison"].comparable
    same = ("variants.plain.family=decoder", "variants.drop.model.dropout=0.1")
    assert planned(tmp_path, *same)["comparison"].comparable


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["families=[decodr]"], "families.0: input should be 'decoder'"),
        (
            ["variants.a.objective.kind=mlm", "variants.a.tokenizer.kind=bpe"],
            "variant a: .*objective 'mlm' does not fit model.architecture 'decoder'",
        ),
        (["ladder.widths=[30]"], "width 30 is no multiple of head_width 8"),
        (["ladder.smallest_flops=1e3"], "no size for the line of 1e.03 FLOPs"),
        (["variants.a.ladder.lins=4"], "lins"),
        (["stopping.least_points=2"], "stopping.least_points"),
        (
            ["variants.a.tokenizer.vocab_size=8192", "ladder.largest_flops=2e11", "ladder.lines=3", "ladder.spread=6"],
            "variant a: the ladder's runs cannot tell a law: runs 5, sizes 3, lines 3, expected at least 6 runs",
        ),
        (
            ["families=[decoder]", "ladder.widths=[32,40]", "ladder.largest_flops=2e11", "ladder.spread=8"],
            "sizes 2, lines 5, expected at least 3 sizes",
        ),
        (["pretrain.batch_size=8"], "pretrain.batch_size: the rules of the sweep.*\n.*ladder.batch_tokens"),
        (["pretrain.steps=10"], "pretrain.steps: the rules of the sweep set it for each run"),
        (["variants.a.pretrain.peak_lr=1e-3"], "variant a: pretrain.peak_lr: the rules.*\n.*ladder.lr"),
        (["variants.a.model.width=64"], "variant a: model.width: a sweep is of several widths"),
        (["families=[decoder]", "ladder.lines=1", "ladder.smallest_flops=2e11"], "lines 1, expected at least 2 lines"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(tmp_path, words, message):
    with pytest.raises((UserError, ConfigError), match=message):
        planned(tmp_path, *words)


def paragraphs(count: int) -> list[str]:
    """Of words that a Markov chain chooses, each by Zipf's law among those that may follow; always the same."""
    rng = random.Random(0)
    syllables = ["ka", "lo", "mi", "tu", "re", "sa", "no", "vi", "pe", "do", "shi", "an", "el", "or", "ust"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(300)]
    followers = [rng.sample(words, 20) for _ in words]
    after = dict(zip(words, followers, strict=True))
    found = []
    for _ in range(count):
        text = [rng.choice(words)]
        for _ in range(40):
            text.append(rng.choices(after[text[-1]], [1 / rank for rank in range(1, 21)])[0])
        found.append(" ".join(text) + ".")
    return found


def test_a_sweep_runs_to_its_end_and_a_second_time_has_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "WARMUP_STEPS", 8)
    monkeypatch.setattr(ladder, "LEAST_STEPS", 30)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": part}) + "\n" for part in paragraphs(800)))
    settings = [
        "families=[decoder]",
        "tokenizer.vocab_size=320",
        "tokenizer.min_frequency=1",
        "examples.length_tokens=32",
        "ingest.validation_share=0.1",
        "clean=none",
        "validation_sequences=50",
        "pretrain.precision=fp32",
        "ladder.smallest_flops=4e8",
        "ladder.largest_flops=1e9",
        "ladder.lines=4",
        "ladder.spread=40",
        "ladder.widths=[8,16,24]",
        "ladder.head_width=8",
        "ladder.batch_tokens=128",
        "stopping.exponent_interval=0",
        "stopping.prune_below=0",
        "stopping.most_flops=2e9",
        "fit.bootstrap=100",
        "fit.factor=1",
        "next_placement.workers=1",
        "next_placement.zero_stage=0",
    ]
    options: dict[str, Any] = {"store": str(tmp_path / "store"), "address": "inline", "tracking": "off"}
    first = run(build(*settings, corpus=str(corpus)), recipe="scaling", **options)
    assert first.state == "done", [e["error"] for e in first.record.status["stages"].values() if "error" in e]
    states = {name: entry["state"] for name, entry in first.record.status["stages"].items()}
    assert [name for name, state in states.items() if state == "pruned"] == [n for n in states if n.endswith("-c4")]
    sweep = json.loads((first.path("decoder-scaling") / "sweep.json").read_text())
    keys = {name: entry["key"] for name, entry in first.record.status["stages"].items()}
    assert {point["stage"]: point["key"] for point in sweep["points"]} == {
        name: keys[name] for name, state in states.items() if state == "done" and name.startswith("decoder-w")
    }
    assert all(point["steps"] >= ladder.LEAST_STEPS / 2 for point in sweep["points"])
    found = json.loads((first.path("comparison") / "comparison.json").read_text())
    assert abs(found["predictions"][0]["error"]) < 0.5
    second = run(build(*settings, corpus=str(corpus)), recipe="scaling", **options)
    assert second.state == "nothing"
