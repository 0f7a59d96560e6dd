"""`querykey transform`: features through an adapter, as an array."""

from pathlib import Path
from typing import Annotated, Any

import typer

from querykey.cli.options import Column, Device, RunFolder, Seed, Split, Threads, prepare, reserve_output

__all__ = ["transform_features"]


def transform_features(
    run: RunFolder,
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="See `querykey help sources`.")],
    out: Annotated[Path, typer.Option(metavar="Z.npy", help="A new file; .npy or .safetensors.")],
    queries: Annotated[bool, typer.Option("--queries", help="The query side of pairs.")] = False,
    column: Column = None,
    split: Split = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Write the adapted rows of FEATURES.

    They are float32 and of length 1.
    """
    prepare(device, threads, seed)
    from querykey.cli.console import line
    from querykey.errors import ConfigError
    from querykey.runs.adapt import load_run
    from querykey.runs.data import DataAt
    from querykey.runs.evaluate_adapter import features_like_those_of

    if out.suffix not in (".npy", ".safetensors"):
        raise ConfigError(f"--out {out}: must end in .npy or .safetensors")
    reserve_output(out)
    fitted = load_run(run)
    given = features_like_those_of(fitted, DataAt(features, column, None, None, split)).features
    if queries:
        rows = fitted.adapter.transform(given if given.queries is None else given.queries)
    else:
        rows = fitted.adapter.transform_documents(given)
    _write(out, rows)
    line(f"{out}: {len(rows):,} rows of {rows.shape[1]} numbers, float32, length 1")


def _write(out: Path, rows: Any) -> None:
    import numpy as np

    from querykey.io.atomic import new_file

    with new_file(out) as tmp_path:
        if out.suffix == ".npy":
            np.save(tmp_path, rows, allow_pickle=False)
        else:
            from safetensors.numpy import save_file

            save_file({"Z": np.ascontiguousarray(rows)}, tmp_path)
