"""`querykey compare`: differences of runs, and their scores on the same queries."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.options import (
    Column,
    Delimiter,
    Device,
    LabelColumn,
    PairColumn,
    Seed,
    Split,
    Threads,
    prepare,
    reserve_output,
)

if TYPE_CHECKING:
    from querykey.evaluation.table import Table
    from querykey.runs.compare import Comparison

__all__ = ["compare"]

WIDTH = 80
"""Maximum width of a table with one column per run; a wider one is printed as one block per row."""
LONGEST_NAME = 20
"""Longer names are replaced by numbers, to leave room for the values."""


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Adapters, or pretraining runs; the first is the reference."
        ),
    ],
    on: Annotated[
        str | None,
        typer.Option(metavar="SOURCE|FEATURES", help="Score all of them on the same queries of this."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new JSON file with all results.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="For pretraining runs: labelled training images; default: those of the first run.",
        ),
    ] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Compare RUNs: settings, final metrics and paired scores.

    Scores need --on. The mark after each mean compares it with the first run: + better, - worse,
    = no difference (paired 95% interval).
    """
    device = prepare(device, threads, seed)
    from querykey.cli.console import line, note, progress
    from querykey.errors import ConfigError
    from querykey.runs.compare import compare_runs
    from querykey.runs.data import DataAt

    options = {
        "train": train, "column": column, "label-column": label_column, "pair-column": pair_column,
        "split": split, "delimiter": delimiter,
    }  # fmt: skip
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if on is None and given:
        raise ConfigError(f"{' and '.join(given)}: nothing is scored without --on SOURCE|FEATURES; add it")
    if out is not None:
        reserve_output(out)
    test = None if on is None else DataAt(on, column, label_column, pair_column, split, delimiter)
    learn = None if train is None else DataAt(train, column, label_column, delimiter=delimiter)
    with progress("comparing") as tick:
        found = compare_runs(runs, test, train=learn, device=device, seed=seed, progress=tick, notify=note)
    _show(found)
    if out is not None:
        _write(found, out)
        line(f"{out}: all numbers, with intervals, protocol and versions")


def _show(found: "Comparison") -> None:
    from querykey.cli.console import line

    names = {name: name for name in found.runs}
    if max(map(len, names)) > LONGEST_NAME:
        names = {name: str(number) for number, name in enumerate(names, start=1)}
        for name, number in names.items():
            line(f"{number}  {name}", whole=True)
        line()
    for title, what, none in (
        ("settings that differ", found.settings, "no setting differs"),
        ("data and environment that differ", found.origin, "data and environment are the same"),
    ):
        if what.values:
            _beside(f"{title}; {what.same} others are the same", what.values, names)
        else:
            line(f"{none}\n")
    _beside("final metrics as recorded, without intervals", found.ends, names)
    if found.table is not None:
        _show_table(found.table, names)


def _beside(title: str, rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """One column per run if the table is narrow enough, otherwise one block per row."""
    from querykey.cli.console import line, table

    head = ["", *names.values()]
    cells = [[what, *(_text(values, run) for run in names)] for what, values in rows.items()]
    width = sum(max(map(len, column)) + 1 for column in zip(head, *cells, strict=True))
    if width <= WIDTH:
        table(head, cells, title=title)
        return
    line(title)
    longest = max(map(len, names.values()))
    for what, *values in cells:
        line(what)
        for name, value in zip(names.values(), values, strict=True):
            line(f"  {name:<{longest}}  {value}")
    line()


def _text(values: Mapping[str, Any], run: str) -> str:
    """A value in short form; blank if the run has none."""
    if run not in values:
        return ""
    match values[run]:
        case None:
            return "none"
        case bool(value):
            return "yes" if value else "no"
        case float(value):
            return f"{value:.4g}"
        case value:
            return str(value)


def _show_table(found: "Table", names: Mapping[str, str]) -> None:
    from querykey.cli.console import line, table

    first = found.references[0]
    for head, *rows in (found.overview(), found.detail(found.metrics[0])):
        shown = [column.replace(f"minus {first}", f"minus {names[first]}") for column in head]
        table(shown, [(names.get(name, name), *cells) for name, *cells in rows])
    line(
        f"{found.protocol['asked']:,} queries, the same for all; marks against {names[first]}: + better, "
        "- worse, = no difference (paired 95% interval over queries, not over seeds)."
    )
    for left_out in found.protocol["left_out"]:
        line(f"left out: {left_out}")


def _write(found: "Comparison", out: Path) -> None:
    import json

    from querykey.io.atomic import new_file

    with new_file(out) as tmp_path:
        tmp_path.write_text(json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
