"""tokenizers: which vocabulary suits a corpus? Kinds and sizes side by side, trained on the same text.

The report draws their figures over the vocabulary's size and shows how each splits common, varied, misspelt and new
words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeling.config import Config
from pipelines.graph import Pipeline
from pipelines.recipes.corpora import CorpusConfig, corpus_parts, unweighted
from pipelines.recipes.sections import given, settings_of
from tasks.tokenizer_comparison import CompareTokenizers

if TYPE_CHECKING:

    class CompareSettings(Config): ...

else:
    CompareSettings = settings_of(CompareTokenizers)


class TokenizersConfig(CorpusConfig):
    """Settings of the `tokenizers` recipe."""

    compare: CompareSettings = CompareSettings()


def tokenizers(c: TokenizersConfig) -> Pipeline:
    """Tokenizers of several kinds and sizes on a corpus of yours, side by side in the report."""
    return Pipeline(CompareTokenizers(corpus=unweighted(c, corpus_parts(c)), **given(c.compare)))
