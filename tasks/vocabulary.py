"""The vocabulary as objectives need it: read from a tokenizer, written beside the examples, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tasks.objectives.base import Vocabulary

FILE = "vocabulary.arrow"


@lru_cache(maxsize=2)
def tokenizers_installed() -> bool:
    """Whether text can be made of tokens here; training alone (`tasks.pretrain_job`) does without."""
    try:
        import tokenizers  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def load_tokenizer(tokenizer_json: str) -> Any:
    """The `tokenizers.Tokenizer`, for which "[MASK]" in a text is text, and which neither cuts nor pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()  # an imported one may do either
    tokenizer.no_padding()
    return tokenizer


def vocabulary_of(
    tokenizer_json: str, special_tokens: Mapping[str, int], counts: np.ndarray | None = None
) -> Vocabulary:
    """Which tokens are special and which begin a word, from the tokenizer itself.

    WordPiece marks what continues a word (`##`), byte-level BPE and Unigram the space before what begins one (`Ġ`,
    `▁`). GPT-1's BPE marks where a word ends (`</w>`), so whether a token begins one lies in the token before it and
    no flag can say it: there every token counts as a word, which cuts words but never joins two.

    Args:
        special_tokens: {role: id} of the tokenizer's artifact.
        counts: int64 [V], how often each token stands in the training split, where known.
    """
    tokenizer = load_tokenizer(tokenizer_json)
    spelled = tokenizer.get_vocab(with_added_tokens=True)
    size = max(spelled.values()) + 1
    special = np.ones(size, dtype=bool)  # an id without a token is nothing to predict
    starts_word = np.zeros(size, dtype=bool)
    added = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    model = json.loads(tokenizer_json)["model"]
    tokens = [""] * size
    for token, i in spelled.items():
        tokens[i] = token
        special[i] = i in added
        if model["type"] == "WordPiece":
            starts_word[i] = not token.startswith(model["continuing_subword_prefix"])
        elif model.get("end_of_word_suffix"):
            starts_word[i] = True
        else:
            starts_word[i] = token.startswith(("Ġ", "Ċ", "ĉ", "▁", "\n", "\t"))
    return Vocabulary(size, dict(special_tokens), special, starts_word, tuple(tokens), _sentinels(spelled.get), counts)


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """`vocabulary.arrow`: token, special, starts_word and count (null where unknown) by id."""
    import pyarrow as pa

    counts = vocabulary.counts if vocabulary.counts is not None else [None] * vocabulary.size
    table = pa.table(
        {
            "token": pa.array(vocabulary.tokens or [""] * vocabulary.size, pa.string()),
            "special": pa.array(vocabulary.special),
            "starts_word": pa.array(vocabulary.starts_word),
            "count": pa.array(counts, pa.int64()),
        }
    )
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


def read_vocabulary(folder: Path, special_tokens: Mapping[str, int]) -> Vocabulary:
    """The `Vocabulary` of an examples artifact."""
    import pyarrow as pa

    with pa.memory_map(str(folder / FILE)) as source:
        table = pa.ipc.open_file(source).read_all()
        special, starts_word = (table.column(c).to_numpy().astype(bool) for c in ("special", "starts_word"))
        tokens = tuple(token or "" for token in table.column("token").to_pylist())
        count = table.column("count")
        counts = None if count.null_count else count.to_numpy().copy()
    ids = {token: i for i, token in enumerate(tokens) if token.startswith("<extra_id_")}
    return Vocabulary(len(tokens), dict(special_tokens), special, starts_word, tokens, _sentinels(ids.get), counts)


def _sentinels(id_of: Any) -> tuple[int, ...]:
    """Ids of <extra_id_0>, <extra_id_1>, … as far as they go."""
    found: list[int] = []
    while (i := id_of(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
    return tuple(found)
