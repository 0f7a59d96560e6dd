"""The end of a step: gradients and running statistics of all processes, and the step of the optimiser."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from querykey.processes import Processes

__all__ = ["step_together"]

_OWN_STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def step_together(
    optimizer: torch.optim.Optimizer, encoders: Sequence[nn.Module], processes: Processes
) -> None:
    """Sum the gradients over the processes, average running statistics, and take the step.

    Each process has the gradients of its own part of the loss; their sum is the gradient of the loss. They
    are summed once, when all backward passes of the step are through. DistributedDataParallel sums them
    from hooks while one backward runs: it knows no step of two directions and no second pass over a
    chunk, and it takes the mean, for a loss that each process has to itself.

    Batch norm of kind "device" has moved its running statistics by those of the process's own rows.
    Moving is linear, so that the mean over the processes is what split batch norm would have, and
    the state of one process is that of all.

    Args:
        optimizer: Of parameters with this process's gradients, which are the sum afterwards.
        encoders: What has encoded in this step.
        processes: One alone steps as it is.
    """
    if processes.count > 1:
        processes.sum_gradients_(optimizer)
        _average_(_own_statistics(encoders), processes)
    optimizer.step()


@torch.no_grad()
def _average_(kept: Sequence[Tensor], processes: Processes) -> None:
    if not kept:
        return
    mean = processes.sum_(torch.cat(list(kept))) / processes.count
    for running, of_all in zip(kept, torch.split(mean, [len(one) for one in kept]), strict=True):
        running.copy_(of_all)


def _own_statistics(encoders: Sequence[nn.Module]) -> list[Tensor]:
    """Running means and variances that this process alone has moved, each once."""
    norms = {
        id(module): module
        for encoder in encoders
        for module in encoder.modules()
        if isinstance(module, _OWN_STATISTICS) and module.training
    }
    running = [value for norm in norms.values() for value in (norm.running_mean, norm.running_var)]
    return [value for value in running if value is not None]
