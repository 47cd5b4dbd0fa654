"""Language identification with py3langid, whose model comes with the library; many documents at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.errors import BadConfig
from tasks.cleaning.base import DocumentStep, Verdict
from tasks.cleaning.settings import LanguageSettings

_GROUP = 1 << 12  # documents at once


class Language(DocumentStep):
    """Drops documents whose likeliest language is not wanted, or is not sure.

        with languages=("en",): "The quick brown fox jumps over the lazy dog." -> kept
                                "Der schnelle braune Fuchs springt über den faulen Hund." -> dropped, "language: de"

    py3langid (Barbaresi; after langid.py, Lui and Baldwin 2012) is naive Bayes over byte n-grams that an automaton
    finds. Read are `sample_chars` characters: half at the document's start, half in its middle. The probability is the
    library's, normalised for length. A text in which it finds nothing is unsure. Counted are all documents by language.
    """

    settings: LanguageSettings

    def __init__(self, settings: LanguageSettings, evaluation: object = None) -> None:
        self.settings = settings
        self.model = Identifier(settings.candidates)
        unknown = [name for name in settings.languages if name not in self.model.labels]
        if unknown:
            raise BadConfig(
                f"languages: {', '.join(unknown)} not known to the language model",
                f"known: {', '.join(sorted(set(self.model.labels)))}",
            )

    def clean(self, texts: Sequence[str]) -> list[Verdict]:
        s = self.settings
        verdicts = []
        for first in range(0, len(texts), _GROUP):
            group = texts[first : first + _GROUP]
            found = self.model.classify([self._sample(text) for text in group])
            for text, (language, probability) in zip(group, found, strict=True):
                reason = ""
                if probability < s.min_probability:
                    language = reason = "language unsure"
                elif language not in s.languages:
                    reason = f"language: {language}"
                verdicts.append(Verdict(None if reason else text, reason, {language: 1}))
        return verdicts

    def _sample(self, text: str) -> str:
        size = self.settings.sample_chars
        if len(text) <= size:
            return text
        middle = len(text) // 2
        return f"{text[: size // 2]} {text[middle : middle + size - size // 2]}"


class Identifier:
    """py3langid's model, its automaton run over many texts in step: the same answers as its `classify`, faster.

    The library walks one text at a time, byte by byte in Python; here each step takes the next byte of all texts.
    """

    def __init__(self, candidates: Sequence[str] = ()) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        if candidates:
            try:
                model.set_languages(candidates)
            except ValueError as error:
                raise BadConfig(f"candidates: {error}", f"known: {', '.join(sorted(set(model.nb_classes)))}") from None
        self.model = model
        self.labels: list[str] = list(model.nb_classes)
        self.next = np.asarray(model.tk_nextmove)
        self.row = np.asarray(model.tk_row, dtype=np.int64) << 8
        self.feature = np.asarray(model.tk_output, dtype=np.int32)
        self.weights = np.ascontiguousarray(model.nb_ptc, dtype=np.float32)  # [features, languages], log probabilities
        self.prior = np.asarray(model.nb_pc, dtype=np.float32)

    def classify(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """(language, probability) of each text."""
        if not texts:
            return []
        encoded = [self.model._encode(text) for text in texts]
        scores = self._scores(encoded)
        scores /= np.sqrt(np.maximum(1, [len(each) for each in encoded])).astype(np.float32)[:, None]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        for kept, alias in self.model._alias_pairs:  # two columns of one language
            scores[:, kept] += scores[:, alias]
            scores[:, alias] = 0
        best = scores.argmax(axis=1)
        return [(self.labels[i], float(p)) for i, p in zip(best, scores[np.arange(len(best)), best], strict=True)]

    def _scores(self, encoded: Sequence[bytes]) -> np.ndarray:
        """float32 [texts, languages]: log-likelihoods, 0 where a text has no feature."""
        from scipy.sparse import csr_matrix

        features, texts = self._features(encoded)
        width = len(self.weights)
        keys = np.sort(texts * width + features)  # sorting beats np.unique's hash table by far
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
        counts = np.diff(np.append(begins, len(keys)))
        rows, columns = np.divmod(keys[begins], width)
        starts = np.searchsorted(rows, np.arange(len(encoded) + 1))
        matrix: Any = csr_matrix(
            (np.log1p(counts.astype(np.float32)), columns, starts), shape=(len(encoded), width), dtype=np.float32
        )
        scores = np.asarray(matrix @ self.weights) + self.prior
        scores[starts[1:] == starts[:-1]] = 0
        return scores

    def _features(self, encoded: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """int64 [found] each: the features that the automaton meets, and the number of the text."""
        lengths = np.array([len(each) for each in encoded])
        order = np.argsort(-lengths, kind="stable")  # the longest first, so that those still read stand together
        width = int(lengths.max())
        table = np.zeros((len(encoded), max(1, width)), dtype=np.uint8)
        for place, number in enumerate(order):
            table[place, : lengths[number]] = np.frombuffer(encoded[number], dtype=np.uint8)
        table = np.ascontiguousarray(table.T)
        reading = len(encoded) - np.searchsorted(lengths[order][::-1], np.arange(width), side="right")
        state = np.zeros(len(encoded), dtype=np.int64)
        features, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for at in range(width):
            some = int(reading[at])
            state = self.next[self.row[state[:some]] + table[at, :some]].astype(np.int64)
            found = self.feature[state]
            hits = np.flatnonzero(found >= 0)
            features.append(found[hits].astype(np.int64))
            places.append(hits)
        return np.concatenate(features), order[np.concatenate(places)]
