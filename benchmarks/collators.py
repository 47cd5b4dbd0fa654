"""Batches per second: masking and span corruption beside Hugging Face's collators, and what padding costs.

`make bench-collators`. Objectives alone, from token arrays in memory to a batch for the model, on one thread. Ours are
drawn as pretraining draws them, small batches several at once; the peers make theirs one by one, as a DataLoader has
them do, and get rows as lists, as a data set gives them, and in the other forms they take. Sides take turns; medians.

Span corruption has no collator in Hugging Face's library. Their published one for T5 pretraining (a Flax example)
makes each row's noise mask by itself, numbers the sentinels by cumulative sums over the batch, and filters: the
same method is written out here, after its description.

Padding: shares of a batch that are padding, when batches are drawn at random, when they are grouped by length as
`tasks.downstream.encode.Batches` does, and when everything is padded to the longest row; and for pretraining one
document a row beside packed rows. Lengths are drawn, with the spread of the data named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measuring import RESULTS, Spent, circumstances, record, say, versions

TARGET = 20.0
"""Their time / our time."""
VOCABULARY = 30522
SHAPES = ((256, 128), (32, 128))
INPUT_LENGTHS = (256, 512)


def in_turns(sides: dict[str, Callable[[int], object]], rounds: int, repeats: dict[str, int]) -> dict[str, list[Spent]]:
    """Times of one call of each side, the sides taking turns; each turn is the mean of `repeats` calls."""
    number = 0
    times: dict[str, list[Spent]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, work in sides.items():
            count = repeats[name]
            began, cpu = time.perf_counter(), time.process_time()
            for n in range(number, number + count):
                work(n)
            took = Spent((time.perf_counter() - began) / count, (time.process_time() - cpu) / count)
            number += count
            if round_:  # the first warms up
                times[name].append(took)
    return times


def compared(times: dict[str, list[Spent]], tokens: int) -> dict[str, Any]:
    """Figures of every side with tokens/s; ratios to ours of the fastest peer that takes lists, and of the fastest.

    Lists of ids are what a data set's rows are; the other forms need somebody to have made arrays of them.
    """
    out: dict[str, Any] = {}
    seconds = {name: statistics.median(t.wall for t in measured) for name, measured in times.items()}
    cpu = {name: statistics.median(t.cpu for t in measured) for name, measured in times.items()}
    for name, measured in times.items():
        out[name] = {
            "microseconds": round(1e6 * seconds[name], 1),
            "cpu_microseconds": round(1e6 * cpu[name], 1),
            "all_microseconds": [round(1e6 * t.wall, 1) for t in measured],
            "tokens_per_second": round(tokens / seconds[name]),
        }
    peers = [name for name in times if name != "ours"]
    for kind, names in (("lists", [name for name in peers if "lists" in name]), ("any form", peers)):
        best = min(names, key=seconds.__getitem__)
        out[f"ratio, {kind}"] = {
            "peer": best,
            "median": round(seconds[best] / seconds["ours"], 1),
            "cpu": round(cpu[best] / cpu["ours"], 1),
        }
    return out


# ---------------------------------------------------------------- masked language modelling


def our_vocabulary(**more: Any) -> Any:
    from tasks.objectives.base import Vocabulary

    special = np.zeros(VOCABULARY, dtype=bool)
    special[:5] = True
    roles = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": 2, "eos": 3}
    if "sentinels" in more:
        special[list(more["sentinels"])] = True
    return Vocabulary(VOCABULARY, roles, special, np.ones(VOCABULARY, dtype=bool), **more)


def their_tokenizer() -> Any:
    """A BERT tokenizer of this vocabulary; its pieces are names without meaning."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(5, VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), names, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": name for role, name in roles.items()}
    )


def _collate(collator: Any, examples: Any, _: int) -> object:
    return collator(examples)


def masking(rows: int, length: int, rounds: int) -> dict[str, Any]:
    """Dynamic masking of `rows` packed rows."""
    import torch
    from transformers import DataCollatorForLanguageModeling

    from tasks.drawn_ahead import DrawnAhead
    from tasks.objectives.mlm import MaskedLanguageModel
    from tasks.objectives.settings import Masked

    tokens = np.random.default_rng(0).integers(5, VOCABULARY, (rows, length)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = 2, 3
    ours = MaskedLanguageModel(our_vocabulary(), Masked(), length)

    def draw(positions: np.ndarray) -> dict[str, np.ndarray]:
        epochs, indices = np.divmod(positions, rows)
        return ours.draw(tokens[indices], 0, epochs, indices)

    we = DrawnAhead(draw, lambda step: range(step * rows, (step + 1) * rows), length, 0)  # as pretraining draws them
    lists = [{"input_ids": row.tolist(), "special_tokens_mask": (row < 5).astype(int).tolist()} for row in tokens]
    arrays = [row.astype(np.int64) for row in tokens]
    tensors = [
        {"input_ids": torch.from_numpy(row), "special_tokens_mask": torch.from_numpy((row < 5).astype(np.int64))}
        for row in arrays
    ]
    bare = [torch.from_numpy(row) for row in arrays]
    tokenizer = their_tokenizer()
    sides: dict[str, Callable[[int], object]] = {"ours": we}
    for name, kind, examples in (
        ("torch, lists", "pt", lists),
        ("torch, tensors with their special tokens marked", "pt", tensors),
        ("torch, bare tensors", "pt", bare),
        ("numpy, lists", "np", lists),
        ("numpy, bare arrays", "np", arrays),
    ):
        collator = DataCollatorForLanguageModeling(tokenizer, return_tensors=kind)
        sides[name] = partial(_collate, collator, examples)
    times = in_turns(sides, rounds, {name: 24 if name == "ours" else 2 for name in sides})
    return compared(times, rows * length)


# ---------------------------------------------------------------- span corruption


class RowByRowCorruption:
    """The published collator's method: a noise mask per row, then sentinels and a filter over the batch.

    With the numpy operations that it is made of: per row and kind of segment a shuffle, a pad, a cumulative sum and
    a count of distinct values.
    """

    def __init__(self, length: int, inputs: int, targets: int, sentinels: tuple[int, ...], eos: int) -> None:
        self.length, self.inputs, self.targets = length, inputs, targets
        self.first_sentinel, self.eos = sentinels[0], eos
        self.noise = round(0.15 * length)
        self.spans = round(self.noise / 3)

    def parts(self, items: int, parts: int) -> np.ndarray:
        """Lengths of `parts` non-empty parts of `items`, uniform over all ways."""
        begins = np.arange(items - 1) < parts - 1
        np.random.shuffle(begins)
        number = np.cumsum(np.pad(begins, [[1, 0]]))
        return np.unique(number, return_counts=True)[1]

    def noise_mask(self) -> np.ndarray:
        """bool [length] of one row: non-noise, noise, non-noise, …"""
        kept, noise = self.parts(self.length - self.noise, self.spans), self.parts(self.noise, self.spans)
        ends = np.cumsum(np.stack([kept, noise], axis=1).reshape(-1))
        begins = np.zeros(self.length, dtype=np.int8)
        begins[ends[:-1]] = 1
        return np.cumsum(begins) % 2 == 1

    def filtered(self, tokens: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """[B, ·]: every hidden stretch as one sentinel, and EOS."""
        hidden = hidden.astype(np.int8)
        first = hidden - np.roll(hidden, 1, axis=-1) * hidden
        first[:, 0] = hidden[:, 0]
        number = np.where(first != 0, np.cumsum(first, axis=-1), first)
        marks = np.where(number != 0, self.first_sentinel + 1 - number, 0) - (hidden - first)
        marked = np.where(marks != 0, marks, tokens)
        kept = marked[marked >= 0].reshape(len(tokens), -1)
        return np.concatenate([kept, np.full((len(tokens), 1), self.eos)], axis=-1)

    def __call__(self, examples: list[dict[str, list[int]]]) -> dict[str, np.ndarray]:
        tokens = np.array([example["input_ids"] for example in examples])
        noise = np.array([self.noise_mask() for _ in examples])
        inputs, labels = self.filtered(tokens, noise), self.filtered(tokens, ~noise)
        if inputs.shape[1] != self.inputs or labels.shape[1] != self.targets:
            raise ValueError(f"lengths {inputs.shape[1]} and {labels.shape[1]}: expected {self.inputs}, {self.targets}")
        decoder = np.concatenate([np.zeros((len(labels), 1), labels.dtype), labels[:, :-1]], axis=1)
        return {"input_ids": inputs, "labels": labels, "decoder_input_ids": decoder}


def corruption(rows: int, length: int, rounds: int) -> dict[str, Any]:
    """Span corruption of `rows` rows to `length` inputs, as a batch for an encoder-decoder."""
    from tasks.objectives.convert import convert
    from tasks.objectives.settings import SpanCorruption as Settings
    from tasks.objectives.span_corruption import SpanCorruption

    settings = Settings()
    raw, targets = settings.raw_and_targets(length)
    sentinels = tuple(range(VOCABULARY - 1, VOCABULARY - 101, -1))
    vocabulary = our_vocabulary(sentinels=sentinels)
    tokens = np.random.default_rng(0).integers(5, VOCABULARY - 100, (rows, raw)).astype(np.uint16)
    ours = SpanCorruption(vocabulary, settings, length)
    indices = np.arange(rows)

    def we(epoch: int) -> object:
        drawn = ours.draw(tokens, 0, np.full(rows, epoch), indices)
        return convert(drawn, "encoder-decoder", vocabulary)

    theirs = RowByRowCorruption(raw, length, targets, sentinels, vocabulary.eos)
    lists = [{"input_ids": row.tolist()} for row in tokens]
    arrays: Any = [{"input_ids": row.astype(np.int64)} for row in tokens]
    sides = {"ours": we, "lists": lambda _: theirs(lists), "arrays": lambda _: theirs(arrays)}
    times = in_turns(sides, rounds, {"ours": 10, "lists": 2, "arrays": 2})
    return compared(times, rows * raw)


# ---------------------------------------------------------------- padding


def fine_tuning_padding(batch_size: int = 32, rows: int = 20_000) -> dict[str, Any]:
    """Shares of padding of single sentences; lengths log-normal with SST-2's median of 9 tokens, at most 66."""
    from tasks.downstream.encode import PAD_TO, Batches, Feature

    draw = np.random.default_rng(0)
    lengths = np.clip(np.rint(draw.lognormal(np.log(9), 0.75, rows)), 3, 66).astype(int)
    features = [Feature(n, [5] * length, length) for n, length in enumerate(lengths.tolist())]
    batches = Batches(features, batch_size, seed=0)

    def padded(groups: list[np.ndarray]) -> int:
        return sum(-(-int(group.max()) // PAD_TO) * PAD_TO * len(group) for group in groups)

    grouped = [np.array([len(f.ids) for f in batches.of_step(t)]) for t in range(batches.per_epoch)]
    at_random = np.array_split(draw.permutation(lengths), batches.per_epoch)
    total = int(lengths.sum())
    shares = {
        "all to the longest row": 1 - total / (rows * int(lengths.max())),
        "batches at random": 1 - total / padded(at_random),
        "grouped by length": 1 - total / padded(grouped),
    }
    return {
        "batch_size": batch_size,
        "mean_length": round(float(lengths.mean()), 1),
        "padding": {name: round(share, 3) for name, share in shares.items()},
        "tokens_computed_of_grouped": round(padded(grouped) / padded(at_random), 3),
    }


def pretraining_padding(length: int = 128, documents: int = 20_000) -> dict[str, Any]:
    """Shares of padding of documents (log-normal, median 350 tokens, as encyclopedia articles have) in rows."""
    lengths = np.rint(np.random.default_rng(0).lognormal(np.log(350), 1.0, documents)).astype(int) + 1
    rows_apart = int(np.ceil(lengths / length).sum())
    rows_packed = -(-int(lengths.sum()) // length)
    total = int(lengths.sum())
    return {
        "length": length,
        "padding": {
            "each document in rows of its own": round(1 - total / (rows_apart * length), 3),
            "packed": round(1 - total / (rows_packed * length), 5),
        },
    }


def verdicts(results: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("masking", "span corruption"):
        for shape, found in results[kind].items():
            ratio, best = found["ratio, lists"], found["ratio, any form"]
            met = "met" if ratio["cpu"] >= TARGET else "MISSED"  # one thread: others at work disturb it less
            speeds = [found[name]["tokens_per_second"] / 1e6 for name in ("ours", ratio["peer"], best["peer"])]
            lines.append(
                f"{kind}, {shape}: {speeds[0]:.1f} M tokens/s, {ratio['median']} times (cpu {ratio['cpu']}) "
                f"{ratio['peer']} ({speeds[1]:.2f} M), target {TARGET:g}: {met}; {best['median']} times (cpu "
                f"{best['cpu']}) {best['peer']} ({speeds[2]:.2f} M)"
            )
    for kind in ("fine-tuning", "pretraining"):
        shares = ", ".join(f"{name} {share:.1%}" for name, share in results["padding"][kind]["padding"].items())
        lines.append(f"padding, {kind}: {shares}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    call = parser.parse_args()
    if call.table:
        print("\n".join(verdicts(json.loads((RESULTS / "collators.json").read_text())["cpu"])))
        return
    import torch

    torch.set_num_threads(1)  # ours is numpy on one thread
    values: dict[str, Any] = {**circumstances(), "versions": versions("numpy", "torch", "transformers", "triptych")}
    values["masking"], values["span corruption"] = {}, {}
    for rows, length in SHAPES:
        values["masking"][f"{rows}x{length}"] = masking(rows, length, call.rounds)
        say(f"masking {rows}x{length}: {values['masking'][f'{rows}x{length}']['ratio, lists']}")
    for length in INPUT_LENGTHS:
        values["span corruption"][f"256x{length}"] = corruption(256, length, call.rounds)
        say(f"span corruption 256x{length}: {values['span corruption'][f'256x{length}']['ratio, lists']}")
    values["padding"] = {"fine-tuning": fine_tuning_padding(), "pretraining": pretraining_padding()}
    if not call.dry:
        record("cpu", values, "collators.json")
    print("\n".join(verdicts(values)))


if __name__ == "__main__":
    main()
