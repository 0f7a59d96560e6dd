"""`querykey compare`: what differs between runs, and how they score on the same queries."""

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
"""What a table beside each other may take; what is wider is shown as a block a row."""
LONGEST_NAME = 20
"""Beyond this a name leaves no room for the numbers beside it."""


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Adapters, or pretrainings; the first is the reference."),
    ],
    on: Annotated[
        str | None,
        typer.Option(metavar="SOURCE|FEATURES", help="Score all of them on this too, on the same queries."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A new JSON file with all of it.")] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Of pretrainings: labelled images that all learn from; those of the first if not said.",
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

    Scores need --on. After each mean stands how it compares with the first run: + above and - below
    it by more than the paired 95% interval, = within it.
    """
    device = prepare(device, threads, seed)
    from querykey.cli.console import line, note, progress
    from querykey.errors import ConfigError
    from querykey.runs.compare import compare_runs
    from querykey.runs.data import DataAt

    about_data = {"train": train, "column": column, "label-column": label_column,
                  "pair-column": pair_column, "split": split, "delimiter": delimiter}  # fmt: skip
    given = [f"--{name}" for name, value in about_data.items() if value is not None]
    if on is None and given:
        raise ConfigError(f"{' and '.join(given)}: nothing is scored without --on SOURCE|FEATURES; add it")
    if out is not None:
        reserve_output(out)
    with progress("comparing") as tick:
        found = compare_runs(
            runs,
            None if on is None else DataAt(on, column, label_column, pair_column, split, delimiter),
            train=None if train is None else DataAt(train, column, label_column, delimiter=delimiter),
            device=device, seed=seed, progress=tick, notify=note,
        )  # fmt: skip
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
        ("trained on and with, where it differs", found.origin, "all were trained on and with the same"),
    ):
        if what.values:
            _beside(f"{title}; {what.same} others are the same", what.values, names)
        else:
            line(f"{none}\n")
    _beside("what each said of itself at its end: no interval goes with it", found.ends, names)
    if found.table is not None:
        _show_table(found.table, names)


def _beside(title: str, rows: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """A column a run where the screen has room for it, otherwise a block for each row."""
    from querykey.cli.console import line, table

    head = ["", *names.values()]
    cells = [[what, *(_said(values, run) for run in names)] for what, values in rows.items()]
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


def _said(values: Mapping[str, Any], run: str) -> str:
    """A value as short as it can be read; blank where the run has none of that name."""
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
    asked = f"{found.protocol['asked']:,} queries, the same for all"
    for head, *rows in (found.overview(), found.detail(found.metrics[0])):
        shown = [column.replace(f"minus {first}", f"minus {names[first]}") for column in head]
        table(shown, [(names.get(name, name), *cells) for name, *cells in rows])
    line(
        f"{asked}; signs: against {names[first]}, + - beyond the paired 95% interval over queries. It says "
        "nothing of other seeds: a run with another seed is another run."
    )
    for left_out in found.protocol["left_out"]:
        line(f"left out: {left_out}")


def _write(found: "Comparison", out: Path) -> None:
    import json

    from querykey.io.atomic import new_file

    with new_file(out) as tmp_path:
        tmp_path.write_text(json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
