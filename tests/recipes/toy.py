"""A small real pipeline for tests: count words, train counts in checkpointed steps, join."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from cluster.errors import BadConfig, BadData
from modeling.config import Config, Registry
from pipelines import Pipeline
from tasks.base import Context, Corpus, Model, Produces, Runtime, Task

COUNTERS = Registry("counter", {"words": "toy_counters:words", "letters": "toy_counters:letters"})


class Read(Task):
    """Copies a text file into the store."""

    produces: ClassVar[str] = "corpus"
    source: str
    upper: bool = False

    def external(self) -> Mapping[str, Any]:
        path = Path(self.source)
        if not path.is_file():
            raise BadConfig(f"source: {path} does not exist", "give an existing file")
        return {"size": path.stat().st_size, "text": path.read_text()[:1000]}

    def run(self, ctx: Context) -> Mapping[str, Any]:
        text = Path(self.source).read_text()
        if not text.strip():
            raise BadData(f"source: {Path(self.source).name} is empty", "give a file with text")
        (ctx.out / "text.txt").write_text(shout(text) if self.upper else text)
        return {"characters": len(text)}


def shout(text: str) -> str:
    return text.upper()


class Count(Task):
    """Counts by one of the registered counters."""

    produces: ClassVar[str] = "model"
    corpus: Corpus
    counter: Annotated[str, COUNTERS] = "words"
    seconds: float = Field(0.0, ge=0)

    def run(self, ctx: Context) -> Mapping[str, Any]:
        text = (ctx.input("corpus").path / "text.txt").read_text()
        counts = COUNTERS.load(self.counter)(text)
        time.sleep(self.seconds)
        (ctx.out / "counts.json").write_text(json.dumps(counts, sort_keys=True))
        return {"kinds": len(counts)}


class Steps(Task):
    """Adds numbers step by step with a checkpoint after each; can be told to be killed once."""

    produces: ClassVar[str] = "model"
    model: Model
    steps: int = 20
    step_seconds: float = 0.0
    die_at: int = 0
    fault: str = ""

    def run(self, ctx: Context) -> Mapping[str, Any]:
        kinds = len(json.loads((ctx.input("model").path / "counts.json").read_text()))
        saved = ctx.scratch / "state.json"
        state = json.loads(saved.read_text()) if saved.exists() else {"step": 0, "sum": 0, "resumed": 0}
        if state["step"]:
            ctx.log(f"resumed at step {state['step']}")
        while state["step"] < self.steps:
            state["step"] += 1
            state["sum"] += kinds * state["step"]
            temporary = saved.with_suffix(".tmp")
            temporary.write_text(json.dumps(state))
            temporary.replace(saved)
            ctx.publish_scratch()
            ctx.metric(state["step"], {"sum": state["sum"]})
            ctx.progress(state["step"], self.steps, "steps", sum=state["sum"])
            time.sleep(self.step_seconds)
            if state["step"] == self.die_at and ctx.attempt == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "memory":
                micro = ctx.runtime.micro_batch or 16
                ctx.at_work({"micro_batch": micro, "accumulation": 16 // micro, "workers": 1, "batch_size": 16})
                if micro > 2:
                    raise MemoryError("toy: too large")
            if self.fault == "nan":
                from modeling.errors import NonFiniteLoss

                raise NonFiniteLoss(state["step"], "loss is nan", [1, 2], 0)
            if self.fault == "bug":
                raise RuntimeError("a bug in the toy")
            if self.fault == "space":
                raise OSError(28, "No space left on device")
        (ctx.out / "sum.txt").write_text(str(state["sum"]))
        return {"sum": state["sum"]}


class Join(Task):
    """Puts several results into one file."""

    produces: ClassVar[str] = "report"
    parts: tuple[Annotated[Task, Produces("model", "score")], ...]

    def run(self, ctx: Context) -> Mapping[str, Any]:
        lines = [str(sorted(p.name for p in part.path.iterdir())) for part in ctx.inputs("parts")]
        (ctx.out / "joined.txt").write_text("\n".join(lines))
        return {"parts": len(lines)}


class Seen(Task):
    """Writes which of its edges are there, as a task sees them while it runs."""

    produces: ClassVar[str] = "score"
    corpus: Corpus
    model: Model | None = None
    parts: tuple[Model, ...] = ()

    def run(self, ctx: Context) -> None:
        seen = {"corpus": self.corpus is not None, "model": self.model is not None, "parts": len(self.parts)}
        (ctx.out / "seen.json").write_text(json.dumps(seen))


class StepsConfig(Config):
    steps: int = Field(20, ge=1)
    step_seconds: float = 0.0
    die_at: int = 0
    fault: str = ""


class ToyConfig(Config):
    source: str
    upper: bool = False
    counters: tuple[str, ...] = ("words", "letters")
    train: StepsConfig = StepsConfig()
    placement: Runtime = Runtime()


def toy(c: ToyConfig) -> Pipeline:
    """Read, count in several ways, step, join."""
    corpus = Read(source=c.source, upper=c.upper)
    counts = [Count(corpus=corpus, counter=name, name=f"count-{name}") for name in c.counters]
    trained = Steps(model=counts[0], **c.train.model_dump(), runtime=c.placement, name="train")
    return Pipeline([trained, *counts], report=Join(parts=(trained, *counts), name="join"))
