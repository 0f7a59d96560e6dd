"""Rows that an encoder makes in the mode it is in, without a step of its own being lost."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from querykey.training.view_step import Computing, projections
from querykey.types import Ids, Rows

__all__ = ["encoded_aside"]

Classes = TypeVar("Classes")


def encoded_aside(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Ids, Classes]], computing: Computing
) -> Iterator[tuple[Rows, Ids, Classes]]:
    """Encode batches without gradient, in the mode the encoder is in, and put its buffers back.

    Within a training that is train mode: rows that steps make have batch statistics, and these should
    be like them. The running statistics of batch norm do not move.

    Args:
        encoder: images -> (h, z).
        batches: (views [images, channels, height, width], ids, classes), the views of this process's part of
            a batch, ids and classes of all of it.
        computing: How it is run; chunks and checkpointing make no difference.

    Yields:
        (rows as they are looked up [images of all processes, dim], ids, classes).
    """
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    try:
        for view, ids, classes in batches:
            with torch.no_grad(), computing.autocast(view.device):
                _, z = encoder(view)
            rows = projections(z, normalised=computing.normalised)
            yield computing.processes.gather(rows, len(ids)), ids, classes
    finally:
        with torch.no_grad():
            for name, buffer in encoder.named_buffers():
                buffer.copy_(before[name])
