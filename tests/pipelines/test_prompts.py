"""Prompts look as training rows did, masks take their space along, and streamed text is the decoded text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from modeling.architecture import TransformerConfig
from modeling.checkpoint import save_model
from modeling.heads.language import LanguageModel
from pipelines.prompts import (
    Stream,
    decode,
    encode_masked,
    encode_prompt,
    generation_ids,
    ids_of_nothing,
    load_text_model,
)
from tests.pipelines.text_models import MODELS, PLAIN, SHAPE, TEXT, save_models
from tests.tasks.small_model import SPECIAL, tokenizer_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


FRAMES = {
    "decoder": (["eos"], []),
    "words": ([], []),
    "prefix-lm": (["pad"], []),
    "t5": ([], ["eos"]),
    "bart": (["bos"], ["eos"]),
    "bert": (["cls"], ["sep"]),
    "roberta": (["bos"], ["eos"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_looks_as_the_training_rows_did(models: dict[str, Path], name: str) -> None:
    loaded = load_text_model(models[name])
    begin, end = ([loaded.roles[role] for role in roles] for roles in FRAMES[name])
    ids = loaded.tokenizer.encode("The cat and the dog", add_special_tokens=False).ids
    assert encode_prompt(loaded, "The cat and the dog") == begin + ids + end
    assert encode_prompt(loaded, "") == begin + end
    if name == "t5":
        sentinels = encode_prompt(loaded, "The <extra_id_0> and <extra_id_1>.")
        assert {loaded.tokenizer.token_to_id(f"<extra_id_{n}>") for n in (0, 1)} < set(sentinels)


def test_what_touches_a_sentinel_begins_no_word(models: dict[str, Path]) -> None:
    """Pieces have the space before a word in them, and rows have none between a sentinel and the end of its word."""
    loaded = load_text_model(models["t5"])

    def cut(text: str) -> list[str]:
        return [loaded.tokenizer.id_to_token(i) for i in encode_prompt(loaded, text)][:-1]

    first, second = "<extra_id_0>", "<extra_id_1>"
    for space in ("", " "):
        assert cut(f"the run{space}{first}n") == [*cut("the run"), first, "n"]
        assert cut(f"the{space}{first}{second}n the{space}") == [*cut("the"), first, second, "n", *cut("the")]
    assert cut(f"{first} the {second} run") == [first, *cut("the"), second, *cut("run")]


def test_what_begins_ends_and_never_stands_in_a_text(models: dict[str, Path]) -> None:
    ids = {name: generation_ids(load_text_model(folder)) for name, folder in models.items()}
    roles = {name: load_text_model(folder).roles for name, folder in models.items()}
    for name, r in roles.items():
        assert ids[name]["stop"] == (r["eos"],) and r["pad"] in ids[name]["never"]
    assert ids["t5"]["start"] == (roles["t5"]["pad"],) and ids["decoder"]["start"] == (roles["decoder"]["bos"],)
    assert roles["bart"]["bos"] not in ids["bart"]["never"], "its targets begin with it"
    assert roles["bart"]["mask"] in ids["bart"]["never"] and roles["words"]["delimiter"] in ids["words"]["never"]
    imported = load_text_model(models["bart"])._replace(settings={"decoder_start_token_id": 2})
    assert generation_ids(imported)["start"] == (2,)


def test_rows_without_a_token_are_never_said(models: dict[str, Path], tmp_path: Path) -> None:
    """Models of the Hub have more rows than their tokenizers have tokens; such an id would show as nothing."""
    size = load_text_model(models["decoder"]).tokenizer.get_vocab_size()
    for name in ("tokenizer.json", "tokenizer-info.json"):
        (tmp_path / name).write_bytes((models["decoder"] / name).read_bytes())
    config = TransformerConfig(**{**SHAPE, **PLAIN, "architecture": "decoder", "vocab_size": size + 3})
    save_model(tmp_path, LanguageModel(config), config, {"name": "language-model", "settings": {}})
    loaded = load_text_model(tmp_path)
    assert ids_of_nothing(loaded) == [size, size + 1, size + 2] and not ids_of_nothing(load_text_model(models["t5"]))
    assert set(ids_of_nothing(loaded)) < set(generation_ids(loaded)["never"])


@pytest.mark.parametrize("name", MODELS)
def test_streamed_text_is_the_decoded_text(models: dict[str, Path], name: str) -> None:
    """For real text with characters of several bytes, and for random ids, which make broken ones."""
    loaded = load_text_model(models[name])
    size, numbers = loaded.tokenizer.get_vocab_size(), random.Random(0)
    rows = [loaded.tokenizer.encode(TEXT, add_special_tokens=False).ids]
    rows += [[numbers.randrange(size) for _ in range(40)] for _ in range(20)]
    for ids in rows:
        for context in (0, 3) if ids is rows[0] else (0,):  # a context is whole characters
            stream = Stream(loaded, ids[:context])
            pieces = [stream.add(token) for token in ids[context:]]
            whole = decode(loaded, ids)
            assert decode(loaded, ids[:context]) + "".join(pieces) + stream.end() == whole
            if ids is rows[0]:
                assert "\ufffd" not in "".join(pieces)
                assert sum(map(bool, pieces)) > 8, "word by word, not at the end"
    if name == "decoder":
        assert decode(loaded, rows[0]) == TEXT


def test_a_mask_takes_the_space_before_it_along(models: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_text_model(models["roberta"])
    mask = loaded.roles["mask"]
    pieces = [loaded.tokenizer.encode(part, add_special_tokens=False).ids for part in ("The", " run.")]
    inside = encode_masked(loaded, "The  [MASK] run.")[1:-1]
    assert inside == [*pieces[0], mask, *pieces[1]]
    # where the mask is an ordinary word of the vocabulary, and no special token of the tokenizer
    folder = tokenizer_folder(tmp_path / "words", ["the", "cat"])
    config = TransformerConfig(**{**SHAPE, "vocab_size": 7})
    save_model(folder, LanguageModel(config), config, {"name": "language-model", "settings": {"kind": "mlm"}})
    ids = encode_masked(load_text_model(folder), "the [MASK] cat")
    assert ids == [SPECIAL["cls"], 5, SPECIAL["mask"], 6, SPECIAL["sep"]]
