"""Sizes and precisions of an adapter: bytes, quality and search time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querykey.reports.charts.spec import Line, Lines
from querykey.reports.page.blocks import (
    Block,
    Charts,
    CodeBlock,
    Heading,
    Prose,
    TableBlock,
    made_with,
    number,
)
from querykey.reports.page.run import read_described
from querykey.runtime.frontier import KEEP, Point

__all__ = ["size_blocks"]

PRECISIONS = {32: "float", 8: "int8", 1: "1 bit"}
SHOWN = ("bytes", "quality", "low", "high")
RULE = (
    f"Recommended is the point of fewest bytes that keeps {KEEP:.0%} of the quality of the largest float "
    "rows. Quality was measured when the adapter was fitted, on held-out queries: queries are float, "
    "documents as they are stored. Intervals are 95% bootstrap intervals over queries."
)


def size_blocks(folder: Path) -> list[Block]:
    """Bytes a vector against quality, and against search time where that was measured.

    Args:
        folder: Of the run.

    Returns:
        Blocks; none for a run of one size without codes.
    """
    frontier: list[Point] = read_described(folder / "adapter.json").get("frontier") or []
    if not frontier:
        return []
    rows = [_size_row(point) for point in frontier]
    strong = [place for place, point in enumerate(frontier) if point.get("recommended")]
    measured = [point for point in frontier if point.get("quality") is not None]
    metric = str(measured[0]["metric"]) if measured else "quality"
    head = ["dimensions", "stored as", "bytes a vector", metric, "95% interval", ""]
    blocks: list[Block] = [Heading("Sizes and precisions")]
    if measured:
        blocks += [Prose(RULE), Charts([_size_chart(measured, metric)])]
    else:
        blocks.append(Prose("Nothing was held out in the fit, so the quality of its sizes is not known."))
    blocks.append(TableBlock(head, rows, f"Bytes a vector and {metric}", strong))
    return [*blocks, *_search_times(folder)]


def _size_row(point: Point) -> list[str]:
    row = [str(point["dim"]), PRECISIONS[point["bits"]], f"{point['bytes']:,}"]
    if point.get("quality") is None:
        return [*row, "", "", ""]
    interval = f"[{number(point['low'])}, {number(point['high'])}]"
    return [*row, number(point["quality"]), interval, "recommended" if point.get("recommended") else ""]


def _size_chart(points: Sequence[Point], metric: str) -> Lines:
    lines = []
    for bits, name in PRECISIONS.items():
        if own := sorted((one for one in points if one["bits"] == bits), key=lambda one: one["bytes"]):
            x, y, low, high = ([float(one[key]) for one in own] for key in SHOWN)
            lines.append(Line(name, x, y, low, high))
    ends = [min(point["low"] for point in points), max(point["high"] for point in points)]
    lines += [
        Line("recommended", [float(point["bytes"])] * 2, ends, is_reference=True)
        for point in points
        if point.get("recommended")
    ]
    return Lines(
        title=f"{metric} against bytes a vector",
        x="bytes a vector",
        y=metric,
        lines=lines,
        log_x=True,
        note="Whiskers are 95% intervals over queries.",
    )


def _search_times(folder: Path) -> list[Block]:
    """Search time of each index, from the records that `querykey size --time` wrote into the folder."""
    from querykey.runs.search_times import times_in

    found = times_in(folder)
    if not found:
        command = f"querykey size {folder} --time FEATURES --out {folder / 'search_times.json'}"
        return [Prose("Search time is not measured yet. This command measures it:"), CodeBlock(command)]
    return [block for name, record in found.items() for block in _times_blocks(name, record)]


def _times_blocks(name: str, record: Mapping[str, Any]) -> list[Block]:
    times, measure = record["times"], f"found@{record['k']}"
    kinds = dict.fromkeys((one["index"], one["stored"]) for one in times)
    lines = []
    for index, stored in kinds:
        own = [one for one in times if (one["index"], one["stored"]) == (index, stored)]
        x, y = ([float(one[key]) for one in own] for key in ("milliseconds", "found"))
        lines.append(Line(f"{index}, {stored}" if index == "exact" else index, x, y))
    text = (
        f"From {name}: {record['rows']:,} rows of {record['on']}, {record['queries']:,} queries in one call, "
        f"threads: {record['threads']}, {made_with(record)}. {measure} is the share of the {record['k']} "
        "nearest of the largest float rows that a search finds; each line goes through the sizes."
    )
    rows = [
        [one["index"], str(one["dim"]), one["stored"], f"{one['bytes']:,}"]
        + [number(one[key]) for key in ("milliseconds", "found")]
        for one in times
    ]
    head = ["index", "dimensions", "stored as", "bytes a vector", "ms a query", measure]
    chart = Lines(
        title="What a search finds against its time",
        x="milliseconds a query",
        y=measure,
        lines=lines,
        log_x=True,
    )
    return [Heading("Search time"), Prose(text), Charts([chart]), TableBlock(head, rows, "Search time")]
