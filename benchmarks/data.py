"""From a corpus to training data: raw encoding, whole chains, and memory as the corpus grows.

`make bench-data ARGS="--text FOLDER"`, a folder of *.jsonl or *.jsonl.gz with a field `text`. Three parts:

    raw     texts in memory to ids: ours, tiktoken, and `encode_batch_fast`, on one process and on two, ids checked
            equal. Ours cold (nothing remembered) and warm; the others on two threads of one process, too.
    chain   a corpus to packed rows and one masked batch: our MakeExamples stage on Ray with two CPUs, on a Ray that
            has just started and again; beside the ways in `benchmarks.peers.data_chain`, run in .venv-bench on two
            processes. Text tokens and how often each occurs are checked equal.
    scale   the stage on 100 MB and 1 GB: seconds and the peak memory of its processes

Sides take turns, medians. The vocabularies are trained here, on the same text.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_raw import raw
from benchmarks.measuring import RESULTS, circumstances, record, say, versions

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".venv-bench" / "bin" / "python"
RAW_TARGET = {"tiktoken": 1.0, "encode_batch_fast": 2.0}
CHAIN_TARGET = {"run_mlm": 4.0, "megatron": 2.0, "datatrove": 2.0}
VOCABULARY = {"gpt2": 32_768, "wordpiece": 30_522, "unigram": 32_000}

# ---------------------------------------------------------------- text and vocabularies


def documents(folder: Path, megabytes: float) -> list[str]:
    """Texts of the folder's files, the files taking turns by bytes, until there are so many."""
    files = [_read(path) for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])]
    if not files:
        raise SystemExit(f"--text {folder}: it has no *.jsonl and no *.jsonl.gz")
    taken: list[str] = []
    turns: list[list[Any]] = [[0, number, file] for number, file in enumerate(files)]  # bytes taken, and from which
    total = 0
    while turns and total < megabytes * 1e6:
        turn = min(turns, key=lambda each: (each[0], each[1]))
        text = next(turn[2], None)
        if text is None:
            turns.remove(turn)
            continue
        taken.append(text)
        turn[0] += (size := len(text.encode()))
        total += size
    return taken


def _read(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            if text := json.loads(line).get("text"):
                yield text


def train(texts: list[str], kind: str, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer-info.json and roles.json (how Hugging Face's wrapper names special tokens)."""
    from tasks.tokenizer import TOKENIZERS, special_ids
    from tasks.tokenizers.base import TokenizerSettings

    sample = [text[at : at + 65536] for text in texts for at in range(0, len(text), 1 << 18)]
    tokenizer = TOKENIZERS.load(kind)(sample, TokenizerSettings(VOCABULARY[kind], True, 2, 100))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = special_ids(tokenizer)
    (folder / "tokenizer-info.json").write_text(json.dumps({"special_tokens": roles}))
    names = {f"{role}_token": tokenizer.id_to_token(i) for role, i in roles.items() if role != "delimiter"}
    (folder / "roles.json").write_text(json.dumps(names))


def write_corpus(texts: list[str], folder: Path, copies: int = 1) -> int:
    """A corpus artifact, and train.jsonl for those who read lines; bytes of text. Copies differ in every tenth word."""
    import pyarrow as pa

    from tasks.corpus_writer import Shards

    folder.mkdir(parents=True)
    shards, size = Shards(folder), 0
    with (folder / "train.jsonl").open("w") as lines:
        for copy in range(copies):
            for first in range(0, len(texts), 512):
                batch = [_varied(text, copy) for text in texts[first : first + 512]]
                size += sum(len(text.encode()) for text in batch)
                if copies == 1:
                    lines.writelines(json.dumps({"text": text}) + "\n" for text in batch)
                ids = [f"{copy}-{first + n}" for n in range(len(batch))]
                empty = [""] * len(batch)
                columns = {"id": ids, "text": batch, "source": empty, "meta": empty}
                shards.write(pa.table({**columns, "validation": pa.array([False] * len(batch))}))
    shards.close()
    (folder / "corpus.json").write_text(json.dumps({"splits": shards.splits}))
    return size


def _varied(text: str, copy: int) -> str:
    if not copy:
        return text
    words = text.split(" ")
    words[::10] = [f"{word}{copy}" for word in words[::10]]
    return " ".join(words)


# ---------------------------------------------------------------- whole chains


class Folder:
    """The smallest context that a stage runs in: its artifact is a plain folder."""

    attempt = 0

    def __init__(self, out: Path, inputs: Mapping[str, Path]) -> None:
        from tasks.base import Runtime

        self.out, self.runtime, self._inputs = out, Runtime(), inputs
        self.scratch, self.work = out.parent / f"{out.name}-scratch", out.parent / f"{out.name}-work"
        for folder in (self.out, self.scratch, self.work):
            folder.mkdir(parents=True)

    def input(self, field: str) -> Any:
        from tasks.base import Artifact

        return Artifact(key=field, kind=field, path=self._inputs[field], config={}, metrics={}, inputs={})

    def cancelled(self) -> bool:
        return False

    def nothing(self, *_: Any, **__: Any) -> None: ...

    log = progress = metric = timing = dataset = publish_scratch = nothing


def our_chain(corpus: Path, tokenizer: Path, out: Path) -> float:
    """Seconds of MakeExamples and one masked batch."""
    from tasks.example_reader import ExampleReader
    from tasks.examples import MakeExamples
    from tasks.ingest import Ingest
    from tasks.objectives.settings import parse
    from tasks.tokenizer import TrainTokenizer

    edge = Ingest(source="unused.txt")
    stage = MakeExamples(
        corpus=edge, tokenizer=TrainTokenizer(corpus=edge, kind="wordpiece"), objective=parse("mlm"), length_tokens=128
    )
    began = time.perf_counter()
    stage.run(Folder(out, {"corpus": corpus, "tokenizer": tokenizer}))  # type: ignore[arg-type]
    reader = ExampleReader(out, "train", seed=0)
    reader.batch(reader.indices(0, 256))
    return time.perf_counter() - began


def our_digest(out: Path, tokenizer: Path) -> dict[str, Any]:
    """As the peers say it: from the counts of the text's tokens."""
    from tasks.vocabulary import read_vocabulary

    special = json.loads((tokenizer / "tokenizer-info.json").read_text())["special_tokens"]
    counts = read_vocabulary(out, special).counts
    assert counts is not None
    found = np.zeros(1 << 16, dtype=np.int64)
    found[: len(counts)] = counts
    found[[special[role] for role in ("pad", "cls", "sep", "mask", "bos", "eos") if role in special]] = 0
    digest = hashlib.blake2b(found.astype("<i8").tobytes(), digest_size=8).hexdigest()
    return {"text_tokens": int(found.sum()), "digest": digest}


def chain(corpus: Path, tokenizer: Path, megabytes: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of every way, sides taking turns; ratios to ours."""
    from cluster.connect import connect, shutdown

    times: dict[str, list[float]] = {}
    digests: dict[str, Any] = {}

    def took(name: str, seconds: float) -> None:
        times.setdefault(name, []).append(seconds)

    for number in range(rounds):
        out = folder / f"round-{number}"
        began = time.perf_counter()
        connect(None, import_paths=[str(ROOT)])
        took("start of Ray", time.perf_counter() - began)
        took("ours, cold", our_chain(corpus, tokenizer, out / "cold"))
        took("ours, warm", our_chain(corpus, tokenizer, out / "warm"))
        shutdown()
        digests["ours"] = our_digest(out / "warm", tokenizer)
        for way in CHAIN_TARGET:
            words = [str(PEERS), str(ROOT / "benchmarks/peers/data_chain.py"), way]
            words += ["--corpus", str(corpus), "--tokenizer", str(tokenizer), "--out", str(out / way)]
            done = subprocess.run(
                words, capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "true"}
            )
            if done.returncode:
                raise RuntimeError(f"{way}: {done.stderr[-3000:]}")
            found = json.loads(done.stdout.strip().splitlines()[-1])
            took(way, found.pop("seconds"))
            digests[way] = found
        shutil.rmtree(out)
        say(f"chain, round {number + 1}: " + ", ".join(f"{name} {each[-1]:.2f} s" for name, each in times.items()))
    seconds = {name: statistics.median(each) for name, each in times.items()}
    return {
        "megabytes": round(megabytes, 1),
        "tokens": digests,
        "same_tokens": len({each["digest"] for each in digests.values()}) == 1,
        "seconds": {name: round(each, 3) for name, each in seconds.items()},
        "MB_per_second": {name: round(megabytes / each, 2) for name, each in seconds.items() if name != "start of Ray"},
        "ratios": {
            f"{way}, ours {state}": round(seconds[way] / ours, 2)
            for way in CHAIN_TARGET
            for state, ours in (
                ("cold", seconds["ours, cold"]),
                ("warm", seconds["ours, warm"]),
                ("with the start of Ray", seconds["ours, cold"] + seconds["start of Ray"]),
            )
        },
        "all_seconds": {name: [round(s, 3) for s in each] for name, each in times.items()},
    }


# ---------------------------------------------------------------- memory and time as the corpus grows


class Memory(threading.Thread):
    """The peak of this process and all below it that are no part of Ray's own, in MB of memory of their own."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.largest, self.ends = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        while not self.ends.wait(0.1):
            found = [_anonymous_mb(pid) for pid in _below(os.getpid())]
            self.peak, self.largest = max(self.peak, sum(found)), max(self.largest, *found)


def _below(root: int) -> list[int]:
    """This process and its workers: those that run our code."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, fresh = [root], [root]
    while fresh:
        fresh = [pid for pid, parent in parents.items() if parent in fresh]
        found += fresh
    return [pid for pid in found if pid == root or _command(pid).startswith("ray::")]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _anonymous_mb(pid: int) -> float:
    """Memory that is the process's own: not files mapped (the kernel drops them) nor Ray's shared store."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def scale(texts: list[str], tokenizer: Path, folder: Path) -> dict[str, Any]:
    """The stage on about 100 MB and ten times that, each with a Ray of its own."""
    from cluster.connect import connect, shutdown

    out: dict[str, Any] = {}
    for name, copies in (("100 MB", 1), ("1 GB", 10)):
        megabytes = write_corpus(texts, folder / f"corpus-{copies}", copies) / 1e6
        connect(None, import_paths=[str(ROOT)])
        memory = Memory()
        memory.start()
        seconds = our_chain(folder / f"corpus-{copies}", tokenizer, folder / f"examples-{copies}")
        memory.ends.set()
        memory.join()
        shutdown()
        shutil.rmtree(folder / f"corpus-{copies}")
        shutil.rmtree(folder / f"examples-{copies}")
        out[name] = {
            "megabytes": round(megabytes, 1),
            "seconds": round(seconds, 2),
            "MB_per_second": round(megabytes / seconds, 2),
            "peak_memory_mb": round(memory.peak, 1),
            "largest_process_mb": round(memory.largest, 1),
        }
        say(f"scale, {name}: {out[name]}")
    small, large = out["100 MB"], out["1 GB"]
    out["ratio of peak memory"] = round(large["peak_memory_mb"] / small["peak_memory_mb"], 3)
    out["ratio of speed"] = round(large["MB_per_second"] / small["MB_per_second"], 3)
    return out


# ---------------------------------------------------------------- command line


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """What was reached of the targets, a line each."""
    lines = []
    for kind, found in results.get("raw", {}).get("kinds", {}).items():
        for name, ratio in found["ratios"].items():
            target = next(t for peer, t in RAW_TARGET.items() if peer in name)
            lines.append(f"raw, {kind}: {ratio:6.2f} x {name} (aim {target:g})")
    for name, ratio in results.get("chain", {}).get("ratios", {}).items():
        lines.append(f"chain: {ratio:6.2f} x {name} (aim {CHAIN_TARGET[name.partition(',')[0]]:g})")
    if found := results.get("scale"):
        lines.append(f"scale: peak memory x {found['ratio of peak memory']} from 100 MB to 1 GB (at most 1.2)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="folder of *.jsonl or *.jsonl.gz")
    parser.add_argument("--part", choices=["raw", "chain", "scale"], nargs="*", default=["raw", "chain"])
    parser.add_argument("--kind", choices=VOCABULARY, nargs="*", default=list(VOCABULARY), help="of raw")
    parser.add_argument("--megabytes", type=float, default=32, help="of text, for raw and chain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry", action="store_true", help="record nothing")
    parser.add_argument("--table", action="store_true", help="what the recorded results say")
    call = parser.parse_args()
    if call.table:
        print("\n".join(verdicts(json.loads((RESULTS / "data.json").read_text()))))
        return
    if call.text is None:
        parser.error("--text: a folder of text is needed")
    folder = Path(tempfile.mkdtemp(prefix="bench-data-"))
    results: dict[str, Any] = {}
    try:
        texts = documents(call.text, 100 if "scale" in call.part else call.megabytes)
        for part in call.part:
            values = {**circumstances(), "versions": versions("ray", "pyarrow", "numpy", "tokenizers", "tiktoken")}
            if part == "raw":
                values["kinds"] = {}
                for kind in call.kind:
                    train(texts, kind, folder / f"raw-{kind}")
                    values["kinds"][kind] = raw(texts, kind, folder / f"raw-{kind}", call.rounds)
                    say(f"raw, {kind}: {values['kinds'][kind]['MB_per_second']}")
            else:
                train(texts, "wordpiece", folder / part / "tokenizer")
                if part == "chain":
                    size = write_corpus(texts, folder / part / "corpus") / 1e6
                    values |= chain(
                        folder / part / "corpus", folder / part / "tokenizer", size, call.rounds, folder / part
                    )
                else:
                    values |= scale(texts, folder / part / "tokenizer", folder / part)
            values["load_after"] = round(os.getloadavg()[0], 1)
            results[part] = values
            if not call.dry:
                record(part, values, "data.json")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(verdicts(results)))


if __name__ == "__main__":
    main()
