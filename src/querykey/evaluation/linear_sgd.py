"""A linear classifier trained by gradient descent on features kept once, as MoCo and SimCLR report it."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from querykey.types import Rows

__all__ = ["MOCO", "SIMCLR", "LinearDescent", "descend"]


@dataclass(frozen=True, kw_only=True)
class LinearDescent:
    """The constants of a protocol.

    Args:
        base_learning_rate: At `reference_batch` rows.
        reference_batch: The learning rate is scaled by batch / reference_batch; None leaves it.
        batch_size: Rows a step; all rows where there are fewer.
        epochs: Passes.
        nesterov: Whether the momentum looks ahead.
        schedule: "steps": a tenth after 60 and after 80 epochs. "cosine": to 0, step by step.
        momentum: Of the descent.
        weight_decay: None in both protocols.
        start_deviation: Of the weights at the start; biases start at 0.
    """

    base_learning_rate: float
    reference_batch: int | None
    batch_size: int
    epochs: int
    nesterov: bool
    schedule: Literal["steps", "cosine"]
    momentum: float = 0.9
    weight_decay: float = 0.0
    start_deviation: float = 0.01

    def resolved(self, rows: int) -> dict[str, Any]:
        """What a run on so many rows uses, for the record."""
        batch = min(self.batch_size, rows)
        rate = self.base_learning_rate * (batch / self.reference_batch if self.reference_batch else 1)
        steps = self.epochs * math.ceil(rows / batch)
        return asdict(self) | {"batch_size": batch, "learning_rate": rate, "steps": steps}


MOCO = LinearDescent(
    base_learning_rate=30.0,
    reference_batch=None,
    batch_size=256,
    epochs=100,
    nesterov=False,
    schedule="steps",
)
"""He et al. 2020, arXiv:1911.05722, sec. 4.1; momentum and start as in the released main_lincls.py."""

SIMCLR = LinearDescent(
    base_learning_rate=0.1,
    reference_batch=256,
    batch_size=4096,
    epochs=90,
    nesterov=True,
    schedule="cosine",
)
"""Chen et al. 2020, arXiv:2002.05709, app. B.6, where the learning rate is 1.6 at 4,096 rows."""


def descend(
    rows: Rows, members: Int64[Tensor, " rows"], classes: int, *, protocol: LinearDescent, seed: int
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
    """Train by stochastic gradient descent on the mean cross-entropy of each batch.

    The papers augment the images of every epoch; here each image has one row, made once, without
    augmentation. The rows are taken as the encoder gave them, not standardised.

    Args:
        rows: [rows, dim], float32.
        members: The class of each row, 0 to classes - 1.
        classes: How many.
        protocol: `MOCO`, `SIMCLR` or constants of your own.
        seed: Of the start and of the order, keyed by the epoch. The last, smaller batch takes part.

    Returns:
        (weight, bias) after the last step; not finite where the descent has diverged.

    Example:
        >>> weight, bias = descend(torch.eye(2), torch.tensor([0, 1]), 2, protocol=SIMCLR, seed=0)
        >>> (torch.eye(2) @ weight.T + bias).argmax(dim=1).tolist()
        [0, 1]
    """
    chosen = protocol.resolved(len(rows))
    draw = torch.Generator().manual_seed(seed)
    weight = protocol.start_deviation * torch.randn(classes, rows.shape[1], generator=draw)
    bias = torch.zeros(classes)
    optimizer = torch.optim.SGD(
        [weight, bias],
        lr=chosen["learning_rate"],
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    step = 0
    for epoch in range(protocol.epochs):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(rows)))
        for batch in torch.split(order, chosen["batch_size"]):
            share = _share(protocol, epoch, step / chosen["steps"])
            optimizer.param_groups[0]["lr"] = share * chosen["learning_rate"]
            inputs, own = rows[batch], members[batch]
            error = torch.addmm(bias, inputs, weight.T).softmax(dim=1)
            error.scatter_add_(1, own[:, None], torch.full((len(own), 1), -1.0))
            weight.grad, bias.grad = error.T @ inputs / len(own), error.mean(dim=0)
            optimizer.step()
            step += 1
    return weight.detach(), bias.detach()


def _share(protocol: LinearDescent, epoch: int, progress: float) -> float:
    """Of the peak learning rate."""
    if protocol.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 0.1 ** sum(epoch >= milestone for milestone in (60, 80))
