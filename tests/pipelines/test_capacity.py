"""What training stages need, on which memory, what is refused and what is offered instead; shapes of a cluster."""

from contextlib import ExitStack

import pytest

from cluster.errors import BadConfig
from cluster.machines import Machine
from cluster.store import Store
from modeling.architecture import preset
from modeling.errors import ConfigError
from modeling.memory import GIB
from modeling.schedule import LoopConfig
from pipelines.capacity import Room, advice, needs, refuse, room_of, training_of
from pipelines.cluster_plan import choose, forecast
from pipelines.code import CodeIndex
from pipelines.graph import Graph, Pipeline
from pipelines.memory_check import check_memory
from pipelines.session import Request, make_plan
from pipelines.sweep import PRUNED
from tasks.base import Runtime
from tasks.datasets import LabelledData
from tasks.examples import MakeExamples
from tasks.finetune import Finetune
from tasks.ingest import Ingest
from tasks.objectives import OBJECTIVES
from tasks.objectives.settings import parse
from tasks.objectives.shares import label_share
from tasks.pretrain import Pretrain
from tasks.tokenizer import TrainTokenizer


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "articles.jsonl"
    path.write_text('{"text": "A short article."}\n')
    return Ingest(source=str(path))


def pretrain(corpus, model="gpt2-124M", length=1024, objective="causal", batch_size=32, precision="bf16", **placement):
    tokenizer = TrainTokenizer(corpus=corpus, kind="bpe", vocab_size=50_257)
    return Pretrain(
        examples=MakeExamples(corpus=corpus, tokenizer=tokenizer, objective=objective, length_tokens=length),
        tokenizer=tokenizer,
        model=preset(model),
        loop=LoopConfig(steps=1000, batch_size=batch_size, precision=precision),
        runtime=Runtime(**placement),
    )


def needs_of(task, **options):
    return needs(Graph(Pipeline(task), CodeIndex()).nodes.values(), **options)


def test_a_stage_becomes_numbers(corpus):
    training = training_of(pretrain(corpus, gpus=1, zero_stage=2, workers=4, bucket_elements=1000))
    assert training.model == "gpt2-124M" and training.work.config.vocab_size == 50_257
    assert (training.work.rows, training.placed.workers, training.placed.zero_stage) == (8, 4, 2)
    assert training.work.device == "cuda" and training.placed.bucket == 1000 and training.placed.overlap
    assert training.parameters == 124_439_808 + 768 * (50_304 - 50_257)


@pytest.mark.parametrize(
    ("gpus", "processor_has_bf16", "precision"), [(0, True, "bf16"), (0, False, "fp32"), (1, False, "bf16")]
)
def test_auto_is_predicted_as_what_the_processor_here_takes(corpus, monkeypatch, gpus, processor_has_bf16, precision):
    monkeypatch.setattr("pipelines.capacity.processor_has_bf16", lambda: processor_has_bf16)
    assert training_of(pretrain(corpus, precision="auto", gpus=gpus)).work.precision == precision


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_has_a_share_of_labels(kind):
    objective = parse(kind)
    for architecture in objective.architectures:
        assert 0 < label_share(objective, 512, architecture) <= 1
    assert label_share(parse({"kind": "mlm", "max_predictions": 64}), 512, "encoder") == 0.125


def test_what_does_not_fit_is_refused_with_what_would(corpus):
    (need,) = needs_of(pretrain(corpus, "gpt2-1558M", gpus=1, zero_stage=1), gpu_name="a100-40gb")
    assert not need.fits and need.room.what == "one A100-40GB"
    with pytest.raises(BadConfig) as refused:
        refuse([need])
    assert refused.value.message.startswith(
        "stage pretrain: gpt2-1558M (1.6 B parameters) at ZeRO stage 1 on 1 worker, micro_batch 32 x 1024 tokens, "
        "needs about"
    )
    assert "one A100-40GB has 39.4 GiB" in refused.value.message
    assert "what fits: placement." in refused.value.remedy and "offload_optimizer=cpu" in refused.value.remedy


def test_advice_fits_and_is_taken_as_it_stands(corpus):
    """Each line, put into the placement, gives a stage that is not refused."""
    task = pretrain(corpus, "gpt2-1558M", gpus=1, workers=2, zero_stage=0)
    room = Room(39 * GIB, "a card", 64 * GIB)
    lines = list(advice(training_of(task), lambda runtime: room))
    assert 1 <= len(lines) <= 3
    for line in lines:
        changed = dict(word.removeprefix("placement.").split("=") for word in line.split())
        placed = {**task.runtime.model_dump(exclude={"deepspeed", "resources"}), **changed}
        again = training_of(task.model_copy(update={"runtime": Runtime(**placed)}))
        assert room.holds(again.memory()), line


def test_offload_needs_a_host_that_has_it(corpus):
    """1.6 B parameters: 16 bytes of master copy, states and the way back, and 4 of gradients, are 29 GiB."""
    task = pretrain(corpus, "gpt2-1558M", gpus=1, zero_stage=2, offload_optimizer="cpu", micro_batch=4)
    (need,) = needs_of(task, machines=[Machine("small", "A100-40GB", 4, 48, 64)])
    assert need.memory.total < need.room.bytes and not need.fits
    with pytest.raises(BadConfig, match=r"needs about 2\d.\d GiB of host memory a worker .* has 16.0 GiB of host"):
        refuse([need])
    assert not any("offload" in line for line in need.advice)
    (need,) = needs_of(task, machines=[Machine("large", "A100-40GB", 4, 48, 1024)])
    assert need.fits


def test_a_model_too_large_for_any_placement_has_no_advice(corpus):
    task = pretrain(corpus, "gpt3-175B", batch_size=1, gpus=1)
    assert list(advice(training_of(task), lambda runtime: Room(16 * GIB, "a card"))) == []


def test_where_the_memory_comes_from():
    machines = [Machine("small", "L4", 4), Machine("large", "H100", 8)]
    gpu = Runtime(gpus=1)
    assert room_of(gpu, "h200", machines).what == "one H200"
    assert room_of(Runtime(gpus=1, resources={"accelerator_type:L4": 0.001}), "", machines).what == "one L4"
    assert room_of(Runtime(gpus=0.5), "h100").bytes == round(79.1 * GIB / 2)
    assert room_of(Runtime(memory_gb=8)).bytes == 8_000_000_000
    assert room_of(Runtime(workers=2)).bytes * 2 == pytest.approx(room_of(Runtime()).bytes, abs=2)
    with pytest.raises(BadConfig, match="unknown GPU 'h1000'"):
        room_of(gpu, "h1000")


def test_without_a_known_gpu_nothing_is_refused(corpus, monkeypatch):
    monkeypatch.setattr("pipelines.capacity.local_gpus", lambda: [])
    (need,) = needs_of(pretrain(corpus, "gpt3-175B", gpus=1))
    assert need.fits and need.as_json()["fits"] is None
    refuse([need])


def test_stages_that_are_alike_are_one_line(corpus):
    tasks = [pretrain(corpus).model_copy(update={"seed": seed, "name": f"p-{seed}"}) for seed in range(3)]
    (need,) = needs_of(tasks)
    assert need.stages == ["p-0", "p-1", "p-2"]


def test_choices_on_a_cluster(corpus):
    training = training_of(pretrain(corpus, "gpt2-1558M", gpus=1))
    machines = [
        Machine("l4", "L4", 4, 48, 192, 40, 4.6, most=2),
        Machine("h100", "H100", 8, 192, 2048, 3200, 55.0, most=2),
        Machine("old", "T4", 4, 48, 192, 40, 3.9),
        Machine("cpu", "", 0, 16, 64, 6, 0.8),
    ]
    choice = choose("pretrain", training, machines)
    assert choice.left_out == ["old: a T4 has no bf16"]
    assert {option.machine.name for option in choice.options} == {"l4", "h100"}
    assert {o.workers for o in choice.options if o.machine.name == "h100"} == {1, 2, 4, 8, 16}
    # 1.6 B parameters are 23 GiB of weights, gradients and states at stage 0: no L4 has them
    assert not any(o.fits for o in choice.options if o.machine.name == "l4" and o.zero_stage == 0)
    assert all(o.needed_bytes > o.available_bytes for o in choice.options if not o.fits)
    fastest, cheapest = choice.fastest, choice.cheapest
    assert fastest is not None and cheapest is not None
    assert fastest.machine.name == "h100" and fastest.workers >= 8
    assert cheapest.usd <= min(o.usd for o in choice.options if o.fits)
    assert len(choice.best()) == len({(o.machine.name, o.workers) for o in choice.options if o.fits})


def test_a_stage_without_gpus_is_planned_on_cpu_machines(corpus):
    training = training_of(pretrain(corpus, "gpt2-124M", batch_size=8))
    choice = choose("pretrain", training, [Machine("cpu", "", 0, 16, 64, 6, 0.8, most=2), Machine("g", "L4", 4)])
    assert {option.machine.name for option in choice.options} == {"cpu"}
    assert choice.fastest is not None and choice.fastest.workers <= 8  # never more workers than rows


def test_what_a_sweep_leaves_out_is_neither_forecast_nor_refused(corpus, tmp_path):
    task = pretrain(corpus, memory_gb=0.5)
    plan = make_plan(Request(Pipeline(task)), Store(str(tmp_path / "store")))
    assert [need.stages for need in forecast(plan).needs] == [["pretrain"]]
    with ExitStack() as joined, pytest.raises(BadConfig, match="stage pretrain"):
        check_memory(plan, "inline", joined)
    plan.steps["pretrain"].state = PRUNED
    assert forecast(plan).needs == []
    with ExitStack() as joined:
        check_memory(plan, "inline", joined)


def test_a_gpu_s_name_is_checked_where_no_stage_asks_for_one(corpus, tmp_path):
    plan = make_plan(Request(Pipeline(pretrain(corpus))), Store(str(tmp_path / "store")))
    with pytest.raises(ConfigError, match="unknown GPU 'h1000'; did you mean"):
        forecast(plan, gpu_name="h1000")


@pytest.mark.parametrize(("task", "tokens"), [("mrpc", 256), ("rte", 128)])
def test_a_pair_in_both_orders_takes_twice_the_places(corpus, tmp_path, task, tokens):
    tuned = Finetune(
        dataset=LabelledData(task=task, directory=str(tmp_path)),
        tokenizer=TrainTokenizer(corpus=corpus, kind="bpe", vocab_size=1000),
        model=preset("gpt2-124M"),
        both_orders=True,
    )
    assert training_of(tuned).tokens_per_row == tokens
