"""Samples during training: the held-out rows as they are, the model's own predictions, and a page of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling.checkpoint import build_model
from modeling.generation import Generation, generate
from modeling.transformer import preset
from tasks.example_reader import ExampleReader
from tasks.examples import MakeExamples
from tasks.ingest import Ingest
from tasks.samples import EXAMPLES, Sampler, as_html, spaced
from tasks.tokenizer import TrainTokenizer
from tests.tasks.stage import run_stage

WORDS = ["<soup>", "salt", "bread", "water", "stone", "house", "river", "seven"]
KINDS = {
    "mlm": ("encoder", "words", {"kind": "mlm"}),
    "rtd": ("encoder", "words", {"kind": "rtd"}),
    "causal": ("decoder", "words", {"kind": "causal"}),
    "prefix": ("prefix-lm", "words", {"kind": "prefix"}),
    "span-corruption": ("encoder-decoder", "letters", {"kind": "span-corruption"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    rng = random.Random(0)
    texts = [" ".join(rng.choice(WORDS) for _ in range(60)) for _ in range(60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    source = Ingest(source=str(folder / "corpus.jsonl"), validation_share=0.3)
    corpus = run_stage(source, folder / "corpus").out
    found = {}
    for name, fields in {"words": {"kind": "wordpiece"}, "letters": {"kind": "characters", "sentinels": 20}}.items():
        trained = TrainTokenizer(corpus=source, vocab_size=300, **fields)
        found[name] = run_stage(trained, folder / name, corpus=corpus).out
        for kind, (_, tokenizer, objective) in KINDS.items():
            if tokenizer == name:
                task = MakeExamples(corpus=source, tokenizer=trained, length_tokens=32, objective=objective)
                found[kind] = run_stage(task, folder / kind, corpus=corpus, tokenizer=found[name]).out
    return found


def asked(made: dict[str, Path], kind: str):
    architecture, tokenizer, _ = KINDS[kind]
    reader = ExampleReader(made[kind], "validation", 0, architecture)
    torch.manual_seed(0)
    config = preset("modern-tiny", layers=1, width=32, heads=2, ff_width=64, max_length=96)
    config = config.model_copy(update={"architecture": architecture, "vocab_size": reader.info["vocab_size"]})
    head = reader.settings.head
    model = build_model(config, {"name": head, "settings": reader.info["objective"]}).eval()
    return reader, model, Sampler(reader, made[tokenizer] / "tokenizer.json")


def test_masked_rows_show_the_truth_and_the_models_first_choices(made):
    reader, model, sampler = asked(made, "mlm")
    rows = sampler(model)
    assert len(rows) == EXAMPLES
    batch = {k: torch.from_numpy(v) for k, v in reader.batch(np.stack([np.zeros(4, int), np.arange(4)], 1)).items()}
    places = [piece for row in rows for piece in row["pieces"] if isinstance(piece, dict)]
    tokens = reader.vocabulary.tokens
    assert [p["truth"] for p in places] == [tokens[i] for i in batch["labels"][batch["labels"] >= 0].tolist()]
    assert [p["top"][0][0] for p in places] == [tokens[i] for i in model.predict(batch).tolist()]
    assert all(0 <= p <= 1 for place in places for _, p in place["top"])
    plain = [piece for row in rows for piece in row["pieces"] if isinstance(piece, str)]
    assert "salt" in plain and "[PAD]" not in plain


def test_replaced_tokens_have_the_discriminators_probability(made):
    reader, model, sampler = asked(made, "rtd")
    before = torch.get_rng_state()
    rows = sampler(model)
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"
    batch = {k: torch.from_numpy(v) for k, v in reader.batch(np.stack([np.zeros(4, int), np.arange(4)], 1)).items()}
    _, filled = model.generate(batch)
    visible = batch["attention_mask"].bool()
    pieces = [piece for row in rows for piece in row["pieces"]]
    tokens = reader.vocabulary.tokens
    assert [piece["token"] for piece in pieces] == [tokens[i] for i in filled[visible].tolist()]
    original = batch["original_ids"][visible].tolist()
    assert [piece.get("truth", piece["token"]) for piece in pieces] == [tokens[i] for i in original]
    assert any("truth" in piece for piece in pieces), "an untrained generator hits few"
    seen = {"attention_mask": batch["attention_mask"], "input_ids": filled}
    expected = model.discriminator.replaced_logits(seen)[visible].sigmoid().tolist()
    assert [piece["replaced"] for piece in pieces] == pytest.approx(expected, abs=1e-4)  # four digits are kept


@pytest.mark.parametrize("kind", ["causal", "prefix", "span-corruption"])
def test_written_texts_are_greedy_and_stand_beside_the_truth(made, kind):
    reader, model, sampler = asked(made, kind)
    before = torch.get_rng_state()
    rows = sampler(model)
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"
    assert rows == sampler(model)
    assert all(row["prompt"] and row["truth"] for row in rows)
    assert ("<extra_id_0>" if kind == "span-corruption" else "bread") in " ".join(row["truth"] for row in rows)
    if kind == "causal":
        ids = reader.batch(np.zeros((1, 2), int))["input_ids"][0]
        cut = len(ids) // 2
        expected = generate(model, [ids[:cut].tolist()], settings=Generation(temperature=0.0, max_new_tokens=24))[0]
        assert rows[0]["written"] == sampler.tokenizer.decode(expected, skip_special_tokens=False)
        assert rows[0]["truth"] == sampler.tokenizer.decode(ids[cut:].tolist(), skip_special_tokens=False)


def test_rows_read_as_text():
    place = {"truth": "##s", "top": [["##s", 0.5]]}
    assert spaced(["[CLS]", "cat", place, "##y"]) == [(" ", "[CLS]"), (" ", "cat"), ("", place), ("", "y")]
    place = {"truth": "Ġdog", "top": [["Ġdog", 0.5]]}
    judged = [{"token": "Ġa", "replaced": 0.1}, {"token": "s", "replaced": 0.9, "truth": "Ġb"}]
    assert spaced(judged) == [(" ", {"token": "a", "replaced": 0.1}), ("", judged[1])]
    assert spaced(["Ġa", place, "s", "##"]) == [(" ", "a"), (" ", place), ("", "s"), ("", "##")]


def test_the_page_escapes_what_it_shows(made):
    rows = [{"pieces": ["<soup>", {"truth": "<b>", "top": [["<i>", 0.5], ["x", 0.25]]}]}]
    rows += [{"pieces": [{"token": "<u>", "replaced": 0.9, "truth": "<s>"}, {"token": "<v>", "replaced": 0.25}]}]
    rows += [{"prompt": "<p>", "truth": "<q>", "written": "<r>"}]
    page = as_html(1200, rows)
    for text in ("<soup>", "<i>", "<q>", "<r>"):
        assert text not in page.partition("</style>")[2].replace('<i class="truth">', "")
    assert '<b class="right">&lt;u&gt; <small>90%</small></b> <i class="truth">&lt;s&gt;</i>' in page
    assert '<span title="25%">&lt;v&gt;</span>' in page
    assert "&lt;soup&gt;" in page and "after 1,200 steps" in page
