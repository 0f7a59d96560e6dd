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
SAYS = {"field": "says", "type": "nominal"}
"""Channel of the description of a mark."""


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


def _channel(field: str, kind: str, **options: Any) -> Json:
    return {"field": field, "type": kind, **options}


def _layer(rows: Sequence[Json], mark: Json, **encoding: Json) -> Json:
    return {"data": {"values": rows}, "mark": mark, "encoding": encoding}


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _shape(number: int) -> str:
    return SHAPES[number % len(SHAPES)]


def _written(value: float) -> str:
    """A number in a description."""
    return f"{short(value, 4):,g}"


def _interval(low: float, high: float) -> str:
    return f" [{_written(low)}, {_written(high)}]" if high > low else ""


def _named(names: Sequence[str], colours: Sequence[str], shapes: Sequence[str], width: int) -> Json:
    """Colour and shape channels for names; equal scales share one legend, with as many names a row as fit."""
    legend: Json | None = None
    if len(names) > 1:
        limit = min(260, width - 60)
        widest = min(limit, LETTER * max(map(len, names))) + 32
        legend = {"columns": max(1, min(len(names), int((width - 20) / widest))), "labelLimit": limit}
    scales = {"color": colours, "shape": shapes}
    return {
        channel: _channel("name", "nominal", legend=legend, scale={"domain": [*names], "range": [*given]})
        for channel, given in scales.items()
    }


def _lines(chart: Lines, width: int) -> Json:
    categories = are_places(chart)
    colours, shapes, drawn = [], [], 0
    for line in chart.lines:
        colours.append("var(--muted)" if line.is_reference else _colour(drawn))
        shapes.append("stroke" if line.is_reference else _shape(drawn))
        drawn += not line.is_reference
    named = _named([line.name for line in chart.lines], colours, shapes, width)
    x, y, colour = _x_of_lines(chart, categories), _y_of_lines(chart), named["color"]
    points = [_rows_of_line(line, are_names=categories is not None) for line in chart.lines]
    layer: list[Json] = []
    for line, rows in zip(chart.lines, points, strict=True):
        style = {"strokeWidth": 1.5, "strokeDash": [5, 4]} if line.is_reference else {"strokeWidth": 2}
        layer.append(_layer(rows, {"type": "line", "aria": False, **style}, x=x, y=y, color=colour))
    low = {key: value for key, value in y.items() if key != "field"} | {"field": "low"}
    for line, rows in zip(chart.lines, points, strict=True):
        if line.low:
            whiskers = zip(rows, line.low, line.high, strict=True)
            ends = [row | {"low": short(low), "high": short(high)} for row, low, high in whiskers]
            mark = {"type": "rule", "aria": False}
            layer.append(_layer(ends, mark, x=x, y=low, y2={"field": "high"}, color=colour))
    layer += _marks_of_lines(chart, points, x=x, y=y, **named)
    return {"height": 250, "layer": layer}


def _rows_of_line(line: Line, *, are_names: bool) -> list[Json]:
    xs = map(place_name, line.x) if are_names else line.x
    return [{"name": line.name, "x": x, "y": short(y)} for x, y in zip(xs, line.y, strict=True)]


def _x_of_lines(chart: Lines, categories: list[str] | None) -> Json:
    axis: Json = {"title": chart.x, "grid": False}
    if categories is not None:
        scale: Json = {"type": "point", "padding": 0.3, "domain": categories}
        return _channel("x", "ordinal", scale=scale, axis=axis | {"labelAngle": 0, "labelOverlap": "greedy"})
    axis |= {"tickCount": 6, "labelFlush": True}
    if not chart.log_x:
        scale = {"zero": False, "nice": False, "padding": 8}
        return _channel("x", "quantitative", axis=axis, scale=scale)
    places = named_places(chart)
    axis |= {"format": ",~g", "labelOverlap": "greedy"} | ({"values": places} if places else {})
    return _channel("x", "quantitative", axis=axis, scale={"type": "log", "nice": False, "padding": 8})


def _y_of_lines(chart: Lines) -> Json:
    scale: Json = {"zero": chart.from_zero, "nice": True}
    ends = [v for line in chart.lines for v in (*line.y, *line.low, *line.high)]
    if min(ends) == max(ends) and not (chart.from_zero and ends[0]):
        room = abs(ends[0]) / 10 or 1.0
        scale |= {"domain": [short(ends[0] - room), short(ends[0] + room)]}
    axis = {"title": chart.y, "tickCount": 5, "domain": False, "ticks": False}
    return _channel("y", "quantitative", scale=scale, axis=axis)


def _marks_of_lines(chart: Lines, points: Sequence[list[Json]], **encoding: Json) -> list[Json]:
    """Marks of the points; long lines have few and hidden ones, so that the pointer shows numbers."""
    visible: list[Json] = []
    hidden: list[Json] = []
    for line, rows in zip(chart.lines, points, strict=True):
        ends = zip(line.low, line.high, strict=True) if line.low else [(0.0, 0.0)] * len(rows)
        described = []
        for row, value, (low, high) in zip(rows, line.y, ends, strict=True):
            where = row["x"] if isinstance(row["x"], str) else f"{row['x']:,g}"
            says = f"{line.name}: {_written(value)}{_interval(low, high)} at {chart.x} {where}"
            described.append(row | {"says": says})
        is_long = line.is_reference or len(rows) > MOST_MARKED
        stride = -(-len(rows) // MOST_MARKED) if is_long else 1
        (hidden if is_long else visible).extend(described[::stride])
    mark: Json = {"type": "point", "filled": True, "size": 45}
    return [
        _layer(rows, mark | {"opacity": opacity}, **encoding, description=SAYS)
        for rows, opacity in ((visible, 1), (hidden, 0))
        if rows
    ]


def _bars(chart: Bars, width: int) -> Json:
    names = list(chart.groups)
    rows: list[Json] = []
    for name, values in chart.groups.items():
        for label, three in zip(chart.labels, values, strict=True):
            if three is not None:
                mean, low, high = three
                says = f"{label}, {name}: {_written(mean)}{_interval(low, high)}"
                ends = {"value": short(mean), "low": short(low), "high": short(high)}
                is_weak = bool(chart.strong) and label not in chart.strong
                rows.append({"label": label, "name": name, **ends, "weak": is_weak, "says": says})
    labels = {"labelLimit": min(230, int(width * 0.42)), "labelColor": "var(--ink)", "labelPadding": 8}
    axis: Json = {"title": None, "ticks": False, **labels}
    scale = {"domain": list(chart.labels), "paddingInner": 0.3, "paddingOuter": 0.15}
    where = {"y": _channel("label", "nominal", sort=None, scale=scale, axis=axis)}
    if len(names) > 1:
        where["yOffset"] = _channel("name", "nominal", scale={"domain": names})
    axis = {"title": chart.x, "domain": False, "ticks": False, "tickCount": 4}
    x = _channel("value", "quantitative", axis=axis)
    colour = _named(names, [_colour(n) for n in range(len(names))], SHAPES, width)["color"]
    colour["condition"] = {"test": "datum.weak", "value": "var(--soft)"}
    layer = [_layer(rows, {"type": "bar"}, x=x, **where, color=colour, description=SAYS)]
    whiskers = [row for row in rows if row["high"] > row["low"]]
    if whiskers:
        innermost = "yOffset" if len(names) > 1 else "y"
        centred = where | {innermost: where[innermost] | {"bandPosition": 0.5}}
        ink = {"aria": False, "color": "var(--ink)"}
        tick = {"type": "tick", "thickness": 1, "size": 8, **ink}
        low_end, high_end = (_channel(end, "quantitative") for end in ("low", "high"))
        layer.append(_layer(whiskers, {"type": "rule", **ink}, x=low_end, x2={"field": "high"}, **centred))
        layer += [_layer(whiskers, tick, x=end, **centred) for end in (low_end, high_end)]
    return {"height": len(chart.labels) * (10 + 18 * len(names)), "layer": layer}


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
                texts = {
                    "text": f"{value:.{digits}f}",
                    "says": f"{name}, {column}: {_written(value)} {chart.unit}",
                }
                inks = {"colour": colour, "ink": contrasting(colour)}
                cells.append({"row": name, "column": column, **inks, **texts})
    is_tight = LETTER * max(map(len, chart.columns)) > cell
    bare = {"ticks": False, "domain": False}
    across = {"title": chart.x, "labelAngle": -60 if is_tight else 0, "labelLimit": 110, "labelPadding": 6}
    down = {"title": chart.y, "titlePadding": 16, "labelLimit": limit}
    x, y = (
        _channel(field, "nominal", sort=None, scale={"domain": list(names)}, axis=axis | bare)
        for field, names, axis in (("column", chart.columns, across), ("row", chart.rows, down))
    )
    fill, ink = (_channel(field, "nominal", scale=None) for field in ("colour", "ink"))
    layer: list[Json] = [
        {
            "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 2},
            "encoding": {"x": x, "y": y, "color": fill, "description": SAYS},
        },
        {
            "mark": {"type": "text", "aria": False, "fontSize": size},
            "encoding": {"x": x, "y": y, "text": _channel("text", "nominal"), "color": ink},
        },
    ]
    if chart.apart:
        mark = {"type": "rule", "aria": False, "color": "var(--ink)", "strokeWidth": 2}
        layer.append(_layer([{"column": chart.columns[-chart.apart]}], mark, x=x | {"bandPosition": 0}))
    return {"height": 34 * len(chart.rows), "data": {"values": cells}, "layer": layer}


def _points(chart: Points, width: int) -> Json:
    names, last = list(chart.groups), len(chart.groups) - 1
    colours = ["var(--muted)" if 0 < n == last else _colour(n) for n in range(len(names))]
    rows = []
    # the last group, all other classes, lies below the named ones
    for number in [last, *range(last)]:
        size = 16 if 0 < number == last else 36
        for point in chart.groups[names[number]]:
            says = chart.words[point]
            if chart.pictures:
                says = f"{chart.pictures[point]} {says}"
            x, y = chart.places[point]
            rows.append({"name": names[number], "x": x, "y": y, "size": size, "says": says})
    inner = width - 25
    height = round(inner * 0.8)
    domains = _equal_units(chart.places, inner, height)
    bare = {"labels": False, "ticks": False, "tickCount": 6}
    encoding: Json = {
        axis: _channel(
            axis, "quantitative", scale={"domain": domain, "nice": False}, axis=bare | {"title": title}
        )
        for axis, title, domain in zip("xy", (chart.x, chart.y), domains, strict=True)
    }
    encoding |= _named(names, colours, [_shape(n) for n in range(len(names))], width)
    encoding["size"] = _channel("size", "quantitative", scale=None, legend=None)
    mark = {"type": "point", "filled": True, "opacity": 0.85}
    drawn = _layer(rows, mark, **encoding, description=SAYS)
    return {"width": inner, "height": height, "autosize": "pad", **drawn}


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
