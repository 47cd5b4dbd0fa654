"""What `submit` sends: a config that the job reads as it is, with this machine's paths made absolute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config import find_recipe, resolve
from pipelines.sending import absolute_path, with_absolute_paths
from tests.cluster.conftest import s3_server  # noqa: F401


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "b.txt", "data/c.txt"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sent(*words: str) -> dict[str, Any]:
    return with_absolute_paths("bert", resolve(find_recipe("bert"), words).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("corpus", "found"),
    [
        ("a.jsonl", "{}/a.jsonl"),
        ("./data/", "{}/data"),
        ("data/*.txt", "{}/data/*.txt"),
        ("data/**", "{}/data/**"),
        ("a.jsonl,b.txt", "{}/a.jsonl,{}/b.txt"),
        ("[a.jsonl,b.txt]", ["{}/a.jsonl", "{}/b.txt"]),
        ("[a.jsonl,s3://bucket/a.jsonl]", ["{}/a.jsonl", "s3://bucket/a.jsonl"]),
        ("s3://bucket/data/", "s3://bucket/data/"),
        ("installed-docs", "installed-docs"),
        ("only-on-the-cluster/", "only-on-the-cluster/"),
        ("/only/on/the/cluster/*.txt", "/only/on/the/cluster/*.txt"),
    ],
)
def test_paths_that_are_here_become_absolute(here: Path, corpus: str, found: Any) -> None:
    expected = [f.format(here) for f in found] if isinstance(found, list) else found.format(here, here)
    assert sent(f"corpus={corpus}")["corpus"] == expected


def test_a_run_on_a_cluster_has_absolute_paths_too(here: Path) -> None:
    from pipelines.cli_options import build

    for address, source in (("auto", f"{here}/a.jsonl"), ("inline", "a.jsonl"), (None, "a.jsonl")):
        assert build("bert", ["corpus=a.jsonl"], None, address=address).config["corpus"] == source


def test_components_of_a_mixture_and_other_fields_too(here: Path) -> None:
    made = sent("corpus={wiki: {source: a.jsonl, epochs: 2}, rest: [b.txt, data]}", "downstream_dir=data")
    assert [part["source"] for part in made["corpus"]] == [f"{here}/a.jsonl", [f"{here}/b.txt", f"{here}/data"]]
    assert [part["name"] for part in made["corpus"]] == ["wiki", "rest"]
    assert made["downstream_dir"] == f"{here}/data"


def test_names_that_are_no_paths_stay_though_a_file_is_called_so(here: Path) -> None:
    before = sent("corpus=a.jsonl")
    for name in ("text", "id", "auto", "wordpiece", "mlm", "stream"):
        (here / name).mkdir()
    assert sent("corpus=a.jsonl") == before


def test_a_folder_whose_name_globs_is_taken_by_its_letters(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = here / "run[1]"
    odd.mkdir()
    (odd / "a.txt").write_text("a")
    monkeypatch.chdir(odd)
    assert absolute_path("*.txt") == f"{here}/run[[]1]/*.txt"


@pytest.mark.parametrize(
    "words", [["objective=causal", "model=gpt2-124M"], ["scale=base"], ["pretrain.tokens=1000000"]]
)
def test_the_job_has_the_same_config_whatever_its_scale_would_put_below(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    import yaml

    from pipelines.cli_options import build
    from pipelines.submit import CONFIG_FILE, RESOLVED

    asked = build("bert", ["corpus=a.jsonl", *words], None)
    (here / CONFIG_FILE).write_text(yaml.safe_dump(with_absolute_paths("bert", asked.given), sort_keys=False))
    monkeypatch.setenv(RESOLVED, CONFIG_FILE)
    assert build("bert", ["tracking=off"], CONFIG_FILE).config == {**asked.config, "corpus": f"{here}/a.jsonl"}


def test_a_wrong_address_is_named(command: Any, text: Path) -> None:
    done = command("submit", "quickstart", "--address", "http://127.0.0.1:notaport")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--address http://127.0.0.1:notaport is no URL" in done.stderr
    assert not list(text.parent.glob("runs"))


def test_a_remote_store_has_no_place_for_mlflow(command: Any, s3_server: str) -> None:  # noqa: F811
    """By default it is a database in the job's temporary folder, lost with it: that is said."""
    call = ["submit", "quickstart", "--store", "s3://triptych/sending", "--address", "http://127.0.0.1:1"]
    said = command(*call, TRIPTYCH_TRACKING="").stderr
    assert "warning: tracking is not set" in said and "TRIPTYCH_TRACKING" in said
    for given in (command(*call, "tracking=off"), command(*call, TRIPTYCH_TRACKING="http://127.0.0.1:2")):
        assert "tracking is not set" not in given.stderr and "no Ray job server answers" in given.stderr
