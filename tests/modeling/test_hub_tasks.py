"""Fine-tuned models of ours in transformers' classes for tasks: the same logits, the same names of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modeling.architecture import TransformerConfig
from modeling.checkpoint import save_model
from modeling.errors import ConfigError
from modeling.hub import export_model, import_model
from tasks.finetune import build
from tests.modeling.hub_models import TOLERANCE, batch_of, randomised

ENCODER = {
    "architecture": "encoder", "vocab_size": 90, "layers": 2, "width": 32, "heads": 4, "ff_width": 40, "max_length": 22,
    "norm_placement": "post", "head_transform": True, "head_bias": True, "norm_eps": 1e-12,
}  # fmt: skip
MODELS = {
    "bert": TransformerConfig(**ENCODER, token_types=2),
    "roberta": TransformerConfig(**ENCODER, position_offset=2),
    "albert": TransformerConfig(**ENCODER, token_types=2, embedding_width=12, share_layers=True),
    "electra": TransformerConfig(**ENCODER, token_types=2, embedding_width=12),
}
COLORS = {"kind": "classification", "labels": ["red", "green", "blue"], "task": "colors", "pooling": "cls"}
SCORES = {"kind": "regression", "labels": [], "task": "sts", "pooling": "cls", "label_mean": 2.5, "label_std": 1.5}
SPANS = {"kind": "span", "labels": [], "task": "answers", "pooling": "cls", "most_answer_tokens": 5}


def tuned(folder: Path, config: Any, head: dict[str, Any]) -> Any:
    """A fine-tuned model's folder, as `finetune` writes it, with random weights."""
    model = randomised(build(config, head).eval(), seed=0)
    save_model(folder, model, config)
    (folder / "head.json").write_text(json.dumps(head))
    return model


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
@pytest.mark.parametrize("head", [COLORS, SCORES], ids=["classes", "score"])
def test_a_classifier_gives_its_logits_there(tmp_path: Path, name: str, head: dict[str, Any]) -> None:
    model = tuned(tmp_path / "ours", MODELS[name], head)
    found = export_model(tmp_path / "ours", tmp_path / "theirs")
    assert found["architecture"].endswith("ForSequenceClassification") and found["model_type"] == name
    assert found["left_out"] == []
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    batch = batch_of(MODELS[name], "right")
    with torch.inference_mode():
        mine, other = model.logits(batch), theirs(**batch).logits
    if head is SCORES:
        mine = mine * 1.5 + 2.5  # the task's own scale
        assert theirs.config.problem_type == "regression"
    else:
        assert theirs.config.id2label == {0: "red", 1: "green", 2: "blue"}
    torch.testing.assert_close(mine, other, **TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_found_at_the_same_places(tmp_path: Path, name: str) -> None:
    model = tuned(tmp_path / "ours", MODELS[name], SPANS)
    assert export_model(tmp_path / "ours", tmp_path / "theirs")["architecture"].endswith("ForQuestionAnswering")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "theirs").eval()
    batch = batch_of(MODELS[name], "right")
    seen = batch["attention_mask"].bool()
    with torch.inference_mode():
        start, end = model.logits(batch)
        other = theirs(**batch)
    torch.testing.assert_close(start[seen], other.start_logits[seen], **TOLERANCE)
    torch.testing.assert_close(end[seen], other.end_logits[seen], **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "head"),
    [("bert", {**COLORS, "pooling": "mean"}), ("bert", {**COLORS, "both_orders": True}), ("electra", COLORS)],
    ids=["mean", "both-orders", "another-activation"],
)
def test_what_their_classes_do_not_do_leaves_the_trunk_and_says_so(
    tmp_path: Path, name: str, head: dict[str, Any]
) -> None:
    tuned(tmp_path / "ours", MODELS[name], head)
    found = export_model(tmp_path / "ours", tmp_path / "theirs")
    assert found["architecture"].endswith("Model")
    assert {"classifier.weight", "classifier.bias"} <= set(found["left_out"])
    transformers.AutoModel.from_pretrained(tmp_path / "theirs")


def test_a_damaged_head_and_a_tasks_model_of_the_hub_are_named(tmp_path: Path) -> None:
    tuned(tmp_path / "ours", MODELS["bert"], COLORS)
    export_model(tmp_path / "ours", tmp_path / "theirs")
    with pytest.raises(ConfigError, match="architectures is BertForSequenceClassification, expected BertForMaskedLM"):
        import_model(tmp_path / "theirs")
    (tmp_path / "ours" / "head.json").write_text('{"kind": "classification"}')
    with pytest.raises(ConfigError, match=r"head\.json: not a task's head"):
        export_model(tmp_path / "ours", tmp_path / "again")
