"""The runs of a sweep, by rule: sizes at one aspect ratio, IsoFLOP lines or a grid, learning rate and batch.

- **Sizes.** A width is a multiple of the head's; layers = width / aspect, rounded (an encoder-decoder has half of them
  on each side). So all sizes have about one shape, and what grows is size alone (Kaplan et al. 2020, section 3.1: the
  shape hardly matters between 1:20 and 1:100). At least two: with fewer, models are off the trend (their figure 6).
- **Lines.** isoflop: budgets in equal steps of log C; on each, the sizes within a factor `spread` of the one that
  √(C / 6r) expects, r tokens a parameter (Hoffmann et al. 2022: 20). grid: every size at r/4, r/2, r, 2r, 4r, … tokens
  a parameter, one ratio a line.
- **Batch**: 384 tokens at 45,000 parameters, growing as N^(1/3), in sequences of two binary digits (1, 2, 3, 4, 6, 8,
  12, …). The batch that wastes no tokens grows with those of a run (Zhang et al. 2024), which on a line fall as 1 / N:
  one that grew as √N left the largest models of a line few steps, and them alone (docs/log.md).
- **Learning rate**: 8e-3 · (128 / width) · √(batch / 4,096 tokens): falling as 1 / width (Yang et al. 2022), growing as
  the root of the batch (Malladi et al. 2022). The factor was measured at widths 24 and 64 (docs/log.md).
- **Warm-up**: 30 batches, the same for every length, so that a run's prefix is a shorter run's. Runs of less than four
  warm-ups are left out: they would say more of the start than of the size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from modeling.config import Config
from modeling.errors import ConfigError

WARMUP_STEPS = 30
LEAST_STEPS = 4 * WARMUP_STEPS
LEAST_LAYERS = 2
MOST_LAYERS = 200
FEWEST_RUNS = 6
"""One more than L(N, D) = E + A/N^α + B/D^β has parameters."""
FEWEST_SIZES = 3
FEWEST_LINES = 2
FRESH_EPOCHS = 4
"""Text seen so often is still worth about as much as new one (Muennighoff et al. 2023)."""


class Ladder(Config):
    """What is swept; what it means is in the module's docstring."""

    layout: Literal["isoflop", "grid"] = Field("isoflop", description="lines of equal compute, or sizes × tokens")
    smallest_flops: float = Field(2e10, gt=0, description="isoflop: compute of the first line")
    largest_flops: float = Field(2e12, gt=0, description="isoflop: compute of the last line")
    lines: int = Field(5, ge=1, le=50, description="how many budgets, or ratios of tokens to parameters")
    tokens_per_param: float = Field(20.0, gt=0, description="where the optimum is expected")
    spread: float = Field(4.0, gt=1, description="isoflop: sizes up to this factor from the expected optimum")
    widths: tuple[int, ...] = Field((8, 16, 24, 32, 40, 48, 64, 80, 88, 96, 112, 128, 160, 192), min_length=1)
    aspect: int = Field(32, ge=1, description="width per layer")
    head_width: int = Field(8, ge=1, description="width of an attention head; widths are multiples of it")
    decay_share: float = Field(0.2, gt=0, lt=1, description="of each run: its last steps, in which the rate falls")
    lr: float = Field(8e-3, gt=0, description="peak learning rate at width 128 and 4,096 tokens a batch")
    batch_tokens: int = Field(384, ge=1, description="tokens a batch at 45,000 parameters")

    @model_validator(mode="after")
    def _possible(self) -> Ladder:
        if self.lines > 1 and self.layout == "isoflop" and self.largest_flops <= self.smallest_flops:
            raise ConfigError(
                f"largest_flops {self.largest_flops:g} is not above smallest_flops {self.smallest_flops:g}",
                "give lines in ascending order, or lines=1",
            )
        for width in self.widths:
            if width % self.head_width:
                raise ConfigError(
                    f"width {width} is no multiple of head_width {self.head_width}", "change widths or head_width"
                )
        if len(set(self.widths)) < len(self.widths):
            raise ConfigError("widths has one twice", "name each once")
        return self

    def budgets(self) -> list[float]:
        """isoflop: FLOPs of each line, ascending."""
        if self.lines == 1:
            return [self.smallest_flops]
        step = (self.largest_flops / self.smallest_flops) ** (1 / (self.lines - 1))
        return [self.smallest_flops * step**n for n in range(self.lines)]

    def ratios(self) -> list[float]:
        """grid: tokens a parameter of each line, ascending, by factors of two about the expected optimum."""
        return [self.tokens_per_param * 2.0 ** (n - (self.lines - 1) // 2) for n in range(self.lines)]

    def shape(self, width: int, *, gated: bool, two_stacks: bool) -> dict[str, Any]:
        """The fields of a model's config that follow from its width."""
        stacks = 2 if two_stacks else 1
        layers = max(LEAST_LAYERS // stacks, round(width / self.aspect / stacks))
        ff = -(-8 * width // 3 // 16) * 16 if gated else 4 * width
        return {
            "layers": layers,
            "width": width,
            "heads": width // self.head_width,
            "ff_width": ff,
            "init_std": round(0.9 / width**0.5, 4),
        }

    def batch(self, params: int, length_tokens: int) -> int:
        """Sequences of a batch."""
        sequences = max(1.0, self.batch_tokens * (params / 45_000) ** (1 / 3) / length_tokens)
        step = 2 ** max(0, math.floor(math.log2(sequences)) - 1)
        return step * round(sequences / step)

    def loop(self, width: int, params: int, length_tokens: int) -> dict[str, Any]:
        """The fields of `LoopConfig` that follow from a size; the budget is not among them."""
        batch = self.batch(params, length_tokens)
        rate = self.lr * 128 / width * math.sqrt(batch * length_tokens / 4096)
        return {
            "steps": 0,
            "batch_size": batch,
            "peak_lr": float(f"{rate:.3g}"),
            "warmup_steps": WARMUP_STEPS,
            "schedule": "wsd",
            "decay_share": self.decay_share,
        }


@dataclass(frozen=True)
class Rung:
    """One run of the plan: a size, trained to a line."""

    line: int
    """Number of the line, from 0."""
    width: int
    params: int
    """As counted from shapes, by the sweep's way of counting."""
    flops: float
    """About; exact on an IsoFLOP line."""
    tokens: float
    """About."""
    budget: tuple[tuple[str, float], ...]
    """The loop's budget: (("flops", C),) or (("tokens", D),)."""


def rungs(ladder: Ladder, params: dict[int, int], length_tokens: int) -> list[Rung]:
    """The planned runs, cheapest first.

    Args:
        params: {width: parameters}.
        length_tokens: of a sequence.

    Raises:
        ConfigError: a line has no size.
    """
    found = []
    lines: list[float] = ladder.budgets() if ladder.layout == "isoflop" else ladder.ratios()
    for number, value in enumerate(lines):
        on_line = []
        for width, n in sorted(params.items()):
            if ladder.layout == "grid":
                tokens = value * n
                if tokens < LEAST_STEPS * ladder.batch(n, length_tokens) * length_tokens:
                    continue
                on_line.append(Rung(number, width, n, 6 * n * tokens, tokens, (("tokens", float(round(tokens))),)))
                continue
            expected = math.sqrt(value / (6 * ladder.tokens_per_param))
            least = LEAST_STEPS * ladder.batch(n, length_tokens) * length_tokens
            if expected / ladder.spread <= n <= expected * ladder.spread and value / (6 * n) >= least:
                on_line.append(Rung(number, width, n, value, value / (6 * n), (("flops", float(f"{value:.4g}")),)))
        if not on_line:
            sizes = ", ".join(f"{n:,}" for n in sorted(params.values()))
            what = f"{value:.3g} FLOPs" if ladder.layout == "isoflop" else f"{value:g} tokens a parameter"
            raise ConfigError(
                f"no size for the line of {what} (sizes: {sizes}): it has those within a factor {ladder.spread:g} "
                f"of the expected optimum whose run is of {LEAST_STEPS} steps or more",
                "change widths, the vocabulary, spread, batch_tokens or the budgets",
            )
        found += on_line
    return sorted(found, key=lambda rung: (rung.flops, rung.params))


def check_identifiable(planned: Sequence[Rung]) -> None:
    """Refuse a plan from whose runs no law could be told, before any of them is made.

    Raises:
        ConfigError: no more runs than L(N, D) has parameters, fewer than three sizes, or one line: there params and
            tokens move together.
    """
    sizes, lines = len({rung.width for rung in planned}), len({rung.line for rung in planned})
    for found, least, what in (
        (lines, FEWEST_LINES, "lines"),
        (sizes, FEWEST_SIZES, "sizes"),
        (len(planned), FEWEST_RUNS, "runs"),
    ):
        if found < least:
            raise ConfigError(
                f"the ladder's runs cannot tell a law: runs {len(planned)}, sizes {sizes}, lines {lines}, "
                f"expected at least {least} {what}",
                "sweep more lines or more widths, or raise ladder.largest_flops, where more sizes have enough steps",
            )


def nearest_width(params_of: Any, wanted: float, ladder: Ladder) -> int:
    """The width, a multiple of the head's, whose size is nearest to `wanted` parameters on a log scale.

    Args:
        params_of: width → parameters, growing.
    """
    best, gap = ladder.head_width, math.inf
    width = ladder.head_width
    while True:
        n = params_of(width)
        distance = abs(math.log(n / wanted))
        if distance < gap:
            best, gap = width, distance
        if n > wanted * 4 or width > ladder.aspect * MOST_LAYERS:
            return best
        width += ladder.head_width
