"""Figures against values worked out by hand and, on random data, against scikit-learn and SciPy themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.metrics import METRICS, exact_match_one, measure, normalise_answer, token_f1_one


def test_classification_by_hand() -> None:
    labels = [1, 1, 1, 0, 0, 1]
    found = [1, 0, 1, 0, 1, 1]  # 3 true positives, 1 false positive, 1 false negative, 1 true negative
    values = measure(("accuracy", "f1", "matthews"), labels, found)
    assert values == {"accuracy": 0.666667, "f1": 0.75, "matthews": 0.25}
    # Matthews: (3·1 − 1·1) / sqrt(4·4·2·2)
    assert values["matthews"] == (3 * 1 - 1 * 1) / math.sqrt(4 * 4 * 2 * 2)


@pytest.mark.parametrize("name", ["f1", "matthews"])
def test_a_constant_answer_scores_zero(name: str) -> None:
    assert METRICS[name]([0, 1, 1], [0, 0, 0]) == 0


@pytest.mark.parametrize("name", ["pearson", "spearman", "pearson_spearman"])
def test_a_constant_score_correlates_with_nothing(name: str) -> None:
    assert METRICS[name]([0.0, 1.0, 5.0], [2.0, 2.0, 2.0]) == 0
    assert METRICS[name]([1.0], [1.0]) == 0


def test_correlations_by_hand() -> None:
    labels, found = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 10.0]
    # ranks 1 3 2 4: 1 − 6·2/(4·15) = 0.8; centred products: 13 / sqrt(5·50)
    assert METRICS["spearman"](labels, found) == pytest.approx(0.8)
    assert METRICS["pearson"](labels, found) == pytest.approx(13 / math.sqrt(5 * 50))
    both = METRICS["pearson_spearman"](labels, found)
    assert both == pytest.approx((0.8 + 13 / math.sqrt(250)) / 2)


def test_against_the_libraries() -> None:
    from scipy import stats
    from sklearn import metrics

    draw = np.random.default_rng(3)
    labels, found = draw.integers(0, 2, 200), draw.integers(0, 2, 200)
    assert METRICS["accuracy"](labels, found) == metrics.accuracy_score(labels, found)
    assert METRICS["f1"](labels, found) == metrics.f1_score(labels, found)
    assert METRICS["matthews"](labels, found) == metrics.matthews_corrcoef(labels, found)
    scores = draw.integers(0, 6, 200) + draw.normal(0, 0.1, 200)
    assert METRICS["pearson"](labels, scores) == stats.pearsonr(labels, scores).statistic
    assert METRICS["spearman"](labels, scores) == stats.spearmanr(labels, scores).statistic


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.-based  cat!", "usbased cat"),  # punctuation is deleted, not replaced by a space
        ("a an the", ""),
        ("theatre of the absurd", "theatre of absurd"),  # articles as whole words only
        ("A\tB\n C", "b c"),
        ("the-end", "theend"),  # punctuation goes before the articles
        ("Zürich’s 2°", "zürich’s 2°"),  # only ASCII punctuation
        ("", ""),
    ],
)
def test_squad_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@given(st.text(max_size=60))
def test_an_answer_matches_itself(text: str) -> None:
    once = normalise_answer(text)
    assert once == " ".join(once.split()) and once == once.lower()
    assert token_f1_one(text, [text]) == 1 and exact_match_one(text, [text]) == 1


def test_answers_take_the_best_gold() -> None:
    assert exact_match_one("The int", ["float", "int"]) == 1
    # shared: "array"; precision 1/2, recall 1/3 against the first, 1/2 and 1/1 against the second
    assert token_f1_one("array like", ["array of int", "array"]) == pytest.approx(2 / 3)


def test_an_empty_gold_scores_by_equality() -> None:
    assert token_f1_one("", []) == exact_match_one("", []) == 1
    assert token_f1_one("int", []) == exact_match_one("int", [""]) == 0
    assert token_f1_one("the", ["a"]) == 1  # both are empty after normalisation


def test_words_count_as_often_as_they_are_shared() -> None:
    # "int int" against "int": one shared word, precision 1/2, recall 1
    assert token_f1_one("int int", ["int"]) == pytest.approx(2 / 3)
