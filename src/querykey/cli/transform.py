"""`querykey transform`: features through an adapter, as an array of rows or of codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.options import (
    AdapterFolder,
    Column,
    Delimiter,
    Device,
    PairColumn,
    Seed,
    Split,
    Threads,
    prepare,
    reserve_output,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from querykey.adapter.estimator import Adapter
    from querykey.runtime import LoadedAdapter

__all__ = ["transform_features"]


@dataclass(frozen=True)
class _Wanted:
    """Which array is written.

    Args:
        dim: Size of the rows; None: the largest.
        bits: 8 or 1 for codes; None for float rows.
        queries: Whether the rows are queries.
    """

    dim: int | None
    bits: int | None
    queries: bool

    def array(self, adapter: "Adapter | LoadedAdapter", rows: Any) -> Any:
        """Float rows or codes of frozen rows."""
        if self.bits is not None:
            return adapter.quantize(rows, dim=self.dim, bits=self.bits)
        move = adapter.transform if self.queries else adapter.transform_documents
        return move(rows, dim=self.dim)


def transform_features(
    run: AdapterFolder,
    features: Annotated[str, typer.Argument(metavar="SOURCE|FEATURES", help="See `querykey help sources`.")],
    out: Annotated[Path, typer.Option(metavar="Z.npy", help="A new file; .npy or .safetensors.")],
    dim: Annotated[int | None, typer.Option(min=1, help="A size of RUN; the largest if not said.")] = None,
    bits: Annotated[
        int | None, typer.Option(metavar="[8|1]", help="Codes of documents instead of float rows.")
    ] = None,
    queries: Annotated[
        bool, typer.Option("--queries", help="The rows are queries; of pairs, their queries.")
    ] = False,
    column: Column = None,
    pair_column: PairColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Write the adapted rows of FEATURES, or their codes.

    Rows are float32 and of length 1; with --bits they are codes, int8 or packed bits (the first number is
    the highest bit of the first byte). A .npy file needs no PyTorch.
    """
    from querykey.cli.console import line
    from querykey.errors import ConfigError

    if out.suffix not in (".npy", ".safetensors"):
        raise ConfigError(f"--out {out}: must end in .npy or .safetensors")
    if bits is not None and queries:
        raise ConfigError(
            "--bits makes codes of documents; queries stay float, so leave out --queries or --bits"
        )
    wanted = _Wanted(dim, bits, queries)
    if _numpy_will_do(features, (column, pair_column, split, delimiter), device, threads):
        reserve_output(out)
        shape = _transform_array(run, Path(features), wanted, out)
    else:
        device = prepare(device, threads, seed)
        reserve_output(out)
        made = _transformed(run, (features, column, None, pair_column, split, delimiter), wanted, device)
        _write(out, made)
        shape = made.shape
    line(f"{out}: {shape[0]:,} {_described(shape[1], bits)}")


def _described(width: int, bits: int | None) -> str:
    each = f"{width} byte{'' if width == 1 else 's'} each"
    match bits:
        case None:
            return f"rows of {width} numbers, float32, length 1"
        case 8:
            return f"codes of {width} numbers, int8, {each}"
        case _:
            return f"codes of {8 * width} bits, {each}, highest bit first"


def _numpy_will_do(features: str, options: tuple[str | None, ...], device: str, threads: int | None) -> bool:
    """A plain array on the processor needs no torch."""
    from querykey.cli.torchrun import is_distributed

    plain = not any(options) and device == "cpu" and threads is None
    return plain and features.endswith(".npy") and Path(features).is_file() and not is_distributed()


def _transform_array(run: Path, path: Path, wanted: _Wanted, out: Path) -> tuple[int, int]:
    """Write what becomes of an array; float rows block by block, so that memory does not grow with them."""
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
    if wanted.bits is None and out.suffix == ".npy" and (wanted.queries or adapter.side == "both"):
        size = adapter.dim if wanted.dim is None else wanted.dim
        _write_blocks(out, adapter.transform_blocks(rows, dim=wanted.dim), (len(rows), size))
        return len(rows), size
    made = wanted.array(adapter, rows)
    _write(out, made)
    return len(made), made.shape[1]


def _transformed(run: Path, at: tuple[Any, ...], wanted: _Wanted, device: str) -> Any:
    from querykey.cli.console import note, progress
    from querykey.runs.adapt import load_run
    from querykey.runs.data import DataAt
    from querykey.runs.evaluate_adapter import features_like_those_of

    fitted = load_run(run)
    with progress(f"embedding {at[0]}") as tick:
        opened = features_like_those_of(fitted, DataAt(*at), device=device, progress=tick, notify=note)
    given = opened.features
    asked = wanted.queries and given.queries is not None
    return wanted.array(fitted.adapter, given.queries if asked else given)


def _write_blocks(out: Path, blocks: "Iterator[Any]", shape: tuple[int, int]) -> None:
    """The file that `numpy.save` makes of the blocks together."""
    import numpy as np

    from querykey.io.atomic import new_file

    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with new_file(out) as tmp_path, tmp_path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype="<f4").data)


def _write(out: Path, made: Any) -> None:
    import numpy as np

    from querykey.io.atomic import new_file

    with new_file(out) as tmp_path:
        if out.suffix == ".npy":
            np.save(tmp_path, made, allow_pickle=False)
        else:
            from safetensors.numpy import save_file

            save_file({"Z": np.ascontiguousarray(made)}, tmp_path)
