"""Duplicates and contamination: signatures beside datasketch's, recall against all pairs, and the search for overlaps.

    .venv/bin/python -m benchmarks.duplicates --text articles.jsonl.gz

Signatures: documents to 128 MinHash values on one core, beside datasketch (in `.venv-bench`) in its best settings, from
text, and from shingles that are hashed already. Both get the same text, lower-cased and without punctuation, so that
both have the same shingles (checked); ours is measured on the text as it is, too. Sides are processes of their own that
take turns; ratios of medians.

Quality: pairs of known similarity planted among documents, and how many are found, beside what the bands promise.

Overlaps: documents a second against evaluation texts, on one core.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import RESULTS, circumstances, record, say, versions

TARGET = 5.0
"""Times datasketch's speed, from text to signatures."""
OVERLAP_TARGET = 20.0
"""MB of text a second and core."""
VALUES, WORDS = 128, 5
SIDES = ("from text", "from hashed shingles")


def read_texts(path: Path, megabytes: float) -> list[str]:
    """Texts of a JSONL file, plain or gzip, up to a size in UTF-8."""
    out: list[str] = []
    size = 0.0
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        for line in file:
            out.append(json.loads(line)["text"])
            size += len(out[-1].encode()) / 1e6
            if size >= megabytes:
                break
    return out


def plain(text: str) -> str:
    """Text of which words are what white space separates: as `tasks.cleaning.words` reads it."""
    from tasks.cleaning.words import placed_words

    placed = placed_words(text)
    words = (text[s:e].lower() for s, e in zip(placed.starts.tolist(), placed.ends.tolist(), strict=True))
    return " ".join("".join(c for c in word if c.isalnum() or ord(c) > 0x2FF) for word in words)


# ---------------------------------------------------------------- our side, in a process of its own


def our_side(path: Path, hashed: bool) -> None:
    from tasks.cleaning.minhash import signatures, similarity
    from tasks.cleaning.words import Words, grams, word_hashes

    given = json.loads(path.read_text())
    signatures(grams(word_hashes(["some words to begin with"]), WORDS, short=True), VALUES)
    if hashed:
        # as the values stand in memory in both: Python's lists are the form that datasketch takes
        counts = [len(each) for each in given]
        sets = Words(np.concatenate([np.array(each, np.uint64) for each in given]), np.cumsum([0, *counts]))
    began, cpu = time.perf_counter(), time.process_time()
    if hashed:
        made, count = signatures(sets, VALUES), len(sets.hashes)
    else:
        parts = []
        count = 0
        for first in range(0, len(given), 2000):  # slices of some MB, as the stage's workers get them
            sets = grams(word_hashes(given[first : first + 2000]), WORDS, short=True)
            parts.append(signatures(sets, VALUES))
            count += len(sets.hashes)
        made = np.concatenate(parts)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = similarity(made[0:400:2], made[1:400:2]).tolist()
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "shingles": count, "estimates": found}))


def one(words: list[str]) -> dict[str, Any]:
    done = subprocess.run(words, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", "PATH": ""})
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def speed(texts: list[str], peer: str, rounds: int) -> dict[str, Any]:
    """Signatures beside datasketch's."""
    from tasks.cleaning.words import grams, word_hashes

    simple = [plain(text) for text in texts]
    # scripts without spaces have other words by white space alone: both sides must have the same
    counts = np.diff(word_hashes(simple).offsets).tolist()
    same = [n for n, text in enumerate(simple) if len(text.split()) == counts[n]]
    simple, texts = [simple[n] for n in same], [texts[n] for n in same]
    shingles = grams(word_hashes(simple), WORDS, short=True)
    lists = [part.tolist() for part in np.split((shingles.hashes >> np.uint64(32)), shingles.offsets[1:-1])]
    megabytes = sum(len(text.encode()) for text in simple) / 1e6
    out: dict[str, Any] = {"documents": len(simple), "megabytes": round(megabytes, 1), "values": VALUES}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{n}.json") for n, name in enumerate(("from text", "from hashed shingles", "raw"))}
        for path, given in zip(files.values(), (simple, lists, texts), strict=True):
            path.write_text(json.dumps(given))
        us = [sys.executable, "-m", "benchmarks.duplicates", "--side"]
        them = [peer, str(Path(__file__).parent / "peers" / "datasketch_minhash.py"), "--values", str(VALUES)]
        calls: dict[str, list[str]] = {"ours, text as it is": [*us, str(files["raw"])]}
        for side, flag in zip(SIDES, ([], ["--hashed"]), strict=True):
            calls[f"ours, {side}"] = [*us, str(files[side]), *flag]
            calls[f"datasketch, {side}"] = [*them, str(files[side]), *flag]
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
        for round_ in range(rounds):
            for name, words in calls.items():
                measured[name].append(one(words))
            say(f"round {round_ + 1}: " + ", ".join(f"{n} {m[-1]['cpu_seconds']:.2f} s" for n, m in measured.items()))
    if len({measured[f"{who}, from text"][0]["shingles"] for who in ("ours", "datasketch")}) > 1:
        raise RuntimeError("the sides do not have the same shingles")
    for name, times in measured.items():
        wall, cpu = (statistics.median(t[key] for t in times) for key in ("seconds", "cpu_seconds"))
        out[name] = {
            "seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "all_cpu_seconds": [round(t["cpu_seconds"], 3) for t in times],
            "mb_per_cpu_second": round(megabytes / cpu, 2),
            "documents_per_cpu_second": round(len(simple) / cpu),
        }
    for side in SIDES:
        ours, theirs = out[f"ours, {side}"], out[f"datasketch, {side}"]
        out[f"ratio, {side}"] = {
            "wall": round(theirs["seconds"] / ours["seconds"], 1),
            "cpu": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 1),
        }
    return out


# ---------------------------------------------------------------- quality


def planted(pairs: int, words: int, changed: int, draw: np.random.Generator) -> list[str]:
    """Pairs of texts of `words` words, of which the second has `changed` others, far apart; no words in common else."""
    texts = []
    for _ in range(pairs):
        numbers = draw.choice(1 << 40, words + changed, replace=False)
        one_, two = numbers[:words].copy(), numbers[:words].copy()
        two[np.linspace(5, words - 6, changed).astype(int)] = numbers[words:]
        texts += [" ".join(f"w{n}" for n in each.tolist()) for each in (one_, two)]
    return texts


def jaccard(left: str, right: str) -> float:
    """Exact similarity of the sets of shingles."""
    one, two = (
        {tuple(words[n : n + WORDS]) for n in range(len(words) - WORDS + 1)} for words in (left.split(), right.split())
    )
    return len(one & two) / len(one | two)


class Here(NamedTuple):
    """What a step sees of its stage."""

    work: Path
    runtime: Any

    def cancelled(self) -> bool:
        return False


def quality(pairs: int) -> dict[str, Any]:
    """Shares of planted pairs that are found, by exact similarity; recall and precision at the threshold."""
    from tasks.base import Runtime
    from tasks.cleaning.base import Documents
    from tasks.cleaning.near import NearDuplicates
    from tasks.cleaning.settings_corpus import NearDuplicatesSettings

    draw = np.random.default_rng(0)
    out: dict[str, Any] = {"pairs_of_each_similarity": pairs}
    corpus = [planted(pairs, 200, changed, draw) for changed in range(1, 13)]
    texts = [text for part in corpus for text in part]
    for verify in ("shingles", "signatures"):
        step = NearDuplicates(NearDuplicatesSettings(verify=verify))
        with tempfile.TemporaryDirectory() as folder:
            context: Any = Here(Path(folder), Runtime())
            signed = (step.sign(Documents(texts[n : n + 1000], n, [False] * 1000)) for n in range(0, len(texts), 1000))
            decided = step.decide(signed, context)
        verdicts = decided.slice(0, len(texts)).verdicts(Documents(texts, 0, [False] * len(texts)))
        gone = np.array([v.text is None for v in verdicts]).reshape(len(corpus), pairs, 2).any(axis=2)
        rows, alike = [], []
        for part, found in zip(corpus, gone, strict=True):
            exact = [jaccard(part[n], part[n + 1]) for n in range(0, len(part), 2)]
            alike += [value >= 0.8 for value in exact]
            rows.append(
                {
                    "similarity": round(statistics.mean(exact), 3),
                    "found": round(float(found.mean()), 4),
                    "bands_promise": round(step.banding.found(statistics.mean(exact)), 4),
                }
            )
        true = np.array(alike) & gone.reshape(-1)
        out[verify] = {
            "recall": round(float(true.sum() / max(1, sum(alike))), 4),
            "precision": round(float(true.sum() / max(1, gone.sum())), 4),
            "by_similarity": rows,
        }
    return out


# ---------------------------------------------------------------- overlaps


def overlaps(texts: list[str], rounds: int) -> dict[str, Any]:
    """Documents against 20,000 evaluation texts of 40 words, drawn from other documents of the same kind."""
    from tasks.cleaning.contamination import Decontaminate
    from tasks.cleaning.settings_corpus import DecontaminateSettings

    half = len(texts) // 2
    documents, others = texts[:half], texts[half:]
    windows = (w[n : n + 40] for w in (text.split() for text in others) for n in range(0, len(w) - 40, 40))
    evaluation = {"drawn": [" ".join(window) for window in islice(windows, 20_000)]}
    began = time.process_time()
    step = Decontaminate(DecontaminateSettings(), evaluation)
    built = time.process_time() - began
    times = []
    for _ in range(rounds):
        began = time.process_time()
        verdicts = step.clean(documents)
        times.append(time.process_time() - began)
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    return {
        "megabytes": round(megabytes, 1),
        "evaluation_texts": len(evaluation["drawn"]),
        "documents": len(documents),
        "documents_hit": sum(bool(verdict.counts) for verdict in verdicts),
        "index_cpu_seconds": round(built, 3),
        "all_cpu_seconds": [round(t, 3) for t in times],
        "mb_per_cpu_second": round(megabytes / statistics.median(times), 1),
    }


def verdicts(results: dict[str, Any]) -> list[str]:
    found, lines = results["signatures"], []
    for side in SIDES:
        ratio = found[f"ratio, {side}"]
        met = "" if side != SIDES[0] else f", target {TARGET:g}: " + ("met" if ratio["cpu"] >= TARGET else "MISSED")
        ours, theirs = found[f"ours, {side}"], found[f"datasketch, {side}"]
        lines.append(
            f"signatures {side}: {ours['mb_per_cpu_second']} MB/s, {ours['documents_per_cpu_second']:,} documents/s; "
            f"datasketch {theirs['mb_per_cpu_second']} MB/s; {ratio['cpu']} times (wall {ratio['wall']}){met}"
        )
    for verify in ("shingles", "signatures"):
        q = results["quality"][verify]
        lines.append(f"near duplicates, verified by {verify}: recall {q['recall']}, precision {q['precision']}")
    speed_ = results["overlaps"]["mb_per_cpu_second"]
    met = "met" if speed_ >= OVERLAP_TARGET else "MISSED"
    lines.append(f"overlaps with evaluation texts: {speed_} MB/s a core, target {OVERLAP_TARGET:g}: {met}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="JSONL with a field text, plain or gzip")
    parser.add_argument("--megabytes", type=float, default=16, help="of it")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--pairs", type=int, default=500, help="planted pairs of each similarity")
    parser.add_argument("--peer", default=".venv-bench/bin/python", help="a Python that has datasketch and xxhash")
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--table", action="store_true", help="only print what is recorded")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hashed", action="store_true", help=argparse.SUPPRESS)
    call = parser.parse_args()
    if call.side:
        our_side(call.side, call.hashed)
        return
    if call.table:
        print("\n".join(verdicts(json.loads((RESULTS / "duplicates.json").read_text())["cpu"])))
        return
    if not call.text:
        parser.error("--text is needed: a JSONL file with a field text")
    texts = read_texts(call.text, call.megabytes)
    values: dict[str, Any] = {**circumstances(), "versions": versions("numpy", "pyarrow", "triptych")}
    code = "import importlib.metadata as m; print(m.version('datasketch'), m.version('xxhash'))"
    theirs = subprocess.run([call.peer, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    values["versions"] |= {"datasketch": theirs[0], "xxhash": theirs[1]}
    values["text"] = call.text.name
    values["signatures"] = speed(texts, str(Path(call.peer).absolute()), call.rounds)
    values["quality"] = quality(call.pairs)
    values["overlaps"] = overlaps(texts, call.rounds)
    if not call.dry:
        record("cpu", values, "duplicates.json")
    print("\n".join(verdicts(values)))


if __name__ == "__main__":
    main()
