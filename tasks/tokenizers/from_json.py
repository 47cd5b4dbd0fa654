"""Hugging Face's `tokenizer.json`: taken as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.errors import BadData
from tasks.tokenizers.foreign import Foreign, Options, numbered, special


def read(files: Mapping[str, Path], options: Options) -> Foreign:
    """The tokenizer, with the added tokens that it lacks.

    Raises:
        BadData: the file is not a tokenizer's.
    """
    from tokenizers import Tokenizer

    (path,) = files.values()
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no exception of its own
        raise BadData(f"{path.name}: not a tokenizer: {error}", "fetch or write the file again") from None
    known = tokenizer.get_vocab(with_added_tokens=True)
    lacking = numbered(max(known.values(), default=-1) + 1, [(t, n) for t, n in options.added if n is None], known)
    special(tokenizer, [token for token, number in options.added if number is None and token in known])
    tokenizer.add_special_tokens(sorted(lacking, key=lacking.__getitem__))
    return Foreign(tokenizer, {})
