"""Fit codes to training rows: ranges, centres and rotations, separately for each size."""

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
"""Largest number of rows that ranges and rotations are fitted to."""
ITERATIONS = 30
"""Iterations of ITQ; more hardly lower its cost."""

Codes = dict[tuple[int, int], Code]


def fit_codes(transform: Transform, rows: FrozenRows, settings: AdapterSettings) -> Codes:
    """Fit the code of each size at each precision.

    At 1 bit each size has its own rotation, so a prefix of a code is not the code of the smaller size.

    Args:
        transform: Maps frozen unit rows to unit rows of the largest size.
        rows: Frozen unit rows of training documents.
        settings: Resolved settings; sizes, bits, rotation and seed are used.

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
    """Compose a transform with encoding and decoding.

    Args:
        transform: Maps rows to unit rows [rows, code.dim].
        code: The code of that size.

    Returns:
        A map from rows to decoded unit rows of the same size.
    """
    return lambda rows: torch.from_numpy(code.decode(code.encode(transform(rows).numpy())))


def itq(
    rows: NDArray[np.float64], start: NDArray[np.float64], *, iterations: int = ITERATIONS
) -> NDArray[np.float64]:
    r"""The rotation that brings rows nearest to their signs.

    .. math:: \min_{R, B} \lVert B - V R^T \rVert_F, \quad B = \text{sign}(V R^T), \quad
              R = \text{polar}(B^T V)

    Args:
        rows: V, centred [rows, dim].
        start: A rotation [dim, dim].
        iterations: Number of alternating updates of B and R.

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
    # The first numbers of a row vary most and are the largest: a quantile would clip just those.
    largest = float(np.abs(rows).max(initial=0)) or 1.0
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


def drawn_rows(count: int, held_out: Sequence[int] | torch.Tensor, seed: int) -> torch.Tensor:
    """Draw at most `FITTED_ROWS` of `count` row indices, without the held-out ones, in ascending order."""
    kept = torch.arange(count)
    if len(held_out):
        kept = kept[~torch.isin(kept, torch.as_tensor(held_out))]
    order = np.random.default_rng([seed, 9]).permutation(len(kept))[:FITTED_ROWS].astype(np.int64)
    return kept[torch.from_numpy(order)].sort().values
