"""Codes are fitted to training rows: ranges, centres and rotations, one of each for every size."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from querykey.adapter.ladder import prefix
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.validation import Transform, in_blocks
from querykey.distributed.process_group import current_process_group
from querykey.encoders.heads import orthogonal
from querykey.runtime.codes import Code
from querykey.types import FrozenRows

__all__ = ["Codes", "decoded", "drawn_rows", "fit_codes", "itq"]

FITTED_ROWS = 8_192
"""Rows that ranges and rotations are fitted to, at the most."""
RANGE = 0.999
"""Quantile of the magnitudes that is the end of the range of 8 bits; what is larger is clipped."""
ITERATIONS = 30
"""Of ITQ; its cost falls little after as many."""

Codes = dict[tuple[int, int], Code]


def fit_codes(transform: Transform, rows: FrozenRows, settings: AdapterSettings) -> Codes:
    """The codes of every size at every precision.

    A prefix of a code of 1 bit is not the code of the smaller size: each has its own rotation.

    Args:
        transform: Frozen unit rows to unit rows of the largest size.
        rows: Frozen unit rows of training documents.
        settings: Resolved: sizes, bits, the kind of rotation and the seed.

    Returns:
        (size, bits) to `Code`, the same bits on every process.
    """
    codes: Codes = {}
    for size in settings.sizes if settings.bits else ():
        small = in_blocks(prefix(transform, size), rows).numpy()
        for bits in settings.bits:
            tensors = _of_8_bits(small) if bits == 8 else _of_1_bit(small, settings)
            current_process_group().broadcast_([torch.from_numpy(one) for one in tensors.values()])
            codes[size, bits] = Code(size, bits, tensors)
    return codes


def decoded(transform: Transform, code: Code) -> Transform:
    """A transform to what the codes of its rows stand for.

    Args:
        transform: Rows to unit rows [rows, code.dim].
        code: Of that size.

    Returns:
        Rows to unit rows of the same size.
    """
    return lambda rows: torch.from_numpy(code.decode(code.encode(transform(rows).numpy())))


def itq(
    rows: NDArray[np.float64], start: NDArray[np.float64], *, iterations: int = ITERATIONS
) -> NDArray[np.float64]:
    r"""The rotation after which rows are nearest to their signs.

    .. math:: \min_{R, B} \lVert B - V R^T \rVert_F, \quad B = \text{sign}(V R^T), \quad
              R = \text{polar}(B^T V)

    Args:
        rows: V, centred [rows, dim].
        start: A rotation [dim, dim].
        iterations: Of the two in turn.

    Returns:
        R [dim, dim], orthogonal.

    Source:
        Gong and Lazebnik 2011, Iterative quantization (ITQ), section 2.2.
    """
    rotation = start
    for _ in range(iterations):
        signs = np.where(rows @ rotation.T > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(signs.T @ rows)
        rotation = left @ right
    return rotation


def _of_8_bits(rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    largest = float(np.quantile(np.abs(rows), RANGE)) or 1.0
    return {"scale": np.asarray([largest / 127], dtype=np.float32)}


def _of_1_bit(rows: NDArray[np.float32], settings: AdapterSettings) -> dict[str, NDArray[np.float32]]:
    exact = rows.astype(np.float64)
    mean, size = exact.mean(axis=0), exact.shape[1]
    rotation = orthogonal(size, size, seed=settings.seed).double().numpy()
    if settings.rotation == "itq":
        rotation = itq(exact - mean, rotation)
    turned = np.abs((exact - mean) @ rotation.T).mean(axis=0)
    tensors = {"rotation": rotation, "threshold": rotation @ mean, "scale": np.maximum(turned, 1e-6)}
    return {name: np.ascontiguousarray(one, dtype=np.float32) for name, one in tensors.items()}


def drawn_rows(count: int, held: Sequence[int] | torch.Tensor, seed: int) -> torch.Tensor:
    """At most `FITTED_ROWS` row numbers out of `count`, none of those that are held out, ascending."""
    kept = torch.arange(count)
    if len(held):
        kept = kept[~torch.isin(kept, torch.as_tensor(held))]
    order = np.random.default_rng([seed, 9]).permutation(len(kept))[:FITTED_ROWS].astype(np.int64)
    return kept[torch.from_numpy(order)].sort().values
