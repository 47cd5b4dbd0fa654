"""What was watched while training, on the report's page: in proportion, escaped, and missing where it is missing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipelines.report import curves, engine, watched
from pipelines.report.page import render
from pipelines.report.standalone import training_pictures
from tests.pipelines.report_view import sample_view

TIMINGS = {
    "step_data_seconds": 0.001,
    "step_forward_seconds": 0.1,
    "step_backward_seconds": 0.2,
    "step_optimizer_seconds": 0.05,
    "step_communication_seconds": 0.0,
    "step_other_seconds": 0.049,
    "memory/parameters": 4e6,
    "memory/gradients": 4e6,
    "memory/master_weights": 0,
    "memory/optimizer_state": 8e6,
    "memory/peak_rss": 9e8,
}
PLACEMENT = {
    "memory_predicted": {
        "parameters": 4e6,
        "gradients": 5e6,
        "master_weights": 0,
        "optimizer_state": 8e6,
        "buffers": 0,
    },
    "deepspeed_config": {"zero_optimization": {"stage": 2}, "own": "<b>"},
}
UPDATES = [
    {"step": step, "layers": {"tokens": [1e-3 / step, 5.0, 0.1], "encoder.00": [4e-3 / step, 2.0, 0.3]}}
    for step in range(1, 301)
]
SAMPLES: list[dict[str, Any]] = [
    {"step": 100, "samples": [{"pieces": ["[CLS]", {"truth": "<cat>", "top": [["<dog>", 0.5], ["cow", 0.25]]}]}]},
    {"step": 200, "samples": [{"pieces": ["[CLS]", {"truth": "<cat>", "top": [["<cat>", 0.75], ["cow", 0.125]]}]}]},
    {"step": 250, "samples": [{"pieces": [{"token": "a<", "replaced": 0.02}, {"token": "x", "replaced": 0.7}]}]},
    {"step": 260, "samples": [{"pieces": [{"token": "y", "replaced": 0.9, "truth": "z&"}]}]},
    {"step": 300, "samples": [{"prompt": "one two", "written": "three", "truth": "four & five"}]},
]


def watched_view() -> dict[str, Any]:
    view = sample_view()
    view["training"][0] |= {"timings": TIMINGS, "placement": PLACEMENT, "updates": UPDATES, "samples": SAMPLES}
    return view


def test_the_page_shows_it() -> None:
    page = render(watched_view())
    assert "Where the time of a step goes: medians on rank 0, 400 ms together" in page
    assert "backward 200 ms, 50 %" in page
    assert "Memory that the engine holds, of the fullest worker: 16 MB together; peak of the process 900 MB" in page
    assert "How far an update moves each layer" in page
    assert page.index("after 300 steps") < page.index("after 100 steps"), "the newest first"
    assert "model FLOPs per token × tokens/s ÷ (workers × peak FLOP/s of one)" in page
    assert '<b class="right" title="cow 12.5 %">&lt;cat&gt; <small>75 %</small></b>' in page
    assert '<span title="2 %">a&lt;</span> <b class="wrong" title="">x <small>70 %</small></b></p>' in page
    assert '<b class="right" title="">y <small>90 %</small></b> <i>z&amp;</i>' in page
    assert "&lt;dog&gt;" in page and "four &amp; five" in page and "<cat>" not in page


def test_memory_stands_beside_its_prediction() -> None:
    rows = engine.memory_rows(PLACEMENT, TIMINGS)
    assert [(row["part"], row["ratio"]) for row in rows] == [
        ("parameters", 1.0),
        ("gradients", 0.8),
        ("optimizer state", 1.0),
        ("together", 16 / 17),
    ]
    page = render(watched_view())
    assert '<td class="name">gradients</td><td class="num">5 MB</td><td class="num">4 MB</td>' in page
    assert engine.memory_rows({}, TIMINGS) == [], "of a run that was made before predictions were kept"


def test_deepspeeds_configuration_is_there_folded_and_escaped() -> None:
    page = render(watched_view())
    folded = page[page.index("<details><summary>DeepSpeed's configuration") :]
    assert "&#34;stage&#34;: 2" in folded and "&lt;b&gt;" in folded[: folded.index("</details>")]


def test_a_curve_needs_two_points() -> None:
    records = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0, "validation_loss": 2.5}]
    assert [chart.title for chart in curves.charts(records)] == ["loss"]
    assert [chart.title for chart in curves.charts(records[:1])] == ["loss"]


def test_bars_are_in_proportion() -> None:
    bars = re.findall(r'<rect class="k\d" x="([\d.]+)" y="0" width="([\d.]+)"', watched.step_time(TIMINGS))
    widths = [float(width) + 1 for _, width in bars]
    assert widths[2] == pytest.approx(2 * widths[1], rel=0.01)
    assert float(bars[-1][0]) + widths[-1] == pytest.approx(watched.WIDTH, abs=1)
    assert len(bars) == 5, "no bar for nothing"


def test_a_map_has_a_place_for_each_layer_and_step_and_stays_small() -> None:
    drawn = watched.updates(UPDATES[:10])
    shades = [float(shade) for shade in re.findall(r'fill-opacity="([\d.]+)"', drawn)]
    assert len(shades) == 20
    assert shades[0] < shades[10] == 1.0, "the second layer moves more, and at the first step most"
    assert shades[9] == pytest.approx(0.08)
    assert len(re.findall("fill-opacity", watched.updates(UPDATES))) == 2 * watched.COLUMNS
    assert "step 300" in watched.updates(UPDATES)


@pytest.mark.parametrize("field", ["timings", "placement", "updates", "samples"])
@pytest.mark.parametrize("odd", [None, [], {}, "text", [None, {"step": "x", "layers": 3, "samples": [None]}]])
def test_what_is_missing_or_odd_is_left_out(field: str, odd: Any) -> None:
    view = watched_view()
    view["training"][0][field] = odd
    assert "Training</h2>" in render(view)


def test_pictures_stand_alone() -> None:
    names = [name for name, _ in training_pictures(watched_view())]
    assert {f"plots/{kind}-pretrain.svg" for kind in ("step-time", "memory", "updates")} <= set(names)
