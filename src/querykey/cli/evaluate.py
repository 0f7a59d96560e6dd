"""`querykey evaluate`: evaluate a run and its baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from querykey.cli.options import (
    Column,
    Delimiter,
    Device,
    LabelColumn,
    PairColumn,
    RunFolder,
    Seed,
    Split,
    Threads,
    prepare,
    reserve_output,
)

if TYPE_CHECKING:
    from querykey.evaluation.linear_evaluation import LinearProtocol
    from querykey.evaluation.table import Table
    from querykey.runs.data import DataAt

__all__ = ["evaluate_on"]


def evaluate_on(
    run: RunFolder,
    on: Annotated[str, typer.Option(metavar="SOURCE|FEATURES", help="Data that RUN was not fitted on.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new JSON file with all numbers.")
    ] = None,
    labels_fraction: Annotated[
        float | None,
        typer.Option(help="For a pretraining run: fraction of the training labels to use, by class."),
    ] = None,
    fine_tune: Annotated[
        bool,
        typer.Option("--fine-tune", help="For a pretraining run: also fine-tune, and train from scratch."),
    ] = False,
    first_layer: Annotated[
        bool, typer.Option("--first-layer", help="Fine-tune from the first layer of the head, not from h.")
    ] = False,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="For a pretraining run: labelled training images; default: its own."
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="[lbfgs|moco|simclr]", help="For a pretraining run: linear evaluation.")
    ] = "lbfgs",
    column: Column = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Evaluate a RUN and its baselines.

    The baselines of an adapter are the frozen features and closed forms at its width. A pretraining run
    is evaluated by kNN and linear evaluation; its baselines are the untrained encoder and raw pixels.
    The marks after each score compare it with two baselines: + better, - worse, = no difference
    (95% interval). Scores printed by `querykey adapt` are of held-out queries of its training data;
    these are of --on.
    """
    device = prepare(device, threads, seed, supports_torchrun=True)
    from querykey.errors import ConfigError
    from querykey.runs.data import DataAt
    from querykey.runs.pretrain_folder import is_pretraining

    at = DataAt(on, column, label_column, pair_column, split, delimiter)
    if is_pretraining(run):
        learn = None if train is None else DataAt(train, column, label_column, delimiter=delimiter)
        fine_tuning = "first layer" if first_layer else "h" if fine_tune else "none"
        options = {"train": learn, "fine_tuning": fine_tuning, "labels_fraction": labels_fraction}
        _evaluate_encoder(run, at, out=out, protocol=protocol, device=device, seed=seed, **options)
        return
    if labels_fraction is not None or fine_tune or first_layer or train is not None:
        raise ConfigError(
            f"{run} is an adapter; --labels-fraction, --fine-tune, --first-layer and --train are for a "
            "pretraining run"
        )
    _evaluate_adapter(run, at, out=out, device=device, seed=seed)


def _evaluate_adapter(run: Path, at: "DataAt", *, out: Path | None, device: str, seed: int) -> None:
    from querykey.cli.console import line, note, progress, table
    from querykey.runs.adapt import load_run
    from querykey.runs.evaluate_adapter import evaluate_run

    if out is not None:
        reserve_output(out)
    fitted = load_run(run)
    with progress(f"embedding {at.spec}") as tick:
        found = evaluate_run(fitted, at, device=device, seed=seed, progress=tick, notify=note)
    head, *rows = found.overview()
    table(head, rows)
    line(
        f"{found.protocol['asked']:,} queries; marks against {' and '.join(found.references[:2])}: "
        "+ better, - worse, = no difference (95% interval), blank: itself"
    )
    for left_out in found.protocol["left_out"]:
        line(f"left out: {left_out}")
    _write(found, out)


def _evaluate_encoder(run: Path, at: "DataAt", *, out: Path | None, protocol: str, **options: Any) -> None:
    from typing import get_args

    from querykey.cli.console import line, note, progress, table
    from querykey.errors import ConfigError
    from querykey.evaluation.linear_evaluation import LinearProtocol
    from querykey.runs.evaluate_encoder import evaluate_encoder

    if protocol not in get_args(LinearProtocol):
        raise ConfigError(f"--protocol {protocol}: there are {', '.join(get_args(LinearProtocol))}")
    if out is not None:
        reserve_output(out)
    with progress(f"evaluating {run}") as tick:
        found = evaluate_encoder(
            run, at, protocol=cast("LinearProtocol", protocol), progress=tick, notify=note, **options
        )
    head, *rows = found.overview()
    table(head, rows)
    about = found.protocol
    line(
        f"{about['asked']:,} test images, {about['labels']:,} labelled training images; marks against "
        f"{' and '.join(found.references)}: + better, - worse, = no difference (95% interval), blank: itself"
    )
    knn = about["knn"]
    line(f"kNN: {knn['k']} neighbours, temperature {knn['temperature']}; linear: protocol {protocol}")
    _write(found, out)


def _write(found: "Table", out: Path | None) -> None:
    from querykey.distributed.process_group import current_process_group

    if out is None or not current_process_group().is_main_process:
        return
    import json

    from querykey.cli.console import line
    from querykey.io.atomic import new_file

    with new_file(out) as tmp_path:
        tmp_path.write_text(json.dumps(found.as_dict(), indent=2, allow_nan=False) + "\n")
    line(f"{out}: all numbers, with intervals, protocol and versions")
