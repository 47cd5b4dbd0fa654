"""Clean: lists of steps, the funnel's figures, passes and their resumption, and each error by its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import BadConfig, BadData, Cancelled, UserError
from pipelines.identity import code_roots, config_of
from tasks.base import Runtime
from tasks.clean import Clean
from tasks.cleaning import STEP_SETTINGS, STEPS
from tasks.cleaning.settings import STANDARD, WEB, AnyStep, StepSettings, parse
from tasks.datasets import LabelledData, write_rows
from tasks.downstream.spec import Row
from tasks.ingest import Ingest
from tests.tasks.corpora import documents, facts, prose, write_corpus
from tests.tasks.stage import FolderContext, digests, run_stage

CORPUS = Ingest(source="articles.jsonl")
DATASET = LabelledData(task="cola", directory="cola")
PAGE = "\n".join([prose(1000), "Share on Facebook", "Write to ann@example.org for more of this kind of thing."])


def clean(folder: Path, corpus: Path, *steps: Any, name: str = "out", **inputs: Path) -> FolderContext:
    fields = {"evaluation": (DATASET,)} if inputs else {}
    return run_stage(Clean(corpus=CORPUS, steps=steps, **fields), folder / name, corpus=corpus, **inputs)


# ---------------------------------------------------------------- settings


def test_lists_and_bare_names_stand_for_steps() -> None:
    assert [step.kind for step in Clean(corpus=CORPUS).steps] == list(STANDARD)
    assert Clean(corpus=CORPUS, steps="standard") == Clean(corpus=CORPUS, steps=[{"kind": k} for k in STANDARD])
    web = Clean(corpus=CORPUS, steps="web")
    assert [step.kind for step in web.steps] == [kind for kind in WEB if kind != "decontaminate"]
    assert [s.kind for s in Clean(corpus=CORPUS, steps="web", evaluation=(DATASET,)).steps] == list(WEB)
    assert set(WEB) == set(STEPS) == set(STEP_SETTINGS)
    (step,) = Clean(corpus=CORPUS, steps=[{"kind": "gopher", "min_words": 9}]).steps
    assert step.min_words == 9 and step.max_words == 100_000


@pytest.mark.parametrize("kind", STEPS)
def test_every_step_is_part_of_the_key_with_its_code(kind: str) -> None:
    settings = parse(kind)
    assert isinstance(settings, StepSettings) and settings.kind == kind
    evaluation = (DATASET,) if settings.needs_evaluation else ()
    task = Clean(corpus=CORPUS, steps=[kind], evaluation=evaluation)
    assert {STEPS[kind], STEP_SETTINGS[kind]} <= set(code_roots(task))
    assert config_of(task)["steps"][0]["kind"] == kind
    assert parse(settings) is settings


def test_evaluation_that_no_step_looks_at_is_no_edge() -> None:
    assert Clean(corpus=CORPUS, steps=["gopher"], evaluation=(DATASET,)) == Clean(corpus=CORPUS, steps=["gopher"])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("wbe", "no list of cleaning steps is called 'wbe'"),
        (["gofer"], "did you mean 'gopher'"),
        ([{"min_words": 3}], "no kind"),
        ([{"kind": "gopher", "min_word": 3}], "did you mean 'min_words'"),
        ([{"kind": "length", "min_chars": 9, "max_chars": 3}], "min_chars 9 is more than max_chars 3"),
        ([{"kind": "language", "languages": ["en"], "candidates": ["de"]}], "candidates lacks"),
        ([3], "expected a cleaning step, found 3"),
        ([], "an empty list would clean nothing"),
        (["decontaminate"], "evaluation is not given"),
    ],
)
def test_wrong_settings_are_told(steps: Any, said: str) -> None:
    with pytest.raises((UserError, ValidationError)) as caught:
        Clean(corpus=CORPUS, steps=steps)
    assert said in str(caught.value)


def test_a_file_that_a_step_reads_is_part_of_the_key_by_its_content(tmp_path: Path) -> None:
    keys = []
    for name, text in (("a.txt", "darn"), ("b.txt", "heck"), ("c.txt", "darn")):
        (tmp_path / name).write_text(text)
        task = Clean(corpus=CORPUS, steps=[{"kind": "c4", "bad_words_file": str(tmp_path / name)}])
        (print_,) = task.external()["steps.0.c4"]
        keys.append((json.dumps(config_of(task)), print_["checksum"]))
    assert keys[0] == keys[2] != keys[1]
    gone = Clean(corpus=CORPUS, steps=[{"kind": "c4", "bad_words_file": "gone.txt"}])
    with pytest.raises(BadConfig, match="gone.txt"):
        gone.external()


# ---------------------------------------------------------------- what comes out


def test_documents_pass_through_with_all_they_have(tmp_path: Path) -> None:
    texts = [prose(n) for n in range(40)]
    corpus = write_corpus(tmp_path / "in", texts, [prose(n) for n in range(100, 110)])
    context = clean(tmp_path, corpus, "unicode", "control-characters", "gopher", "exact-duplicates", "length")
    assert documents(context.out) == documents(corpus)
    found, given = facts(context.out), facts(corpus)
    assert found["splits"]["train"]["documents"] == 40 and found["splits"]["validation"]["documents"] == 10
    assert found["bytes"] == given["bytes"] and found["words"] == sum(len(d["text"].split()) for d in documents(corpus))
    assert found["characters"] == sum(len(d["text"]) for d in documents(corpus))
    assert found["skipped"] == {"empty": 2} and found["duplicates"] == 1
    assert found["sources"] == {"made.jsonl": {"documents": 50, "bytes": given["bytes"]}}


def test_the_funnel_adds_up(tmp_path: Path) -> None:
    texts = [prose(n) for n in range(30)] + ["short"] * 20 + [PAGE] * 5 + ["caf\u00c3\u00a9 " + prose(7)] + ["***"]
    corpus = write_corpus(tmp_path / "in", texts, [prose(200), "short too"])
    context = clean(tmp_path, corpus, "unicode", "boilerplate", "pii", "length", "exact-duplicates", "length")
    found = facts(context.out)
    rows = found["funnel"]
    assert [row["step"] for row in rows] == [
        "input", "unicode", "boilerplate", "pii", "length", "exact-duplicates", "length (2)",
    ]  # fmt: skip
    for before, after in zip(rows[:-1], rows[1:], strict=True):
        assert after["documents"] == before["documents"] - after["removed"]["documents"]
        assert after["changed"] or after["bytes"] == before["bytes"] - after["removed"]["bytes"]
        assert sum(after["reasons"].values()) == after["removed"]["documents"] + after["changed"]
    assert rows[0]["documents"] == 59 and rows[0]["bytes"] == sum(len(t.encode()) for t in texts) + len(
        prose(200) + "short too"
    )
    steps = {row["step"]: row for row in rows}
    assert steps["unicode"]["reasons"] == {"mojibake repaired": 1}
    assert steps["boilerplate"]["reasons"] == {"boilerplate lines removed": 5, "nothing left": 1}
    assert steps["pii"]["counts"] == {"e-mail address": 5}
    assert steps["length"]["reasons"] == {"fewer than 200 characters": 21}
    assert steps["length"]["validation_documents"] == 1
    assert steps["exact-duplicates"]["removed"]["documents"] == 4
    assert found["documents"] == rows[-1]["documents"] == len(documents(context.out)) == 33
    assert found["bytes"] == rows[-1]["bytes"] == sum(len(d["text"].encode()) for d in documents(context.out))
    assert context.metrics["removed.length"] == 21 and context.metrics["removed.length-2"] == 0
    assert context.metrics["kept_documents_share"] == round(33 / 59, 6)
    assert any("21 fewer than 200 characters" in line for line in context.logged)


def test_samples_are_the_first_ones_around_what_changed(tmp_path: Path) -> None:
    long = prose(1, 60)
    texts = [f"{long} n{n}\u00a0end. {long}" for n in range(5)] + ["short"] * 5
    corpus = write_corpus(tmp_path / "in", texts)
    _, control, length = facts(clean(tmp_path, corpus, "control-characters", "length").out)["funnel"]
    assert [sample["id"] for sample in control["samples"]] == ["t0", "t1", "t2"]
    first = control["samples"][0]
    assert "n0\u00a0end" in first["before"] and "n0 end" in first["after"]
    assert len(first["before"]) == len(first["after"]) == 300
    assert length["samples"][0] == {
        "id": "t5", "reason": "fewer than 200 characters", "before": "short", "after": None,
    }  # fmt: skip


def test_samples_do_not_repeat_what_was_masked(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", [prose(1) + " Ask ann@example.org."])
    (sample,) = facts(clean(tmp_path, corpus, "pii").out)["funnel"][1]["samples"]
    assert "a••@•••••••.•••" in sample["before"] and "<EMAIL>" in sample["after"]


def test_a_second_clean_goes_on_with_the_funnel(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", [prose(n) for n in range(9)] + ["short", "a b " * 90])
    first = clean(tmp_path, corpus, "length")
    second = clean(tmp_path, first.out, "gopher", name="again")
    assert [row["step"] for row in facts(second.out)["funnel"]] == ["input", "length", "gopher"]
    assert second.metrics["kept_documents_share"] == 0.9


def test_a_group_of_near_duplicates_moves_into_one_split(tmp_path: Path) -> None:
    twins = [prose(n, 40) for n in range(8)]
    corpus = write_corpus(
        tmp_path / "in", twins + [prose(n) for n in range(50, 60)], [t.replace("river", "stream", 1) for t in twins]
    )
    context = clean(tmp_path, corpus, {"kind": "near-duplicates", "action": "group"}, "gopher")
    rows = documents(context.out)
    assert len(rows) == 26
    split = {row["id"]: row["split"] for row in rows}
    assert all(split[f"t{n}"] == split[f"v{n}"] for n in range(8))
    row = facts(context.out)["funnel"][1]
    assert row["removed"]["documents"] == 0
    assert row["validation_documents"] == sum(s == "validation" for s in split.values())
    assert sum(n for what, n in row["counts"].items() if what.startswith("moved to")) == 8


def test_evaluation_texts_are_kept_out(tmp_path: Path) -> None:
    secret = prose(4242, 3)
    rows = [Row("1", "a question that nobody asks", secret), Row("2", secret)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"task": "riddle"}))
    write_rows(folder / "train.parquet", [Row("3", prose(1, 3))])
    write_rows(folder / "validation.parquet", rows)
    corpus = write_corpus(tmp_path / "in", [prose(1), f"{prose(2)}\n{secret}\n{prose(3)}", prose(5)])
    context = clean(tmp_path, corpus, {"kind": "decontaminate", "action": "drop"}, evaluation=folder)
    assert [d["id"] for d in documents(context.out)] == ["t0", "t2"]
    row = facts(context.out)["funnel"][1]
    assert any("riddle" in what for what in row["counts"])
    assert row["facts"] == {"riddle: too short to look for": 1}


def test_nothing_left_names_the_step_that_took_most(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "in", ["short"] * 3 + ["a b " * 90] * 7, [prose(1)])
    with pytest.raises(BadData) as caught:
        clean(tmp_path, corpus, "length", "gopher")
    assert "gopher removed 7 of 11 documents (7 words shorter than 3 on average)" in caught.value.message
    assert "1 for validation" in caught.value.message


# ---------------------------------------------------------------- passes


class _Interrupted(FolderContext):
    """A context that asks to stop after some shards, and its next attempt with the same scratch."""

    left = 1 << 30

    def cancelled(self) -> bool:
        self.left -= 1
        return self.left < 0


STEPS_OF_FIVE_PASSES = [
    "unicode", "exact-duplicates", "gopher", "duplicate-paragraphs", "near-duplicates", "pii", "exact-duplicates",
]  # fmt: skip


def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.cleaning.passes.SLICE_BYTES", 6_000)
    texts = [prose(n % 70) + (f" Also {n}." if n % 3 else "") for n in range(90)] + [PAGE, "short"]
    corpus = write_corpus(tmp_path / "in", texts, [prose(n) for n in range(60, 75)])
    task = Clean(corpus=CORPUS, steps=STEPS_OF_FIVE_PASSES)
    undisturbed = run_stage(task, tmp_path / "undisturbed", corpus=corpus)
    assert len(list((undisturbed.scratch / "pass-04").iterdir())) > 5, "several slices"
    assert not (undisturbed.scratch / "pass-03").exists() and not (undisturbed.scratch / "sign-04").exists()

    for stop in (3, 11, 60):
        context = _Interrupted(tmp_path / f"out{stop}", Runtime(), {"corpus": corpus})
        for attempt in range(1, 40):
            context.left = stop * attempt  # more each time, as a step that decides looks at it too
            try:
                task.run(context)
                break
            except Cancelled:
                assert not list(context.out.iterdir())
        assert digests(context.out) == digests(undisturbed.out), stop


def test_slices_do_not_change_what_is_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [prose(n % 50) + (" Also." if n % 7 == 0 else "") for n in range(80)] + ["short"] * 3
    corpus = write_corpus(tmp_path / "in", texts, [prose(60)])
    found = []
    for size in (1, 10_000, 4 << 20):
        monkeypatch.setattr("tasks.cleaning.passes.SLICE_BYTES", size)
        context = clean(tmp_path, corpus, *STEPS_OF_FIVE_PASSES, name=f"out{size}")
        funnel = [{k: v for k, v in row.items() if k != "facts"} for row in facts(context.out)["funnel"]]
        found.append((documents(context.out), funnel))
    assert found[0] == found[1] == found[2]


def test_an_annotated_field_reads_steps_anywhere() -> None:
    from modeling.config import Config

    class Section(Config):
        clean: tuple[AnyStep, ...]

    made = Section(clean=("pii",))
    assert Section.model_validate(made.model_dump()) == made
