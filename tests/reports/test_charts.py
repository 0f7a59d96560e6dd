"""Charts: the specification is valid, the drawing has its numbers, and each can be read."""

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from querykey.errors import MissingExtraError
from querykey.reports.charts import svg
from querykey.reports.charts.spec import (
    Bars,
    HeatMap,
    Line,
    Lines,
    Points,
    are_places,
    contrasting,
    shade,
    thinned,
)
from querykey.reports.charts.svg import LIGHT, as_svg
from querykey.reports.charts.vega import vega_lite

HOSTILE = "a <b> & \"c\" 'd'"
WHISKERS = Line(HOSTILE, [1.0, 10.0, 100.0], [0.2, 0.4, 0.3], [0.1, 0.4, 0.2], [0.3, 0.4, 0.5])
CHARTS = {
    "lines": Lines(title=HOSTILE, x="momentum", y="share <right>", lines=[WHISKERS]),
    "log": Lines(title="t", x="keys", y="kNN", log_x=True, lines=[WHISKERS, Line("two", [5.0], [0.1])]),
    "names": Lines(title="t", x="x", y="y", lines=[Line("a", ["9", "none"], [1.0, 2.0], is_reference=True)]),
    "level": Lines(title="t", x="x", y="y", from_zero=True, lines=[Line("a", [3.0, 4.0], [7.0, 7.0])]),
    "bars": Bars(
        title="t", x="R@1", labels=[HOSTILE, "0.9", "c" * 80], strong=["0.9"],
        groups={"R@1": [(0.5, 0.4, 0.6), None, (0.1, 0.1, 0.1)], "MAP": [None, (-0.2, -0.3, -0.1), None]},
    ),
    "heat map": HeatMap(
        title="t", x="second", y="first", columns=["a", "b", "mean"], rows=[HOSTILE, "r"], unit="kNN",
        apart=1, values=[[0.1, None, 0.1], [0.9, 0.5, 0.7]],
    ),
    "points": Points(
        title="t", x="first", y="second", groups={"cat": [0, 2], "others": [1]},
        places=[(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)], words=["one", HOSTILE, "three"],
        pictures=[0, -1, 1], sprite="s",
    ),
    "one point": Points(title="t", x="x", y="y", groups={"items": [0]}, places=[(0.0, 0.0)], words=["one"]),
}  # fmt: skip
each_chart = pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS.keys())


def ratio(one, other):
    """Contrast of two colours as WCAG 2 has it, worked out apart from the code."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


SVG = "{http://www.w3.org/2000/svg}"


def texts(drawing):
    return {text.text for text in ET.fromstring(drawing).iter(f"{SVG}text")}


def labels(drawing):
    return [mark.get("aria-label") for mark in ET.fromstring(drawing).iter() if mark.get("aria-label")]


@each_chart
@pytest.mark.parametrize("width", [316, 700])
def test_the_specification_follows_the_schema_of_vega_lite(chart, width):
    altair = pytest.importorskip("altair")
    altair.Chart.from_dict(vega_lite(chart, width=width))  # raises for a property that Vega-Lite has not


@each_chart
@pytest.mark.parametrize("is_file", [False, True])
def test_a_drawing_is_whole_and_the_same_each_time(chart, is_file):
    drawing = as_svg(chart, is_file=is_file)
    assert drawing == as_svg(chart, is_file=is_file)
    root = ET.fromstring(drawing)
    assert (root.get("role"), root.get("aria-label")) == ("img", chart.title)
    assert chart.x in texts(drawing)
    assert (chart.title in texts(drawing)) == is_file
    assert ("var(" in drawing) != is_file
    assert " id=" not in drawing  # many drawings stand on one page
    assert "NaN" not in drawing


@each_chart
@pytest.mark.parametrize("width", [316, 470, 700])
def test_a_drawing_is_as_wide_as_its_column(chart, width):
    assert float(ET.fromstring(as_svg(chart, width=width)).get("width")) == pytest.approx(width, rel=0.05)


def test_marks_say_their_numbers():
    assert f"{HOSTILE}: 0.2 [0.1, 0.3] at momentum 1" in labels(as_svg(CHARTS["lines"]))
    assert labels(as_svg(CHARTS["bars"]))[1:] == [
        f"{HOSTILE}, R@1: 0.5 [0.4, 0.6]", f"{'c' * 80}, R@1: 0.1", "0.9, MAP: -0.2 [-0.3, -0.1]",
    ]  # fmt: skip
    assert f"{HOSTILE}, a: 0.1 kNN" in labels(as_svg(CHARTS["heat map"]))


def test_points_stand_where_their_numbers_are():
    marks = [m for m in ET.fromstring(as_svg(CHARTS["lines"])).iter(f"{SVG}path") if m.get("aria-label")]
    places = [tuple(map(float, re.findall(r"-?[\d.]+", mark.get("transform")))) for mark in marks]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert (x2 - x1) / (x3 - x1) == pytest.approx(9 / 99, abs=0.002)
    assert (y1 - y2) / (y1 - y3) == pytest.approx(2.0, abs=0.02)


def test_points_of_a_map_name_their_picture():
    marks = [m for m in ET.fromstring(as_svg(CHARTS["points"])).iter(f"{SVG}path") if m.get("data-place")]
    assert {(mark.get("data-place"), mark.get("aria-label")) for mark in marks} == {
        ("0", "one"), ("-1", HOSTILE), ("1", "three"),
    }  # fmt: skip


def test_a_long_line_says_some_of_its_numbers_and_hides_its_marks():
    xs = [float(step) for step in range(300)]
    chart = Lines(title="t", x="step", y="loss", lines=[Line("a", xs, xs)])
    drawing = as_svg(chart)
    assert 50 <= len(labels(drawing)) - 1 <= 60
    marks = [mark for mark in ET.fromstring(drawing).iter(f"{SVG}path") if mark.get("aria-label")]
    assert {mark.get("opacity") for mark in marks} == {"0"}


def test_numbers_are_not_shortened_with_the_shapes():
    line = Line("0.12345678", [1.0, 2.0], [1.0, 2.0])
    drawing = as_svg(Lines(title="1.23456", x="at 9.87654", y="y", lines=[line]))
    assert "at 9.87654" in texts(drawing)
    assert "0.12345678: 1 at at 9.87654 1" in labels(drawing)


def test_an_axis_from_zero_shows_it():
    assert "0" in texts(as_svg(CHARTS["level"]))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    svg._vega.cache_clear()
    with pytest.raises(MissingExtraError, match=r"querykey\[report\]"):
        as_svg(CHARTS["lines"])


def test_a_log_axis_with_a_zero_takes_names():
    line = Line("a", [0.9, 0.0, 0.99], [1.0, 2.0, 3.0])
    assert are_places(Lines(title="t", x="x", y="y", log_x=True, lines=[line])) == ["0", "0.9", "0.99"]
    assert are_places(Lines(title="t", x="x", y="y", lines=[line])) is None


def test_a_log_axis_names_its_few_places():
    keys = [64.0, 256.0, 1024.0, 4096.0]
    few = Lines(title="t", x="keys", y="y", log_x=True, lines=[Line("a", keys[:3], [1.0] * 3),
                                                             Line("b", keys[1:], [2.0] * 3)])  # fmt: skip
    found = texts(as_svg(few))
    assert {"64", "256", "1,024", "4,096"} <= found
    assert "100" not in found
    many = Lines(
        title="t", x="k", y="y", log_x=True, lines=[Line("a", [2.0**n for n in range(9)], [1.0] * 9)]
    )
    assert "10" in texts(as_svg(many))


@pytest.mark.parametrize("share", [place / 50 for place in range(51)])
def test_numbers_are_readable_on_every_shade(share):
    assert ratio(shade(share), contrasting(shade(share))) >= 4.5


def test_text_is_readable_on_paper():
    assert min(ratio(LIGHT["ink"], LIGHT["paper"]), ratio(LIGHT["muted"], LIGHT["paper"])) >= 4.5


def test_a_long_curve_keeps_its_mean():
    xs, ys = thinned([float(step) for step in range(1, 1001)], [float(step) for step in range(1, 1001)])
    assert len(xs) <= 300
    assert xs[-1] == 1000
    assert ys[0] == pytest.approx(sum(range(1, int(xs[0]) + 1)) / xs[0])
    assert thinned([1.0], [0.5]) == ([1.0], [0.5])
