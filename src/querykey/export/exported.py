"""What every form shares: where the layer comes from, the check of what was written, and its README."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from querykey.config.ranges import whole_numbers
from querykey.encoders.heads import FCLayer
from querykey.errors import ExportError, RangeError
from querykey.export.model_card import front_matter, limits, results_section
from querykey.lookup.unit_length import unit_length
from querykey.types import FrozenRows, Rows

__all__ = [
    "TOLERANCE",
    "Exported",
    "Origin",
    "adapted",
    "on_cpu",
    "probe_rows",
    "require_parity",
    "sizes_of",
    "write_readme",
]

TOLERANCE = 1e-5
"""The most by which a number of an adapted row may differ."""

PROBES = 64

_RE_INDEX = {
    "both": (
        "Index the documents again: transform queries and documents alike, for adapted rows and frozen rows "
        "do not compare."
    ),
    "query": (
        "The index stays as it is: transform queries alone, and compare them with the frozen rows of the "
        "documents, scaled to length 1."
    ),
}


@dataclass(frozen=True)
class Origin:
    """Where an FC layer comes from.

    Args:
        side: "both" if queries and documents go through it, "query" if only queries do.
        model_key: Of the frozen model whose features it was fitted on; "" where none is known.
        model: How the user named that model, such as "st:all-MiniLM-L6-v2"; "" where none is known.
        prompt: What that model puts before every text; None for the model's own default.
        dtype: In which it computed the features.
        data_key: Fingerprint of the features of the fit; "" where none is known.
        report: Of the fit; {} where none is known.

    Example:
        >>> Origin(side="query").re_index[:27]
        'The index stays as it is: t'
    """

    side: Literal["both", "query"] = "both"
    model_key: str = ""
    model: str = ""
    prompt: str | None = None
    dtype: str = "float32"
    data_key: str = ""
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def re_index(self) -> str:
        """Which side of a search has to be indexed again, in a sentence."""
        return _RE_INDEX[self.side]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: Where.
        files: Names in it, sorted.
        difference: The largest by which a number differed from the layer's in the check.
        re_index: Which side of a search has to be indexed again.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float
    re_index: str


def on_cpu(fc: FCLayer) -> FCLayer:
    """A detached copy of a layer on the CPU, in float32.

    Args:
        fc: Not changed.

    Returns:
        The copy.
    """
    return copy.deepcopy(fc).cpu().float().eval().requires_grad_(requires_grad=False)


def sizes_of(fc: FCLayer, dims: Sequence[int] | ArrayLike | None) -> list[int]:
    """Sizes of an export, largest first: the width of the layer and those given.

    Raises:
        ConfigError: If they are no whole numbers.
        RangeError: If one is not from 1 to the width of the layer.
    """
    sizes = sorted({fc.dim, *whole_numbers(dims, name="dims")}, reverse=True)
    if not 1 <= sizes[-1] <= sizes[0] <= fc.dim:
        raise RangeError(f"dims must be from 1 to the width of the layer, {fc.dim}; got {dims!r}")
    return sizes


def adapted(fc: FCLayer, rows: FrozenRows) -> Rows:
    """What an adapter makes of frozen rows: unit rows in, unit rows out.

    Args:
        fc: On the CPU.
        rows: [rows, width] of any length.

    Returns:
        Unit rows [rows, dim].
    """
    with torch.no_grad():
        out: Tensor = fc(unit_length(rows))
    return out


def probe_rows(width: int) -> FrozenRows:
    """Random rows to compare on: half of length 1, half of lengths from 1e-30 to 1e25.

    Args:
        width: Of a row.

    Returns:
        [128, width], the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    rows = unit_length(torch.randn(2 * PROBES, width, generator=generator))
    lengths = torch.cat([torch.ones(PROBES), torch.logspace(-30, 25, PROBES)])
    return rows * lengths[:, None]


def require_parity(got: Rows, want: Rows, *, what: str) -> float:
    r"""The largest difference of any number, :math:`\max |z - z'|`, if it is at most 1e-5.

    Args:
        got: Rows of what was written.
        want: The layer's own.
        what: What was written, for the message.

    Returns:
        The difference.

    Raises:
        ExportError: If it is larger, not a number, or the rows are of another shape.
    """
    if got.shape != want.shape:
        raise ExportError(
            f"{what} gives rows of shape {list(got.shape)} where the adapter gives {list(want.shape)}; "
            "nothing was written"
        )
    difference = float((got.double() - want.double()).abs().max())
    # a difference that is no number must fail too
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{what} differs from the adapter by {difference:.1e}, and {TOLERANCE:.0e} is the most allowed; "
            "nothing was written. Fit the adapter again, or use another version of the package that runs it"
        )
    return difference


def write_readme(folder: Path, title: str, use: str, fc: FCLayer, origin: Origin, *, library: str) -> None:
    """Write a model card: what is in a folder, how to use it, what it is worth and where it ends.

    Args:
        folder: Where the README goes.
        title: A line.
        use: Markdown.
        fc: The layer.
        origin: Where it comes from.
        library: What loads the files, for the front matter.
    """
    model = origin.model or "not recorded"
    text = f"""\
{front_matter(library, model=origin.model, data_key=origin.data_key)}

# {title}

{use.strip()}

{origin.re_index}

- Features: {fc.width} numbers a row, of the frozen model: {model}
- Key of that model: {origin.model_key or "not recorded"}
- Fingerprint of the features of the fit: {origin.data_key or "not recorded"}
- Embeddings: {fc.dim} numbers a row, length 1; compare them by cosine or dot product
- FC layer: {fc.kind}; side: {origin.side}

## Measured

{results_section(origin.report)}

## Limits

{limits(origin.side)}
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
