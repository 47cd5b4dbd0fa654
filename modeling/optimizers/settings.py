"""What each optimizer can be told: plain data, so that planning a run imports no torch.

The learning rate is the loop's (`modeling.schedule`). Weight decay is decoupled everywhere: a step also subtracts
learning rate · weight_decay · weight.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from modeling.config import Config, section
from modeling.errors import ConfigError
from modeling.optimizers import OPTIMIZERS, SETTINGS

Kind = Literal["vectors", "embeddings", "head"]
Betas = tuple[float, float]


class OptimizerSettings(Config):
    """Base of the settings; a bare name (`lamb`) stands for an optimizer with its defaults."""

    zero_stages: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)
    """ZeRO stages where its mathematics are those of stage 0 (docs/training.md)."""

    kind: Annotated[str, OPTIMIZERS, SETTINGS] = ""
    weight_decay: float = Field(0.01, ge=0, description="decoupled; times the learning rate")
    no_decay: tuple[Kind, ...] = Field(
        ("vectors",),
        description="weights without decay: vectors (norms, biases), embeddings (of tokens, positions, segments), head",
    )
    layer_lr_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of a layer / of the layer above it; the head has the full one"
    )

    @model_validator(mode="after")
    def _betas_below_one(self) -> OptimizerSettings:
        betas = getattr(self, "betas", ())
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas {betas}: expected two numbers from 0 to below 1")
        return self


def parse(value: Any) -> Any:
    """A name, or a mapping with or without `kind` (AdamW), as the settings of that optimizer."""
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict):
        if "preset" in value:  # what a name becomes when a field follows: optimizer=lamb optimizer.eps=1e-8
            value = {"kind": value["preset"], **{k: v for k, v in value.items() if k != "preset"}}
        return section(SETTINGS.load(value.get("kind", "adamw")), value)
    return value


AnyOptimizer = Annotated[SerializeAsAny[OptimizerSettings], BeforeValidator(parse)]
"""A field that holds any optimizer's settings."""


class AdamW(OptimizerSettings):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); torch's, fused."""

    kind: Annotated[Literal["adamw"], OPTIMIZERS, SETTINGS] = "adamw"
    betas: Betas = Field((0.9, 0.98), description="decay of the means of gradient and squared gradient, a step")
    eps: float = Field(1e-6, gt=0)
    bias_correction: bool = Field(True, description="divide the means by 1 − βᵗ; BERT's optimizer does not")


class Adafactor(OptimizerSettings):
    """Second moments as a row and a column per matrix (Shazeer and Stern 2018); transformers', at the loop's rate.

    The learning rate is relative: it is multiplied by the root mean square of each tensor.
    """

    zero_stages: ClassVar[tuple[int, ...]] = (0,)

    kind: Annotated[Literal["adafactor"], OPTIMIZERS, SETTINGS] = "adafactor"
    weight_decay: float = Field(0.0, ge=0, description="decoupled; times the (relative) learning rate")
    decay_rate: float = Field(0.8, gt=0, le=1, description="second moments of step t keep 1 − t^−decay_rate")
    clip_threshold: float = Field(1.0, gt=0, description="largest root mean square of a tensor's update")
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the mean of updates; 0: no first moment")
    relative: bool = Field(True, description="learning rate times the root mean square of the tensor")
    eps: tuple[float, float] = Field((1e-30, 1e-3), description="added to squares; least root mean square of a tensor")


class Lamb(OptimizerSettings):
    """Adam whose step on each tensor is as long as the tensor, times the learning rate (You et al. 2020).

    Tensors without decay take Adam's plain step, as in the authors' code.
    """

    kind: Annotated[Literal["lamb"], OPTIMIZERS, SETTINGS] = "lamb"
    betas: Betas = Field((0.9, 0.999), description="decay of the means of gradient and squared gradient, a step")
    eps: float = Field(1e-6, gt=0)
    bias_correction: bool = Field(True, description="divide the means by 1 − βᵗ; ALBERT's optimizer does not")


class Lion(OptimizerSettings):
    """The sign of a mean of gradients (Chen et al. 2023): one number of state a weight.

    Its steps are longer than Adam's: the authors take a learning rate 3 to 10 times smaller, and decay so much larger.
    """

    kind: Annotated[Literal["lion"], OPTIMIZERS, SETTINGS] = "lion"
    weight_decay: float = Field(0.1, ge=0, description="decoupled; times the learning rate")
    betas: Betas = Field((0.9, 0.99), description="share of the mean in the sign; its decay, a step")


class Muon(OptimizerSettings):
    """Orthogonalised momentum for the matrices of the layers (Jordan et al. 2024), AdamW for all other weights.

    Updates are scaled to the size of AdamW's (Liu et al. 2025: 0.2 · √(longer side)), so one learning rate serves both.
    """

    kind: Annotated[Literal["muon"], OPTIMIZERS, SETTINGS] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    newton_schulz_steps: int = Field(5, ge=1, le=20)
    betas: Betas = Field((0.9, 0.98), description="of AdamW")
    eps: float = Field(1e-6, gt=0, description="of AdamW")


def check_stage(settings: OptimizerSettings, zero_stage: int) -> None:
    """Raise ConfigError where the optimizer's mathematics would change at this ZeRO stage."""
    if zero_stage not in settings.zero_stages:
        fits = " or ".join(map(str, settings.zero_stages))
        raise ConfigError(
            f"optimizer {settings.kind!r} does not work at ZeRO stage {zero_stage}: it needs whole tensors",
            f"set placement.zero_stage={fits}",
        )
