"""datasketch's side of `benchmarks.duplicates`: MinHash of each document, in the settings that suit it best.

    .venv-bench/bin/python benchmarks/peers/datasketch_minhash.py TEXTS.json [--hashes HASHES.json]

`MinHash.generator` reuses its initialised state; `affine32` is the quickest of its schemes; xxhash's 32-bit function is
the quickest hash it can be given for bytes. With `--hashes` the shingles come as ready 32-bit hashes, and its hash
function has nothing left to do. Prints one line of JSON: seconds, cpu_seconds, shingles, and what the first pairs of
documents are estimated at.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import datasketch
import numpy as np
import xxhash

SCHEMES = ("affine32", "affine64", "legacy")


def shingles(text: str, n: int) -> list[bytes]:
    """The same as `tasks.cleaning.words.grams` makes of text that is lower-cased and without punctuation."""
    words = text.encode().split()
    if len(words) < n:
        return [b" ".join(words)] if words else []
    return [b" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="a JSON list of texts; or, with --hashed, of lists of 32-bit hashes")
    parser.add_argument("--hashed", action="store_true")
    parser.add_argument("--scheme", choices=SCHEMES, default=SCHEMES[0])
    parser.add_argument("--values", type=int, default=128)
    parser.add_argument("--words", type=int, default=5)
    call = parser.parse_args()
    with open(call.texts) as file:
        given = json.load(file)
    count = 0

    def sets() -> Iterator[list[bytes]]:
        nonlocal count
        for text in given:
            made = shingles(text, call.words)
            count += len(made)
            yield made

    def hashed() -> Iterator[list[int]]:
        nonlocal count
        for each in given:
            count += len(each)
            yield each

    hash_function = (lambda value: value) if call.hashed else xxhash.xxh32_intdigest
    settings = {"num_perm": call.values, "hashfunc": hash_function, "scheme": call.scheme}
    next(datasketch.MinHash.generator([[1, 2] if call.hashed else [b"a"]], **settings))
    began, cpu = time.perf_counter(), time.process_time()
    made = [m.hashvalues for m in datasketch.MinHash.generator(hashed() if call.hashed else sets(), **settings)]
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = [float(np.mean(made[n] == made[n + 1])) for n in range(0, min(len(made), 400) - 1, 2)]
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "shingles": count, "estimates": found}))


if __name__ == "__main__":
    main()
