"""`querykey embed`: compute and store the features of a source with a frozen model."""

from pathlib import Path
from typing import Annotated

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

__all__ = ["embed_source"]


def embed_source(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="See `querykey help sources`.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="A frozen model or a RUN; see `querykey help sources`.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FEATURES", help="The folder of the features; features of other data are replaced."
        ),
    ],
    column: Column = None,
    label_column: LabelColumn = None,
    pair_column: PairColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    prompt: Annotated[str | None, typer.Option(help="For st: models, a prompt by name or its text.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Items per batch; measured by default.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the features as float16.")] = False,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Turn SOURCE into features with a frozen MODEL.

    The model runs only on items without features: a stopped command resumes, and complete features of
    the same data and model are not computed again.
    """
    device = prepare(device, threads, seed, supports_torchrun=True)
    from querykey.cli.console import line, note, progress
    from querykey.features.embed import embed
    from querykey.features.store import is_store
    from querykey.runs.data import DataAt
    from querykey.runs.load_encoder import load_encoder

    if not is_store(out):  # an existing store may have these features
        reserve_output(out, resumable=True)
    items = DataAt(source, column, label_column, pair_column, split, delimiter).source()
    encoder, dtype = load_encoder(model, device=device, prompt=prompt), "float16" if half else "float32"
    with progress(f"embedding {source}") as tick:
        features = embed(items, encoder, out, batch_size=batch_size, dtype=dtype, progress=tick, notify=note)
    line(f"{out}: {len(features):,} rows of {features.dim} numbers by {encoder.spec}")
    if features.queries is not None and features.pairs is not None:
        line(f"  {len(features.queries):,} queries, {len(features.pairs):,} pairs")
    if features.labels is not None:
        line(f"  labels: {len(features.label_names):,} classes")
