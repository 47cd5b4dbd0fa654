"""The report: valid, self-contained, tolerant of what is missing, honest about what failed."""

from __future__ import annotations

import html.parser
import io
import math
import re
import time
from typing import Any

import pytest
from rich.console import Console

from pipelines.display import results_table
from pipelines.report import composition, curves, dag, dag_svg, funnel, numbers, standalone, vocabularies
from pipelines.report.page import render
from pipelines.report.view import View
from tests.pipelines.report_view import mixture_view, sample_view

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Checks nesting and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def page(view: Any) -> Page:
    text = render(view)
    assert text.lstrip().startswith("<!doctype html>")
    parsed = Page(text)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "iframe", "link", "img", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "xlink:href") and tag != "a":
                raise AssertionError(f"{tag} fetches {value}")
    assert "@import" not in text and "url(" not in text
    return parsed


def test_the_sample_shows_everything() -> None:
    text = page(sample_view()).text
    for words in (
        "brisk-otter",
        "Pretraining pays on 2 of 3 tasks.",
        "44 stages, 1 of them cached.",
        "triptych run quickstart pretrain.steps=1500",
        "✕ no",
        "−0.020",
        "BERT-base: 52.1",
        "36,512",
        "32.1 MB",
        "71.3 %",
        "0.021 %",
        "loss, nats per token",
        "unigram",
        "loop.peak_lr",
        "0.9, 0.98",
        "2.13.0",
        "tasks.pretrain",
        "a worker was lost",
        "2 min 31 s",
        "made by calm-heron",
    ):
        assert words in text, words


@pytest.mark.parametrize("missing", [*View.__annotations__, "all"])
def test_parts_may_be_missing(missing: str) -> None:
    page({} if missing == "all" else {key: value for key, value in sample_view().items() if key != missing})
    page({} if missing == "all" else sample_view() | {missing: None})


def test_fields_may_be_missing_or_odd() -> None:
    rows = [{}, {"task": "x"}, {"pretrained": {"median": 0.5}, "random": {"median": math.nan}}, None]
    text = page(
        {
            "run": {"state": "nonsense"},
            "stages": [{}, {"name": "a", "inputs": ["gone", "a"]}, {"name": "b", "inputs": ["a"], "state": "?"}, None],
            "results": rows,
            "training": [{"records": [{"loss": math.nan}, {"step": 1, "loss": None}]}, {}, {"throughput": 5.0}],
            "corpus": [{"documents": None}, {}],
            "tokenizer": {"kind": "bpe"},
            "provenance": [{}],
            "environment": {"git": "abc"},
        }
    ).text
    assert "not known" in text and "bpe" in text


@pytest.mark.parametrize("state", ["done", "cached", "failed", "skipped", "running", "pending", "cancelled"])
def test_every_state(state: str) -> None:
    view = sample_view()
    view["run"]["state"] = state if state not in ("cached", "skipped") else "done"
    for stage in view["stages"]:
        stage["state"] = state
    found = page(view)
    assert any(attributes.get("class") == f"badge {state}" for _, attributes in found.tags)
    words = {"running": "Still running", "failed": "stages failed", "cancelled": "Cancelled after"}
    assert words.get(state, "") in found.text


def test_the_root_cause_stands_first() -> None:
    view = sample_view()
    view["run"]["state"] = "failed"
    for stage in view["stages"]:
        if stage["name"] == "pretrain":
            error = {
                "type": "BadData",
                "message": "expected 64, found 63",
                "remedy": "rerun examples",
                "log": "a/b.log",
            }
            stage |= {"state": "failed", "error": error, "attempts": 3}
        elif "pretrained" in stage["name"]:
            stage |= {"state": "skipped", "seconds": None, "started_offset_seconds": None}
    text = page(view).text
    assert "1 of 44 stages failed." in text
    places = [text.index(words) for words in ("What went wrong", "expected 64, found 63", "rerun examples", "a/b.log")]
    assert places == sorted(places) and places[-1] < text.index("The run as a graph")
    assert "after 3 attempts" in text and "18 stages that depend on it" in text


def test_names_are_escaped() -> None:
    evil = '<script>alert("x")</script>'
    view: dict[str, Any] = sample_view()
    view["run"] |= {"name": evil, "command": evil, "config": {evil: {evil: evil}}}
    view["run"]["tracking"] = {"uri": evil, "url": "javascript:alert(1)", "run_id": evil}
    view["stages"] = [{"name": evil, "task": evil, "reason": evil, "state": "failed", "error": {"message": evil}}]
    view["stages"][0] |= {"started_offset_seconds": 0, "seconds": 1, "decisions": [{evil: evil}], "metrics": {evil: 1}}
    view["training"] = [{"stage": evil, "records": [{"step": 0, evil: 1.0, "loss": 2.0}], "baselines": {evil: 1.0}}]
    view["corpus"] = {"sources": {evil: 3}, "skipped": {evil: 2}}
    view["results"][0]["task"] = evil
    found = page(view)
    assert "<script" not in render(view) and evil in found.text
    assert not any(str(attributes.get("href")).startswith("javascript") for _, attributes in found.tags)


def test_the_same_view_gives_the_same_page() -> None:
    assert render(sample_view()) == render(sample_view())


def wide(count: int) -> list[dict[str, Any]]:
    middle = [{"name": f"w{n}", "task": "W", "inputs": ["root"], "state": "done"} for n in range(count)]
    return [{"name": "root", "task": "R"}, *middle, {"name": "sum", "task": "S", "inputs": [m["name"] for m in middle]}]


def chain(count: int) -> list[dict[str, Any]]:
    return [{"name": f"c{n}", "task": "C", "inputs": [f"c{n - 1}"] if n else []} for n in range(count)]


def test_folding() -> None:
    assert [len(box.stages) for box in dag.fold(wide(1000))] == [1, 1000, 1]
    assert [len(box.stages) for box in dag.fold(chain(1000))] == [1000]
    assert len(dag.fold(chain(30))) == 30
    mixed = [stage | {"task": f"T{n % 7}"} for n, stage in enumerate(chain(1000))]
    boxes = dag.fold(mixed)
    assert len(boxes) == 7 and sum(len(box.stages) for box in boxes) == 1000
    seeds = dag.fold(sample_view()["stages"])
    assert {box.label: len(box.stages) for box in seeds}["finetune-pretrained"] == 9
    failed = wide(50)
    failed[7]["state"] = "failed"
    assert dag.fold(failed)[1].state == "failed"


def test_inputs_come_before_users_whatever_the_order() -> None:
    boxes = dag.fold(list(reversed(chain(10))))
    assert [box.label for box in boxes] == [f"c{n}" for n in range(10)]
    assert dag.depths(boxes) == list(range(10))
    loop = [{"name": "a", "inputs": ["b"]}, {"name": "b", "inputs": ["a"]}]
    assert len(dag.fold(loop)) == 2 and dag_svg.graph(loop)


def test_boxes_do_not_overlap() -> None:
    for stages in (sample_view()["stages"], sample_view()["stages"][:28], wide(20)):
        svg = str(dag_svg.graph(stages))
        boxes = [
            (float(x), float(y)) for x, y in re.findall(r'<rect class="edgebar[^>]* x="([-\d.]+)" y="([-\d.]+)"', svg)
        ]
        assert len(boxes) == len(dag.fold(stages))
        for index, (x, y) in enumerate(boxes):
            for other_x, other_y in boxes[:index]:
                assert abs(x - other_x) >= dag_svg.BOX_W or abs(y - other_y) >= dag_svg.BOX_H


def test_large_runs_give_small_pages() -> None:
    start = time.process_time()
    for stages in (wide(1000), chain(1000)):
        assert len(render({"stages": stages})) < 400_000
    assert time.process_time() - start < 20  # seconds of work, a guard against quadratic layouts only


def test_charts() -> None:
    records = [{"step": n, "loss": 10 / (n + 1), "learning_rate": 1e-3, "tokens": n * 100} for n in range(5000)]
    loss, rate = curves.charts(records, {"unigram": 5.97})
    assert (loss.title, rate.title) == ("loss", "learning rate") and not rate.baselines
    svg = str(curves.draw(loss))
    assert "(log scale)" in svg and "unigram" in svg and len(svg) < 20_000
    assert str(curves.draw(rate)).count("<polyline") == 1
    spiky = [(float(n), 100.0 if n == 2500 else 1.0) for n in range(5000)]
    assert (2500.0, 100.0) in curves.thin(spiky) and len(curves.thin(spiky)) <= curves.MOST_POINTS + 1
    assert "nan" not in str(curves.draw(curves.Chart("x", "", [(0, 1.0)], {}))).lower()


def test_numbers() -> None:
    shown = [numbers.duration(s) for s in (0, 0.004, 0.8, 42, 151, 3600 * 3 + 300, None)]
    assert shown == ["0 s", "4 ms", "0.8 s", "42 s", "2 min 31 s", "3 h 5 min", "–"]
    assert [numbers.count(n) for n in (36_512, 7_040_000, 1.2e9)] == ["36,512", "7.04 M", "1.2 B"]
    assert [numbers.number(n) for n in (4e-3, 0.35712, -1.5, 12_345.6, 2.75e-5, math.nan)] == [
        "0.004",
        "0.3571",
        "−1.5",
        "12,346",
        "2.75e-5",
        "NaN",
    ]
    assert numbers.size(32_140_000) == "32.1 MB" and numbers.percent(0.00021) == "0.021 %"
    assert numbers.signed(0.14) == "+0.140" and numbers.signed(-0.02) == "−0.020"
    assert numbers.ticks(3.3, 8.3) == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_pretraining_stands_beside_its_baselines() -> None:
    page = render(sample_view())
    for cell in ("mlm", "encoder", "920,000", "5.12 M", "3.351", "5.970", "4.100", "3-gram"):
        assert cell in page[page.index('id="pretraining"') : page.index('id="graph"')], cell
    view = sample_view()
    for objective, measure, said in (("skip-gram", "validation_loss", ["of pairs"]), ("mlm", "loss", ["in training"])):
        row = {**view["pretraining"][0], "objective": objective, "measure": measure}
        page = render({**view, "pretraining": [row]})
        part = page[page.index('id="pretraining"') : page.index('id="graph"')]
        assert [remark for remark in ("of pairs", "in training") if remark in part] == said
    without = {name: value for name, value in sample_view().items() if name != "pretraining"}
    assert 'id="pretraining"' not in render(without)


def test_figures_of_another_metric_or_split_are_named() -> None:
    """A published figure with its metric where ours is another, and what a task is judged by besides."""
    sides = {"pretrained": {"values": [0.8], "median": 0.8}, "random": {"values": [0.1], "median": 0.1}}
    row = {"task": "stsb", "metric": "pearson_spearman", **sides, "published": {"BERT-base (test)": 0.858}}
    row |= {"published_metric": "spearman", "others": {"test.spearman": {"pretrained": 0.7, "random": 0.2}}}
    view = sample_view() | {"results": [row]}
    text = " ".join(page(view).text.split())
    assert "BERT-base (test): 0.858 (spearman)" in text
    assert "stsb, further medians: test.spearman pretrained 0.700, random 0.200." in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table([row, {**row, "task": "sts", "published_metric": "pearson_spearman"}]))
    lines = console.export_text().splitlines()
    assert [("(spearman)" in line) for line in lines if "BERT-base" in line] == [True, False]
    odd = [{**row, "others": value} for value in (None, 3, {"a": None, "b": {"random": None}})]
    page(view | {"results": odd})


def test_a_mixture_shows_its_composition_and_each_funnel() -> None:
    view = mixture_view()
    found = page(view)
    for words in (
        "Corpus: mix",
        "All 9 stages of the corpus",
        "encyclopedia 68.8 %",
        "0.75 epochs",
        "Cleaning: clean-books",
        "Found nothing: pii.",
        "mojibake repaired",
        "candidate_pairs",
        "cafÃ© ␀ <b>&amp;</b>",
        "Tokenizers side by side",
        "tokens per word by vocabulary size",
        "taaaaasty",
        "##ify",
    ):
        assert words in found.text, words
    assert "Corpus: clean-wikipedia" not in found.text  # tiles are for what was trained on
    assert render(mixture_view()) == render(view)


@pytest.mark.parametrize("field", ["components", "funnel"])
def test_data_may_be_missing_or_odd(field: str) -> None:
    odd: list[Any] = [None, {}, 3, "x", [None], [{}], [{}, {"step": None, "documents": "many", "samples": 3}]]
    for value in [*odd, [{"name": "a", "bytes": math.nan, "effective_bytes": 3, "epochs": "two"}]]:
        page({"corpus": {"documents": 3, field: value}, "tokenizer": {"kind": "bpe", "examples": value}})
        page({"tokenizer_comparison": {"rows": value, "examples": value}})
    evil = "</svg><script>alert(1)</script>"
    row = {"name": evil, "category": evil, "bytes": 3, "effective_bytes": 3, "epochs": 1, "weight": 1}
    step = {"step": evil, "documents": 3, "bytes": 3, "reasons": {evil: 1}, "samples": [{"before": evil, "id": evil}]}
    comparison = {
        "rows": [{"kind": evil, "vocab_size": 10, "fertility": 1.0}],
        "examples": [{"word": evil, "class": evil, "pieces": {evil: [evil]}}],
    }
    text = render(
        {"corpus": {"documents": 3, "components": [row], "funnel": [step, step]}, "tokenizer_comparison": comparison}
    )
    assert "<script" not in text and text.count("&lt;/svg&gt;") > 8


def test_corpora_stand_after_what_they_are_made_of() -> None:
    loop = [{"name": "a", "inputs": ["b"]}, {"name": "b", "inputs": ["a"]}, {"name": "c", "inputs": ["gone"]}]
    page({"stages": loop, "corpus": [{"stage": name, "documents": 1} for name in "abc"]})
    view = mixture_view()
    view["corpus"].reverse()
    view["stages"].reverse()
    text = page(view).text
    places = [text.index(f"Cleaning: clean-{name}") for name in ("wikipedia", "wikitext", "books", "shakespeare")]
    assert places == sorted(places)


def test_composition_bars_are_in_proportion() -> None:
    rows = [
        {"name": "a", "bytes": 100, "effective_bytes": 200, "epochs": 2},
        {"name": "b", "bytes": 100, "effective_bytes": 50, "epochs": 0.5},
    ]
    svg = str(composition.picture(rows))
    widths = [float(w) for w in re.findall(r'height="10" width="([\d.]+)"', svg)]
    raw_a, in_a, raw_b, in_b = widths
    assert (raw_a, in_a, in_b) == pytest.approx((raw_b, 2 * raw_a, raw_a / 2))
    assert "80 %" in svg and "200 B" in svg and "0.5 epochs" in svg
    counted = [{**row, "tokens": 10 + n, "effective_tokens": 10 + n} for n, row in enumerate(rows)]
    assert "tokens" in composition.picture(counted) and "200 B" not in composition.picture(counted)
    assert composition.picture([]) == "" == composition.picture([{"name": "a"}])


def test_funnel_bars_and_what_went() -> None:
    steps = [{"step": s, "documents": n, "bytes": 10 * n} for s, n in (("input", 1000), ("c4", 400), ("pii", 400))]
    svg = str(funnel.picture(steps))
    kept = [float(w) for w in re.findall(r'class="kept"[^>]* width="([\d.]+)"', svg)]
    gone = [float(w) for w in re.findall(r'class="gone"[^>]* width="([\d.]+)"', svg)]
    assert len(kept) == 6 and len(gone) == 2
    assert kept[1] / kept[0] == pytest.approx(0.4, abs=0.01) and kept[1] + gone[0] == pytest.approx(kept[0], abs=0.2)
    assert svg.count("−60 %") == 2
    assert funnel.picture([]) == "" == funnel.picture(steps[:1])
    assert funnel.visible("a\x00b\u200bc\n\u202ed é") == "a␀b⟨U+200B⟩c\n⟨U+202E⟩d é"


def test_pictures_stand_alone() -> None:
    import xml.etree.ElementTree as ET

    pictures = dict(standalone.data_pictures(mixture_view()))
    assert "plots/composition-mix.svg" in pictures and "plots/funnel-clean-books.svg" in pictures
    assert sum("compare-tokenizers" in name for name in pictures) == 4
    for name, svg in pictures.items():
        root = ET.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None and "--k0" in str(style.text) and "@media" not in str(style.text)
    assert not dict(standalone.data_pictures({})) and not dict(standalone.data_pictures(sample_view()))


def test_tokenizers_side_by_side() -> None:
    rows = [
        {"kind": kind, "vocab_size": size, "fertility": 2 - n / 10, "unknown_rate": 0.0, "whole_words": None}
        for kind in ("bpe", "unigram", "wordpiece")
        for n, size in enumerate((512, 1024, 2048))
    ]
    (chart,) = vocabularies.pictures(rows)  # nothing unknown, and no other figure
    assert chart.count("<polyline") == 3 and chart.count("<circle") == 9 and "2,048" in chart
    (single,) = vocabularies.pictures(rows[:1])
    assert "nan" not in single.lower() and "512" in single
    moved = vocabularies.apart([100.0, 101.0, 214.0, 215.0])
    assert all(b - a >= 12.9 for a, b in zip(moved, moved[1:], strict=False)) and moved[-1] <= 216
