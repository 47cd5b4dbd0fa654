"""Cleaning: one step per file, named in `STEPS`; `tasks.clean` runs a list of them over a corpus.

A new step is a settings class and its line in `AnyStep` (`tasks.cleaning.settings`), a file with a subclass of
`DocumentStep` or `CorpusStep`, and one line here.
"""

from __future__ import annotations

from modeling.config import Registry

STEPS = Registry(
    "cleaning step",
    {},
)
