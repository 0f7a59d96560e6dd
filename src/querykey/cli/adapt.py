"""`querykey adapt`: fit an adapter to features and write a run."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import (
    Column,
    Delimiter,
    Out,
    PairColumn,
    Split,
    Threads,
    check_choice,
    numbers,
    prepare,
)

__all__ = ["adapt_features"]

ModelDevice = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where a frozen model embeds pseudo-queries: cpu, cuda, cuda:1, mps. Fits are on the CPU.",
    ),
]
Side = Annotated[
    str | None,
    typer.Option(metavar="[both|query]", help="query: documents stay as they are. Default: both."),
]


def adapt_features(
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="See `querykey help sources`.")],
    out: Out,
    dim: Annotated[int | None, typer.Option(help="Width of the adapted rows; default: 64 at most.")] = None,
    dims: Annotated[str | None, typer.Option(metavar="256,128", help="Several, from one fit.")] = None,
    bits: Annotated[str | None, typer.Option(metavar="8,1", help="Codes for each size.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Learn from classes; `label` in a feature store."),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Learn from (query, document) pairs.")] = False,
    side: Side = None,
    classes: Annotated[
        str | None, typer.Option(metavar="[known|new]", help="Classes of future data; default: both.")
    ] = None,
    pseudo: Annotated[
        str,
        typer.Option("--pseudo-queries", metavar="[on|off]", help="Validate with first sentences."),
    ] = "on",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="See `querykey help settings`.")
    ] = None,
    run_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings in TOML.")] = None,
    column: Column = None,
    pair_column: PairColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    device: ModelDevice = "cpu",
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; default: 0.")] = None,
) -> None:
    """Fit an adapter to FEATURES.

    Compress them, or learn from labels or from pairs. Closed forms are tried first, then training.
    Held-out queries select the result that is written to OUT, and other queries test it.
    """
    from querykey.runs.adapter_settings import read_run

    check_choice("--pseudo-queries", pseudo, ("on", "off"))
    options = {"labels": labels, "pairs": pairs or None, "side": side, "classes": classes, "seed": seed}
    sizes = {"dim": dim, "dims": numbers("--dims", dims), "bits": numbers("--bits", bits)}
    run = read_run(run_file, settings or [], **sizes, **options)
    prepare(device, threads, run.seed, supports_torchrun=True)
    from querykey.adapter.verdict import summary
    from querykey.cli.console import detail, line, note, progress
    from querykey.runs.adapt import adapt
    from querykey.runs.data import DataAt
    from querykey.runs.pseudo_queries import pseudo_queries

    at = DataAt(features, column, run.labels, pair_column, split, delimiter)
    make_validation = partial(pseudo_queries, device=device) if pseudo == "on" else None
    with progress("adapting") as tick:
        made = adapt(at, run, out, progress=tick, notify=note, begin=detail, make_validation=make_validation)
    report, fc = made.adapter.report_, made.adapter.fc_
    line(f"{out}: {fc.width} -> {fc.dim}, {report['steps_taken']} steps, {report['seconds']:.1f} s")
    for row in [*summary(report, made.adapter.candidates_), *report["notes"]]:
        line(f"  {row}")
    if made.adapter.frontier_:
        line(f"  {len(made.adapter.frontier_)} sizes and precisions: querykey size {out}")
    line(f"next: querykey evaluate {out} --on FEATURES-OR-SOURCE", whole=True)
