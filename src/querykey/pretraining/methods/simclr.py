"""One step of SimCLR."""

from dataclasses import dataclass

import torch
from torch import nn

from querykey.lookup.two_view_pairs import look_up_views
from querykey.pretraining.methods.step import StepContext, StepOutput, ViewPair

__all__ = ["SimCLR", "simclr_step"]


@dataclass(frozen=True, eq=False)
class SimCLR:
    """The modules of SimCLR.

    Args:
        encoder: images -> (h, z), in train mode.
        optimizer: Of the encoder's parameters, and of a learned temperature.
    """

    encoder: nn.Module
    optimizer: torch.optim.Optimizer


def simclr_step(simclr: SimCLR, batch: ViewPair, context: StepContext) -> StepOutput:
    r"""Encode both views together, look them up in one another, loss, backward, optimizer step.

    Args:
        simclr: Encoder and optimizer; both views share the encoder's batch norm.
        batch: Two views of the same images.
        context: Loss, precision, processes.

    Returns:
        The loss before the step, mean over the 2B queries, and z of the first and second views.

    Raises:
        CollapseError: If the loss is not finite; the weights are unchanged.

    Source:
        Chen et al. 2020, arXiv:2002.05709, algorithm 1. Both views go through the encoder as one
        batch, as in the authors' code.
    """
    simclr.optimizer.zero_grad()
    encoded = context.encode(simclr.encoder, torch.cat([batch.view_1, batch.view_2]))
    view_1, view_2 = (context.gather(view, len(batch.ids)) for view in encoded.rows.chunk(2))
    lookup = look_up_views(view_1, view_2, ids=batch.ids)
    value = context.backward(context.mean_loss(lookup, views=2), encoded)
    context.optimizer_step(simclr.optimizer, simclr.encoder)
    return StepOutput(value, view_1.detach(), view_2.detach())
