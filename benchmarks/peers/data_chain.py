"""Other tools' ways from a corpus to token files, each in its usual form; run in the peers' environment.

    .venv-bench/bin/python benchmarks/peers/data_chain.py WAY --corpus FOLDER --tokenizer FOLDER --out FOLDER

    run_mlm     the tokenise-and-group chain of Hugging Face's example: two `datasets.map`, from a loaded data set, and
                one masked batch by its collator
    megatron    what Megatron-LM's tools/preprocess_data.py does: a pool of processes takes JSON lines, the parent
                writes the indexed .bin and .idx; with the bare tokenizer, which is faster than its wrapper
    datatrove   its own pipeline: ParquetReader and DocumentTokenizer on its local executor, documents not shuffled

Prints one line of JSON: seconds, of what a user would wait for after the imports; text_tokens and a digest of how often
each token stands in the text, special tokens left out, from a look at the result after the clock has stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 128
Counts = Callable[[], np.ndarray]


def run_mlm(corpus: Path, tokenizer: Path, out: Path, processes: int) -> tuple[float, Counts]:
    """`datasets` at its defaults: batches of 1,000 documents, a fast tokenizer, lists of ids in Arrow."""
    import datasets
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"),
        **json.loads((tokenizer / "roles.json").read_text()),
        model_max_length=1 << 30,
    )
    files = sorted(map(str, corpus.glob("train-*.parquet")))
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(out / "cache"), split="train")
    began = time.perf_counter()

    def tokenised(batch: dict[str, list[str]]) -> Any:
        return fast(batch["text"], return_special_tokens_mask=True)

    def grouped(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        joined = {name: [x for each in batch[name] for x in each] for name in batch}
        whole = len(joined["input_ids"]) // LENGTH * LENGTH
        return {name: [x[i : i + LENGTH] for i in range(0, whole, LENGTH)] for name, x in joined.items()}

    tokens = loaded.map(tokenised, batched=True, num_proc=processes, remove_columns=loaded.column_names)
    rows = tokens.map(grouped, batched=True, num_proc=processes)
    collate = DataCollatorForLanguageModeling(fast, mlm_probability=0.15, return_tensors="np")
    collate([rows[i] for i in range(256)])
    took = time.perf_counter() - began

    def counts() -> np.ndarray:
        found = np.zeros(1 << 17, dtype=np.int64)
        for batch in tokens.with_format("arrow").iter(1000):
            found += np.bincount(batch.column("input_ids").combine_chunks().flatten().to_numpy(), minlength=1 << 17)
        return found

    return took, counts


_TOKENIZER: Any = None


def _start(path: str) -> None:
    global _TOKENIZER
    from tokenizers import Tokenizer

    _TOKENIZER = Tokenizer.from_file(path)
    _TOKENIZER.encode_special_tokens = True


def _line(line: str) -> list[int]:
    ids: list[int] = _TOKENIZER.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return ids


def megatron(corpus: Path, tokenizer: Path, out: Path, processes: int) -> tuple[float, Counts]:
    """Lines in chunks of 32 to the pool; a document is written when it comes back."""
    end = json.loads((tokenizer / "tokenizer-info.json").read_text())["special_tokens"]["eos"]
    began = time.perf_counter()
    sizes: list[int] = []
    with (
        (corpus / "train.jsonl").open() as lines,
        multiprocessing.Pool(processes, _start, (str(tokenizer / "tokenizer.json"),)) as pool,
        (out / "text.bin").open("wb") as file,
    ):
        for ids in pool.imap(_line, lines, 32):
            ids.append(end)
            sizes.append(len(ids))
            file.write(np.array(ids, dtype=np.uint16).tobytes(order="C"))
    _write_index(out / "text.idx", sizes)
    took = time.perf_counter() - began
    return took, lambda: np.bincount(np.fromfile(out / "text.bin", dtype=np.uint16), minlength=1 << 17)


def _write_index(path: Path, sizes: Iterable[int]) -> None:
    """Lengths, byte offsets and documents, after a header with the type's code (8: uint16)."""
    lengths = np.fromiter(sizes, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64) * 2]).astype(np.int64)
    with path.open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1))
        for array in (lengths, offsets, np.arange(len(lengths) + 1, dtype=np.int64)):
            file.write(array.tobytes(order="C"))


def datatrove(corpus: Path, tokenizer: Path, out: Path, processes: int) -> tuple[float, Counts]:
    """A task for each process, each with its own files."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    roles = json.loads((tokenizer / "roles.json").read_text())
    steps = [
        ParquetReader(str(corpus), glob_pattern="train-*.parquet"),
        DocumentTokenizer(
            str(out / "tokens"),
            str(tokenizer / "tokenizer.json"),
            eos_token=roles["eos_token"],
            shuffle_documents=False,
            save_final_metadata=False,
        ),
    ]
    executor = LocalPipelineExecutor(steps, tasks=processes, workers=processes, logging_dir=str(out / "logs"))
    began = time.perf_counter()
    executor.run()
    took = time.perf_counter() - began

    def counts() -> np.ndarray:
        files = sorted((out / "tokens").glob("*.ds"))
        return sum(
            (np.bincount(np.fromfile(file, dtype=np.uint16), minlength=1 << 17) for file in files),
            start=np.zeros(1 << 17, int),
        )

    return took, counts


WAYS = {"run_mlm": run_mlm, "megatron": megatron, "datatrove": datatrove}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--corpus", type=Path, required=True, help="train-*.parquet and train.jsonl")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json, tokenizer-info.json, roles.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    call = parser.parse_args()
    call.out.mkdir(parents=True)
    seconds, counts = WAYS[call.way](call.corpus, call.tokenizer, call.out, call.processes)
    found = counts()
    special = json.loads((call.tokenizer / "tokenizer-info.json").read_text())["special_tokens"]
    found[[special[role] for role in ("pad", "cls", "sep", "mask", "bos", "eos") if role in special]] = 0
    digest = hashlib.blake2b(found[: 1 << 16].astype("<i8").tobytes(), digest_size=8).hexdigest()
    print(json.dumps({"seconds": seconds, "text_tokens": int(found.sum()), "digest": digest}))


if __name__ == "__main__":
    main()
