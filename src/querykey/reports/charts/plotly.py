"""Charts as plotly takes them. Colours stay names until the page is seen: it knows whether it is dark."""

from typing import Any, assert_never

from querykey.reports.charts.spec import (
    COLOURS,
    Bars,
    Chart,
    HeatMap,
    Lines,
    Points,
    are_places,
    named_places,
    place_name,
    shade,
    short,
)

__all__ = ["as_plotly"]

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
GREY, SOFT = "var(--muted)", "var(--soft)"


def as_plotly(chart: Chart) -> dict[str, Any]:
    """The data and layout of a chart.

    Args:
        chart: What it shows.

    Returns:
        {"data": [...], "layout": {...}} as JSON; a colour is "var(--NAME)", a property of the page.

    Example:
        >>> from querykey.reports.charts.spec import Line
        >>> line = Line("loss", [1.0], [0.5])
        >>> as_plotly(Lines(title="t", x="step", y="nats", lines=[line]))["data"][0]["y"]
        [0.5]
    """
    match chart:
        case Lines():
            data, layout = _lines(chart)
        case Bars():
            data, layout = _bars(chart)
        case HeatMap():
            data, layout = _heat_map(chart)
        case Points():
            data, layout = _points(chart)
        case never:
            assert_never(never)
    return {"data": data, "layout": layout}


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _lines(chart: Lines) -> tuple[list[Any], dict[str, Any]]:
    names, data, drawn = are_places(chart), [], 0
    for line in chart.lines:
        colour = GREY if line.is_reference else _colour(drawn)
        drawn += not line.is_reference
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines" if line.is_reference or len(line.x) > 60 else "lines+markers",
            "name": line.name,
            "x": [place_name(x) for x in line.x] if names is not None else list(line.x),
            "y": [short(y) for y in line.y],
            "line": {"color": colour, "width": 1.5 if line.is_reference else 2},
            "marker": {"color": colour, "size": 7, "symbol": SYMBOLS[(drawn - 1) % len(SYMBOLS)]},
        }
        if line.is_reference:
            trace["line"]["dash"] = "dash"
        if line.low:
            up = [short(high - y) for high, y in zip(line.high, line.y, strict=True)]
            down = [short(y - low) for low, y in zip(line.low, line.y, strict=True)]
            trace["error_y"] = {
                "type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": colour,
                "thickness": 1.2, "width": 4,
            }  # fmt: skip
        data.append(trace)
    x: dict[str, Any] = {"title": {"text": chart.x}}
    if names is not None:
        x |= {"type": "category", "categoryorder": "array", "categoryarray": names}
    elif chart.log_x:
        own = named_places(chart)
        x |= {"type": "log", "dtick": 1, "exponentformat": "none"}
        if own:
            x |= {"tickmode": "array", "tickvals": own, "ticktext": [f"{one:,g}" for one in own]}
    y = {"title": {"text": chart.y}, "rangemode": "tozero" if chart.from_zero else "normal"}
    layout = {"xaxis": x, "yaxis": y, "showlegend": len(data) > 1}
    return data, layout


def _bars(chart: Bars) -> tuple[list[Any], dict[str, Any]]:
    data = []
    for number, (name, values) in enumerate(chart.groups.items()):
        there = [(label, v) for label, v in zip(chart.labels, values, strict=True) if v is not None]
        data.append({
            "type": "bar", "orientation": "h", "name": name,
            "x": [short(v[0]) for _, v in there], "y": [label for label, _ in there],
            "marker": {"color": [
                SOFT if chart.strong and label not in chart.strong else _colour(number) for label, _ in there
            ]},
            "error_x": {
                "type": "data", "symmetric": False, "color": "var(--ink)", "thickness": 1.2, "width": 4,
                "array": [short(v[2] - v[0]) for _, v in there],
                "arrayminus": [short(v[0] - v[1]) for _, v in there],
            },
        })  # fmt: skip
    rows = len(chart.labels) * max(1, len(chart.groups))
    layout = {
        "xaxis": {"title": {"text": chart.x}, "rangemode": "tozero"},
        "yaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": list(chart.labels)[::-1],
            "ticks": "",
        },
        "showlegend": len(data) > 1, "bargap": 0.35,
        "height": max(220, 90 + 26 * rows + 14 * len(chart.labels)),
        # the first measure stands on top, and first in the legend
        "legend": {"traceorder": "reversed"},
    }  # fmt: skip
    return data[::-1] if len(data) > 1 else data, layout


def _heat_map(chart: HeatMap) -> tuple[list[Any], dict[str, Any]]:
    wide = len(chart.columns) > 8
    trace = {
        "type": "heatmap", "x": list(chart.columns), "y": list(chart.rows),
        "z": [[None if v is None else short(v, 4) for v in row] for row in chart.values],
        "colorscale": [[number / 4, shade(number / 4)] for number in range(5)],
        "xgap": 2, "ygap": 2, "hoverongaps": False,
        "hovertemplate": "%{y}, %{x}: %{z}<extra></extra>",
        "texttemplate": "%{z:.2f}" if wide else "%{z:.3f}", "textfont": {"size": 10 if wide else 12},
        "colorbar": {"title": {"text": chart.unit, "side": "right"}, "thickness": 12, "outlinewidth": 0},
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": chart.x}, "side": "bottom", "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": chart.y}, "autorange": "reversed", "type": "category", "showgrid": False},
        "height": 130 + 40 * len(chart.rows),
    }
    if chart.apart:
        at = len(chart.columns) - chart.apart - 0.5
        line = {"color": "var(--ink)", "width": 2}
        layout["shapes"] = [
            {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        ]
    return [trace], layout


def _points(chart: Points) -> tuple[list[Any], dict[str, Any]]:
    data, last = [], len(chart.groups) - 1
    for number, (name, points) in enumerate(chart.groups.items()):
        is_rest = number == last and last > 0
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "markers", "name": name,
            "x": [chart.places[i][0] for i in points], "y": [chart.places[i][1] for i in points],
            "text": [chart.words[i] for i in points],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {
                "color": GREY if is_rest else _colour(number), "size": 5 if is_rest else 7,
                "opacity": 0.55 if is_rest else 0.9, "symbol": SYMBOLS[number % len(SYMBOLS)],
            },
        }  # fmt: skip
        if chart.pictures:
            trace["customdata"] = [chart.pictures[i] for i in points]
            trace["hoverinfo"] = "none"
            del trace["hovertemplate"]
        data.append(trace)
    bare = {"showticklabels": False, "zeroline": False, "ticks": ""}
    layout = {
        "xaxis": {"title": {"text": chart.x}, **bare},
        "yaxis": {"title": {"text": chart.y}, **bare, "scaleanchor": "x"},
        "showlegend": len(data) > 1, "hovermode": "closest", "height": 400 + 16 * len(data),
    }  # fmt: skip
    return (data[-1:] + data[:-1] if last > 0 else data), layout
