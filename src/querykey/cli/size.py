"""`querykey size`: what each size and precision of a run is worth, and which one to take."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from querykey.cli.options import RunFolder

__all__ = ["size"]


def size(
    run: RunFolder,
    under: Annotated[
        str | None, typer.Option(metavar="64B", help="The best of at most so many bytes.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar=".98", help="The smallest that keeps this share of the quality.")
    ] = None,
) -> None:
    """Show bytes a vector against quality in RUN, and the size to take.

    Quality was measured when the run was fitted, on held-out queries: float queries, documents as they are
    stored. Without an option the smallest is marked that keeps 98% of the quality of the largest float rows.
    """
    from querykey.cli.console import line, table
    from querykey.errors import ConfigError
    from querykey.runtime.frontier import KEEP, best_under, fewest_bytes, parse_bytes, parse_share

    if under is not None and keep is not None:
        raise ConfigError("--under and --keep are two rules; give one of them")
    frontier = _frontier(Path(run))
    chosen = None
    if under is not None:
        chosen = best_under(frontier, parse_bytes(under))
    elif keep is not None or any(point.get("quality") is not None for point in frontier):
        chosen = fewest_bytes(frontier, KEEP if keep is None else parse_share(keep))
    metric = next((str(point["metric"]) for point in frontier if point.get("metric")), "quality")
    rows = [
        [
            str(point["dim"]), _precision(point), str(point["bytes"]), _number(point["quality"]),
            "" if point["low"] is None else f"[{_number(point['low'])}, {_number(point['high'])}]",
            "<-" if point is chosen else "",
        ]
        for point in frontier
    ]  # fmt: skip
    table(["dim", "as", "bytes", metric, "95% interval", ""], rows, words=(1,))
    if chosen is None:
        line("nothing was held out when this run was fitted, so the quality of its sizes is not known")
        return
    bits = "" if chosen["bits"] == 32 else f", bits={chosen['bits']}"
    call = "transform" if chosen["bits"] == 32 else "quantize"
    unit = "byte" if chosen["bytes"] == 1 else "bytes"
    line(f"{chosen['bytes']} {unit} a vector: adapter.{call}(X, dim={chosen['dim']}{bits})")


def _frontier(run: Path) -> list[dict[str, Any]]:
    from querykey.errors import ConfigError, MissingPathError, StoreError

    described = run / "adapter.json"
    if not described.is_file():
        raise MissingPathError(f"{run}: no run here; make one with querykey adapt FEATURES --out {run}")
    try:
        frontier = json.loads(described.read_text(encoding="utf-8")).get("frontier") or []
        points = [{"low": None, "high": None, "quality": None} | point for point in frontier]
        _ = [(point["dim"], point["bits"], point["bytes"]) for point in points]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{described} is damaged ({error}); fit the run again") from error
    if not points:
        raise ConfigError(
            f"{run} has one size and no codes; fit it again with --dims 256,128,64 or --bits 8,1"
        )
    return points


def _precision(point: dict[str, Any]) -> str:
    return {32: "float", 8: "int8", 1: "bits"}[point["bits"]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
