"""Memory by ZeRO part: the table of the module, DeepSpeed's own tensors, offload, and what fits."""

import gc

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from cluster.deepspeed import engine_config
from modeling.activations import Workload
from modeling.architecture import model_config
from modeling.checkpoint import build_model
from modeling.memory import GIB, Placed, memory, most_rows, optimizer_bytes, static
from modeling.optimizers import OPTIMIZERS
from modeling.shapes import count, parameter_shapes
from tasks.base import Runtime

LM = {"name": "language-model", "settings": {}}
PSI = 1_000_000
SHAPES = {"transformer.encoder.blocks.0.ff.input.weight": (1000, 900), "transformer.tokens.weight": (100, 1000)}


@pytest.mark.parametrize(
    ("stage", "weights", "master", "gradients", "optimizer"),
    [(0, 4, 0, 4, 8), (1, 4, 1, 1, 2), (2, 4, 1, 1, 2), (3, 1, 1, 1, 2)],
)
def test_the_table_on_four_workers(stage, weights, master, gradients, optimizer):
    found = static(SHAPES, SHAPES, Placed(4, stage), "adamw", "cuda")
    parts = found.device
    assert (parts["weights"], parts.get("master", 0), parts["optimizer"]) == (
        weights * PSI,
        master * PSI,
        optimizer * PSI,
    )
    assert found.gradients + parts.get("gradients", 0) == gradients * PSI
    several = static(SHAPES, SHAPES, Placed(4, stage, accumulation=2), "adamw", "cuda")
    assert several.gradients == (4 * PSI if stage == 1 else found.gradients)


def tensors() -> dict[int, torch.Tensor]:
    """All tensors that Python knows of, and their gradients, by where their storages begin."""
    gc.collect()
    seen = {}
    for each in gc.get_objects():
        kind = type(each)
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor) and each.device.type == "cpu":
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None:
                    seen[tensor.untyped_storage().data_ptr()] = tensor
    return seen


def new_bytes(before: dict[int, torch.Tensor]) -> int:
    """Bytes of the storages that have come since; `before` holds what other tests left, so that none of it goes."""
    return sum(t.untyped_storage().nbytes() for place, t in tensors().items() if place not in before)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_between_steps_the_engine_holds_what_the_table_says(stage):
    """One worker; benchmarks/placement.py measures two and four, and gradients and the peak as well."""
    from modeling.loop import LoopConfig, fit

    before = tensors()
    config = model_config({"preset": "modern-mini", "vocab_size": 1024})
    model = build_model(config, LM)
    found = []

    def next_batch(step: int) -> dict[str, np.ndarray]:
        if step == 2:
            found.append(new_bytes(before))
        ids = np.arange(2 * 16).reshape(2, 16) % 1000 + 5
        return {"input_ids": ids, "labels": ids, "attention_mask": np.ones((2, 16), bool)}

    plan = engine_config(batch_size=2, world_size=1, length_tokens=16, zero_stage=stage, clip_norm=1.0)
    fit(
        model,
        LoopConfig(steps=3, batch_size=2),
        next_batch,
        engine_config=plan,
        runtime=Runtime(checkpoint_every_seconds=1e9),
    )
    shapes = parameter_shapes(config, LM)
    placed = Placed.of(plan)
    expected = static(shapes, shapes, placed, "adamw", "cpu")
    total = sum(expected.device.values()) + sum(expected.host.values())
    if stage == 3:  # its bucket is there whole, but no page of it beyond the parameters is ever touched
        total += 4 * (placed.bucket - min(placed.bucket, count(shapes)))
    assert found[0] == pytest.approx(total, rel=0.03)  # tables of rotations, scalars, a batch


def test_optimizers_of_every_kind():
    assert optimizer_bytes("adamw", SHAPES) == optimizer_bytes("lamb", SHAPES) == 8 * PSI
    assert optimizer_bytes("lion", SHAPES) == 4 * PSI
    assert optimizer_bytes("muon", SHAPES) == 4 * 900_000 + 8 * 100_000
    assert optimizer_bytes("adafactor", SHAPES) == 4 * (1900 + 1100)


@pytest.mark.parametrize(("kind", "more"), [*((kind, {}) for kind in OPTIMIZERS), ("adafactor", {"beta1": 0.9})])
def test_optimizers_keep_what_is_counted(kind, more):
    """The real ones, after a step; their counts of steps and sizes of updates are some bytes a tensor."""
    from modeling.optimizers.groups import make_optimizer
    from modeling.optimizers.settings import parse

    config = model_config({"preset": "modern-mini", "vocab_size": 1024})
    model = build_model(config, LM)
    optimizer = make_optimizer(model, parse({"kind": kind, **more}), 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    name = f"{kind}-mean" if more else kind
    assert optimizer_bytes(name, parameter_shapes(config, LM)) == pytest.approx(kept, rel=0.02)


def test_offload_moves_the_parts_to_the_host_or_the_disk():
    plain = static(SHAPES, SHAPES, Placed(2, 2), "adamw", "cuda")
    cpu = static(SHAPES, SHAPES, Placed(2, 2, offload_optimizer="cpu"), "adamw", "cuda")
    assert set(plain.device) - set(cpu.device) == {"master", "optimizer"} and cpu.gradients == 0
    assert cpu.host["optimizer"] == (4 + 8 + 4) * PSI // 2 and cpu.host["gradients"] == 4 * PSI // 2
    nvme = static(SHAPES, SHAPES, Placed(2, 3, offload_optimizer="nvme", offload_parameters="nvme"), "adamw", "cuda")
    assert nvme.disk == (4 + 4 + 8) * PSI // 2 and "weights" not in nvme.device


def test_the_worst_moment_depends_on_accumulation():
    config = model_config({"preset": "gpt2-124M", "vocab_size": 50_257})
    few = Workload(config, LM, "bf16", 1, 64)
    assert memory(few, Placed(1, 0)).moment != "forward"
    many = Workload(config, LM, "bf16", 16, 1024)
    assert memory(many, Placed(1, 0)).moment == "forward"
    once, again = memory(many, Placed(1, 0, 1)), memory(many, Placed(1, 0, 4))
    assert again.total - once.total == 4 * count(parameter_shapes(config, LM))  # gradients of earlier micro-batches
    assert sum(once.parts.values()) == once.total


def test_a_frozen_trunk_has_neither_gradients_nor_states():
    config = model_config({"preset": "bert-base", "vocab_size": 30_522})
    head = {"name": "classifier", "settings": {"labels": 2, "pooling": "mean"}}
    work = Workload(config, head, "fp32", 32, 128)
    whole, probe = memory(work, Placed(1, 0)), memory(work, Placed(1, 0), frozen_trunk=True)
    assert probe.parts["optimizer"] == 8 * (2 * 768 + 2) and probe.total < 0.35 * whole.total


def test_most_rows_is_the_last_that_fits():
    config = model_config({"preset": "gpt2-124M", "vocab_size": 50_257})
    work = Workload(config, LM, "bf16", 1, 1024)
    rows = most_rows(work, Placed(1, 0), 22 * GIB, 512)
    assert 16 < rows < 128
    for number, fits in ((rows, True), (rows + 1, False)):
        at = Workload(config, LM, "bf16", number, 1024)
        assert (memory(at, Placed(1, 0)).total <= 22 * GIB) == fits
    assert most_rows(work, Placed(1, 0), GIB, 512) == 0
