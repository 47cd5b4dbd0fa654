"""Cleaning: one step per file, named in `STEPS`; `tasks.clean` runs a list of them over a corpus.

A new step is a settings class and its line in `STEP_SETTINGS`, a file with a subclass of `DocumentStep` or
`CorpusStep`, and a line in `STEPS`.
"""

from __future__ import annotations

from modeling.config import Registry

STEPS = Registry(
    "cleaning step",
    {
        "unicode": "tasks.cleaning.unicode:Unicode",
        "control-characters": "tasks.cleaning.control:ControlCharacters",
        "language": "tasks.cleaning.language:Language",
        "boilerplate": "tasks.cleaning.boilerplate:Boilerplate",
        "c4": "tasks.cleaning.c4:C4",
        "gopher": "tasks.cleaning.gopher:Gopher",
        "gopher-repetition": "tasks.cleaning.repetition:GopherRepetition",
        "length": "tasks.cleaning.length:Length",
        "pii": "tasks.cleaning.pii:Pii",
        "exact-duplicates": "tasks.cleaning.exact:ExactDuplicates",
        "duplicate-paragraphs": "tasks.cleaning.paragraphs:DuplicateParagraphs",
        "near-duplicates": "tasks.cleaning.near:NearDuplicates",
        "decontaminate": "tasks.cleaning.contamination:Decontaminate",
    },
)
STEP_SETTINGS = Registry(
    "cleaning step",
    {
        "unicode": "tasks.cleaning.settings:UnicodeSettings",
        "control-characters": "tasks.cleaning.settings:ControlCharactersSettings",
        "language": "tasks.cleaning.settings:LanguageSettings",
        "boilerplate": "tasks.cleaning.settings:BoilerplateSettings",
        "c4": "tasks.cleaning.settings:C4Settings",
        "gopher": "tasks.cleaning.settings:GopherSettings",
        "gopher-repetition": "tasks.cleaning.settings:GopherRepetitionSettings",
        "length": "tasks.cleaning.settings:LengthSettings",
        "pii": "tasks.cleaning.settings:PiiSettings",
        "exact-duplicates": "tasks.cleaning.settings_corpus:ExactDuplicatesSettings",
        "duplicate-paragraphs": "tasks.cleaning.settings_corpus:DuplicateParagraphsSettings",
        "near-duplicates": "tasks.cleaning.settings_corpus:NearDuplicatesSettings",
        "decontaminate": "tasks.cleaning.settings_corpus:DecontaminateSettings",
    },
)
"""The settings of each step: the same names, so that a step is chosen by its settings' `kind`."""
