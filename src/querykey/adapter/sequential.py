"""Sequential training of sizes: training a smaller size leaves larger ones unchanged."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.encoders.heads import FCLayer
from querykey.errors import RangeError
from querykey.types import FrozenRows, Rows

__all__ = ["SequentialLayer", "cayley", "gumbel_mask"]

HOTTEST, COLDEST = 1.0, 0.1
"""Temperature of the Gumbel-softmax at the start of a stage and at its end."""
TIED = 1e-6
"""Parameters of logits that differ by less are equal."""
LOGIT_SCALE = 100.0
"""Logits per unit of the parameter: at a matrix's learning rate they would stay below the noise."""


class SequentialLayer(nn.Module):
    r"""An FC layer whose largest size is trained first and then frozen; smaller sizes are later stages.

    A stage from the first :math:`p` numbers to the first :math:`d` of them learns a rotation :math:`R` of
    :math:`p` numbers ("sequential"), which changes no score of the larger sizes, or selects :math:`d` of the
    numbers ("selection"), which is a permutation. With "rotation" there is one stage for all smaller sizes: a
    rotation of the largest that lowers the sum of their losses. `fold_` multiplies the map of a stage into
    the FC layer.

    Args:
        fc: The layer, trained in place; the first stage is its largest size.
        sizes: In descending order, the first one equal to `fc.dim`.
        kind: "sequential", "selection" or "rotation".
        seed: Seed of the Gumbel noise.

    Raises:
        RangeError: If the sizes are not in descending order from `fc.dim`.

    Source:
        Zhang et al. 2025, arXiv:2510.12474 (SMRL, ADS), with an orthogonal map instead of an FC layer per
        stage, so that all sizes stay prefixes of one vector.
    """

    stage: Tensor

    def __init__(
        self,
        fc: FCLayer,
        sizes: Sequence[int],
        kind: Literal["sequential", "selection", "rotation"],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if list(sizes) != sorted(set(sizes), reverse=True) or sizes[0] != fc.dim:
            raise RangeError(f"sizes must descend from {fc.dim}, the width of the layer; got {list(sizes)}")
        self.fc, self.sizes, self.kind, self.seed = fc, tuple(sizes), kind, seed
        self.register_buffer("stage", torch.zeros((), dtype=torch.int64))
        largest, *smaller = self.sizes
        later = [tuple(smaller)] if kind == "rotation" else [(size,) for size in smaller]
        self.stages: tuple[tuple[int, ...], ...] = ((largest,), *later)
        self.turned = [stage[-1] for stage in self.stages[:-1]]
        masks = [_turning(p, stage) for p, stage in zip(self.turned, self.stages[1:], strict=True)]
        counts = self.turned if kind == "selection" else [int(mask.sum()) for mask in masks]
        self.masks, self.progress, self.step = masks, 0.0, 0
        self.turns = nn.ParameterList([nn.Parameter(torch.zeros(count)) for count in counts])
        self._train_stage()

    @property
    def size(self) -> int:
        """Largest size that the current stage trains."""
        return self.stages[int(self.stage)][0]

    def forward(self, rows: FrozenRows) -> Rows:
        """Map unit rows [rows, width] to unit rows of the largest size [rows, dim]."""
        z = self.fc.project(rows)
        if (stage := int(self.stage)) > 0:
            turned = self.turned[stage - 1]
            z = torch.cat([z[:, :turned] @ self._map().T, z[:, turned:]], dim=1)
        return F.normalize(z, dim=1)

    def stage_rows(self, rows: FrozenRows) -> Rows:
        """Rows of the loss of this stage: unit rows of its size or, for a selection, masked larger ones."""
        z = self.fc.project(rows)
        if (stage := int(self.stage)) == 0:
            return F.normalize(z, dim=1)
        z = z[:, : self.turned[stage - 1]]
        if self.kind != "selection":
            return F.normalize(z @ self._map()[: self.size].T, dim=1)
        temperature = HOTTEST * (COLDEST / HOTTEST) ** self.progress
        noise = torch.Generator().manual_seed((self.seed * 2**24 + stage * 2**20 + self.step) % 2**63)
        mask = gumbel_mask(
            LOGIT_SCALE * self.turns[stage - 1], self.size, temperature=temperature, generator=noise
        )
        return F.normalize(z * mask, dim=1)

    @torch.no_grad()
    def next_stage_(self) -> None:
        """Fold the map of this stage into the FC layer, and start the next stage."""
        self.fold_()
        self.stage += 1
        self._train_stage()

    @torch.no_grad()
    def fold_(self) -> FCLayer:
        """Fold the map of this stage into the FC layer, in place.

        Returns:
            The FC layer, whose output equals that of this layer.
        """
        if (stage := int(self.stage)) > 0:
            _turn(self.fc, self._map())
            self.turns[stage - 1].zero_()
        return self.fc

    def _train_stage(self) -> None:
        stage = int(self.stage)
        self.fc.requires_grad_(stage == 0)
        for number, turn in enumerate(self.turns, start=1):
            turn.requires_grad_(number == stage)

    def _map(self) -> Tensor:
        """The orthogonal matrix of the stage [larger, larger]."""
        stage = int(self.stage)
        turn = self.turns[stage - 1]
        if self.kind != "selection":
            return cayley(turn, self.masks[stage - 1])
        # the first steps of Adam move each logit by the same length up to rounding: ties go to the lower one
        logits = (turn.detach() / TIED).round()
        chosen = torch.sort(logits, descending=True, stable=True).indices[: self.size]
        rest = torch.ones(len(turn), dtype=torch.bool)
        rest[chosen] = False
        order = torch.cat([chosen.sort().values, rest.nonzero()[:, 0]])
        return torch.eye(len(turn))[order]


def cayley(turn: Tensor, mask: Tensor) -> Tensor:
    r"""The rotation :math:`(I + S)^{-1} (I - S)` of a skew-symmetric :math:`S`.

    Args:
        turn: The free elements of S, row by row.
        mask: Where they stand, below the diagonal [size, size], as many as `turn` has.

    Returns:
        [size, size], orthogonal; the identity for zeros.
    """
    skew = torch.zeros(mask.shape, dtype=turn.dtype).masked_scatter(mask, turn)
    skew = skew - skew.T
    eye = torch.eye(len(mask), dtype=turn.dtype)
    turned: Tensor = torch.linalg.solve(eye + skew, eye - skew)
    return turned


def _turning(size: int, prefixes: Sequence[int]) -> Tensor:
    """Where a rotation of `size` axes turns an axis of a prefix against one outside it [size, size].

    Rotations within the axes between two prefixes are left out: they change no score, so their gradient is
    rounding, of which Adam would make whole steps.
    """
    group = (torch.arange(size)[:, None] >= torch.tensor(prefixes)).sum(dim=1)
    return group[:, None] > group


def gumbel_mask(logits: Tensor, count: int, *, temperature: float, generator: torch.Generator) -> Tensor:
    r"""A mask of `count` ones, drawn by Gumbel-softmax; the gradient is that of the soft mask.

    .. math:: y = k\,\text{softmax}\bigl((l + g) / \tau\bigr), \quad g = -\log(-\log u)

    Args:
        logits: l [dims].
        count: k, from 1 to dims.
        temperature: Tau, above 0.
        generator: Of u.

    Returns:
        [dims], ones at the `count` largest of l + g, zeros elsewhere.

    Source:
        Jang et al. 2017, arXiv:1611.01144 (straight-through Gumbel-softmax).
    """
    uniform = torch.rand(len(logits), generator=generator).clamp(min=1e-20)
    noisy = (logits - torch.log(-torch.log(uniform))) / temperature
    soft = count * noisy.softmax(dim=0)
    hard = torch.zeros_like(soft).scatter(0, noisy.topk(count).indices, 1.0)
    return hard + soft - soft.detach()


def _turn(fc: FCLayer, matrix: Tensor) -> None:
    """Multiply the first outputs of a layer by a matrix, in place."""
    size, exact = len(matrix), matrix.double()
    weight = fc.weight.double()
    if fc.kind == "residual":
        weight = weight + torch.eye(fc.dim, dtype=torch.float64)
    weight[:size] = exact @ weight[:size]
    if fc.kind == "residual":
        weight = weight - torch.eye(fc.dim, dtype=torch.float64)
    fc.weight.copy_(weight)
    fc.bias[:size] = (exact @ fc.bias[:size].double()).float()
    if fc.kind == "two_layer":
        fc.out.weight[:size] = (exact @ fc.out.weight[:size].double()).float()
