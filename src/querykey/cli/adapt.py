"""`querykey adapt`: fits an adapter to features and writes a run."""

from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import Column, Device, Out, PairColumn, Split, Threads, prepare

__all__ = ["adapt_features"]


def adapt_features(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="See `querykey help sources`.")],
    out: Out,
    dim: Annotated[int | None, typer.Option(help="Width of the adapted rows; 64 if not said.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Learn from classes; `label` in what embed wrote."),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Learn from (query, document) pairs.")] = False,
    side: Annotated[
        str | None, typer.Option(metavar="[both|query]", help="query: documents stay as they are.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="See `querykey help settings`.")
    ] = None,
    run_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in TOML.")] = None,
    column: Column = None,
    pair_column: PairColumn = None,
    split: Split = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it.")] = None,
) -> None:
    """Fit an adapter to FEATURES.

    Compress them, or learn from labels or from pairs. What is written to OUT is never worse on a
    held-out part than what it started from.
    """
    from querykey.config import read_run

    run = read_run(
        run_file, settings or [], dim=dim, labels=labels, pairs=pairs or None, side=side, seed=seed
    )
    prepare(device, threads, run.seed, shares_out=True)
    from querykey.build import adapt
    from querykey.cli.show import line, note, progress
    from querykey.run_data import DataAt

    at = DataAt(features, column, run.labels, pair_column, split)
    with progress("adapting") as tick:
        made = adapt(at, run, out, progress=tick, notify=note, begin=line)
    report, fc = made.adapter.report_, made.adapter.fc_
    line(f"{out}: {fc.width} -> {fc.dim}, {report['steps_taken']} steps, {report['seconds']:.1f} s")
    change = f"{report['start']:.3f} -> {report['best']:.3f}"
    if report["helped"]:
        line(f"  {report['guard']}, on rows held out: {change} at step {report['best_step']}")
    else:
        line(
            f"  training did not help: {report['guard']} stays at {report['start']:.3f}, so this is the start"
        )
    line(f"  stopped: {report['stopped']}")
    line(f"next: querykey evaluate {out} --on FEATURES-OR-SOURCE", whole=True)
