"""Charts as Vega-Lite specifications, from which pages and files are rendered.

Colours are CSS properties of the page such as `var(--c0)`, which Vega leaves as they are. Every mark under
the pointer has a description, which becomes its aria-label.
"""

import math
from collections.abc import Sequence
from typing import Any, assert_never

from querykey.reports.charts.spec import (
    COLOURS,
    Bars,
    Chart,
    HeatMap,
    Line,
    Lines,
    Points,
    are_places,
    contrasting,
    named_places,
    place_name,
    shade,
    short,
)

__all__ = ["FONT", "vega_lite"]

Json = dict[str, Any]

FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
"""vl-convert contains the first and measures text with it; the next two are equally wide."""
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-left")
LETTER = 6.6
"""Average width of a letter at 12 px, for the columns of a legend and the angle of labels."""
MOST_MARKED = 60
"""Most points of a line drawn as marks; on a longer line so many respond to the pointer."""


def vega_lite(chart: Chart, *, width: int, with_title: bool = False) -> Json:
    """The Vega-Lite specification of a chart.

    Args:
        chart: Its content.
        width: Of the drawing with its axes, in pixels.
        with_title: Whether title and background are drawn, for a file.

    Returns:
        JSON of the schema Vega-Lite 6. The same chart gives the same JSON.

    Example:
        >>> line = Line("loss", [1.0], [0.5])
        >>> drawn = vega_lite(Lines(title="t", x="step", y="nats", lines=[line]), width=480)
        >>> drawn["layer"][0]["data"]["values"]
        [{'name': 'loss', 'x': 1.0, 'y': 0.5}]
    """
    match chart:
        case Lines():
            drawn = _lines(chart, width)
        case Bars():
            drawn = _bars(chart, width)
        case HeatMap():
            drawn = _heat_map(chart, width)
        case Points():
            drawn = _points(chart, width)
        case never:
            assert_never(never)
    title: Json = {"text": chart.title, "anchor": "start", "frame": "bounds", "fontSize": 15, "limit": width}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "var(--paper)" if with_title else "transparent",
        "padding": 14 if with_title else 2,
        "width": width, "autosize": {"type": "fit-x", "contains": "padding"},
        **({"title": title} if with_title else {}), **drawn, "config": _config(),
    }  # fmt: skip


def _config() -> Json:
    return {
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "aria": False, "labelColor": "var(--muted)", "titleColor": "var(--ink)",
            "gridColor": "var(--grid)",
            "domainColor": "var(--muted)", "tickColor": "var(--muted)", "labelFontSize": 12,
            "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8, "titleLimit": 400,
        },
        "legend": {
            "aria": False, "orient": "top", "labelColor": "var(--ink)", "labelFontSize": 12, "symbolSize": 60,
            "symbolOpacity": 1, "title": None, "rowPadding": 4, "columnPadding": 14, "offset": 8,
        },
        "title": {"aria": False, "color": "var(--ink)", "fontWeight": 600, "offset": 12},
    }  # fmt: skip


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _written(value: float) -> str:
    """A number in a description."""
    return f"{short(value, 4):,g}"


def _interval(low: float, high: float) -> str:
    return f" [{_written(low)}, {_written(high)}]" if high > low else ""


def _legend(names: Sequence[str], width: int) -> Json | None:
    """A legend with as many names per row as fit; None for one name."""
    if len(names) < 2:
        return None
    limit = min(260, width - 60)
    widest = min(limit, LETTER * max(map(len, names))) + 32
    return {"columns": max(1, min(len(names), int((width - 20) / widest))), "labelLimit": limit}


def _named(names: Sequence[str], colours: Sequence[str], shapes: Sequence[str], legend: Json | None) -> Json:
    """Colour and shape channels for names; equal scales share one legend."""
    return {
        channel: {
            "field": "name", "type": "nominal", "legend": legend,
            "scale": {"domain": list(names), "range": list(given)},
        }
        for channel, given in (("color", colours), ("shape", shapes))
    }  # fmt: skip


def _lines(chart: Lines, width: int) -> Json:
    names = are_places(chart)
    colours, shapes, drawn = [], [], 0
    for line in chart.lines:
        colours.append("var(--muted)" if line.is_reference else _colour(drawn))
        shapes.append("stroke" if line.is_reference else SHAPES[drawn % len(SHAPES)])
        drawn += not line.is_reference
    named = _named(
        [line.name for line in chart.lines],
        colours,
        shapes,
        _legend([line.name for line in chart.lines], width),
    )
    x, y = _x_of_lines(chart, names), _y_of_lines(chart)
    colour = {"color": named["color"]}
    layer: list[Json] = []
    for line in chart.lines:
        rows = _rows_of_line(line, are_names=names is not None)
        style = {"strokeWidth": 1.5, "strokeDash": [5, 4]} if line.is_reference else {"strokeWidth": 2}
        layer.append({
            "data": {"values": rows}, "mark": {"type": "line", "aria": False, **style},
            "encoding": {"x": x, "y": y, **colour},
        })  # fmt: skip
    for line in chart.lines:
        if line.low:
            ends = [
                row | {"low": short(low), "high": short(high)}
                for row, low, high in zip(
                    _rows_of_line(line, are_names=names is not None), line.low, line.high, strict=True
                )
            ]
            layer.append({
                "data": {"values": ends}, "mark": {"type": "rule", "aria": False},
                "encoding": {"x": x, "y": {"field": "low", **_plain(y)}, "y2": {"field": "high"}, **colour},
            })  # fmt: skip
    layer += _marks_of_lines(chart, x, y, named, are_names=names is not None)
    return {"height": 250, "layer": layer}


def _plain(channel: Json) -> Json:
    return {key: value for key, value in channel.items() if key != "field"}


def _rows_of_line(line: Line, *, are_names: bool) -> list[Json]:
    return [
        {"name": line.name, "x": place_name(x) if are_names else x, "y": short(y)}
        for x, y in zip(line.x, line.y, strict=True)
    ]


def _x_of_lines(chart: Lines, names: list[str] | None) -> Json:
    if names is not None:
        return {
            "field": "x", "type": "ordinal", "scale": {"type": "point", "padding": 0.3, "domain": names},
            "axis": {"title": chart.x, "grid": False, "labelAngle": 0, "labelOverlap": "greedy"},
        }  # fmt: skip
    axis: Json = {"title": chart.x, "grid": False, "tickCount": 6, "labelFlush": True}
    if not chart.log_x:
        return {
            "field": "x",
            "type": "quantitative",
            "axis": axis,
            "scale": {"zero": False, "nice": False, "padding": 8},
        }
    places = named_places(chart)
    axis |= {"format": ",~g", "labelOverlap": "greedy"} | ({"values": places} if places else {})
    return {
        "field": "x",
        "type": "quantitative",
        "axis": axis,
        "scale": {"type": "log", "nice": False, "padding": 8},
    }


def _y_of_lines(chart: Lines) -> Json:
    scale: Json = {"zero": chart.from_zero, "nice": True}
    ends = [v for line in chart.lines for v in (*line.y, *line.low, *line.high)]
    if min(ends) == max(ends) and not (chart.from_zero and ends[0]):
        room = abs(ends[0]) / 10 or 1.0
        scale |= {"domain": [short(ends[0] - room), short(ends[0] + room)]}
    return {
        "field": "y", "type": "quantitative", "scale": scale,
        "axis": {"title": chart.y, "tickCount": 5, "domain": False, "ticks": False},
    }  # fmt: skip


def _marks_of_lines(chart: Lines, x: Json, y: Json, named: Json, *, are_names: bool) -> list[Json]:
    """Marks of the points; long lines have few and hidden ones, so that the pointer shows numbers."""
    visible: list[Json] = []
    hidden: list[Json] = []
    for line in chart.lines:
        rows = _rows_of_line(line, are_names=are_names)
        ends = zip(line.low, line.high, strict=True) if line.low else [(0.0, 0.0)] * len(rows)
        for row, value, (low, high) in zip(rows, line.y, ends, strict=True):
            where = row["x"] if isinstance(row["x"], str) else f"{row['x']:,g}"
            row["says"] = f"{line.name}: {_written(value)}{_interval(low, high)} at {chart.x} {where}"
        is_long = line.is_reference or len(rows) > MOST_MARKED
        kept = rows[:: -(-len(rows) // MOST_MARKED)] if is_long else rows
        (hidden if is_long else visible).extend(kept)
    layers = []
    for rows, opacity in ((visible, 1), (hidden, 0)):
        if rows:
            layers.append({
                "data": {"values": rows},
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": opacity},
                "encoding": {"x": x, "y": y, **named, "description": {"field": "says", "type": "nominal"}},
            })  # fmt: skip
    return layers


def _bars(chart: Bars, width: int) -> Json:
    names = list(chart.groups)
    rows: list[Json] = [
        {
            "label": label, "name": name, "value": short(three[0]), "low": short(three[1]),
            "high": short(three[2]), "weak": bool(chart.strong) and label not in chart.strong,
            "says": f"{label}, {name}: {_written(three[0])}{_interval(three[1], three[2])}",
        }
        for name, values in chart.groups.items()
        for label, three in zip(chart.labels, values, strict=True)
        if three is not None
    ]  # fmt: skip
    limit = min(230, int(width * 0.42))
    y: Json = {
        "field": "label", "type": "nominal", "sort": None,
        "scale": {"domain": list(chart.labels), "paddingInner": 0.3, "paddingOuter": 0.15},
        "axis": {"title": None, "labelLimit": limit, "ticks": False, "labelColor": "var(--ink)",
                 "labelPadding": 8},
    }  # fmt: skip
    offset = {"yOffset": {"field": "name", "type": "nominal", "scale": {"domain": names}}}
    where = {"y": y} | (offset if len(names) > 1 else {})
    axis = {"title": chart.x, "domain": False, "ticks": False, "tickCount": 4}
    x: Json = {"field": "value", "type": "quantitative", "axis": axis}
    colour = {
        "condition": {"test": "datum.weak", "value": "var(--soft)"},
        **_named(names, [_colour(n) for n in range(len(names))], SHAPES, _legend(names, width))["color"],
    }
    whiskers = [row for row in rows if row["high"] > row["low"]]
    low: Json = {"field": "low", "type": "quantitative"}
    layer: list[Json] = [{
        "data": {"values": rows}, "mark": {"type": "bar"},
        "encoding": {"x": x, **where, "color": colour, "description": {"field": "says", "type": "nominal"}},
    }]  # fmt: skip
    if whiskers:
        ink = {"aria": False, "color": "var(--ink)"}
        layer.append({
            "data": {"values": whiskers}, "mark": {"type": "rule", **ink},
            "encoding": {"x": low, "x2": {"field": "high"}, **_centred(where)},
        })  # fmt: skip
        layer += [
            {
                "data": {"values": whiskers},
                "mark": {"type": "tick", "thickness": 1, "size": 8, **ink},
                "encoding": {"x": low | {"field": end}, **_centred(where)},
            }
            for end in ("low", "high")
        ]
    return {"height": len(chart.labels) * (10 + 18 * len(names)), "layer": layer}


def _centred(where: Json) -> Json:
    """In the middle of a bar."""
    last = "yOffset" if "yOffset" in where else "y"
    return where | {last: where[last] | {"bandPosition": 0.5}}


def _heat_map(chart: HeatMap, width: int) -> Json:
    given = [v for row in chart.values for v in row if v is not None]
    low, spread = min(given), (max(given) - min(given)) or 1.0
    limit = min(150, width // 4)
    cell = (width - 40 - min(limit, LETTER * max(map(len, chart.rows)))) / len(chart.columns)
    digits, size = (2, 10) if cell < 44 else (3, 12)
    cells = []
    for name, row in zip(chart.rows, chart.values, strict=True):
        for column, value in zip(chart.columns, row, strict=True):
            if value is not None:
                colour = shade((value - low) / spread)
                cells.append({
                    "row": name, "column": column, "colour": colour, "ink": contrasting(colour),
                    "text": f"{value:.{digits}f}",
                    "says": f"{name}, {column}: {_written(value)} {chart.unit}",
                })  # fmt: skip
    is_tight = LETTER * max(map(len, chart.columns)) > cell
    across = {"title": chart.x, "labelAngle": -60 if is_tight else 0, "labelLimit": 110}
    x: Json = {
        "field": "column", "type": "nominal", "sort": None, "scale": {"domain": list(chart.columns)},
        "axis": {**across, "ticks": False, "domain": False, "labelPadding": 6},
    }  # fmt: skip
    y: Json = {
        "field": "row", "type": "nominal", "sort": None, "scale": {"domain": list(chart.rows)},
        "axis": {"title": chart.y, "titlePadding": 16, "labelLimit": limit, "ticks": False, "domain": False},
    }  # fmt: skip
    says = {"description": {"field": "says", "type": "nominal"}}
    layer: list[Json] = [
        {
            "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 2},
            "encoding": {
                "x": x, "y": y, "color": {"field": "colour", "type": "nominal", "scale": None}, **says,
            },
        },
        {
            "mark": {"type": "text", "aria": False, "fontSize": size},
            "encoding": {
                "x": x, "y": y, "text": {"field": "text", "type": "nominal"},
                "color": {"field": "ink", "type": "nominal", "scale": None},
            },
        },
    ]  # fmt: skip
    if chart.apart:
        layer.append({
            "data": {"values": [{"column": chart.columns[-chart.apart]}]},
            "mark": {"type": "rule", "aria": False, "color": "var(--ink)", "strokeWidth": 2},
            "encoding": {"x": x | {"bandPosition": 0}},
        })  # fmt: skip
    return {"height": 34 * len(chart.rows), "data": {"values": cells}, "layer": layer}


def _points(chart: Points, width: int) -> Json:
    names, last = list(chart.groups), len(chart.groups) - 1
    colours = ["var(--muted)" if 0 < n == last else _colour(n) for n in range(len(names))]
    rows = []
    # the last group, all other classes, lies below the named ones
    for number in [last, *range(last)]:
        for point in chart.groups[names[number]]:
            says = chart.words[point]
            if chart.pictures:
                says = f"{chart.pictures[point]} {says}"
            x, y = chart.places[point]
            rows.append({"name": names[number], "x": x, "y": y, "size": 16 if 0 < number == last else 36,
                         "says": says})  # fmt: skip
    inner = width - 25
    height = round(inner * 0.8)
    domains = _equal_units(chart.places, inner, height)
    bare = {"labels": False, "ticks": False, "tickCount": 6}
    symbols = [SHAPES[n % len(SHAPES)] for n in range(len(names))]
    encoding: Json = {
        axis: {
            "field": axis, "type": "quantitative", "scale": {"domain": domain, "nice": False},
            "axis": {"title": title, **bare},
        }
        for axis, title, domain in zip("xy", (chart.x, chart.y), domains, strict=True)
    } | _named(names, colours, symbols, _legend(names, width))  # fmt: skip
    encoding["size"] = {"field": "size", "type": "quantitative", "scale": None, "legend": None}
    encoding["description"] = {"field": "says", "type": "nominal"}
    return {
        "width": inner, "height": height, "autosize": "pad", "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "opacity": 0.85}, "encoding": encoding,
    }  # fmt: skip


def _equal_units(places: Sequence[tuple[float, float]], width: int, height: int) -> list[list[float]]:
    """Ends of both axes, so that one unit is as long across as it is up."""
    ends = [(min(p[axis] for p in places), max(p[axis] for p in places)) for axis in (0, 1)]
    unit = max((high - low) / size for (low, high), size in zip(ends, (width, height), strict=True)) or 1.0
    halves = [unit * 1.06 * size / 2 for size in (width, height)]
    middles = [math.fsum(pair) / 2 for pair in ends]
    return [
        [short(middle - half, 7), short(middle + half, 7)]
        for middle, half in zip(middles, halves, strict=True)
    ]
