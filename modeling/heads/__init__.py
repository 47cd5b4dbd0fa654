"""What stands on a trunk: language-model heads for pretraining, classifiers and extractors for tasks.

A new pretraining head is a file and a line in `HEADS`; an objective's settings name it.
"""

from __future__ import annotations

from modeling.config import Registry

HEADS = Registry(
    "head",
    {
        "language-model": "modeling.heads.language:LanguageModel",
        "replaced-token-detection": "modeling.heads.electra:ReplacedTokenDetection",
        "discriminator": "modeling.heads.electra:Discriminator",
        "permutation-language-model": "modeling.heads.permutation:PermutationLanguageModel",
        "word-vectors": "modeling.word_vectors:WordVectors",
        "glove": "modeling.word_vectors:GloVe",
        "bidirectional-lm": "modeling.elmo:BidirectionalLanguageModel",
    },
)
"""What pretraining trains: classes with `for_objective(config, settings)`, `forward`, `count`."""
