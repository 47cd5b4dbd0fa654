"""Keys: canonical, sensitive to what is computed, blind to where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import BadConfig
from modeling.config import Config
from pipelines.code import CodeIndex
from pipelines.graph import Graph, Pipeline
from pipelines.identity import Identity, canonical
from tasks.base import Runtime, Task
from tests.recipes.toy import Count, Read, ToyConfig, toy

CODE = CodeIndex()

runtimes = st.builds(
    Runtime,
    workers=st.integers(1, 64),
    cpus=st.floats(0, 8),
    gpus=st.integers(0, 8),
    memory_gb=st.floats(0, 512),
    zero_stage=st.just(3),  # the one that fits every offload
    micro_batch=st.integers(0, 256),
    activation_checkpointing=st.booleans(),
    offload_optimizer=st.sampled_from(["none", "cpu", "nvme"]) | st.booleans(),
    offload_parameters=st.sampled_from(["none", "cpu", "nvme"]),
    nvme_path=st.just("/nvme"),
    overlap_comm=st.booleans(),
    bucket_elements=st.integers(1, 10**9),
    deepspeed=st.dictionaries(st.just("wall_clock_breakdown"), st.booleans()),
    layer_updates=st.integers(0, 99),
    samples=st.integers(0, 9),
    profile_steps=st.sampled_from(["", "3", "5:9"]),
    checkpoint_every_seconds=st.floats(1, 1e4),
    checkpoint_keep_last=st.integers(1, 9),
    checkpoint_keep_every_steps=st.integers(0, 1000),
    checkpoint_keep_best=st.booleans(),
    checkpoint_background=st.booleans(),
    max_retries=st.integers(0, 9),
    resources=st.dictionaries(st.text("abc", min_size=1), st.floats(0, 4), max_size=2),
)


class Inner(Config):
    rate: float = 0.1
    names: tuple[str, ...] = ()


class Whole(Task):
    inner: Inner = Inner()
    size: int = 1
    options: dict[str, int] = {}


def key(task: Task) -> str:
    return Identity(task, {}, CODE, {}).key


@given(runtimes, st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True))
def test_placement_and_name_never_move_a_key(runtime: Runtime, name: str) -> None:
    assert key(Whole(size=3, runtime=runtime, name=name)) == key(Whole(size=3))


@given(runtimes)
def test_placement_of_a_recipe_moves_no_key_of_any_stage(runtime: Runtime) -> None:
    def keys(placement: Runtime) -> dict[str, str]:
        graph = Graph(toy(ToyConfig(source=__file__, placement=placement)), CODE)
        return {name: node.key for name, node in graph.nodes.items()}

    assert keys(runtime) == keys(Runtime())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_canonical_is_idempotent_and_ignores_the_order_of_keys(value: Any) -> None:
    once = canonical(value)
    assert canonical(once) == once
    if isinstance(value, dict):
        assert canonical(dict(reversed(list(value.items())))) == once


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 100), st.floats(0, 1), st.lists(st.text("ab", max_size=3), max_size=3))
def test_every_field_of_the_config_moves_the_key(size: int, rate: float, names: list[str]) -> None:
    made = Whole(size=size, inner=Inner(rate=rate, names=tuple(names)))
    same = Whole(size=size, inner=Inner(rate=rate, names=tuple(names)))
    assert key(made) == key(same)
    assert key(made) != key(Whole(size=size + 1, inner=made.inner))
    assert key(made) != key(Whole(size=size, inner=Inner(rate=rate + 0.5, names=tuple(names))))
    assert key(made) != key(Whole(size=size, inner=Inner(rate=rate, names=(*names, "x"))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object(), {1: 2}, b"bytes", lambda: 1])
def test_what_has_no_stable_text_is_refused_by_name(value: Any) -> None:
    with pytest.raises(BadConfig, match="field"):
        canonical(value, "field")


def test_keys_differ_by_task_inputs_external_and_registry_entry(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two")
    read = Read(source=str(path))
    graph = Graph(Pipeline([Count(corpus=read, counter="words"), Count(corpus=read, counter="letters")]), CODE)
    assert len({node.key for node in graph.nodes.values()}) == 3
    first = graph.node(read).key
    path.write_text("one two three")
    assert Graph(Pipeline(read), CODE).node(read).key != first
    other = tmp_path / "b.txt"
    other.write_text("one two")
    assert Read(source=str(path)) != Read(source=str(other))


def test_equal_stages_are_one_and_names_are_unique(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    first, second = Read(source=str(path)), Read(source=str(path))
    graph = Graph(Pipeline([first, second, Read(source=str(path), upper=True)]), CODE)
    assert list(graph.nodes) == ["read", "read-2"]
    assert graph.node(first) is graph.node(second)
    with pytest.raises(BadConfig, match="two different stages are named 'same'"):
        Graph(Pipeline([Read(source=str(path), name="same"), Read(source=str(path), upper=True, name="same")]), CODE)


def test_a_deep_chain_needs_no_recursion(tmp_path) -> None:
    class Link(Task):
        produces = "corpus"
        n: int
        before: Any = None

    last = Link(n=0)
    for n in range(1, 3000):
        last = Link(n=n, before=last)
    graph = Graph(Pipeline(last), CODE)
    assert len(graph.nodes) == 3000
    assert graph.ancestors(["link-3000"]) == set(graph.nodes)


def test_wrong_kind_of_input_is_refused(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    count = Count(corpus=Read(source=str(path)))
    with pytest.raises(ValueError, match="expected a stage that makes a corpus, found Count, which makes a model"):
        Count(corpus=count)
