"""The figures downstream tasks are judged by: GLUE's and SQuAD's, each as its authors compute it.

A thin layer over scikit-learn and SciPy; what those lack (SQuAD's text comparison) is here. Every
figure is a share in 0..1 or a correlation in -1..1, never a percentage, so that figures compare.
Run-time module: it imports NumPy at once and the two libraries on first use.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def accuracy(labels: Any, predictions: Any) -> float:
    """Share of equal entries of two [N] arrays of class numbers."""
    return float(np.mean(np.asarray(labels) == np.asarray(predictions)))


def f1(labels: Any, predictions: Any) -> float:
    """F1 of class 1 against class 0 (GLUE's for MRPC and QQP); 0 where nothing is predicted positive."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def matthews(labels: Any, predictions: Any) -> float:
    """Matthews correlation of two [N] arrays of class numbers (CoLA); 0 where either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def pearson(labels: Any, predictions: Any) -> float:
    """Linear correlation of two [N] float arrays; 0 where either side is constant (it is undefined there)."""
    return _correlation("pearsonr", labels, predictions)


def spearman(labels: Any, predictions: Any) -> float:
    """Rank correlation (ties share their mean rank) of two [N] float arrays; 0 where either side is constant."""
    return _correlation("spearmanr", labels, predictions)


def pearson_spearman(labels: Any, predictions: Any) -> float:
    """The mean of both correlations: GLUE's figure for STS-B."""
    return (pearson(labels, predictions) + spearman(labels, predictions)) / 2


def _correlation(name: str, labels: Any, predictions: Any) -> float:
    from scipy import stats

    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(getattr(stats, name)(labels, predictions).statistic)


def normalise_answer(text: str) -> str:
    """SQuAD's: lower-case, delete punctuation (ASCII), drop a/an/the, collapse white space, in this order.

    >>> normalise_answer("The  U.S.-based  cat!")
    'usbased cat'
    """
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match_one(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction equals any gold answer after `normalise_answer`; no gold means the empty answer."""
    return float(any(normalise_answer(prediction) == normalise_answer(gold) for gold in answers or [""]))


def token_f1_one(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of words shared with a gold answer; an empty side scores by equality (SQuAD 2.0)."""
    return max(_word_f1(normalise_answer(prediction), normalise_answer(gold)) for gold in answers or [""])


def _word_f1(prediction: str, gold: str) -> float:
    found, expected = prediction.split(), gold.split()
    if not found or not expected:
        return float(found == expected)
    same = sum((Counter(found) & Counter(expected)).values())
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def exact_match(answers: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Mean of `exact_match_one` over N questions."""
    return float(np.mean([exact_match_one(p, a) for p, a in zip(predictions, answers, strict=True)]))


def token_f1(answers: Sequence[Sequence[str]], predictions: Sequence[str]) -> float:
    """Mean of `token_f1_one` over N questions."""
    return float(np.mean([token_f1_one(p, a) for p, a in zip(predictions, answers, strict=True)]))


METRICS: Mapping[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "pearson_spearman": pearson_spearman,
    "exact_match": exact_match,
    "token_f1": token_f1,
}


def measure(names: Sequence[str], labels: Any, predictions: Any) -> dict[str, float]:
    """{metric: value} of the named metrics, rounded to 6 digits so that files do not carry float noise."""
    return {name: round(METRICS[name](labels, predictions), 6) for name in names}
