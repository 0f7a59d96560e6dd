"""The FC layer on top of a frozen model: linear, residual or two layers."""

from typing import Literal, assert_never, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.errors import RangeError, require_choice
from querykey.lookup.unit_length import unit_length
from querykey.types import FrozenRows, Rows

__all__ = ["FCKind", "FCLayer", "Start", "orthogonal"]

FCKind = Literal["linear", "residual", "two_layer"]
Start = Literal["pca", "pca_centred", "identity", "orthogonal"]


class FCLayer(nn.Module):
    r"""The layer of an adapter: maps unit rows of a frozen model to unit rows of width `dim`.

    With :math:`x` a unit row,

    .. math:: z = \text{norm}(W x + b) \quad\text{(linear)}, \qquad
              z = \text{norm}(x + W x + b) \quad\text{(residual)}, \qquad
              z = \text{norm}(W x + b + W_2\,\text{gelu}(W_1 x + b_1)) \quad\text{(two layers)}

    It is initialised with `set_affine_`, not at random. A residual layer and the second of two layers are
    initialised to 0, so that training starts from the frozen rows or from the linear layer.

    Args:
        width: Width of a frozen row.
        dim: Width of the output, from 1 to width.
        kind: "linear", "residual" (dim = width) or "two_layer".
        hidden: Width between two layers; None: the same as `width`.

    Raises:
        RangeError: If dim is not from 1 to width, or a residual layer changes the width.
        ConfigError: If there is no such kind.

    Example:
        >>> layer = FCLayer(4, 4, kind="residual")
        >>> layer(torch.eye(4)).equal(torch.eye(4))
        True
    """

    def __init__(self, width: int, dim: int, *, kind: FCKind = "linear", hidden: int | None = None) -> None:
        super().__init__()
        require_choice("kind", kind, get_args(FCKind))
        if not 1 <= dim <= width:
            raise RangeError(f"dim must be from 1 to the width of the features, {width}; got {dim}")
        if kind == "residual" and dim != width:
            raise RangeError(f"a residual FC layer keeps the width: dim must be {width}, got {dim}")
        self.width, self.dim, self.kind = width, dim, kind
        self.weight = nn.Parameter(torch.zeros(dim, width))
        self.bias = nn.Parameter(torch.zeros(dim))
        if kind == "two_layer":
            hidden = hidden or width
            self.hidden = nn.Linear(width, hidden)
            self.out = nn.Linear(hidden, dim, bias=False)
            with torch.no_grad():
                self.hidden.weight.copy_(orthogonal(hidden, width, seed=0))
            nn.init.zeros_(self.hidden.bias)
            nn.init.zeros_(self.out.weight)

    def forward(self, rows: FrozenRows) -> Rows:
        """Unit rows [rows, width] to unit rows [rows, dim]."""
        return unit_length(self.project(rows))

    def project(self, rows: FrozenRows) -> Rows:
        """The rows before they are scaled to length 1 [rows, dim]."""
        out = F.linear(rows, self.weight, self.bias)
        match self.kind:
            case "linear":
                return out
            case "residual":
                return out + rows
            case "two_layer":
                more: Tensor = self.out(F.gelu(self.hidden(rows)))
                return out + more
            case never:
                assert_never(never)

    @torch.no_grad()
    def set_affine_(self, weight: Tensor, bias: Tensor) -> None:
        """Set the layer, in place, to W x + b, scaled to length 1; a second layer stays 0.

        Args:
            weight: W [dim, width].
            bias: b [dim].
        """
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        if self.kind == "residual":
            self.weight.sub_(torch.eye(self.dim))


def orthogonal(rows: int, columns: int, *, seed: int) -> Tensor:
    """A random matrix with orthonormal rows, or columns if there are more rows than columns."""
    noise = torch.randn(
        max(rows, columns),
        min(rows, columns),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )
    basis, upper = torch.linalg.qr(noise)
    basis = basis * upper.diagonal().sign()
    matrix: Tensor = basis if rows > columns else basis.T
    return matrix.float()
