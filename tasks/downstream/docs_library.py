"""`docs-library`: which of ten libraries a passage of documentation is about. The names are masked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.downstream.docs_text import Doc, apart, both_sides, need_rows, prose
from tasks.downstream.spec import Downstream, Row, Splits

CLASSES = 10
MASK = "library"
_LEAST, _MOST = 100, 320  # characters of a passage
_LONG = 5  # letters of a name that is masked wherever it stands; shorter ones are parts of other words
# Other words that give a library away; compared without case. Module paths fall with the name they begin with.
_ALIASES = {
    "numpy": ("np",),
    "pandas": ("pd",),
    "matplotlib": ("mpl", "pyplot", "plt", "mpl_toolkits"),
    "scikit-learn": ("sklearn", "scikit", "scikits"),
    "torch": ("pytorch", "aten", "torchvision", "torchaudio"),
    "transformers": ("huggingface", "hugging face", "hf"),
    "huggingface_hub": ("huggingface", "hugging face", "hub", "hf"),
    "tensorflow": ("tf",),
    "SQLAlchemy": ("sqla",),
    "networkx": ("nx",),
    "pillow": ("pil",),
    "pyarrow": ("arrow", "pa"),
    "ray": ("rllib", "anyscale", "raylet"),
    "fonttools": ("ttx", "ttlib"),
    "deepspeed": ("ds", "zero"),
}


@dataclass(frozen=True)
class DocsLibrary(Downstream):
    @property
    def needs_corpus(self) -> bool:
        return True

    def build(self, corpus: Path, seed: int) -> tuple[Splits, dict[str, Any]]:
        """Rows (text_a a passage, label the number of its library) and the names of the classes.

        The classes are the ten libraries with the most passages on the smaller side, in the alphabet's
        order. `seed` has no say: the passages are all there are.
        """
        docs = both_sides(corpus, self.name)
        passages = {split: [(doc, p) for doc in side if (p := _passage(doc))] for split, side in docs.items()}
        names = {split: Counter(doc.library for doc, _ in side) for split, side in passages.items()}
        # A class needs its share of the validation split too; twenty train passages weigh like one there.
        weight = {name: min(count, 20 * names["validation"][name]) for name, count in names["train"].items()}
        labels = sorted(sorted(weight, key=lambda name: (-weight[name], name))[:CLASSES])
        mask = mask_names(labels)
        number = {name: float(place) for place, name in enumerate(labels)}
        splits: Splits = {
            split: [
                Row(doc.id, mask.sub(MASK, passage), label=number[doc.library])
                for doc, passage in side
                if doc.library in number
            ]
            for split, side in passages.items()
        }
        notes: dict[str, Any] = {"labels": labels, **apart(splits, "text_a")}
        need_rows(self.name, splits)
        return splits, notes


def _passage(doc: Doc) -> str:
    """A docstring's first paragraphs of running text, up to `_MOST` characters; "" where they are too short."""
    words: list[str] = []
    for paragraph in prose(doc.text):
        words += paragraph.split()
        if sum(map(len, words)) + len(words) >= _MOST:
            break
    passage = ""
    for word in words:
        if len(passage) + len(word) >= _MOST:
            break
        passage = f"{passage} {word}" if passage else word
    return passage if len(passage) >= _LEAST else ""


def mask_names(labels: Sequence[str]) -> re.Pattern[str]:
    """Matches the names of every class: as a word with what follows its dot, and inside identifiers.

    `numpy.linalg.norm`, `RayCluster`, `ray_get`, `MlflowClient`, "Ray's", but not "array". All classes'
    names are masked in every passage, so that a mask says nothing about the label.
    """
    names = {word for label in labels for word in (label, label.replace("-", " "), *_ALIASES.get(label, ()))}
    long = _either(name for name in names if len(name) >= _LONG)
    short = [name for name in names if len(name) < _LONG]
    words = _either(short)
    camel = _either(form for name in short for form in (name.capitalize(), name.upper()))
    tail = r"(?:['’]s)?(?:\.\w+)*"
    return re.compile(
        rf"(?:\b\w*?(?i:{long})\w*"  # a long name anywhere in an identifier
        rf"|(?<![A-Za-z0-9])(?i:{words})(?![A-Za-z0-9])"  # a short one as a word, also between underscores
        rf"|(?<![A-Z]){camel}(?=[A-Z])\w*){tail}"  # or as a part of CamelCase
    )


def _either(names: Iterable[str]) -> str:
    """The names as alternatives, the longest first; matches nothing where there are none."""
    return "(?:" + ("|".join(map(re.escape, sorted(set(names), key=lambda n: (-len(n), n)))) or r"(?!)") + ")"


DOCS_LIBRARY = DocsLibrary(
    name="docs-library",
    kind="classification",
    metrics=("accuracy",),
    primary="accuracy",
    balanced=True,
    description="which of ten libraries a passage of documentation is about, the libraries' names masked",
)
