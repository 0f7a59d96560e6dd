"""`querykey evaluate`: a run beside every baseline."""

from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import (
    Column,
    Device,
    LabelColumn,
    PairColumn,
    RunFolder,
    Seed,
    Split,
    Threads,
    prepare,
)

__all__ = ["evaluate_on"]


def evaluate_on(
    run: RunFolder,
    on: Annotated[str, typer.Option(metavar="SOURCE|FEATURES", help="What it has not been fitted on.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new JSON file with all numbers.")
    ] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Split = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Measure a RUN beside the frozen features and every baseline.

    All have the width of the run. After each number stands how it compares with the frozen
    features and with PCA: + above and - below by more than the 95% interval, = within it.
    """
    prepare(device, threads, seed)
    from querykey.build import load_run
    from querykey.cli.show import line, note, progress, table
    from querykey.outputs import check_new, new_file
    from querykey.run_data import DataAt
    from querykey.run_evaluation import evaluate_run

    if out is not None:
        check_new(out)
    fitted = load_run(run)
    at = DataAt(on, column, label_column, pair_column, split)
    with progress(f"embedding {on}") as tick:
        found = evaluate_run(fitted, at, device=device, seed=seed, progress=tick, notify=note)
    head, *rows = found.overview()
    table(head, rows)
    asked = found.protocol["asked"]
    line(
        f"{asked:,} queries; signs: against {' and '.join(found.references[:2])}, + - beyond the 95% interval"
    )
    for left_out in found.protocol["left_out"]:
        line(f"left out: {left_out}")
    if out is not None:
        import json

        with new_file(out) as aside:
            aside.write_text(json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
        line(f"{out}: all numbers, with intervals, protocol and versions")
