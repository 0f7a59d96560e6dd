"""`querykey size`: quality and search time of each size and precision of a run, and which one to use."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from querykey.cli.options import AdapterFolder, Column, Delimiter, Split, Threads, prepare, reserve_output

__all__ = ["size"]


def size(
    run: AdapterFolder,
    under: Annotated[
        str | None, typer.Option(metavar="64B", help="The best size of at most this many bytes.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar=".98", help="The smallest size with this fraction of the quality.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="FEATURES", help="Time the search among these, on this machine.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A new JSON file for the times; in RUN, for its report."),
    ] = None,
    column: Column = None,
    split: Split = None,
    delimiter: Delimiter = None,
    threads: Threads = None,
) -> None:
    """Show bytes, quality and search time of the sizes of RUN, and select one.

    Quality was measured during the fit on held-out queries, with float queries and documents in the stored
    precision. Without an option, the smallest size with 98% of the quality of the largest float rows is
    selected. With --time it shows the search time instead: exact search, and HNSW and IVF-PQ if faiss is
    installed.
    """
    from querykey.cli.console import line, table
    from querykey.errors import ConfigError
    from querykey.runtime.frontier import KEEP, best_under, fewest_bytes, parse_bytes, parse_share

    if under is not None and keep is not None:
        raise ConfigError("--under and --keep are two rules; give one of them")
    frontier = _frontier(Path(run))
    if time is not None:
        if under is not None or keep is not None:
            raise ConfigError("--time is without a rule; leave out --under and --keep")
        _show_times(run, (time, column, None, None, split, delimiter), out, threads)
        return
    if out is not None:
        raise ConfigError("--out is for the search times; give --time FEATURES too")
    chosen = None
    if under is not None:
        chosen = best_under(frontier, parse_bytes(under))
    elif keep is not None or any(point.get("quality") is not None for point in frontier):
        chosen = fewest_bytes(frontier, KEEP if keep is None else parse_share(keep))
    metric = next((str(point["metric"]) for point in frontier if point.get("metric")), "quality")
    rows = []
    for point in frontier:
        interval = "" if point["low"] is None else f"[{_number(point['low'])}, {_number(point['high'])}]"
        sizes = [str(point["dim"]), _precision(point), str(point["bytes"])]
        rows.append([*sizes, _number(point["quality"]), interval, "<-" if point is chosen else ""])
    table(["dim", "as", "bytes", metric, "95% interval", ""], rows, words=(1,))
    if chosen is None:
        line("this run was fitted without held-out queries, so the quality of its sizes is unknown")
        return
    bits = "" if chosen["bits"] == 32 else f", bits={chosen['bits']}"
    call = "transform" if chosen["bits"] == 32 else "quantize"
    unit = "byte" if chosen["bytes"] == 1 else "bytes"
    line(f"{chosen['bytes']} {unit} a vector: adapter.{call}(X, dim={chosen['dim']}{bits})")


def _show_times(run: Path, at: tuple[Any, ...], out: Path | None, threads: int | None) -> None:
    prepare("cpu", threads, 0)
    if out is not None:
        reserve_output(out)
    from querykey.cli.console import line, table
    from querykey.io.atomic import new_file
    from querykey.runs.adapt import load_run
    from querykey.runs.data import DataAt
    from querykey.runs.evaluate_adapter import features_like_those_of
    from querykey.runs.search_times import search_times

    fitted = load_run(run)
    found = search_times(fitted.adapter, features_like_those_of(fitted, DataAt(*at)).features, on=at[0])
    if out is not None:
        with new_file(out) as tmp_path:
            tmp_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = []
    for one in found["times"]:
        sizes = [str(one["dim"]), one["stored"], str(one["bytes"])]
        rows.append([one["index"], *sizes, f"{one['milliseconds']:.3f}", f"{one['found']:.3f}"])
    words = f"{found['rows']:,} rows, {found['queries']:,} queries in one call, threads: {found['threads']}"
    head = ["index", "dim", "as", "bytes", "ms a query", f"found@{found['k']}"]
    table(head, rows, title=words, words=(0, 2))
    line(f"found@{found['k']}: the share of the {found['k']} nearest of the largest float rows")
    if out is not None:
        line(f"{out}: the times; a report shows those in the folder of its run")


def _frontier(run: Path) -> list[dict[str, Any]]:
    from querykey.errors import ConfigError, MissingPathError
    from querykey.io.atomic import raises_store_error

    described = run / "adapter.json"
    if not described.is_file():
        raise MissingPathError(f"{run}: no run here; make one with querykey adapt FEATURES --out {run}")
    with raises_store_error(str(described), "fit the run again"):
        frontier = json.loads(described.read_text(encoding="utf-8")).get("frontier") or []
        points = [{"low": None, "high": None, "quality": None, "metric": None} | point for point in frontier]
        for point in points:
            _ = _precision(point), point["dim"] + point["bytes"]  # of these types
            _ = [_number(point[name]) for name in ("quality", "low", "high")]
    if not points:
        raise ConfigError(
            f"{run} has one size and no codes; fit it again with --dims 256,128,64 or --bits 8,1"
        )
    return points


def _precision(point: dict[str, Any]) -> str:
    return {32: "float", 8: "int8", 1: "1 bit"}[point["bits"]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
