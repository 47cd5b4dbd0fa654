"""Exported folders through transformers' own doors: AutoTokenizer, pipeline("fill-mask"), generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from modeling.architecture import model_config
from modeling.checkpoint import load_model, save_model
from modeling.errors import ConfigError
from modeling.hub import export_model, import_into, import_model
from modeling.hub.tokenizer import read_tokenizer, roles_of
from tasks.tokenizer import TOKENIZERS, special_ids
from tasks.tokenizers.base import TokenizerSettings
from tests.modeling.hub_models import LM, our_model, their_model

WORDS = "the cat sat on a mat and dogs ran to other cats while birds sang of summer rain over quiet towns"
TEXTS = [" ".join(WORDS.split()[n % 7 :: 1 + n % 3]) + "." for n in range(60)]
SHAPE = {"layers": 2, "width": 32, "heads": 4, "ff_width": 48, "max_length": 40}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("wordpiece", {"preset": "bert-tiny", **SHAPE}),
    "roberta": ("bpe", {"preset": "roberta-base", **SHAPE}),
    "albert": ("unigram-bert", {"preset": "albert-base", **SHAPE, "embedding_width": 16}),
    "gpt2": ("gpt2", {"preset": "gpt2-124M", **SHAPE}),
    "gpt": ("bpe-words", {"preset": "gpt", **SHAPE, "ff_width": 128}),
    # with an output matrix of their own: tied ones of random weights say one token again and again
    "t5": ("unigram", {"preset": "t5.1.1-small", **SHAPE, "head_size": 8}),
    "bart": ("bpe", {"preset": "bart-base", **SHAPE, "tie_embeddings": False}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """{name: (Triptych folder, Hub folder)}; random weights that are large enough for tokens to differ clearly."""
    root, made = tmp_path_factory.mktemp("hub"), {}
    for name, (kind, fields) in MODELS.items():
        tokenizer = TOKENIZERS.load(kind)(TEXTS, TokenizerSettings(320, True, 1, 5))
        # T5's decoder tells its places apart by small biases alone: larger ones, and it says more than one token
        ours, scale = root / name, 0.6 if name == "t5" else 0.15
        config = model_config(fields).with_vocabulary(tokenizer.get_vocab_size())
        save_model(ours, our_model(config, LM, len(name), scale), config, LM)
        tokenizer.save(str(ours / "tokenizer.json"), pretty=False)
        info = {"kind": kind, "vocab_size": tokenizer.get_vocab_size(), "special_tokens": special_ids(tokenizer)}
        (ours / "tokenizer-info.json").write_text(json.dumps(info))
        export_model(ours, root / f"{name}-hub")
        made[name] = (ours, root / f"{name}-hub")
    return made


@pytest.mark.parametrize("name", MODELS)
def test_their_tokenizer_gives_our_ids(name: str, exported: dict[str, tuple[Path, Path]]) -> None:
    ours, hub = exported[name]
    own, theirs = Tokenizer.from_file(str(ours / "tokenizer.json")), transformers.AutoTokenizer.from_pretrained(hub)
    for first, second in ((TEXTS[0], None), (TEXTS[1], TEXTS[2]), ("unseen Wörds, 42!", None)):
        encoding = own.encode(first, second, add_special_tokens=name != "gpt" or second is not None)
        found = theirs(first, second)
        assert found["input_ids"] == encoding.ids
        if "token_type_ids" in found:
            assert found["token_type_ids"] == encoding.type_ids
    assert ("token_type_ids" in theirs.model_input_names) == (name in ("bert", "albert"))
    roles = roles_of(ours)
    for role in set(roles) & {"pad", "unk", "cls", "sep", "mask", "bos", "eos"}:
        assert getattr(theirs, f"{role}_token_id") == roles[role], role
    assert theirs.model_max_length == 40
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= {p.name for p in hub.iterdir()}
    assert (hub / "generation_config.json").exists() == (name in ("gpt2", "gpt", "t5", "bart"))
    assert theirs([TEXTS[0], "the"], padding=True)["attention_mask"][1][-1] == 0


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_fill_mask_gives_our_models_tokens(name: str, exported: dict[str, tuple[Path, Path]]) -> None:
    ours, hub = exported[name]
    fill = transformers.pipeline("fill-mask", model=str(hub), top_k=5, device="cpu")
    mask = fill.tokenizer.mask_token
    tokenizer, model = Tokenizer.from_file(str(ours / "tokenizer.json")), load_model(ours)
    for text in (f"the cat {mask} on a mat.", f"{mask} ran to other cats"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.inference_mode():
            logits = model.logits(model.hidden({"input_ids": ids}))[ids == roles_of(ours)["mask"]][0]
        top = logits.softmax(-1).topk(5)
        found = fill(text)
        assert [each["token"] for each in found] == top.indices.tolist()
        assert [each["score"] for each in found] == pytest.approx(top.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt", "t5", "bart"])
def test_generate_gives_our_models_tokens(name: str, exported: dict[str, tuple[Path, Path]]) -> None:
    ours, hub = exported[name]
    tokenizer, model, roles = Tokenizer.from_file(str(ours / "tokenizer.json")), load_model(ours), roles_of(ours)
    theirs = transformers.AutoModelForSeq2SeqLM if name in ("t5", "bart") else transformers.AutoModelForCausalLM
    generator = theirs.from_pretrained(hub)
    ids = torch.tensor([tokenizer.encode("the cat sat on", add_special_tokens=False).ids])
    with torch.inference_mode():
        found = generator.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)[0]
        two = model.config.architecture == "encoder-decoder"
        memory = model.transformer(ids) if two else None
        row = torch.tensor([[roles["pad"]]]) if two else ids
        for _ in range(12):
            hidden = model.transformer.decode(row, memory) if two else model.transformer(row)
            row = torch.cat([row, model.logits(hidden[:, -1]).argmax(-1, keepdim=True)], 1)
            if int(row[0, -1]) == roles["eos"]:
                break
    assert found.tolist() == row[0].tolist()
    assert len(set(row[0].tolist())) > 3  # a model that says one thing would prove little


@pytest.mark.parametrize("name", ["gpt2", "gpt"])
def test_a_text_to_be_continued_has_no_end(name: str, exported: dict[str, tuple[Path, Path]]) -> None:
    """GPT's own template ends it, for fine-tuning: its generator would go on after the end of the text."""
    ours, hub = exported[name]
    tokenizer, roles = Tokenizer.from_file(str(ours / "tokenizer.json")), roles_of(ours)
    ids = tokenizer.encode("the cat sat on", add_special_tokens=False).ids
    assert (tokenizer.encode("the cat sat on").ids[-1] == roles["eos"]) == (name == "gpt")
    generator = transformers.pipeline("text-generation", model=str(hub), device="cpu")
    (found,) = generator("the cat sat on", return_tensors=True, do_sample=False, max_new_tokens=3)
    assert found["generated_token_ids"][: len(ids)] == ids and roles["eos"] not in found["generated_token_ids"][:-1]


def test_a_decoders_start_travels(tmp_path: Path) -> None:
    """BART's decoder begins with the end of text, ours with the pad id: an import says so, an export keeps it."""
    their_model("bart").save_pretrained(tmp_path / "theirs")
    assert import_model(tmp_path / "theirs").head["settings"] == {"decoder_start_token_id": 2}
    import_into(tmp_path / "theirs", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["decoder_start_token_id"] == 2 and generation["pad_token_id"] == 1


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_tokenizer_is_the_one_exported(
    name: str, exported: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    ours, hub = exported[name]
    import_into(hub, tmp_path)
    if name == "gpt":  # what it adds to a single text stays here
        found, own = (json.loads((folder / "tokenizer.json").read_text()) for folder in (tmp_path, ours))
        pieces = [each["post_processor"].pop("single") for each in (found, own)]
        assert found == own and pieces[0] == pieces[1][1:-1]
    else:
        assert (tmp_path / "tokenizer.json").read_bytes() == (ours / "tokenizer.json").read_bytes()
    before, after = roles_of(ours), roles_of(tmp_path)
    assert {role: after[role] for role in before if role != "delimiter"} == {
        k: v for k, v in before.items() if k != "delimiter"
    }
    assert json.loads((tmp_path / "tokenizer-info.json").read_text())["sentinels"] == (5 if name == "t5" else 0)


def bare_gpt2_tokenizer(folder: Path) -> Path:
    """As released: one special token, which config.json alone tells of."""
    from tokenizers import models, pre_tokenizers

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE({"a": 0, "Ġ": 1, "<|endoftext|>": 2}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "bos_token_id": 2, "eos_token_id": 2}))
    return folder


def test_a_missing_role_is_filled_by_the_nearest(tmp_path: Path) -> None:
    info = read_tokenizer(bare_gpt2_tokenizer(tmp_path / "gpt2"))
    assert info["special_tokens"] == {"pad": 2, "cls": 2, "sep": 2, "bos": 2, "eos": 2}
    assert (info["kind"], info["vocab_size"], info["lowercase"]) == ("bpe", 3, False)


def test_tokens_are_found_as_objects_and_as_strings(tmp_path: Path) -> None:
    folder = bare_gpt2_tokenizer(tmp_path / "gpt2")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "a", "special": True}}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "Ġ", "mask_token": "Ġ"}))
    roles = read_tokenizer(folder)["special_tokens"]
    assert (roles["pad"], roles["mask"], roles["eos"]) == (0, 1, 2)


def test_tokenizers_that_do_not_fit(tmp_path: Path, exported: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer.json: no such file.*AutoTokenizer.from_pretrained"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a tokenizer"):
        read_tokenizer(tmp_path)
    their_model("bert").save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_bytes((exported["gpt2"][0] / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match=r"tokenizer.json has \d+ tokens, the model's vocab_size is 90"):
        import_into(tmp_path / "bert", tmp_path / "out")
