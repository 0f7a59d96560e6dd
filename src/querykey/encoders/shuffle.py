"""Shuffling batch norm: keys are encoded in another order than the queries, and put back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as processes

from querykey.errors import ConfigError, RangeError, ShapeError
from querykey.types import Rows

__all__ = ["encode_shuffled", "spread_order"]


def encode_shuffled(
    encode: Callable[[Tensor], Rows],
    images: Tensor,
    *,
    permutation: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Rows:
    r"""Encode images in another order, so that batch norm groups them otherwise; rows come back in order.

    .. math:: k_{\pi(j)} = f(x_{\pi(1)}, \dots, x_{\pi(B)})_j

    A query and its key that go through batch norm in the same group share its statistics, and can be
    told to belong together by them alone. Groups are the rows of one process, or the sub-batches
    of split batch norm on one device; with batch norm over the whole batch of one process, order
    changes nothing but rounding.

    Where torch.distributed runs with more than one process, the images of all of them are gathered,
    each process encodes its part of the permutation, and keys are gathered back. All must call it with
    as many images each; the permutation is that of the first process, for all.

    Args:
        encode: Images to rows [images, dim]. On one process gradient flows through.
        images: [images, channels, height, width] of this process.
        permutation: Of 0 to the number of images of all processes, less 1.
        generator: To draw one from, in the place of a permutation; keyed by seed and step by the caller.

    Returns:
        [images, dim]; row i is that of image i.

    Raises:
        ConfigError: If there is neither a permutation nor a generator, or both; or if gradient would have
            to flow between processes.
        ShapeError: If the permutation has another length, or processes have other numbers of images.
        RangeError: If it is not a permutation.

    Example:
        >>> images = torch.arange(4.0).view(4, 1)
        >>> encode_shuffled(lambda some: some - some[:2].mean(), images,
        ...                 permutation=torch.tensor([3, 1, 0, 2])).T.tolist()
        [[-2.0, -1.0, 0.0, 1.0]]

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, section 3.3.
    """
    if (permutation is None) == (generator is None):
        raise ConfigError("shuffled keys need a permutation or a generator to draw one from, not both")
    world = _processes()
    if world > 1:
        _require_as_many_everywhere(images)
    total = world * len(images)
    if permutation is None:
        assert generator is not None
        permutation = torch.randperm(total, generator=generator, device=generator.device)
    _require_permutation(permutation, total)
    order = permutation.to(images.device)
    if world == 1:
        return encode(images[order])[order.argsort()]
    order = order.clone()
    processes.broadcast(order, src=0)
    part = slice(processes.get_rank() * len(images), (processes.get_rank() + 1) * len(images))
    keys = encode(_gathered(images)[order[part]])
    if keys.requires_grad:
        raise ConfigError(
            "keys that are shuffled over processes carry no gradient back; encode them under torch.no_grad, "
            "or train both encoders on one process"
        )
    return _gathered(keys)[order.argsort()[part]]


def spread_order(rows: int, *, groups: int, generator: torch.Generator) -> Tensor:
    """A permutation that spreads each group of consecutive rows evenly over all groups.

    In a random one some rows of a group meet again: the statistics of their new group are a little
    like those of the old one, which is a rest of the leak. Here each new group has as many rows of
    every old one, to within one; who goes where is random.

    Args:
        rows: Of a batch.
        groups: Of one size.
        generator: Keyed by seed and step by the caller.

    Returns:
        Numbers 0 to rows - 1 [rows], for `encode_shuffled`.

    Raises:
        ShapeError: If rows do not make so many groups of one size.

    Example:
        >>> order = spread_order(8, groups=2, generator=torch.Generator().manual_seed(0))
        >>> [sorted((half // 4).tolist()) for half in order.chunk(2)]
        [[0, 0, 1, 1], [0, 0, 1, 1]]

    Source:
        This library's; He et al. 2019 draw a random permutation.
    """
    if groups < 1 or rows % groups:
        raise ShapeError(f"{rows} rows do not make {groups} groups of one size; take a multiple of {groups}")
    drawn = torch.rand(groups, rows // groups, generator=generator).argsort(dim=1)
    within = drawn + torch.arange(groups)[:, None] * (rows // groups)
    return within[torch.randperm(groups, generator=generator)].T.reshape(-1)


def _processes() -> int:
    if not (processes.is_available() and processes.is_initialized()):
        return 1
    return processes.get_world_size()


def _require_permutation(permutation: Tensor, total: int) -> None:
    if permutation.shape != (total,):
        raise ShapeError(
            f"the permutation has shape {list(permutation.shape)} for {total} images; one entry for each "
            "image of all processes is needed"
        )
    if not torch.equal(permutation.sort().values, torch.arange(total, device=permutation.device)):
        raise RangeError(
            f"what was given as a permutation of {total} images does not have each of 0 to {total - 1} once"
        )


def _require_as_many_everywhere(images: Tensor) -> None:
    sizes = _gathered(torch.tensor([len(images)], device=images.device)).tolist()
    if len(set(sizes)) > 1:
        raise ShapeError(
            f"the processes have {sizes} images; shuffling needs as many on each: drop the smaller last batch"
        )


def _gathered(rows: Tensor) -> Tensor:
    parts: list[Any] = [
        torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(_processes())
    ]
    processes.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
