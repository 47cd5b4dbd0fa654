"""Measurements from files: what is read, what is refused, and what is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.errors import BadConfig, BadData
from tasks.scaling.point_files import Columns, read_points, read_variants
from tasks.scaling.points import points_of

GOOD = ["params,tokens,loss", "1e8,2e9,3.5", "2e8,2e9,3.3", "1e8,4e9,3.4"]


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_third_of_params_tokens_and_flops_follows(tmp_path: Path) -> None:
    points = read_points(write(tmp_path, GOOD))
    assert points.flops.tolist() == [1.2e18, 2.4e18, 2.4e18] and not points.flops_given
    by_flops = read_points(write(tmp_path, ["N;C;L", "1e8;1.2e18;3.5"]), Columns(params="N", flops="C", loss="L"))
    assert by_flops.tokens.tolist() == [2e9] and by_flops.flops_given


def test_own_flops_are_believed_and_told(tmp_path: Path) -> None:
    points = read_points(write(tmp_path, ["params,tokens,flops,loss", "1e8,2e9,1.8e18,3.5"]))
    assert points.flops.tolist() == [1.8e18]
    assert "flops are 1.50 times 6·params·tokens" in points.warnings[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1e8,2e9,nan", "line 5: loss is nan, not finite"),
        ("1e8,-2e9,3", "line 5: tokens is -2e9, not positive"),
        ("0,2e9,3", "line 5: params is 0, not positive"),
        ("1e8,2e9,", "line 5: loss is missing"),
        ("1e8,2e9,low", "line 5: loss is 'low', not a number"),
        ("1e8,2e9", "line 5: 2 values for 3 columns"),
        ("1e8,2e9,3e200", r"line 5: loss is 3e\+200, expected a number between 1e-60 and 1e\+60"),
        ("1e-70,2e9,3", "line 5: params is 1e-70, expected"),
    ],
)
def test_rows_that_are_no_measurements_are_named(tmp_path: Path, row: str, said: str) -> None:
    path = write(tmp_path, [*GOOD, row])
    with pytest.raises(BadData, match=said):
        read_points(path)
    if "values for" not in said and "between" not in said and "expected" not in said:
        points = read_points(path, skip_invalid=True)
        assert len(points) == 3 and said in points.warnings[0]


@pytest.mark.parametrize(
    ("columns", "where", "said"),
    [
        (Columns(loss="los"), (), "no column 'los'.*did you mean 'loss'"),
        (Columns(), ("set=a",), "no column 'set'"),
        (Columns(), ("loss",), "not of the form column=value"),
        (Columns(), ("loss=9",), "leaves no row"),
    ],
)
def test_wrong_names_are_told(tmp_path: Path, columns: Columns, where: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadConfig, match="(?s)" + said):
        read_points(write(tmp_path, GOOD), columns, where)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="gone.csv"):
        read_points(tmp_path / "gone.csv")
    with pytest.raises(BadData, match="is empty"):
        read_points(write(tmp_path, [""]))
    with pytest.raises(BadData, match="a header and no rows"):
        read_points(write(tmp_path, GOOD[:1]))
    with pytest.raises(BadConfig, match="two are needed"):
        read_points(write(tmp_path, ["params,loss", "1e8,3"]))


def test_duplicates_count_once_and_repeats_that_disagree_are_told(tmp_path: Path) -> None:
    points = read_points(write(tmp_path, [*GOOD, GOOD[1]]))
    assert len(points) == 3 and "1 rows repeat others exactly" in points.warnings[0]
    seeds = read_points(write(tmp_path, [*GOOD, "1e8,2e9,3.51"]))
    assert len(seeds) == 4 and seeds.warnings == ()
    (told,) = read_points(write(tmp_path, [*GOOD, "1e8,2e9,4.5"])).warnings
    assert "mixed data? 2 points share params and tokens" in told and "line 2, 5" in told


def test_mixed_data_sets_are_told_and_chosen_from(tmp_path: Path) -> None:
    rows = [f"{name},{1e8 * (i + 1)},2e9,{3 + 0.1 * i + (name == 'web')}" for name in ("wiki", "web") for i in range(4)]
    path = write(tmp_path, ["corpus,params,tokens,loss", *rows])
    assert any("mixed data: 'corpus' has 2 values (wiki, web)" in w for w in read_points(path).warnings)
    one = read_points(path, where=["corpus=w?k*"])
    assert len(one) == 4 and one.warnings == ()


def test_text_that_was_seen_often_is_told(tmp_path: Path) -> None:
    rows = [f"{1e8 * (i + 1)},2e9,{2e9 / epochs},{3 + 0.1 * i}" for i, epochs in enumerate((1, 4, 5, 20))]
    (told,) = read_points(write(tmp_path, ["params,tokens,unique_tokens,loss", *rows])).warnings
    assert "2 of 4 runs saw their text more than 4 times: the data-constrained form alone" in told


def test_a_column_tells_variants_apart(tmp_path: Path) -> None:
    rows = [f"{rate},{1e8 * (i + 1)},2e9,{3 + 0.1 * i}" for rate in ("0.4", "0.15", "*") for i in range(4)]
    path = write(tmp_path, ["rate,params,tokens,loss", *rows])
    found = read_variants(path, "rate")
    assert list(found) == ["0.4", "0.15", "*"] and [len(points) for points in found.values()] == [4, 4, 4]
    assert found["0.15"].lines.tolist() == [6, 7, 8, 9]
    assert list(read_variants(path, "rate", where=["rate=0*"])) == ["0.4", "0.15"]
    with pytest.raises(BadConfig, match="one value, '0.4'"):
        read_variants(path, "rate", where=["rate=0.4"])
    with pytest.raises(BadData, match="line 14: rate is missing"):
        read_variants(write(tmp_path, ["rate,params,tokens,loss", *rows, ",1e9,2e9,3"]), "rate")


def test_units_of_losses(tmp_path: Path) -> None:
    rows = [f"{1e8 * (i + 1)},2e9,{3 + 0.1 * i},{'bits per byte' if i < 4 else 'nats'}" for i in range(8)]
    path = write(tmp_path, ["params,tokens,loss,unit", *rows])
    with pytest.raises(BadData, match=r"2 units \(bits per byte, nats\)"):
        read_points(path)
    points = read_points(path, where=["unit=nats"])
    assert points.unit == "nats" and points.take(np.array([0])).unit == "nats"
    assert [p.unit for p in read_variants(path, "unit").values()] == ["bits per byte", "nats"]
    assert read_points(write(tmp_path, GOOD)).unit == ""


def test_arrays_are_checked_too() -> None:
    with pytest.raises(BadData, match="line 3: loss is nan"):
        points_of(np.array([3.0, np.nan]), params=np.array([1e8, 1e8]), tokens=np.array([1e9, 1e9]))
