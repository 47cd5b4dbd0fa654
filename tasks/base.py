"""What a task is: a frozen config that says *what* to compute, a `Runtime` that says *where*.

    class Ingest(Task):
        produces: ClassVar[str] = "corpus"
        source: Source
        def run(self, ctx: Context) -> Mapping[str, Any] | None: ...

Calling a task (`Ingest(source=...)`) gives a stage: a value, nothing runs. A stage passed as a
field of another is an edge of the DAG. The engine (`pipelines`) derives the stage's key from every
field but those whose type is `Runtime` and the display `name`; edges enter by the key of the stage
they point to. `run` sees only its Context: a folder to write, its inputs as local folders, a scratch
that outlives crashes, and callbacks. What it writes must be a pure function of the config and the
inputs: no clock, no host name, no path of the machine (those belong in the manifest, which the engine
writes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field, model_validator

from modeling.checkpoints.policy import CheckpointPolicy
from modeling.config import Config
from modeling.errors import ConfigError

Offload = Literal["none", "cpu", "nvme"]


def _offload(value: Any) -> Any:
    """A switch means the host's memory: what `true` said before there was a disk to choose."""
    return {True: "cpu", False: "none"}[value] if isinstance(value, bool) else value


def _own_settings(value: Any) -> Any:
    """The settings themselves, read from their file once: a worker elsewhere has no such file."""
    from cluster.deepspeed import check_own_settings, read_own_settings

    settings = read_own_settings(value) if isinstance(value, str) else value
    if isinstance(settings, Mapping):
        check_own_settings(settings)
    return settings


class Runtime(CheckpointPolicy):
    """Where a stage runs and how fast: placement. Never part of a stage's key.

    The same stage gives the same result on any placement, to float tolerance; on the same
    placement, the same bytes.
    """

    workers: int = Field(1, ge=1, description="data-parallel worker processes")
    cpus: float = Field(1, ge=0, description="CPU cores per worker")
    gpus: float = Field(0, ge=0, description="GPUs per worker")
    memory_gb: float = Field(0, ge=0, description="memory reserved per worker in GB; 0 reserves none")
    zero_stage: int = Field(0, ge=0, le=3, description="DeepSpeed ZeRO stage")
    micro_batch: int = Field(0, ge=0, description="sequences per worker per forward; 0 lets the stage choose")
    activation_checkpointing: bool = Field(False, description="keep block inputs only, compute the rest twice")
    offload_optimizer: Annotated[Offload, BeforeValidator(_offload)] = Field(
        "none", description="where optimizer state lies: none (the device), cpu, nvme (ZeRO stage 3)"
    )
    offload_parameters: Annotated[Offload, BeforeValidator(_offload)] = Field(
        "none", description="where weights lie between their uses, at ZeRO stage 3"
    )
    nvme_path: str = Field("", description="folder on each worker's own disk, for nvme offload")
    overlap_comm: bool = Field(True, description="gradients travel during the backward pass; on GPUs only")
    bucket_elements: int = Field(50_000_000, ge=1, description="elements of gradients and weights per collective")
    deepspeed: Annotated[dict[str, Any], BeforeValidator(_own_settings)] = Field(
        default_factory=dict, description="your own DeepSpeed settings over the generated ones: a JSON file, or inline"
    )
    layer_updates: int = Field(50, ge=0, description="how often in a run updates of each layer are measured")
    samples: int = Field(5, ge=0, description="how often in a run predictions on held-out examples are kept")
    profile_steps: str = Field(
        "",
        pattern=r"^([1-9]\d*(:[1-9]\d*)?)?$",
        description="keep a profiler's trace with the run: of steps from:to, or of so many after the second",
    )
    max_retries: int = Field(3, ge=0, description="tries after failures in a row, between which a stage got no further")
    wait_for_room_seconds: float = Field(
        600, gt=0, description="how long several workers wait for a node where the cluster has no room"
    )
    collective_timeout_seconds: float = Field(
        600, gt=0, description="a rank that keeps the others waiting for longer is ended and replaced"
    )
    resources: dict[str, float] = Field(default_factory=dict, description="further Ray resources per worker")

    @model_validator(mode="after")
    def _possible(self) -> Runtime:
        stage = f"zero_stage {self.zero_stage}"
        if self.offload_optimizer != "none" and not self.zero_stage:
            raise ConfigError(f"offload_optimizer {self.offload_optimizer} with {stage}", "set zero_stage to 1, 2 or 3")
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ConfigError(f"offload_parameters {self.offload_parameters} with {stage}", "set zero_stage to 3")
        if self.offload_optimizer == "nvme" and self.zero_stage != 3:
            raise ConfigError(f"offload_optimizer nvme with {stage}", "set zero_stage to 3, or offload to cpu")
        if "nvme" in (self.offload_optimizer, self.offload_parameters) and not self.nvme_path:
            raise ConfigError("nvme offload without nvme_path", "set nvme_path to a folder on each worker's own disk")
        return self

    @property
    def profiled(self) -> range:
        """Steps (1-based) that `profile_steps` names; a count begins after two steps, in which much happens once."""
        first, _, last = self.profile_steps.partition(":")
        if not first:
            return range(0)
        return range(int(first), int(last) + 1) if last else range(3, 3 + int(first))

    @property
    def most_workers(self) -> int | None:
        """How many workers a stage may share its inner work among; None where nobody said: as many as there are."""
        return self.workers if "workers" in self.model_fields_set else None


class Task(Config):
    """Base of all stages. Subclasses add fields and `run`; see the module's docstring."""

    produces: ClassVar[str] = ""
    """The kind of artifact the task makes (corpus, tokenizer, examples, model, score, …)."""
    stage: ClassVar[str] = ""
    """The stage's display name where `name` is not given; the class name in kebab case by default."""

    later: ClassVar[tuple[str, ...]] = ()
    """Patterns of the artifact's large files, which a stage that reads them fetches from a remote store one by one
    (`cluster.store.ArtifactFiles`); all others are there before it begins."""

    partial: ClassVar[tuple[str, ...]] = ()
    """Fields of several stages that may come with fewer: those that a sweep has made (`pipelines.sweep`)."""

    name: str = Field("", pattern=r"^([a-z0-9][a-z0-9._-]{0,79})?$", description="display name; not in the key")
    runtime: Runtime = Runtime()

    def run(self, ctx: Context) -> Mapping[str, Any] | None:
        """Do the work; write files below `ctx.out`; return metrics ({name: number}) or None."""
        raise NotImplementedError

    def external(self) -> Mapping[str, Any]:
        """Fingerprints of data outside the store that the stage reads: part of the key, JSON values.

        Called when a plan is made, so it must be quick (sizes and cached checksums) and must raise
        BadConfig, naming the field, where the data are missing or unreadable.
        """
        return {}


class Produces:
    """Metadata of an edge field: the kind of artifact it accepts."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def check(value: Any) -> Any:
            found = getattr(value, "produces", None)
            if found is None:
                raise ValueError(f"expected a stage that makes a {' or '.join(self.kinds)}, found {value!r}")
            if found not in self.kinds:
                raise ValueError(
                    f"expected a stage that makes a {' or '.join(self.kinds)}, "
                    f"found {type(value).__name__}, which makes a {found}"
                )
            return value

        return core_schema.no_info_plain_validator_function(check)


@dataclass(frozen=True)
class Edge:
    """What stands in an edge field while a stage runs: that there is an input, not the stage that made it."""

    key: str
    produces: str


Corpus = Annotated[Task, Produces("corpus")]
Tokenizer = Annotated[Task, Produces("tokenizer")]
Examples = Annotated[Task, Produces("examples")]
Model = Annotated[Task, Produces("model")]
Score = Annotated[Task, Produces("score")]
Baseline = Annotated[Task, Produces("baseline")]
ScalingFit = Annotated[Task, Produces("scaling-fit")]


@dataclass(frozen=True)
class Artifact:
    """A published, immutable folder as a task sees it: local files and the manifest's facts."""

    key: str
    kind: str
    path: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    inputs: Mapping[str, Any]
    """{field: key or list of keys}, as in the manifest."""


class Context(Protocol):
    """What a running stage may touch; the engine implements it (`pipelines.context`)."""

    out: Path
    """Empty local folder; its files become the artifact."""
    runtime: Runtime
    attempt: int
    """0 for the first try; grows when the executor tries again."""

    @property
    def scratch(self) -> Path:
        """Local folder that outlives crashes and attempts of this key; for checkpoints."""

    @property
    def work(self) -> Path:
        """Local temporary folder of this attempt; deleted afterwards."""

    def input(self, field: str) -> Artifact:
        """The artifact behind an edge field: its files present locally, but for those its task names in `later`."""

    def inputs(self, field: str) -> Sequence[Artifact]:
        """The artifacts behind a field that holds several stages, in order."""

    def log(self, message: str) -> None:
        """A line into the stage's log."""

    def progress(self, done: float, total: float, unit: str = "", **shown: float) -> None:
        """Live progress; `shown` (loss=…, rate=…) appears in the run's table. Cheap: call it often."""

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics with their step, for the live curves. Repeated steps after a resume are dropped."""

    def timing(self, name: str, value: float) -> None:
        """A measured figure (seconds, tokens/s, MFU) for the manifest's `timings`; never in a file."""

    def placed(self, facts: Mapping[str, Any]) -> None:
        """How the placement was carried out (JSON values), for the manifest's `placement`; never in a file."""

    def dataset(self, name: str, **facts: Any) -> None:
        """A dataset that the stage read or made, recorded as an MLflow dataset."""

    def file(self, name: str, content: str | Path) -> None:
        """A text, or a file as it is now, that is kept with the run and shown by the tracker; not in the artifact."""

    def cancelled(self) -> bool:
        """True once the run was asked to stop; long loops look at it and return early by raising."""

    def at_work(self, facts: Mapping[str, Any]) -> None:
        """For the run's record, as it goes: how the batch is split ({micro_batch, accumulation, workers,
        batch_size}), made smaller when memory runs out; where the ranks are ({ranks: [{rank, pid, host}]})."""

    def publish_scratch(self) -> None:
        """Tell the engine that `scratch` holds a new complete checkpoint.

        Where the store is remote it is uploaded in the background, and again until the store takes it. Files whose
        names begin with a dot stay here.
        """

    def decided(self, error: str, message: str, decision: str) -> None:
        """A decision of the stage's own about something that went wrong (its class, what, and what is done)."""
