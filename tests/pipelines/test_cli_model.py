"""`triptych generate`, `fill` and `export`: what is said and streamed, and how mistakes are told.

The command runs as a process of its own where streams matter; elsewhere `main` runs in this process, since each start
of torch costs seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.store import Store
from modeling.architecture import TransformerConfig
from modeling.checkpoint import load_model, save_model
from modeling.generation import Generation, fill, generate
from modeling.heads.classification import SequenceClassifier
from modeling.heads.electra import Discriminator
from modeling.heads.language import LanguageModel
from pipelines.models import find_model
from pipelines.prompts import decode, encode_masked, encode_prompt, generation_ids, load_text_model
from tests.pipelines.conftest import ROOT
from tests.pipelines.test_cli import check_error
from tests.pipelines.text_models import PLAIN, SHAPE, published, recorded, save_models, tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def main(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, in `tmp_path`, in this process."""
    import typer

    from pipelines import cli

    def go(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["triptych", *words])
        monkeypatch.setattr(cli, "app", typer.Typer(add_completion=False, pretty_exceptions_enable=False))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), told.out, told.err)

    return go


@pytest.mark.parametrize("name", ["decoder", "t5"])
def test_generate_streams_the_text_that_json_reports(
    command: Any, main: Any, models: dict[str, Path], name: str
) -> None:
    words = ("generate", str(models[name]), "The café", "--max-new-tokens", "30", "--seed", "5", "--top-k", "200")
    told, found = command(*words), main(*words, "--json")
    assert told.returncode == found.returncode == 0, told.stderr + found.stderr
    said = json.loads(found.stdout)
    assert told.stdout == ("The café" if name == "decoder" else "") + said["text"] + "\n"
    assert len(said["ids"]) <= 30 and said["tokens_per_second"] > 0 and said["prompt"] == "The café"
    loaded = load_text_model(models[name])
    settings = Generation(max_new_tokens=30, seed=5, top_k=200, **generation_ids(loaded))
    assert said["prompt_ids"] == encode_prompt(loaded, "The café")
    assert [said["ids"]] == generate(load_model(models[name]), [said["prompt_ids"]], settings=settings)
    assert said["texts"] == [{"text": said["text"], "ids": said["ids"]}]


def test_generate_reads_standard_input_and_writes_several_texts(models: dict[str, Path], tmp_path: Path) -> None:
    words = ["generate", str(models["prefix-lm"]), "-", "--count", "2", "--beams", "3", "--max-new-tokens", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=b"The cat is\n",
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.decode().split("---\n")
    assert first != second and first.startswith("The cat is") and second.startswith("The cat is")
    assert b"note: 2 of 2 texts cut after" in done.stderr and b"model.max_length is 48" in done.stderr


def test_generate_takes_a_model_from_a_store(main: Any, models: dict[str, Path], tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    key = published(store, "bb" * 32, models["decoder"], "model", "pretrain")
    recorded(store, "gpt-20250101-000000-aaaa", {"pretrain": key})
    done = main("generate", "latest", "The", "--store", "store", "--temperature", "0", "--max-new-tokens", "4")
    assert done.returncode == 0 and done.stdout.startswith("The"), done.stderr
    check_error(main("generate", "lates", "The", "--store", "store"), 2, "no run 'lates'")
    check_error(main("generate", "latest", "The"), 2, "holds no runs")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_fill_gives_the_models_candidates(main: Any, models: dict[str, Path], name: str) -> None:
    own = "[MASK]" if name == "bert" else "<mask>"
    done = main("fill", str(models[name]), f"The [MASK] and the {own} run.", "--top", "3", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    loaded = load_text_model(models[name])
    ids = encode_masked(loaded, "The [MASK] and the [MASK] run.")
    assert ids.count(loaded.roles["mask"]) == 2
    (expected,) = fill(load_model(models[name]), [ids], mask_id=loaded.roles["mask"], top=3)
    assert [[c["id"] for c in mask] for mask in said["masks"]] == [[c.id for c in mask] for mask in expected]
    # rounded to six digits
    assert abs(said["masks"][0][0]["probability"] - expected[0][0].probability) < 1e-6
    best = iter(expected)
    assert said["filled"] == decode(loaded, [next(best)[0].id if i == loaded.roles["mask"] else i for i in ids])
    told = main("fill", str(models[name]), "The [MASK].")
    assert told.returncode == 0 and len(told.stdout.splitlines()) == 7 and "\nmask\n  0." in told.stdout


def test_an_exported_model_is_a_model_of_the_hub_and_comes_back(
    main: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """A folder of the Hub is imported once, and anew after it has changed."""
    config = TransformerConfig(
        **{**SHAPE, **PLAIN, "architecture": "decoder", "norm_eps": 1e-5, "activation": "gelu-tanh"},
        head_bias=False,
        vocab_size=tokenizer(tmp_path / "ours", "gpt2"),
    )
    torch.manual_seed(2)
    save_model(tmp_path / "ours", LanguageModel(config), config, {"name": "language-model", "settings": {}})
    done = main("export", "./ours", "--to", "hub", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["load"] == "transformers.GPT2LMHeadModel.from_pretrained('hub')" and "config.json" in said["files"]
    check_error(main("export", "./ours", "--to", "hub"), 2, "hub exists and is not empty")
    check_error(main("export", str(models["prefix-lm"]), "--to", "other"), 2, "architecture is prefix-lm")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    ids = AutoTokenizer.from_pretrained(tmp_path / "hub")("The cat", return_tensors="pt").input_ids
    greedy = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()

    cache = str(tmp_path / "cache")
    monkeypatch.setenv("TRIPTYCH_CACHE", cache)
    words = ("generate", "./hub", "The cat", "--max-new-tokens", "12", "--json")  # greedy unless asked otherwise
    found = [json.loads(main(*words).stdout) for _ in range(2)]
    assert found[0]["ids"] == found[1]["ids"] == greedy[: len(found[0]["ids"])]
    assert found[0]["model"] == found[1]["model"] and found[0]["model"].startswith(cache)
    assert str(find_model(str(tmp_path / "hub"))) == found[0]["model"]
    for file in (tmp_path / "hub").glob("tokenizer*"):
        file.unlink()
    check_error(main("generate", "./hub", "The cat"), 2, "error: ./hub has no tokenizer.json")  # and not the cache
    os.utime(tmp_path / "hub" / "model.safetensors", (1, 1))
    assert str(find_model(str(tmp_path / "hub"))) != found[0]["model"]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "words", "said"),
    [
        ("bert", ("generate", "./m", "The"), ["an encoder does not write text", "use fill"]),
        ("decoder", ("fill", "./m", "The [MASK]"), ["architecture decoder does not fill masks", "use generate"]),
        ("bert", ("fill", "./m", "The cat"), ["the text has no [MASK]"]),
        ("decoder", ("generate", "./m", "the cat " * 40), ["tokens, and model.max_length is 48; shorten it to 47"]),
        ("decoder", ("generate", "./m", "The", "--beams", "3", "--top-k", "5"), ["beams 3 searches"]),
        ("decoder", ("generate", "./m", "The", "--top-p", "1.5"), ["--top-p is 1.5", "less than or equal to 1"]),
        ("decoder", ("generate", "./m", "The", "--count", "2", "--temperature", "0"), ["count 2 asks for different"]),
        ("classifier", ("generate", "./m", "The"), ["a fine-tuned model"]),
        ("discriminator", ("fill", "./m", "The [MASK]"), ["ELECTRA's discriminator"]),
        ("no tokenizer", ("generate", "./m", "The"), ["./m has no tokenizer.json"]),
        ("cut", ("generate", "./m", "The"), ["its weights cannot be read"]),
        ("nothing", ("generate", "./m", "The"), ["./m: no such folder"]),
    ],
)
def test_mistakes_are_named_without_a_traceback(
    main: Any, models: dict[str, Path], tmp_path: Path, make: str, words: tuple[str, ...], said: list[str]
) -> None:
    MAKERS.get(make, copied(make))(models, tmp_path / "m")
    done = main(*words)
    check_error(done, 2, *said)
    assert not done.stdout and done.stderr.startswith("error: ")


def copied(name: str) -> Callable[[dict[str, Path], Path], None]:
    def make(models: dict[str, Path], to: Path) -> None:
        to.mkdir()
        for path in models[name].iterdir():
            (to / path.name).write_bytes(path.read_bytes())

    return make


def _classifier(models: dict[str, Path], to: Path) -> None:
    copied("bert")(models, to)
    config = load_model(models["bert"]).config
    save_model(to, SequenceClassifier(config, 2), config)


def _discriminator(models: dict[str, Path], to: Path) -> None:
    copied("bert")(models, to)
    config = load_model(models["bert"]).config
    save_model(to, Discriminator(config), config, {"name": "discriminator", "settings": {"kind": "rtd"}})


def _no_tokenizer(models: dict[str, Path], to: Path) -> None:
    copied("decoder")(models, to)
    (to / "tokenizer.json").unlink()


def _cut(models: dict[str, Path], to: Path) -> None:
    copied("decoder")(models, to)
    weights = to / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


MAKERS = {
    "classifier": _classifier,
    "discriminator": _discriminator,
    "no tokenizer": _no_tokenizer,
    "cut": _cut,
    "nothing": lambda models, to: None,
}


def test_help_does_not_load_torch(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['triptych', 'generate', '--help']\nfrom pipelines.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'tokenizers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.endswith("[]\n") and "--max-new-tokens" in done.stdout
