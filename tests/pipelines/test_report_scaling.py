"""Scaling laws on the page: every point links to its run, figures stand with intervals, odd data do no harm."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from pipelines.report import axes, numbers
from pipelines.report.page import render
from pipelines.report.scaling import headline, scaling_section
from pipelines.report.scaling_charts import shade
from pipelines.report.standalone import scaling_pictures
from tests.pipelines.report_view import sample_view
from tests.pipelines.scaling_view import SERVER, scaling_view
from tests.pipelines.test_report import page


def section(text: str) -> str:
    return text[text.index('id="scaling"') : text.index('id="graph"')]


def test_the_page_shows_fits_predictions_and_pairs() -> None:
    view = scaling_view()
    text = page(view).text
    for words in (
        "decoder: N ∝ C^0.51",
        "The loss of both runs beyond the sweep was predicted within 0.4 %.",
        "IsoFLOP lines: models of one compute budget each; diamonds: minima of the parabolas",
        "loss, nats per token (log scale)",
        "training compute, FLOPs (log scale)",
        "Residuals of approach 3 over tokens",
        "Hoffmann et al. 2022, approach 2: table A3, exponent 0.49 (0.462, 0.534)",
        "Kaplan et al. 2020",
        "The 21 runs that the fit cites",
        "The sweep stopped because the 95 % interval of exponent_N is 0.03 wide.",
        "decoder-w512-c6",
        "inside the interval",
        "8 × the sweep's largest",
        "decoder or prefix-lm, each at its optimal size",
        "decoder 99 %, prefix-lm 1 %",
        "Each variant is at its own compute-optimal size.",
        "prefix-lm may overtake decoder: the best estimates do not cross",
    ):
        assert words in text, words
    assert render(view) == render(scaling_view())
    assert 'id="scaling"' not in render(sample_view())


def test_losses_in_tables_have_their_unit() -> None:
    view = scaling_view()
    for sweep in view["scaling"]:
        sweep["unit"] = "bits per byte"
    text = section(render(view))
    assert text.count('</b><br><span class="soft">bits per byte</span></td>') == 2  # measured, of each prediction
    assert text.count('<th class="num">Loss, bits per byte</th>') == 2
    assert "(losses in bits per byte)" in text and '<span class="soft">(bits per byte)</span>' in text
    view["scaling"][0]["unit"] = "nats per label"
    assert "(losses in" not in render(view)


def test_each_point_links_to_its_run_in_mlflow_else_to_its_row() -> None:
    view = scaling_view()
    text = render(view)
    rows = {point["stage"]: point for point in view["scaling"][0]["points"]}
    for stage, point in rows.items():
        # four charts, three of residuals, the frontiers, the table of cited runs, and the stage's own row
        assert text.count(f'href="{point["maker"]["url"]}"') >= 10, stage
    other = view["scaling"][1]["points"][0]["stage"]
    assert section(text).count(f'href="#stage-{other}"') == 9
    assert f'<tr id="stage-{other}">' in text
    inside = re.search(
        rf'<a href="[^"]*{rows["decoder-w64-c2"]["maker"]["mlflow_run"]}"><circle.*?</a>', text, re.DOTALL
    )
    assert inside is not None and "decoder-w64-c2" in inside[0] and "D = 20.3M tokens, C = 1.2e13 FLOPs" in inside[0]


def test_a_changed_run_makes_its_fit_stale() -> None:
    view = scaling_view()
    assert "This fit is stale" not in render(view)
    view["scaling"][0]["points"][3]["changed"] = "made again since, with other bytes"
    text = section(render(view))
    assert "1 of the runs it cites has changed since" in text
    assert text.count("made again since, with other bytes") == 2


def test_losses_of_variants_are_drawn_together_only_where_they_may_be_compared() -> None:
    view = scaling_view()
    assert "Efficient frontiers of the variants" in render(view)
    for said in (False, None):
        view["scaling_comparison"]["comparable"] = said
        assert "Efficient frontiers of the variants" not in render(view)
    view["scaling_comparison"]["comparable"] = True
    view["scaling"][0]["unit"] = "bits per byte"
    assert "Efficient frontiers of the variants" not in render(view)


def test_a_refused_fit_leaves_the_points() -> None:
    view = scaling_view()
    view["scaling"] = view["scaling"][:1]
    view["scaling"][0]["fit"] = {
        "approach_3": {"refused": "5 points cannot tell 5 parameters", "remedy": "measure more"}
    }
    del view["scaling_comparison"]
    text = page(view).text
    assert "approach 3 was refused: 5 points cannot tell 5 parameters; measure more." in text
    assert "Loss over compute" in text and "Residuals" not in text and "N ∝ C^" not in text


@pytest.mark.parametrize("field", ["points", "fit", "next", "left_out", "unit", "variant", "stopped", "maker", "key"])
@pytest.mark.parametrize("odd", [None, {}, [], "text", 3, [None, {}, {"stage": 3, "loss": math.nan, "flops": "x"}]])
def test_what_is_missing_or_odd_is_left_out(field: str, odd: Any) -> None:
    view = scaling_view()
    sweep = view["scaling"][0]
    sweep["fit"] = {"approach_3": {**sweep["fit"]["approach_3"], "covariance": None}}  # no bands: quick
    view["scaling"] = [{**sweep, field: odd}, {}, None]
    view["scaling_comparison"] = {"predictions": odd, "pairs": odd, "variants": odd}
    page(view)


def test_names_are_escaped_and_only_web_addresses_are_links() -> None:
    evil = '"></svg><script>alert(1)</script>'
    view = scaling_view()
    sweep = view["scaling"][0]
    sweep |= {"variant": evil, "unit": evil, "stopped": evil, "left_out": [{"stage": evil, "reason": evil}]}
    sweep["points"][0] |= {"stage": evil, "run": evil, "key": evil, "maker": {"url": "javascript:alert(1)"}}
    view["scaling_comparison"]["pairs"][0] |= {"a": evil, "b": evil}
    view["scaling_comparison"]["predictions"][0] |= {"stage": evil, "variant": evil}
    found = page(view)
    assert "<script" not in render(view) and evil in found.text
    assert not any(str(attributes.get("href")).startswith("javascript") for _, attributes in found.tags)


def test_pictures_stand_alone_with_their_links() -> None:
    pictures = dict(scaling_pictures(scaling_view()))
    assert {"plots/scaling-decoder-1.svg", "plots/scaling-prefix-lm-7.svg", "plots/scaling-forest-1.svg"} <= set(
        pictures
    )
    assert "plots/scaling-frontiers-1.svg" in pictures
    for name, svg in pictures.items():
        links = [e.attrib["href"] for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}a")]
        assert all(link.startswith(SERVER) for link in links), name
        assert bool(links) is (not name.startswith("plots/scaling-prefix") and "forest" not in name), name
    assert not dict(scaling_pictures(sample_view()))


def test_marks_lie_where_their_values_are() -> None:
    x = axes.log_axis("FLOPs", [1e12, 1e16], numbers.power, pad=0)
    assert [text for _, text in x.marks] == ["1e12", "1e13", "1e14", "1e15", "1e16"]
    y = axes.linear_axis("loss", [2.1, 3.9], numbers.number)
    frame = axes.Frame(x, y, width=540, height=330)
    left, foot = frame.at(1e12, y.low)
    right, top = frame.at(1e16, y.high)
    assert (foot, top) == pytest.approx((330 - frame.bottom, frame.top))
    assert frame.at(x.low, 3)[0] == pytest.approx(frame.left) and frame.at(x.high, 3)[0] == pytest.approx(
        540 - frame.right
    )
    assert frame.at(1e14, 3)[0] == pytest.approx((left + right) / 2)
    assert not frame.dot(1e17, 3, "g0", "beyond") and not frame.dot(0, 3, "g0", "no logarithm")
    cut = re.findall(r"([\d.]+),([\d.]+)", frame.band([(1e12, -5, 9), (1e16, -5, 9)], "area"))
    assert {float(up) for _, up in cut} == {top, foot}
    heights = [float(re.findall(r' y="([\d.]+)"', frame.note(1e14, v, "3.4, +1 %"))[0]) for v in (y.high, y.low)]
    assert heights == [pytest.approx(top + 20), pytest.approx(foot + 4)]  # not on the words of the axis


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([5e4, 4e7], ["100K", "1M", "10M"]),
        ([2e6, 4e7], ["3M", "10M", "30M"]),
        ([2e6, 9e6], ["2M", "5M"]),
        ([3.2, 4.1], ["3.2", "3.4", "3.6", "3.8", "4", "4.2"]),
        ([7.0], ["7"]),
    ],
)
def test_log_axes_have_readable_marks(values: list[float], marks: list[str]) -> None:
    axis = axes.log_axis("", values, numbers.amount)
    assert set(marks) & {text for _, text in axis.marks}
    assert 1 <= len(axis.marks) <= 9
    assert all(axis.low <= value <= axis.high for value, _ in axis.marks)


def test_numbers_of_decades() -> None:
    assert [numbers.power(v) for v in (1e12, 3.16e13, 9.99e14, 0, None)] == ["1e12", "3.16e13", "9.99e14", "0", "–"]
    assert [numbers.amount(v) for v in (512, 1.5e3, 10e6, 1.41e12)] == ["512", "1.5K", "10M", "1.41T"]
    assert [numbers.amount(v) for v in (999.4, 999.9, 999_700, 9.999e8)] == ["999", "1K", "1M", "1B"]
    assert [numbers.count(v) for v in (999_900, 999_400_000, 999_700_000)] == ["999,900", "999 M", "1 B"]
    assert [numbers.size(v) for v in (999, 999_600, 999_700_000)] == ["999 B", "1 MB", "1 GB"]
    assert (
        numbers.interval([-5e-29, 0.744]) == "0 to 0.744"
        and numbers.interval([0.5, 0.6], decimals=3) == "0.500 to 0.600"
    )
    assert numbers.interval([1123.4, 9004.2]) == "1,120 to 9,000"
    assert numbers.interval(None) == "–" == numbers.interval([1, math.nan])
    assert (
        numbers.flops_interval([3e18, None]) == "from 3e18" and numbers.flops_interval([1e18, 2e19]) == "1e18 to 2e19"
    )
    assert [numbers.signed_percent(v) for v in (0.004, -0.013, None)] == ["+0.4 %", "−1.3 %", "–"]
    assert [shade(i, 5) for i in range(5)] == [0, 2, 4, 5, 7]


def test_the_headline_says_the_worst_error() -> None:
    view = scaling_view()
    view["scaling_comparison"]["predictions"][1]["error"] = -0.021
    assert "within 2.1 %" in headline(scaling_section(view, view["stages"]))
    assert headline(scaling_section({}, ())) == ""
    json.dumps(view)  # a view is plain data: `triptych report --json` prints it
