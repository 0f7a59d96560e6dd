"""One step of SimCLR."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.errors import CollapseError
from querykey.training.gradient_cache import cached_backward, checkpointed_blocks
from querykey.training.view_objectives import ViewLoss
from querykey.two_views import look_up_views
from querykey.types import Ids, Rows

__all__ = ["SimclrStep", "simclr_step"]


@dataclass(frozen=True, eq=False)
class SimclrStep:
    """What a step leaves for the monitors.

    Args:
        loss: Mean over the 2B queries.
        view_1: z of the first views, as it was looked up, without gradient.
        view_2: z of the second views.
    """

    loss: float
    view_1: Rows
    view_2: Rows


def simclr_step(
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[Tensor, Tensor],
    *,
    ids: Ids,
    loss: ViewLoss,
    normalised: bool = True,
    precision: torch.dtype = torch.float32,
    chunks: int = 1,
    checkpointing: bool = False,
) -> SimclrStep:
    r"""Encode both views together, look them up in one another, loss, backward, step.

    Args:
        encoder: images -> (h, z), in train mode; both views share its batch norm.
        optimizer: Of the encoder's parameters, and of a learned temperature.
        views: Two views of the same images, each [images, channels, height, width].
        ids: Which items they show [images].
        loss: On a look-up; see `view_objective`.
        normalised: Whether z is scaled to length 1.
        precision: Of the encoder's forward pass; z and the loss are float32 at least.
        chunks: Parts in which the batch is encoded, with the same loss and gradient.
        checkpointing: Whether a part's activations are computed again backward instead of kept.

    Returns:
        The loss before the step, and z.

    Raises:
        CollapseError: If the loss is not finite; the weights are left as they were.

    Source:
        Chen et al. 2020, arXiv:2002.05709, algorithm 1. Both views go through the encoder as one
        batch, as in the authors' code.
    """
    both = torch.cat(views)
    seen: dict[str, Tensor] = {}

    def of_projections(z: Tensor) -> Tensor:
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
        z = F.normalize(z, dim=1) if normalised else z
        view_1, view_2 = z.chunk(2)
        seen["view_1"], seen["view_2"] = view_1.detach(), view_2.detach()
        return _require_finite(loss(look_up_views(view_1, view_2, ids=ids)).mean())

    optimizer.zero_grad()
    computing = torch.autocast(both.device.type, dtype=precision, enabled=precision != torch.float32)
    if chunks > 1:
        with computing:
            value = float(
                cached_backward(encoder, both.chunk(chunks), of_projections, checkpoint_blocks=checkpointing)
            )
    else:
        with checkpointed_blocks(encoder) if checkpointing else nullcontext():
            with computing:
                _, z = encoder(both)
            mean = of_projections(z)
            mean.backward()  # type: ignore[no-untyped-call]
        value = float(mean.detach())
    optimizer.step()
    return SimclrStep(value, seen["view_1"], seen["view_2"])


def _require_finite(loss: Tensor) -> Tensor:
    """The loss, before it reaches any weight.

    Raises:
        CollapseError: If it is not finite.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CollapseError(f"the loss is {value}; lower the learning rate or raise the temperature")
    return loss
