"""Fine-tuning on data so small that the outcome is known: it learns them by heart, the same way each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import BadConfig, BadData
from modeling.architecture import TransformerConfig
from modeling.schedule import warmup
from tasks.base import Runtime
from tasks.downstream.encode import Batches, Encoder, Feature, answer_tokens, best_span, collate, cut_longer, windows
from tasks.downstream.spec import Row
from tasks.evaluate import Evaluate, _load
from tasks.finetune import Finetune, FinetuneLoop
from tasks.tokenizer import TOKENIZERS, special_ids
from tasks.tokenizers.base import TokenizerSettings
from tests.tasks.small_model import TINY, SomeData, SomeModel, SomeTokenizer, data_folder, tokenizer_folder
from tests.tasks.stage import digests, run_stage

WORDS = ("red", "green", "blue", "one", "two", "three", "four", "five", "what", "is", ":", "?")
LOOP = FinetuneLoop(epochs=30, batch_size=8, peak_lr=1e-2, log_every_steps=20)
CLASSES = {"kind": "classification", "labels": ["no", "yes"], "metrics": ["accuracy"], "primary": "accuracy"}
SCORES = {"kind": "regression", "metrics": ["pearson_spearman"], "primary": "pearson_spearman"}
SPANS = {"kind": "span", "metrics": ["token_f1", "exact_match"], "primary": "token_f1"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("t") / "tokenizer", WORDS)


def class_rows() -> list[Row]:
    """16 texts; "yes" where the colour is red, whatever the number."""
    colours, numbers = ("red", "green", "blue", "red"), WORDS[3:7]
    return [Row(f"{c}-{i}-{n}", f"{n} {c}", label=float(c == "red")) for i, c in enumerate(colours) for n in numbers]


def span_rows() -> list[Row]:
    """What is the colour of a number: "what is two ?" in "one : red two : blue three : green"."""
    rows = []
    for first in range(5):
        names = [WORDS[3 + (first + step) % 5] for step in range(3)]
        colours = [WORDS[(first + 2 * step) % 3] for step in range(3)]
        context = " ".join(f"{name} : {colour}" for name, colour in zip(names, colours, strict=True))
        for name, colour in zip(names, colours, strict=True):
            start = context.index(f"{name} : {colour}") + len(name) + 3
            rows.append(Row(f"{first}-{name}", f"what is {name} ?", context, None, (colour,), (start,)))
    return rows


def tune(out: Path, data: Path, tokenizer: Path, **fields: object) -> Path:
    init = fields.pop("init", None)
    model = fields.pop("model", None if init else TINY)
    task = Finetune(
        dataset=SomeData(),
        tokenizer=SomeTokenizer(),
        init=SomeModel() if init else None,
        model=model,
        loop=fields.pop("loop", LOOP),
        length_tokens=fields.pop("length_tokens", 32),
        **fields,
    )
    inputs = {"dataset": data, "tokenizer": tokenizer} | ({"init": init} if init else {})
    return run_stage(task, out, **inputs).out


def evaluate(out: Path, model: Path, data: Path, **fields: object) -> dict:
    task = Evaluate(model=SomeModel(), dataset=SomeData(), **fields)
    return json.loads((run_stage(task, out, model=model, dataset=data).out / "score.json").read_text())


def test_it_learns_sixteen_examples_and_the_same_seed_gives_the_same_bytes(tmp_path: Path, tokenizer: Path) -> None:
    rows = class_rows()
    data = data_folder(tmp_path / "data", CLASSES, train=rows, validation=rows)
    one, two, other = (tune(tmp_path / n, data, tokenizer, seed=s) for n, s in (("one", 5), ("two", 5), ("other", 6)))
    assert digests(one) == digests(two)
    assert digests(one)["model.safetensors"] != digests(other)["model.safetensors"]
    score = evaluate(tmp_path / "score", one, data)
    assert score["primary"] == score["values"]["accuracy"] == 1.0
    assert (score["task"], score["metric"], score["init"], score["seed"]) == ("made-up", "accuracy", "random", 5)
    training = json.loads((one / "training.json").read_text())
    assert training["final"]["steps"] == 60 and training["final"]["rows"] == 16
    lines = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60] and lines[-1]["loss"] < 0.1
    assert set(lines[0]) == {"step", "loss", "learning_rate", "grad_norm", "tokens"}
    again = evaluate(tmp_path / "again", one, data)
    assert again == score and digests(tmp_path / "score") == digests(tmp_path / "again")


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path, tokenizer: Path) -> None:
    """Texts of 2 to 20 words, so that most micro-batches are shorter than their batch."""
    rows = [replace(row, text_a=" ".join([row.text_a] * (1 + n % 10))) for n, row in enumerate(class_rows())]
    data = data_folder(tmp_path / "data", CLASSES, train=rows)
    losses = []
    for micro_batch in (0, 2):
        model = tune(tmp_path / str(micro_batch), data, tokenizer, runtime=Runtime(micro_batch=micro_batch))
        losses.append([json.loads(line)["loss"] for line in (model / "metrics.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-2)


def test_a_decoder_goes_on_as_a_language_model_beside_the_task(tmp_path: Path, tokenizer: Path) -> None:
    data = data_folder(tmp_path / "data", CLASSES, train=class_rows(), validation=class_rows())
    gpt = TINY.model_copy(update={"architecture": "decoder", "head_bias": False, "head_transform": False})
    model = tune(tmp_path / "model", data, tokenizer, model=gpt, pooling="last", lm_weight=0.5)
    first, *_, last = (json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines())
    assert last["loss_task"] < 0.05  # learnt by heart
    assert 0.5 * last["loss_lm"] == pytest.approx(last["loss"] - last["loss_task"], rel=1e-3)
    assert last["loss_lm"] < 0.9 < first["loss_lm"]  # a quarter of it: which number, which colour
    assert evaluate(tmp_path / "score", model, data)["primary"] == 1.0
    spans = data_folder(tmp_path / "spans", SPANS, train=span_rows())
    with pytest.raises(BadConfig, match="lm_weight is for tasks with a label"):
        tune(tmp_path / "none", spans, tokenizer, model=gpt, lm_weight=0.5)


def test_similarity_is_read_in_both_orders(tmp_path: Path, tokenizer: Path) -> None:
    """Of a task that says so, where asked for; trained in one order, it says the same of the other to rounding."""
    words = WORDS[3:8]
    rows = [Row(f"{a}-{b}", a, f"{b} {b}", label=float(a < b)) for a in words for b in words]
    back = [replace(row, text_a=row.text_b, text_b=row.text_a) for row in rows]
    gpt = TINY.model_copy(update={"architecture": "decoder", "head_bias": False, "head_transform": False})
    chosen = {"model": gpt, "pooling": "last", "lm_weight": 0.5, "both_orders": True, "runtime": Runtime(micro_batch=2)}
    for symmetric in (True, False):
        facts = {**CLASSES, "symmetric": symmetric}
        data = data_folder(tmp_path / f"data-{symmetric}", facts, train=rows, validation=rows, back=back)
        model = tune(tmp_path / f"model-{symmetric}", data, tokenizer, **chosen)
        head = json.loads((model / "head.json").read_text())
        assert head["both_orders"] is symmetric
        network, logits = _load(model, head).eval(), []
        for part in (rows, back):
            features = Encoder(model, 32).texts(part, head["both_orders"])
            batch = {name: torch.from_numpy(a) for name, a in collate(features, "classification", 0, False).items()}
            logits.append(network.logits(batch).detach())
        apart = float((logits[0] - logits[1]).abs().max())
        assert apart < 1e-4 if symmetric else apart > 1e-2
        score = evaluate(tmp_path / f"score-{symmetric}", model, data)
        if symmetric:
            assert score["values"] == score["others"]["back"]


def test_what_parts_two_texts_is_the_tokenizers_own(tmp_path: Path) -> None:
    """GPT's delimiter, RoBERTa's two ends, BERT's separator, and an end where a tokenizer adds nothing.

    T5's texts begin with nothing, although its end stands in for a beginning.
    """
    pair = [Row("x", "the model", "the data", label=0.0)]
    for kind, begin, between in (
        ("bpe-words", ["<s>"], ["<delimiter>"]),
        ("bpe", ["<s>"], ["</s>", "</s>"]),
        ("gpt2", ["<|endoftext|>"], ["<|endoftext|>"]),
        ("unigram", [], ["</s>"]),
    ):
        made = TOKENIZERS.load(kind)(["the model the data"] * 9, TokenizerSettings(400, True, 1))
        folder = tmp_path / kind
        folder.mkdir()
        made.save(str(folder / "tokenizer.json"))
        info = {"vocab_size": made.get_vocab_size(), "special_tokens": special_ids(made)}
        (folder / "tokenizer-info.json").write_text(json.dumps(info))
        encoder = Encoder(folder, 16)
        ids = encoder.texts(pair)[0].ids
        a, b = (made.encode(text, add_special_tokens=False).ids for text in ("the model", "the data"))
        parting = [made.token_to_id(token) for token in between]
        assert encoder.begin == [made.token_to_id(token) for token in begin], kind
        assert ids == [*encoder.begin, *a, *parting, *b, encoder.sep]
        short = Encoder(folder, len(encoder.begin) + len(parting) + 3).texts(pair)[0].ids
        assert len(short) == len(encoder.begin) + len(parting) + 3


def test_validation_on_the_way_stops_early_and_keeps_the_best(tmp_path: Path, tokenizer: Path) -> None:
    """Validation rows with the labels turned round: what is learnt makes their loss worse, so an early look is best."""
    rows = class_rows()
    turned = [replace(row, label=1 - row.label) for row in rows]
    data = data_folder(tmp_path / "data", CLASSES, train=rows, validation=turned)
    looks = {"validate_every_steps": 4, "patience": 3, "keep": "best"}
    model = tune(tmp_path / "model", data, tokenizer, loop=LOOP.model_copy(update=looks))
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    training = json.loads((model / "training.json").read_text())
    best, last = training["final"]["best_step"], training["final"]["steps"]
    assert found[best] == min(found.values()) == training["final"]["validation_loss"]
    assert training["stopped_early"] and last == best + 3 * 4 < 60 and list(found) == list(range(4, last + 1, 4))
    network = _load(model, json.loads((model / "head.json").read_text()))
    features = Encoder(model, 32).texts(turned)
    batch = {name: torch.from_numpy(a) for name, a in collate(features, "classification", 0, False).items()}
    kept = network.eval()(batch)
    assert float(kept.loss_sum.detach() / kept.count) == pytest.approx(found[best], rel=1e-5)  # fp32, other padding


@pytest.mark.parametrize(("facts", "make"), [(SPANS, span_rows), (SCORES, class_rows)], ids=["span", "regression"])
def test_looking_changes_nothing(tmp_path: Path, tokenizer: Path, facts: dict, make: Callable[[], list[Row]]) -> None:
    """The loss on the training rows themselves falls, and the weights are those of a run without validation."""
    data = data_folder(tmp_path / "data", facts, train=make(), validation=make())
    plain = tune(tmp_path / "plain", data, tokenizer)
    looked = tune(tmp_path / "looked", data, tokenizer, loop=LOOP.model_copy(update={"validate_every_steps": 20}))
    assert digests(plain)["model.safetensors"] == digests(looked)["model.safetensors"]
    lines = [json.loads(line) for line in (looked / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["validation_loss"] < lines[0]["validation_loss"] < 20
    assert "validation_loss" not in (plain / "metrics.jsonl").read_text()


def test_validation_that_cannot_be_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(ValueError, match="patience 2 needs validation on the way"):
        FinetuneLoop(patience=2)
    data = data_folder(tmp_path / "data", CLASSES, train=class_rows())
    with pytest.raises(BadConfig, match="'made-up' has no validation rows"):
        tune(tmp_path / "model", data, tokenizer, loop=FinetuneLoop(validate_every_steps=4))


def test_it_learns_to_point_at_answers(tmp_path: Path, tokenizer: Path) -> None:
    rows = span_rows()
    data = data_folder(tmp_path / "data", SPANS, train=rows, validation=rows)
    two_layers = TINY.model_copy(update={"layers": 2})  # one to match names, one to point at what follows
    loop = FinetuneLoop(epochs=150, batch_size=8, peak_lr=1e-2)
    model = tune(tmp_path / "model", data, tokenizer, loop=loop, model=two_layers)
    score = evaluate(tmp_path / "score", model, data)
    assert score["values"] == {"token_f1": 1.0, "exact_match": 1.0}
    found = pq.read_table(tmp_path / "score" / "predictions.parquet").to_pylist()
    assert found[0] == {"id": rows[0].id, "prediction": "red", "answers": ["red"]}


def test_it_learns_scores(tmp_path: Path, tokenizer: Path) -> None:
    rows = [Row(str(n), f"{word} red", "green", label=1000.0 + n) for n, word in enumerate(WORDS[3:8])]
    data = data_folder(tmp_path / "data", SCORES, train=rows, validation=rows, test=rows[::-1])
    model = tune(tmp_path / "model", data, tokenizer)
    score = evaluate(tmp_path / "score", model, data)
    assert score["primary"] > 0.9 and score["others"]["test"]["pearson_spearman"] > 0.9
    found = pq.read_table(tmp_path / "score" / "predictions.parquet")["prediction"].to_pylist()
    assert all(abs(value - 1000 - n) < 1.5 for n, value in enumerate(found))  # in the labels' own scale
    head = json.loads((model / "head.json").read_text())
    assert head["label_mean"] == 1002 and head["label_std"] == pytest.approx(2**0.5)


def test_init_brings_the_trunk_and_no_training_leaves_it(tmp_path: Path, tokenizer: Path) -> None:
    from safetensors.numpy import load_file

    rows = class_rows()
    data = data_folder(tmp_path / "data", CLASSES, train=rows, validation=rows)
    first = tune(tmp_path / "first", data, tokenizer)
    still = FinetuneLoop(epochs=1, batch_size=16, peak_lr=1e-30, optimizer={"weight_decay": 0})
    second = tune(tmp_path / "second", data, tokenizer, init=first, loop=still, model=TINY, seed=9)
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    trunk = [name for name in before if name.startswith("transformer.")]
    assert trunk and all(np.array_equal(before[name], after[name]) for name in trunk)
    assert json.loads((second / "training.json").read_text())["init"] == "pretrained"
    with pytest.raises(BadConfig, match=r"model differs from init in width 64 \(init: 32\)"):
        tune(tmp_path / "wide", data, tokenizer, init=first, model=TINY.model_copy(update={"width": 64}))
    other = tokenizer_folder(tmp_path / "other", WORDS[::-1])
    with pytest.raises(BadConfig, match="tokenizer is not the one"):
        tune(tmp_path / "else", data, other, init=first)


def test_mistakes_are_named_before_anything_runs() -> None:
    edges = {"dataset": SomeData(), "tokenizer": SomeTokenizer()}
    with pytest.raises(BadConfig, match="neither init nor model"):
        Finetune(**edges)
    with pytest.raises(BadConfig, match="length_tokens is 100, more than model.max_length 64"):
        Finetune(**edges, model=TINY, length_tokens=100)


def test_evaluating_on_another_task_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    rows = class_rows()
    data = data_folder(tmp_path / "data", CLASSES, train=rows, validation=rows)
    model = tune(tmp_path / "model", data, tokenizer, loop=FinetuneLoop(epochs=1))
    wrong = data_folder(tmp_path / "wrong", {**CLASSES, "labels": ["a", "b", "c"]}, validation=rows)
    with pytest.raises(BadConfig, match="2 labels.*3 labels"):
        evaluate(tmp_path / "score", model, wrong)
    with pytest.raises(BadConfig, match="split 'test' is not in task 'made-up'"):
        evaluate(tmp_path / "none", model, data, split="test")


# ---------------------------------------------------------------- encoding


def test_pairs_are_cut_at_the_longer_side() -> None:
    assert cut_longer([1, 2, 3, 4, 5], [6, 7], 5) == ([1, 2, 3], [6, 7])
    assert cut_longer([1], [2, 3, 4, 5], 3) == ([1], [2, 3])
    assert cut_longer([1, 2, 3], [4, 5, 6], 4) == ([1, 2], [4, 5])
    assert cut_longer([1, 2, 3], [], 2) == ([1, 2], [])
    assert cut_longer([1], [2], 5) == ([1], [2])


def test_windows_cover_and_overlap() -> None:
    assert list(windows(10, 4)) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert list(windows(3, 4)) == [(0, 3)] and list(windows(0, 4)) == [(0, 0)]


def test_answers_become_tokens_that_touch_them() -> None:
    row = Row("id", "q", "aa bbcc dd", None, ("cc",), (5,))
    assert answer_tokens([(0, 2), (3, 5), (5, 7), (8, 10)], row) == (2, 2)
    assert answer_tokens([(0, 2), (3, 7), (8, 10)], row) == (1, 1)  # a word that is not split there
    assert answer_tokens([(0, 2)], Row("id", "q", "aa")) is None


def test_long_contexts_slide_and_training_keeps_windows_with_the_answer(tokenizer: Path) -> None:
    encoder = Encoder(tokenizer, 16)
    context = " ".join(["one"] * 15 + ["red"] + ["two"] * 4)
    row = Row("id", "what is red", context, None, ("red",), (context.index("red"),))
    assert len(encoder.spans([row], training=False)) == 3  # 16 − 3 − 3 = 10 tokens a window
    (kept,) = encoder.spans([row], training=True)[:1]
    red = encoder.tokenizer.token_to_id("red")
    assert kept.ids[kept.start] == kept.ids[kept.end] == red
    low, high = kept.spans[kept.start - kept.first]
    assert context[low:high] == "red"
    with pytest.raises(BadConfig, match="length_tokens is 12"):
        Encoder(tokenizer, 12).spans([row], training=True)


def test_batches_are_padded_to_their_longest_and_marked() -> None:
    features = [Feature(0, [2, 7, 3], 3, 1.0), Feature(1, [2, 7, 3, 8, 9, 3], 3, 0.0)]
    batch = collate(features, "classification", 0, token_types=True)
    assert batch["input_ids"].tolist()[0] == [2, 7, 3, 0, 0, 0, 0, 0]
    assert batch["attention_mask"].sum(1).tolist() == [3, 6] and batch["labels"].tolist() == [1, 0]
    assert batch["token_type_ids"].tolist() == [[0] * 8, [0, 0, 0, 1, 1, 1, 0, 0]]
    span = collate([Feature(0, [2, 7, 3, 8, 9, 3], 3, 0, 4, 4, 3, ((0, 1), (2, 3)))], "span", 0, False)
    assert span["answer_mask"].tolist() == [[False, False, False, True, True, False, False, False]]


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    features = [Feature(n, [0] * (n % 13 + 1), 0) for n in range(1001)]
    batches = Batches(features, 8, seed=1)
    assert batches.per_epoch == 126
    epochs = [[f.row for step in range(126) for f in batches.of_step(126 * e + step)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1001)) and epochs[0] != epochs[1]
    fresh = Batches(features, 8, seed=1)  # a step does not depend on the steps before it
    assert [f.row for f in fresh.of_step(200)] == [f.row for f in batches.of_step(200)]
    lengths = [[len(f.ids) for f in batches.of_step(step)] for step in range(126)]
    assert max(max(of) - min(of) for of in lengths) <= 3  # of 12: like lengths go together


def test_with_few_rows_length_does_not_decide_what_shares_a_batch() -> None:
    batches = Batches([Feature(n, [0] * (n % 13 + 1), 0) for n in range(101)], 8, seed=1)
    lengths = [[len(f.ids) for f in batches.of_step(step)] for step in range(batches.per_epoch)]
    assert min(max(of) - min(of) for of in lengths) >= 3


def test_the_best_span_starts_before_it_ends_and_is_short() -> None:
    start, end = np.array([0.0, 1.0, 5.0, -np.inf]), np.array([4.0, 0.0, 1.0, 9.0])
    assert best_span(start, end, 4) == (14.0, 2, 3)
    assert best_span(start, np.array([4.0, 0.0, 1.0, -np.inf]), 4)[1:] == (2, 2)
    assert best_span(np.array([9.0, 0, 0, 0]), np.array([0.0, 0, 0, 9]), 2)[1:] != (0, 3)


def test_a_tokenizer_without_a_separator_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer-info.json").write_text(json.dumps({"vocab_size": 9, "special_tokens": {"pad": 0, "cls": 2}}))
    with pytest.raises(BadData, match="no token for the end of a text"):
        Encoder(tmp_path, 32)


def test_steps_follow_the_data() -> None:
    assert FinetuneLoop(epochs=3, batch_size=10).steps(25) == 9
    assert FinetuneLoop(epochs=3, batch_size=10, least_steps=100).steps(25) == 100
    assert FinetuneLoop(epochs=3, batch_size=10, most_steps=5).steps(25) == 5
    loop = FinetuneLoop(epochs=3, batch_size=10, warmup_share=0.5).loop(25, seed=4)
    assert (loop.steps, warmup(loop), loop.seed) == (9, 4, 4)


def test_presets_are_accepted_as_the_shape() -> None:
    task = Finetune(dataset=SomeData(), tokenizer=SomeTokenizer(), model="modern-tiny")
    assert isinstance(task.model, TransformerConfig) and task.model.layers == 2
