"""One step of SimCLR."""

import torch
from torch import Tensor, nn

from querykey.lookup.two_view_pairs import look_up_views
from querykey.losses.by_name import ViewLoss
from querykey.pretraining.methods.step import (
    Computing,
    Seen,
    ViewStep,
    all_reduce_and_step,
    backward,
    mean_of_own,
    without_gradient,
)
from querykey.types import Ids, Rows

__all__ = ["simclr_step"]


def simclr_step(
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: tuple[Tensor, Tensor],
    *,
    ids: Ids,
    loss: ViewLoss,
    computing: Computing | None = None,
    seen: Seen | None = None,
) -> ViewStep:
    r"""Encode both views together, look them up in one another, loss, backward, step.

    Args:
        encoder: images -> (h, z), in train mode; both views share its batch norm.
        optimizer: Of the encoder's parameters, and of a learned temperature.
        views: Two views of the same images, each [images, channels, height, width].
        ids: Which items they show [images].
        loss: On a look-up; see `view_objective`.
        computing: How the encoder is run.
        seen: Shown the look-up of the 2B rows.

    Returns:
        The loss before the step, mean over the 2B queries, and z of the first and second views.

    Raises:
        CollapseError: If the loss is not finite; the weights are left as they were.

    Source:
        Chen et al. 2020, arXiv:2002.05709, algorithm 1. Both views go through the encoder as one
        batch, as in the authors' code.
    """
    computing = computing or Computing()
    processes = computing.processes
    looked_up: dict[str, Rows] = {}

    def loss_of_z(z: Rows) -> Tensor:
        view_1, view_2 = (processes.all_gather_with_grad(view, len(ids)) for view in z.chunk(2))
        looked_up["view_1"], looked_up["view_2"] = view_1.detach(), view_2.detach()
        lookup = look_up_views(view_1, view_2, ids=ids)
        if seen is not None:
            seen(without_gradient(lookup))
        return mean_of_own(loss, lookup, processes, views=2)

    optimizer.zero_grad()
    value = backward(encoder, torch.cat(views), loss_of_z, computing)
    all_reduce_and_step(optimizer, [encoder], processes)
    return ViewStep(value, **looked_up)
