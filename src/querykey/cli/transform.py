"""`querykey transform`: features through an adapter, as an array."""

from pathlib import Path
from typing import Annotated, Any

import typer

from querykey.cli.options import (
    Column,
    Delimiter,
    Device,
    RunFolder,
    Seed,
    Split,
    Threads,
    prepare,
    reserve_output,
)

__all__ = ["transform_features"]


def transform_features(
    run: RunFolder,
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="See `querykey help sources`.")],
    out: Annotated[Path, typer.Option(metavar="Z.npy", help="A new file; .npy or .safetensors.")],
    queries: Annotated[bool, typer.Option("--queries", help="The query side of pairs.")] = False,
    column: Column = None,
    split: Split = None,
    delimiter: Delimiter = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Write the adapted rows of FEATURES.

    They are float32 and of length 1. A .npy file needs no PyTorch.
    """
    from querykey.cli.console import line
    from querykey.errors import ConfigError

    if out.suffix not in (".npy", ".safetensors"):
        raise ConfigError(f"--out {out}: must end in .npy or .safetensors")
    if _numpy_will_do(features, (column, split, delimiter), device, threads):
        reserve_output(out)
        rows = _transformed_array(run, Path(features), queries=queries)
    else:
        prepare(device, threads, seed)
        reserve_output(out)
        rows = _transformed(run, (features, column, None, None, split, delimiter), queries=queries)
    _write(out, rows)
    line(f"{out}: {len(rows):,} rows of {rows.shape[1]} numbers, float32, length 1")


def _numpy_will_do(features: str, options: tuple[str | None, ...], device: str, threads: int | None) -> bool:
    """A plain array on the processor needs no torch."""
    from querykey.cli.torchrun import is_one_of_many

    plain = not any(options) and device == "cpu" and threads is None
    return plain and features.endswith(".npy") and Path(features).is_file() and not is_one_of_many()


def _transformed_array(run: Path, path: Path, *, queries: bool) -> Any:
    import numpy as np

    from querykey.errors import DataError, MissingPathError, ShapeError, SourceError
    from querykey.runtime import load

    if not (run / "adapter.json").is_file():
        raise MissingPathError(f"{run}: no run here; make one with querykey adapt FEATURES --out {run}")
    adapter = load(run)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SourceError(f"{path} cannot be read as an array: {error}") from error
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise ShapeError(f"{path}: vectors [n, dim] are needed, got {rows.dtype} {list(rows.shape)}")
    if rows.shape[1] != adapter.width:
        raise ShapeError(f"{path}: rows are {rows.shape[1]} wide; the run was fitted on {adapter.width}")
    if (zero := ~rows.any(axis=1)).any():
        raise DataError(
            f"{path}: {int(zero.sum())} of {len(rows)} rows are zero and cannot be compared, the first of "
            f"them row {int(zero.argmax())}; take these rows out, or make them again"
        )
    return adapter.transform(rows) if queries else adapter.transform_documents(rows)


def _transformed(run: Path, at: tuple[Any, ...], *, queries: bool) -> Any:
    from querykey.runs.adapt import load_run
    from querykey.runs.data import DataAt
    from querykey.runs.evaluate_adapter import features_like_those_of

    fitted = load_run(run)
    given = features_like_those_of(fitted, DataAt(*at)).features
    if queries:
        return fitted.adapter.transform(given if given.queries is None else given.queries)
    return fitted.adapter.transform_documents(given)


def _write(out: Path, rows: Any) -> None:
    import numpy as np

    from querykey.io.atomic import new_file

    with new_file(out) as tmp_path:
        if out.suffix == ".npy":
            np.save(tmp_path, rows, allow_pickle=False)
        else:
            from safetensors.numpy import save_file

            save_file({"Z": np.ascontiguousarray(rows)}, tmp_path)
