"""Raw encoding: texts in memory to ids, ours beside `tiktoken` and `encode_batch_fast`; see `benchmarks.data`.

On one process and on two, each with half of the texts; the others also on two threads of one process, and the faster
of their two counts. *Cold* begins with nothing remembered, *warm* after a pass over the same text.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Spent

SLICE_BYTES = 2 << 20


class Raw:
    """The sides of raw encoding in one process; `slices` are what each call gets."""

    def __init__(self, spelled: str, texts: list[str]) -> None:
        import pyarrow as pa
        import tiktoken
        from tokenizers import Tokenizer

        from tasks.encoding import Encoder

        self.spelled, self.parts, self.arrays = spelled, [], []
        size, held = 0, list[str]()
        for number, text in enumerate(texts, 1):
            held.append(text)
            size += len(text.encode())
            if size >= SLICE_BYTES or number == len(texts):
                self.parts.append(held)
                self.arrays.append(pa.array(held))
                size, held = 0, []
        self.theirs = Tokenizer.from_str(spelled)
        self.theirs.encode_special_tokens = True
        self.ours = Encoder(spelled)
        self.tiktoken = None
        if json.loads(spelled)["pre_tokenizer"]["type"] == "ByteLevel":
            from tasks.tokenizers.characters import spelled as letter

            byte = {letter(value): value for value in range(256)}
            ranks = {bytes(byte[c] for c in t): i for t, i in self.theirs.get_vocab(False).items()}
            pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
            self.tiktoken = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def spent(self, side: str, threads: int = 1) -> Spent:
        """Time of one pass of a side."""
        from tasks.encoding import Encoder

        encoder = Encoder(self.spelled) if side == "ours, cold" else self.ours
        began, cpu = time.perf_counter(), time.process_time()
        for texts, array in zip(self.parts, self.arrays, strict=True):
            if side.startswith("ours"):
                encoder.encode(array)
            elif side == "tiktoken":
                assert self.tiktoken is not None
                self.tiktoken.encode_ordinary_batch(texts, num_threads=threads)
            else:
                [each.ids for each in self.theirs.encode_batch_fast(texts, add_special_tokens=False)]
        return Spent(time.perf_counter() - began, time.process_time() - cpu)

    def check(self) -> int:
        """Tokens. Raises AssertionError where the sides' ids differ."""
        tokens = 0
        for texts, array in zip(self.parts, self.arrays, strict=True):
            ours = self.ours.encode(array).ids
            theirs = [each.ids for each in self.theirs.encode_batch_fast(texts, add_special_tokens=False)]
            assert np.array_equal(ours, np.concatenate(theirs)), "ids differ from encode_batch_fast's"
            if self.tiktoken is not None:
                other = self.tiktoken.encode_ordinary_batch(texts, num_threads=1)
                assert np.array_equal(ours, np.concatenate(other)), "ids differ from tiktoken's"
            tokens += len(ours)
        return tokens


_RAW: Any = None


def _start_raw(spelled: str, shares: Any, threads: str) -> None:
    global _RAW
    os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"] = (
        ("true" if threads != "1" else "false"),
        threads,
    )
    _RAW = Raw(spelled, shares.get())


def _time_raw(call: tuple[str, int]) -> Spent:
    found: Spent = _RAW.spent(*call)
    return found


def _check_raw(_: int) -> int:
    return int(_RAW.check())


def raw(texts: list[str], kind: str, tokenizer: Path, rounds: int) -> dict[str, Any]:
    """MB/s of every side, and ratios to ours, cold and warm."""
    spelled = (tokenizer / "tokenizer.json").read_text()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager:

        def pool(shares: list[list[str]], threads: str) -> Any:
            queue = manager.Queue()
            for share in shares:
                queue.put(share)
            return spawn.Pool(len(shares), _start_raw, (spelled, queue, threads))

        halves = [texts[::2], texts[1::2]]
        with pool([texts], "1") as one, pool(halves, "1") as two, pool([texts], "2") as threaded:
            tokens = one.apply(_check_raw, (0,))
            peers = ["encode_batch_fast", *(["tiktoken"] if kind == "gpt2" else [])]
            pools = {"1 process": (one, 1, 1), "2 processes": (two, 2, 1), "2 threads": (threaded, 1, 2)}
            turns = [
                (f"{where}: {side}", where, side) for where in pools for side in ("ours, cold", "ours, warm", *peers)
            ]
            turns = [turn for turn in turns if "2 threads: ours" not in turn[0]]
            times: dict[str, list[Spent]] = {name: [] for name, _, _ in turns}
            for _ in range(rounds):
                for name, where, side in turns:
                    workers, count, threads = pools[where]
                    times[name].append(_slowest(workers.map(_time_raw, [(side, threads)] * count, 1)))
    wall = {name: statistics.median(each.wall for each in measured) for name, measured in times.items()}
    cpu = {name: statistics.median(each.cpu for each in measured) for name, measured in times.items()}
    ratios, of_processor = {}, {}
    for peer in peers:
        for state in ("cold", "warm"):
            name = f"{peer}, {state}"
            on_two = min(wall[f"2 processes: {peer}"], wall[f"2 threads: {peer}"])
            ratios[f"1 process, {name}"] = round(wall[f"1 process: {peer}"] / wall[f"1 process: ours, {state}"], 2)
            ratios[f"2 processes, {name}"] = round(on_two / wall[f"2 processes: ours, {state}"], 2)
            of_processor[name] = round(cpu[f"1 process: {peer}"] / cpu[f"1 process: ours, {state}"], 2)
    return {
        "megabytes": round(megabytes, 1),
        "tokens": tokens,
        "ids": "equal",
        "MB_per_second": {name: round(megabytes / seconds, 2) for name, seconds in wall.items()},
        "MB_per_processor_second": {name: round(megabytes / seconds, 2) for name, seconds in cpu.items()},
        "ratios": ratios,
        "ratios of processor time": of_processor,
        "all_seconds": {name: [round(each.wall, 3) for each in measured] for name, measured in times.items()},
        "all_cpu_seconds": {name: [round(each.cpu, 3) for each in measured] for name, measured in times.items()},
    }


def _slowest(found: list[Spent]) -> Spent:
    """Of processes side by side: the time until the last is done, and the sum of what they used."""
    return Spent(max(each.wall for each in found), sum(each.cpu for each in found))
