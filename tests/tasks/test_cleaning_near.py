"""near-duplicates: recall and precision against all pairs, and what must not change the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.errors import ConfigError
from tasks.base import Runtime
from tasks.cleaning import near_search
from tasks.cleaning.base import Verdict
from tasks.cleaning.clusters import Clusters
from tasks.cleaning.near import NearDuplicates
from tasks.cleaning.settings_corpus import NearDuplicatesSettings as Settings
from tasks.sources.batches import split_draw
from tests.tasks.compared import compared, jaccard, kept, planted, words_of


def near(texts: list[str], validation: list[bool] | None = None, **values: Any) -> tuple[list[Verdict], dict[str, Any]]:
    return compared(NearDuplicates(Settings(**values)), texts, validation)


def dropped(verdicts: list[Verdict]) -> list[bool]:
    return [verdict.text is None for verdict in verdicts]


# ---------------------------------------------------------------- recall and precision


@pytest.mark.parametrize("words", [30, 200])
def test_recall_and_precision_against_all_pairs(words: int) -> None:
    """Planted pairs of every similarity between 0.4 and 1, in one corpus; the truth is all pairs' exact similarity."""
    draw = np.random.default_rng(words)
    texts = [text for n in range(240) for text in planted(draw, words, n % (words // 15 + 1))]
    truth = {pair for pair in combinations(range(len(texts)), 2) if _close(texts, pair) >= 0.8}
    verdicts, facts = compared(NearDuplicates(Settings()), texts, slice_=100)
    gone = {(n - n % 2, n - n % 2 + 1) for n, is_gone in enumerate(dropped(verdicts)) if is_gone}
    assert len(truth) > 60
    assert not gone - truth  # precision 1: doubtful pairs are compared shingle by shingle
    # recall: each pair is found with the probability that the bands give it; five standard deviations below that
    chances = [NearDuplicates(Settings()).banding.found(_close(texts, pair)) for pair in truth]
    missed_at_most = sum(1 - p for p in chances) + 5 * sum(p * (1 - p) for p in chances) ** 0.5
    assert len(truth - gone) <= missed_at_most < 0.1 * len(truth)
    assert facts["clusters"] == len(gone) and facts["documents_in_clusters"] == 2 * len(gone)


def _close(texts: list[str], pair: tuple[int, int]) -> float:
    one, two = pair
    return jaccard(texts[one], texts[two]) if one // 2 == two // 2 else 0.0  # others share no word


def test_estimates_alone_are_right_but_near_the_threshold() -> None:
    draw = np.random.default_rng(5)
    texts = [text for n in range(200) for text in planted(draw, 200, n % 12)]
    verdicts, _ = near(texts, verify="signatures")
    for n in range(0, len(texts), 2):
        similar = jaccard(texts[n], texts[n + 1])
        found = dropped(verdicts)[n] or dropped(verdicts)[n + 1]
        if abs(similar - 0.8) > 5 * (0.8 * 0.2 / 128) ** 0.5:
            assert found == (similar > 0.8), similar


@pytest.mark.parametrize("action", ["drop", "group"])
def test_who_stays_is_held_out_no_more_often_than_others(action: str) -> None:
    """Of 150 clusters of six, splits drawn as `Ingest` draws them, within four standard deviations."""
    texts = [f"{n} " + " ".join(f"{n}x{i}" for i in range(60)) + f" last {k}" for n in range(150) for k in range(6)]
    held = [split_draw(text.encode()) < 0.2 * 2**64 for text in texts]
    verdicts, facts = near(texts, held, action=action)
    assert facts["clusters"] == 150
    if action == "drop":
        left = [at for at, verdict in enumerate(verdicts) if verdict.text is not None]
        found = [held[at] for at in left]
    else:
        found = [verdicts[at].split == "validation" or (held[at] and not verdicts[at].split) for at in range(0, 900, 6)]
    assert abs(sum(found) / 150 - 0.2) < 4 * (0.2 * 0.8 / 150) ** 0.5


def test_short_documents() -> None:
    """Of fewer words than a shingle: one shingle, all its words. Without a word: nobody's duplicate."""
    texts = ["a b", "A, b!", "b a", "a", "", "...", "a b c d", "a b c d.", "a b c d e", "日本", "日本。"]
    verdicts, facts = near(texts)
    pairs = [(0, 1), (6, 7), (9, 10)]
    assert [sum(dropped(verdicts)[n] for n in pair) for pair in pairs] == [1, 1, 1]
    assert dropped(verdicts).count(True) == 3 == facts["clusters"]
    assert {"b a", "a", "", "...", "a b c d e"} <= set(kept(verdicts))


def test_threshold_of_one_is_equal_sets_of_shingles() -> None:
    long = " ".join(f"w{n}" for n in range(3000))
    texts = [long, long.upper(), long + " more"]
    assert dropped(near(texts, threshold=1.0)[0]).count(True) == 1
    assert dropped(near(texts, threshold=0.99)[0]).count(True) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [({"bands": 4}, "without the other"), ({"bands": 20, "rows": 7}, "140 values"), ({"threshold": 0}, "threshold")],
)
def test_settings_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        Settings(**values)


# ---------------------------------------------------------------- groups and splits


def test_group_keeps_all_and_no_cluster_crosses_the_split() -> None:
    draw = np.random.default_rng(2)
    texts = [text for _ in range(40) for text in planted(draw, 100, 1)] + ["all alone here"]
    validation = [bool(n % 3 == 0) for n in range(len(texts))]
    verdicts, facts = near(texts, validation, action="group")
    assert [verdict.text for verdict in verdicts] == texts
    after = [v.split == "validation" if v.split else given for v, given in zip(verdicts, validation, strict=True)]
    assert after[0:80:2] == after[1:80:2] and after[-1] == validation[-1]
    mixed = sum(a != b for a, b in zip(validation[0:80:2], validation[1:80:2], strict=True))
    assert facts["clusters_across_splits"] == mixed == sum(bool(v.split) for v in verdicts) > 10
    # it goes where the one is that `drop` would keep
    stays, _ = near(texts, validation)
    for n in range(0, 80, 2):
        keeper = n if stays[n].text is not None else n + 1
        assert after[n] == validation[keeper]


# ---------------------------------------------------------------- large buckets


def test_a_boilerplate_of_many_documents_costs_no_more_than_its_share() -> None:
    draw = np.random.default_rng(3)
    common = words_of(draw.choice(1 << 40, 80, replace=False))
    texts = [f"{common} {words_of(draw.choice(1 << 40, 40, replace=False))}" for _ in range(600)]  # similarity 0.5
    texts += [text + " end" for text in texts[:50]]  # near duplicates among them
    verdicts, facts = near(texts, bands=42, rows=3)
    found = sum(a != b for a, b in zip(dropped(verdicts)[:50], dropped(verdicts)[600:], strict=True))
    assert found >= 48 and dropped(verdicts).count(True) == found  # each pair is in the same bucket of many bands
    assert facts["buckets_too_large_for_all_pairs"] > 10
    linear = facts["bands"] * len(texts) * near_search.LEADERS
    assert facts["candidate_pairs"] < linear < facts["bands"] * len(texts) ** 2 / 10


def test_many_copies_are_one_cluster() -> None:
    texts = [f"{'the same words over and over again in all of them ' * 3} {'x' if n % 2 else ''}." for n in range(300)]
    verdicts, facts = near(texts, threshold=0.7)
    assert dropped(verdicts).count(False) == 1 == facts["clusters"]
    assert facts["largest_cluster"] == 300


def test_clusters_are_components() -> None:
    draw = np.random.default_rng(4)
    left, right = draw.integers(0, 500, (2, 400))
    clusters = Clusters()
    clusters.grow(100)
    clusters.grow(500)
    for part in range(0, 400, 37):
        clusters.join(left[part : part + 37], right[part : part + 37])
    parent = list(range(500))

    def root(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        parent[max(root(a), root(b))] = min(root(a), root(b))
    roots = [root(n) for n in range(500)]
    documents, found = clusters.members()
    assert found.tolist() == [roots[n] for n in documents.tolist()]
    assert documents.tolist() == [n for n in range(500) if roots.count(roots[n]) > 1]


# ---------------------------------------------------------------- what must not change the outcome

BASES = [" ".join(f"b{n}w{i}" for i in range(60)) for n in range(6)]


def variants(chosen: list[tuple[int, int]]) -> list[str]:
    """Texts that are near duplicates where the first number is equal, and equal where both are."""
    return [f"{BASES[base]} v{version}" for base, version in chosen]


CHOSEN = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=20)


@given(CHOSEN, st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_corpus_does_not_matter(chosen: list[tuple[int, int]], random: Any) -> None:
    texts = variants(chosen)
    shuffled = random.sample(texts, len(texts))
    assert sorted(kept(near(texts)[0])) == sorted(kept(near(shuffled)[0]))
    assert len(kept(near(texts)[0])) == len({base for base, _ in chosen})


@given(CHOSEN, st.lists(st.integers(0, 3), max_size=5))
@settings(max_examples=15, deadline=None)
def test_more_documents_change_nothing_about_clusters_they_are_not_in(
    chosen: list[tuple[int, int]], versions: list[int]
) -> None:
    texts = variants(chosen)
    more = [f"{' '.join(f'other{i}' for i in range(50))} v{version}" for version in versions]
    for action in ("drop", "group"):
        validation = [len(text) % 2 == 0 for text in texts]
        before, _ = near(texts, validation, action=action)
        after, _ = near(more + texts + more, [True] * len(more) + validation + [True] * len(more), action=action)
        assert after[len(more) : len(more) + len(texts)] == before


@given(CHOSEN)
@settings(max_examples=15, deadline=None)
def test_what_is_left_is_left(chosen: list[tuple[int, int]]) -> None:
    once = kept(near(variants(chosen))[0])
    assert kept(near(once)[0]) == once


# ---------------------------------------------------------------- Ray


class OnRayData(NearDuplicates):
    """Exchanges on Ray Data however little there is."""

    here_bytes = 1


def corpus() -> tuple[list[str], list[bool]]:
    draw = np.random.default_rng(7)
    texts = [text for n in range(150) for text in planted(draw, 60, n % 5)]
    return texts, [n % 4 == 0 for n in range(len(texts))]


def stage(action: str, runtime: Runtime) -> tuple[list[Verdict], dict[str, Any]]:
    from tasks.cleaning import exchange

    exchange._here = None  # type: ignore[assignment]  # so that it fails if it takes the other way
    return compared(OnRayData(Settings(action=action)), *corpus(), slice_=40, runtime=runtime)


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield 2
    ray.shutdown()


def test_stages_on_ray_find_what_one_process_finds(cluster: int) -> None:
    """As stages run: tasks of one core each, as many as there are cores, so none is free but those that wait."""
    inside = ray.remote(max_retries=0)(stage)
    runtimes = [Runtime(), Runtime(workers=1)][:cluster]
    found = ray.get([inside.options(num_cpus=1).remote("group", runtime) for runtime in runtimes], timeout=240)
    alone = compared(NearDuplicates(Settings(action="group")), *corpus(), slice_=13)
    assert all(each == alone for each in found)
    assert alone[1]["clusters"] == 60
