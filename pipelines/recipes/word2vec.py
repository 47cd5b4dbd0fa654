"""word2vec (Mikolov et al. 2013) or GloVe (Pennington et al. 2014): one vector a token, from the tokens around it.

`objective=skip-gram` (the default), `objective=cbow` or `objective=glove`. Downstream the vectors are features that
stay as they are. `paper`: 300 numbers, five negatives and a window of five, over three epochs of a corpus of a
billion words; the authors used SGD from 0.025, here it is AdamW.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipelines.graph import Pipeline
from pipelines.recipes.pretraining import PretrainingConfig, pretraining_pipeline
from pipelines.recipes.scale import dial, features, paper

STILL = {"kind": "adamw", "weight_decay": 0.0}  # decay would pull the vectors of rare words towards zero
SCALES: dict[str, dict[str, Any]] = {
    **{
        scale: {
            **dial(scale),
            "objective": {"kind": "skip-gram"},
            "model": {"preset": "word2vec", "width": dial(scale)["model"]["width"]},
            "finetune": features(scale),
            # a row has no attention, so it may be long; the vectors are few parameters with much to see
            "pretrain": {**dial(scale)["pretrain"], "peak_lr": 1e-2, "optimizer": STILL, "precision": "fp32"},
        }
        for scale in ("cpu", "gpu", "base")
    },
    "paper": paper(
        {"preset": "word2vec"},
        tokenizer={"kind": "wordpiece", "vocab_size": 30_522},
        objective={"kind": "skip-gram"},
        examples={"length_tokens": 1024},
        pretrain={"steps": 90_000, "batch_size": 32, "peak_lr": 1e-3, "optimizer": STILL, "precision": "fp32"},
    ),
}


class Word2vecConfig(PretrainingConfig):
    """Settings of the `word2vec` recipe."""

    SCALES: ClassVar[dict[str, dict[str, Any]]] = SCALES


def word2vec(c: Word2vecConfig) -> Pipeline:
    """word2vec (or GloVe): one vector for each token, used downstream as features."""
    return pretraining_pipeline(c, directory=c.downstream_dir, register="triptych-word2vec")
