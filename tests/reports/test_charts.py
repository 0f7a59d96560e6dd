"""Charts: what plotly is told and what is drawn say the same, and each can be read."""

import re
import xml.etree.ElementTree as ET

import pytest

from querykey.reports.charts.plotly import as_plotly
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
from querykey.reports.charts.svg import INK, MUTED, PAPER, as_svg, log_ticks, ticks, written

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
        pictures=[0, -1, 1], sheet="s",
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


@each_chart
def test_plotly_knows_everything_that_it_is_told(chart):
    objects = pytest.importorskip("plotly.graph_objects")
    told = as_plotly(chart)
    plain = re.sub(r"var\(--\w+\)", "#123456", repr(told))
    objects.Figure(eval(plain))  # raises for a property that plotly has not


@each_chart
@pytest.mark.parametrize("is_file", [False, True])
def test_a_drawing_is_whole_and_the_same_each_time(chart, is_file):
    drawing = as_svg(chart, is_file=is_file)
    assert drawing == as_svg(chart, is_file=is_file)
    root = ET.fromstring(drawing)
    _, top, width, height = map(float, root.get("viewBox").split())
    words = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert chart.x in words
    assert (chart.title in words) == is_file
    for mark in root.iter():
        for name, low, high in (("cx", 0, width), ("cy", top, height), ("x", 0, width), ("y", top, height)):
            assert low <= float(mark.get(name, low)) <= high, (mark.tag, mark.attrib)


def test_drawing_and_plotly_have_the_same_points():
    chart = CHARTS["lines"]
    trace = as_plotly(chart)["data"][0]
    assert (trace["x"], trace["y"]) == ([1.0, 10.0, 100.0], [0.2, 0.4, 0.3])
    assert trace["error_y"]["array"] == [0.1, 0.0, 0.2]
    assert trace["error_y"]["arrayminus"] == [0.1, 0.0, 0.1]
    drawn = ET.fromstring(as_svg(chart)).find("{http://www.w3.org/2000/svg}polyline").get("points")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, pair.split(",")) for pair in drawn.split())
    assert (x2 - x1) / (x3 - x1) == pytest.approx(9 / 99, abs=0.002)
    assert (y1 - y2) / (y1 - y3) == pytest.approx(2.0, abs=0.02)


def test_an_axis_from_zero_shows_it():
    level = CHARTS["level"]
    words = [text.text for text in ET.fromstring(as_svg(level)).iter("{http://www.w3.org/2000/svg}text")]
    assert "0" in words
    assert as_plotly(level)["layout"]["yaxis"]["rangemode"] == "tozero"


def test_a_log_axis_with_a_zero_takes_names():
    line = Line("a", [0.9, 0.0, 0.99], [1.0, 2.0, 3.0])
    assert are_places(Lines(title="t", x="x", y="y", log_x=True, lines=[line])) == ["0", "0.9", "0.99"]
    assert are_places(Lines(title="t", x="x", y="y", lines=[line])) is None


def test_a_log_axis_names_its_few_places():
    keys = [64.0, 256.0, 1024.0, 4096.0]
    few = Lines(title="t", x="keys", y="y", log_x=True, lines=[Line("a", keys[:3], [1.0] * 3),
                                                             Line("b", keys[1:], [2.0] * 3)])  # fmt: skip
    words = [text.text for text in ET.fromstring(as_svg(few)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"64", "256", "1,024", "4,096"} <= set(words)
    assert "100" not in words
    axis = as_plotly(few)["layout"]["xaxis"]
    assert (axis["tickvals"], axis["ticktext"]) == (keys, ["64", "256", "1,024", "4,096"])
    many = Lines(
        title="t", x="k", y="y", log_x=True, lines=[Line("a", [2.0**n for n in range(9)], [1.0] * 9)]
    )
    assert "tickvals" not in as_plotly(many)["layout"]["xaxis"]
    assert "10" in [
        text.text for text in ET.fromstring(as_svg(many)).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_bars_of_labels_that_look_like_numbers_stay_labels():
    assert as_plotly(CHARTS["bars"])["layout"]["yaxis"]["type"] == "category"


@pytest.mark.parametrize("share", [place / 50 for place in range(51)])
def test_a_number_can_be_read_on_every_shade(share):
    assert ratio(shade(share), contrasting(shade(share))) >= 4.5


def test_words_can_be_read_on_paper():
    assert min(ratio(INK, PAPER), ratio(MUTED, PAPER)) >= 4.5


@pytest.mark.parametrize(
    ("low", "high"), [(0.13, 0.92), (-3.2, 7.9), (5.0, 5.0), (0.0, 1e-4), (99.5, 1e6), (0.0, 0.0)]
)
def test_ticks_cover_what_they_are_of_and_can_be_told_apart(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low <= high <= marks[-1]
    assert 2 <= len(marks) <= 9
    assert len({written(mark, marks) for mark in marks}) == len(marks)


def test_log_ticks_of_less_than_a_decade_are_its_ends():
    assert log_ticks(0.2, 0.8) == [0.2, 0.8]
    assert log_ticks(1.0, 3.5) == [1.0, 2.0, 3.0]


def test_a_long_curve_keeps_its_mean():
    xs, ys = thinned([float(step) for step in range(1, 1001)], [float(step) for step in range(1, 1001)])
    assert len(xs) <= 300
    assert xs[-1] == 1000
    assert ys[0] == pytest.approx(sum(range(1, int(xs[0]) + 1)) / xs[0])
    assert thinned([1.0], [0.5]) == ([1.0], [0.5])
