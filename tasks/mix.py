"""Mix: several corpora as one, each with its weight, epochs or quota.

The figures are those of the Pile's table (Gao et al. 2020, table 1): of each component its raw size, its weight in the
mixture, how many epochs of it the mixture holds, and its effective size. A fractional epoch takes the documents whose
content digest (keyed by `seed`) is below a threshold, so a document's fate does not depend on which others there are.

Two passes: workers measure every document (digest, sizes, tokens), which settles the thresholds and all figures; then
the documents are streamed from `tasks.mix_documents`, so that every stretch has the mixture's proportions. Memory is
bounded by a few row groups per component and 8 bytes per validation document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from cluster.errors import BadConfig, BadData, Cancelled
from modeling.config import Config
from tasks.base import Context, Corpus, Task, Tokenizer

if TYPE_CHECKING:
    from tasks.mix_documents import Measured


class Component(Config):
    """A corpus in a mixture. At most one of weight, epochs and tokens; with none it enters in its natural size."""

    name: str = Field(min_length=1, max_length=80, description="the documents' `source` in the mixture")
    category: str = Field("", description="for the report: components of a category are drawn together")
    weight: float | None = Field(None, gt=0, allow_inf_nan=False, description="share of the mixture, in any scale")
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False, description="how often the component is repeated")
    tokens: int | None = Field(None, gt=0, description="quota in the tokenizer's tokens, separators not counted")

    @property
    def given(self) -> list[str]:
        """Which of weight, epochs and tokens are set."""
        return [name for name in ("weight", "epochs", "tokens") if getattr(self, name) is not None]


class Mix(Task):
    """Corpora as one corpus. Its `corpus.json` has `components`: the mixture's table, of the training split.

    Shares are of bytes; of tokens where a tokenizer is given. Sizes of weighted mixtures are met to within a document
    (or 0.0015 % of the component where that is more). Every document of the validation splits stands in the mixture's
    once at most; a component of which less than an epoch is taken gives that part of its validation split. A training
    document whose text is held out by any component is left out.
    """

    produces: ClassVar[str] = "corpus"
    stage: ClassVar[str] = "mix"

    corpora: tuple[Corpus, ...] = Field(min_length=1)
    components: tuple[Component, ...] = Field(
        description="one for each of the corpora, in their order; several of one corpus are told by its `source`"
    )
    order: Literal["interleaved", "concatenated"] = Field(
        "interleaved", description="every stretch in the mixture's proportions, or one component after another"
    )
    tokenizer: Tokenizer | None = Field(None, description="counts tokens, for quotas and total_tokens")
    temperature: float = Field(
        1.0, ge=1, le=100, description="natural shares to the power 1/T (Conneau and Lample 2019, section 3.1)"
    )
    total_bytes: int | None = Field(None, gt=0, description="size of the training split; default: the raw sizes' sum")
    total_tokens: int | None = Field(None, gt=0, description="the same in tokens")
    most_epochs: float = Field(
        4.0, gt=0, description="more repetition is refused: it is worth little (Muennighoff et al. 2023)"
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="of which documents a fractional epoch takes")

    @model_validator(mode="after")
    def _possible(self) -> Mix:
        """What can be known before anything runs. Raises BadConfig."""
        names = [component.name for component in self.components]
        if len(names) != len(self.corpora) and not (len(self.corpora) == 1 and names):
            raise BadConfig(
                f"mix: {len(names)} components for {len(self.corpora)} corpora", "give each corpus one component"
            )
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise BadConfig(f"mix: two components are named {twice[0]!r}", "give each its own name")
        for one in self.components:
            if len(one.given) > 1:
                raise BadConfig(f"mix: component {one.name!r} has {' and '.join(one.given)}", "give one of them")
            if one.epochs is not None and one.epochs > self.most_epochs:
                raise BadConfig(
                    f"mix: component {one.name!r} has epochs={one.epochs:g}, most_epochs is {self.most_epochs:g}",
                    "lower its epochs, or raise most_epochs",
                )
        styles = {style for one in self.components for style in one.given}
        without = [one.name for one in self.components if one.weight is None]
        if "weight" in styles and without:
            raise BadConfig(
                f"mix: some components have a weight, {', '.join(map(repr, without))} not; a weight is a share of all",
                "give every component a weight, or use epochs or tokens for all that differ from their natural size",
            )
        totals = [name for name in ("total_bytes", "total_tokens") if getattr(self, name) is not None]
        if len(totals) > 1:
            raise BadConfig("mix: total_bytes and total_tokens are both given", "leave one out")
        if totals and styles & {"epochs", "tokens"}:
            raise BadConfig(
                f"mix: {totals[0]} is given, and components with {' and '.join(sorted(styles))}, which settle the size",
                f"leave {totals[0]} out, or give every component a weight instead",
            )
        if self.temperature != 1 and styles:
            raise BadConfig(
                f"mix: temperature={self.temperature:g} with components that have {' and '.join(sorted(styles))}: "
                "it gives the shares itself, from the natural sizes",
                "leave temperature at 1, or the components without",
            )
        if self.tokenizer is None and ("tokens" in styles or self.total_tokens is not None):
            raise BadConfig(
                "mix: a size in tokens (a component's tokens, or total_tokens) needs a tokenizer to count them",
                "pass tokenizer=…, a stage that makes one",
            )
        if self.tokenizer is not None and self.total_bytes is not None:
            raise BadConfig("mix: with a tokenizer shares are of tokens, and total_bytes is given", "give total_tokens")
        return self

    def run(self, ctx: Context) -> Mapping[str, Any]:
        """Measure, settle, interleave, write.

        Raises:
            BadData: a component without training text, too small for its share, or needed more than `most_epochs`
                times.
        """
        import numpy as np

        from tasks.corpus_writer import Shards
        from tasks.mix_documents import Count, Place, documents, interleave, measure

        names = [component.name for component in self.components]
        places = [Place(artifact.path) for artifact in ctx.inputs("corpora")]
        if len(names) > len(places):
            places = [Place(places[0].folder, name) for name in names]
        tokenizer = (ctx.input("tokenizer").path / "tokenizer.json").read_text() if self.tokenizer is not None else ""
        nothing = np.empty(0, np.uint64)

        def measured(split: str, held_out: np.ndarray) -> list[Measured]:
            found = []
            for number, place in enumerate(places):
                ctx.progress(number, len(places), f"components measured ({split})")
                name = f"{split}-{number:03d}"
                found.append(measure(ctx, name, place, split, Count(self.seed, tokenizer), held_out))
            return found

        validation = measured("validation", nothing)
        held_out = np.unique(np.concatenate([each.digests for each in validation]))
        train = measured("train", held_out)
        passes = self._settle(train)
        # The first pass takes all or, of a fraction of an epoch, that fraction: right for the validation split too.
        limits = {"train": passes, "validation": [each[:1] for each in passes]}
        taken = {
            split: [one.taken(each) for one, each in zip(found, limits[split], strict=True)]
            for split, found in (("train", train), ("validation", validation))
        }
        total = sum(size["bytes"] for sizes in taken.values() for size in sizes)
        writer = Shards(ctx.out)
        for split, away in (("train", held_out), ("validation", nothing)):
            streams = [
                documents(place, split, name, each, self.seed, away)
                for place, name, each in zip(places, names, limits[split], strict=True)
            ]
            if self.order == "concatenated":
                merged: Iterator[Any] = chain.from_iterable(streams)
            else:
                merged = interleave(streams, [size["bytes"] for size in taken[split]])
            for table in merged:
                if ctx.cancelled():
                    raise Cancelled("mix was cancelled")
                writer.write(_with_split(table, split))
                done = sum(each["bytes"] for each in writer.splits.values())
                ctx.progress(done / 1e6, total / 1e6, "MB")
        writer.close()
        facts = self._facts(train, taken, writer.splits)
        for row in facts["components"]:
            ctx.log(
                f"{row['name']}: {row['bytes'] / 1e6:,.2f} MB, weight {row['weight']:.2%}, {row['epochs']:.3g} epochs, "
                f"{row['effective_bytes'] / 1e6:,.2f} MB in the mixture"
            )
        if left_out := facts["skipped"]:
            ctx.log(f"training documents left out, since their text is held out: {sum(left_out.values()):,}")
        (ctx.out / "corpus.json").write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        return {name: facts[name] for name in ("documents", "bytes", "words")} | {
            "validation_documents": facts["splits"]["validation"]["documents"],
            **{f"epochs.{row['name']}": row["epochs"] for row in facts["components"]},
        }

    @property
    def unit(self) -> str:
        """What shares are of: bytes, or tokens where a tokenizer counts them."""
        return "bytes" if self.tokenizer is None else "tokens"

    def _settle(self, raw: Sequence[Measured]) -> list[list[int]]:
        """For each component the bucket limits of its passes, from the sizes of the training splits."""
        from tasks.mix_documents import BUCKETS, MEASURES

        column = MEASURES.index(self.unit)
        sizes = [int(one.sizes[:, column].sum()) for one in raw]
        for one, size in zip(self.components, sizes, strict=True):
            if not size:
                raise BadData(
                    f"mix: component {one.name!r} has no training text of its own",
                    "leave it out, or look at the stages that made it",
                )
        wanted = self._wanted(sizes)
        passes = []
        for one, measured, size, amount in zip(self.components, raw, sizes, wanted, strict=True):
            epochs = one.epochs if amount is None else amount / size
            assert epochs is not None
            whole = int(epochs + 1e-9)  # 0.9999999999 is an epoch
            if amount is None:
                limit = round(max(0.0, epochs - whole) * BUCKETS)
            else:
                limit = _limit(measured.sizes[:, column], amount - whole * size)
            found = [BUCKETS] * whole + ([limit] if limit else [])
            if not measured.taken(found)["documents"]:
                asked = f"{epochs:.3g} epochs" if amount is None else f"{amount:,.0f} {self.unit}"
                raise BadData(
                    f"mix: the share of component {one.name!r} is {asked} of its {size:,}, less than a document",
                    "give it more, or leave it out",
                )
            passes.append(found)
        return passes

    def _wanted(self, sizes: Sequence[int]) -> list[float | None]:
        """The effective size of each component; None where `epochs` says it. Raises BadData beyond most_epochs."""
        if any(one.epochs is not None or one.tokens is not None for one in self.components):
            wanted = [
                None if one.epochs is not None else float(one.tokens if one.tokens is not None else size)
                for one, size in zip(self.components, sizes, strict=True)
            ]
            for one, size, amount in zip(self.components, sizes, wanted, strict=True):
                if amount is not None and amount > self.most_epochs * size:
                    raise BadData(
                        f"mix: the quota of component {one.name!r}, {amount:,.0f} tokens, is "
                        f"{amount / size:.1f} epochs of its {size:,}; most_epochs is {self.most_epochs:g}",
                        f"ask for at most {int(self.most_epochs * size):,}, or raise most_epochs",
                    )
            return wanted
        shares = [
            one.weight if one.weight is not None else size ** (1 / self.temperature)
            for one, size in zip(self.components, sizes, strict=True)
        ]
        shares = [share / sum(shares) for share in shares]
        total = self.total_tokens or self.total_bytes or sum(sizes)
        for one, size, share in zip(self.components, sizes, shares, strict=True):
            if total * share > self.most_epochs * size * (1 + 1e-9):
                most = min(int(self.most_epochs * s / w) for s, w in zip(sizes, shares, strict=True))
                raise BadData(
                    f"mix: component {one.name!r} has {share:.1%} of {total:,} {self.unit}, which is "
                    f"{total * share / size:.1f} epochs of its {size:,}; most_epochs is {self.most_epochs:g}",
                    f"set total_{self.unit} to at most {most:,}, give it a smaller share, or raise most_epochs",
                )
        return [total * share for share in shares]

    def _facts(
        self,
        raw: Sequence[Measured],
        taken: Mapping[str, Sequence[Mapping[str, int]]],
        splits: Mapping[str, Mapping[str, int]],
    ) -> dict[str, Any]:
        """`corpus.json`."""
        from tasks.mix_documents import BUCKETS

        whole = [one.taken([BUCKETS]) for one in raw]
        total = sum(size[self.unit] for size in taken["train"])
        counted = self.tokenizer is not None
        rows: list[dict[str, Any]] = [
            {
                "name": one.name,
                "category": one.category,
                "documents": size["documents"],
                "bytes": size["bytes"],
                "tokens": size["tokens"] if counted else None,
                "weight": round(effective[self.unit] / total, 6),
                "epochs": round(effective[self.unit] / size[self.unit], 6),
                "effective_documents": effective["documents"],
                "effective_bytes": effective["bytes"],
                "effective_tokens": effective["tokens"] if counted else None,
                "validation_documents": held["documents"],
                "validation_bytes": held["bytes"],
            }
            for one, size, effective, held in zip(
                self.components, whole, taken["train"], taken["validation"], strict=True
            )
        ]
        every = [*taken["train"], *taken["validation"]]
        left_out = sum(one.left_out for one in raw)
        return {
            **{name: sum(size[name] for size in every) for name in ("documents", "bytes", "characters", "words")},
            "splits": dict(splits),
            "sources": {
                row["name"]: {
                    "documents": row["effective_documents"] + row["validation_documents"],
                    "bytes": row["effective_bytes"] + row["validation_bytes"],
                }
                for row in rows
            },
            "components": rows,
            "unit": self.unit,
            "skipped": {"text held out by a component": left_out} if left_out else {},
        }


def _limit(sizes: Any, amount: float) -> int:
    """The bucket limit below which the documents' sizes, int64 [BUCKETS], come nearest to an amount; 0: nothing."""
    import numpy as np

    below = np.concatenate([[0], np.cumsum(sizes)])  # below[k]: what a limit of k takes
    away = np.abs(below - amount)
    limit = len(away) - 1 - int(np.argmin(away[::-1]))  # of several the highest, so that all is all
    return limit if below[limit] else 0


def _with_split(table: Any, split: str) -> Any:
    import pyarrow as pa

    return table.append_column("validation", pa.array([split == "validation"] * len(table), pa.bool_()))
