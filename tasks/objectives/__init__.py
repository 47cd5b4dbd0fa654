"""Pretraining objectives: how a packed row of tokens becomes inputs and labels, one file each.

A new objective is one file with a subclass of `tasks.objectives.base.Objective`, its settings in
`tasks/objectives/settings.py`, and one line in each of the two registries here.
"""

from __future__ import annotations

from modeling.config import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "mlm": "tasks.objectives.mlm:MaskedLanguageModel",
        "rtd": "tasks.objectives.rtd:ReplacedTokenDetection",
        "permutation": "tasks.objectives.permutation:PermutationLanguageModel",
        "causal": "tasks.objectives.causal:CausalLanguageModel",
        "prefix": "tasks.objectives.prefix:PrefixLanguageModel",
        "span-corruption": "tasks.objectives.span_corruption:SpanCorruption",
        "iid-denoising": "tasks.objectives.iid_denoising:IidDenoising",
        "infilling": "tasks.objectives.infilling:TextInfilling",
        "mass": "tasks.objectives.mass:MaskedSequenceToSequence",
        "salient-spans": "tasks.objectives.salient_spans:SalientSpans",
        "skip-gram": "tasks.objectives.word_windows:SkipGram",
        "cbow": "tasks.objectives.word_windows:ContinuousBagOfWords",
        "glove": "tasks.objectives.cooccurrence:Cooccurrence",
        "bidirectional": "tasks.objectives.bidirectional:BidirectionalLanguageModel",
    },
)
"""What makes examples: run-time code (numpy)."""

SETTINGS = Registry(
    "objective",
    {
        "mlm": "tasks.objectives.settings:Masked",
        "rtd": "tasks.objectives.settings:ReplacedTokens",
        "permutation": "tasks.objectives.settings:Permutation",
        "causal": "tasks.objectives.settings:Causal",
        "prefix": "tasks.objectives.settings:Prefix",
        "span-corruption": "tasks.objectives.settings:SpanCorruption",
        "iid-denoising": "tasks.objectives.settings:IidDenoising",
        "infilling": "tasks.objectives.settings:Infilling",
        "mass": "tasks.objectives.settings:Mass",
        "salient-spans": "tasks.objectives.settings:SalientSpans",
        "skip-gram": "tasks.objectives.settings:SkipGram",
        "cbow": "tasks.objectives.settings:ContinuousBagOfWords",
        "glove": "tasks.objectives.settings:Cooccurrence",
        "bidirectional": "tasks.objectives.settings:Bidirectional",
    },
)
"""What each can be told: plain data, read when a run is planned."""
