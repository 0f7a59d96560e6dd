"""What the steps of pretraining have in common: how an encoder is run, and what a step leaves."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.errors import CollapseError
from querykey.lookup import Lookup
from querykey.training.gradient_cache import cached_backward, checkpointed_blocks
from querykey.types import Ids, Labels, Rows

__all__ = [
    "Computing",
    "Seen",
    "ViewPair",
    "ViewStep",
    "backward",
    "projections",
    "require_finite",
    "without_gradient",
]

Seen = Callable[[Lookup], None]
"""Is shown the look-up that a step's loss is computed from, without gradient, before anything changes."""


class ViewPair(NamedTuple):
    """Two views of a batch of images; of a method that needs one view, the same twice."""

    view_1: Tensor
    view_2: Tensor
    ids: Ids
    """Places of the images among those trained on: an item's number in every dictionary."""
    labels: Labels | None
    seconds: float
    """That decoding and augmentation took."""


@dataclass(frozen=True, eq=False)
class ViewStep:
    """What a step leaves for the monitors.

    Args:
        loss: Mean over the queries.
        view_1: The queries [images, dim], as they were looked up, without gradient.
        view_2: Row by row the key that each of them should find.
    """

    loss: float
    view_1: Rows
    view_2: Rows


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How an encoder is run in a step; the loss and the gradient are the same but for rounding.

    Args:
        precision: Of its forward pass; z and the loss are float32 at least.
        chunks: Parts in which the batch is encoded.
        checkpointing: Whether a part's activations are computed again backward instead of kept.
        normalised: Whether z is scaled to length 1.
    """

    precision: torch.dtype = torch.float32
    chunks: int = 1
    checkpointing: bool = False
    normalised: bool = True

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which an encoder runs forward."""
        return torch.autocast(device.type, dtype=self.precision, enabled=self.precision != torch.float32)


def projections(z: Tensor, *, normalised: bool) -> Rows:
    """What is looked up.

    Args:
        z: Of an encoder [rows, dim].
        normalised: Whether rows are scaled to length 1.

    Returns:
        [rows, dim] in float32 at least.
    """
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    return F.normalize(z, dim=1) if normalised else z


def backward(
    encoder: nn.Module, images: Tensor, loss_of_z: Callable[[Rows], Tensor], computing: Computing
) -> float:
    """Encode a batch and add the gradients of its loss.

    Args:
        encoder: images -> (h, z), in train mode.
        images: [images, channels, height, width].
        loss_of_z: What was looked up of it, to one number; called once.
        computing: How.

    Returns:
        The loss.

    Raises:
        CollapseError: If the loss is not finite; no gradient is added.
    """

    def of_z(z: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # the encoder's precision is not the loss's
            return require_finite(loss_of_z(projections(z, normalised=computing.normalised)))

    if computing.chunks > 1:
        with computing.autocast(images.device):
            value = cached_backward(
                encoder, images.chunk(computing.chunks), of_z, checkpoint_blocks=computing.checkpointing
            )
        return float(value)
    with checkpointed_blocks(encoder) if computing.checkpointing else nullcontext():
        with computing.autocast(images.device):
            _, z = encoder(images)
        loss = of_z(z)
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def require_finite(loss: Tensor) -> Tensor:
    """The loss, before it reaches any weight.

    Args:
        loss: One number.

    Returns:
        The same.

    Raises:
        CollapseError: If it is not finite.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CollapseError(f"the loss is {value}; lower the learning rate or raise the temperature")
    return loss


def without_gradient(lookup: Lookup) -> Lookup:
    """The same look-up for eyes alone.

    Args:
        lookup: Any.

    Returns:
        With queries and keys that carry no gradient.
    """
    return Lookup(lookup.queries.detach(), lookup.keys.detach(), lookup.pairs, lookup.score)
