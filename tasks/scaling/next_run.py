"""PretrainNext: the run that a scaling fit recommends, made so that its prediction can be checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from modeling.schedule import LoopConfig
from tasks.base import Context, Examples, ScalingFit, Tokenizer
from tasks.pretrain import Pretrain


class PretrainNext(Pretrain):
    """Pretrain the model of a fit's next run, as long as it says; all else about the training is given here.

    The artifact is that of Pretrain.
    """

    stage: ClassVar[str] = "pretrain-next"

    examples: Examples
    tokenizer: Tokenizer
    fit: ScalingFit
    model: None = Field(None, description="the fit's next run says")
    loop: LoopConfig = Field(LoopConfig(), description="all but size, budget, batch and learning rate")

    @model_validator(mode="after")
    def _fits(self) -> PretrainNext:
        """Nothing is known of the model before the fit is made."""
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        return self.planned(ctx.input("fit").path).run(ctx)

    def payload(self, ctx: Any) -> dict[str, Any]:
        return self.planned(ctx.input("fit").path).payload(ctx)

    def planned(self, fit: Path) -> Pretrain:
        """The stage with the fit's model and loop."""
        said = json.loads((fit / "next.json").read_text(encoding="utf-8"))
        own = {name: getattr(self.loop, name) for name in LoopConfig.model_fields}
        fields = {name: getattr(self, name) for name in Pretrain.model_fields if name not in ("model", "loop")}
        return Pretrain(**fields, model={**said["model"], "vocab_size": 0}, loop=LoopConfig(**{**own, **said["loop"]}))
