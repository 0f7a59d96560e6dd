"""Large batches in small memory: the gradient of the batch, with the activations of one chunk at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from querykey.encoders.norm.split import SplitBatchNorm1d, SplitBatchNorm2d
from querykey.errors import ConfigError, ShapeError
from querykey.pretraining.chunked.replay import BatchNormReplay
from querykey.pretraining.chunked.tape import generator_states
from querykey.types import Rows

__all__ = ["ChunkedForward", "cached_backward", "checkpointed_blocks"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def cached_backward(
    encoder: nn.Module,
    image_chunks: Sequence[Tensor],
    loss_of_z: Callable[[Rows], Tensor],
    *,
    checkpoint_blocks: bool = False,
) -> Tensor:
    r"""Add the gradients of a loss over a batch, with the activations of one chunk at a time.

    With :math:`z = g(f(x))` and a loss :math:`L` that compares all rows of :math:`z` with each other,

    .. math:: \frac{\partial L}{\partial \theta}
              = \sum_{\text{chunks } c} \frac{\partial L}{\partial z_c} \frac{\partial z_c}{\partial \theta}:

    z is computed chunk by chunk without a graph, then the gradient at z; then each chunk is encoded again,
    and its part of the gradient is backpropagated. Loss and gradients are those of the batch, to rounding.
    Dropout draws the same numbers both times, but others than without chunks.

    Batch norm in train mode has the mean and variance of all chunks, and so have the two sums in its
    gradient. The chunks are synchronised at each batch norm, forward and backward; between the norms
    activations are recomputed from a few stored ones. The running statistics are updated once, by those of
    the batch. Other state that a forward pass changes, as in spectral norm, is not supported.

    Args:
        encoder: Gives z [rows, dim], or a tuple that ends with z; in the mode it should be in. With batch
            norm it has to consist of torch's functions (no torch.compile, no DistributedDataParallel).
        image_chunks: The batch [images, channels, height, width] in parts, in order, at least one image
            in each; of one size, but for the last.
        loss_of_z: z of the whole batch [images of all chunks, dim] to one number; called once.
        checkpoint_blocks: Also hold only the inputs of an encoder's blocks (see `checkpointed_blocks`); for
            encoders without batch norm in train mode.

    Returns:
        The loss, without a graph. Gradients are added to `.grad` of all parameters, and of what else
        the loss depends on.

    Raises:
        ShapeError: If there is no chunk, an empty one, or one value a channel for batch norm.
        ConfigError: If the encoder has split batch norm, or batch norm and what cannot be followed.

    Example:
        >>> layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
        >>> images = torch.arange(24.0).view(6, 1, 2, 2) ** 2
        >>> loss = cached_backward(layer, images.split(2), lambda z: z.prod(dim=1).sum())
        >>> whole = layer(images).prod(dim=1).sum()
        >>> bool(torch.isclose(loss, whole))
        True

    Source:
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021,
        arXiv:2101.06983, section 3.2 (without batch norm, which it excludes).
    """
    forward = ChunkedForward(encoder, image_chunks, checkpoint_blocks=checkpoint_blocks)
    with torch.enable_grad():
        loss = loss_of_z(forward.z)
    loss.backward()  # type: ignore[no-untyped-call]
    forward.backward()
    return loss.detach()


class ChunkedForward:
    """The forward pass of `cached_backward` by itself, for a caller that computes the loss in between.

    Make it, compute a loss of `z`, call the loss's `backward`, then `backward` here. The four have to be
    called once each, in this order; the encoder's weights must not change in between.

    Args:
        encoder: As for `cached_backward`.
        image_chunks: As for `cached_backward`.
        checkpoint_blocks: As for `cached_backward`.

    Attributes:
        z: Of the whole batch [images of all chunks, dim]: a leaf of the graph of the loss.

    Raises:
        ShapeError: If there is no chunk, an empty one, or one value a channel for batch norm.
        ConfigError: If the encoder has split batch norm, or batch norm and what cannot be followed.
    """

    def __init__(
        self, encoder: nn.Module, image_chunks: Sequence[Tensor], *, checkpoint_blocks: bool = False
    ) -> None:
        _check(encoder, image_chunks)
        self._encoder, self._chunks, self._checkpoint_blocks = encoder, image_chunks, checkpoint_blocks
        self._states: list[list[tuple[Callable[[Tensor], None], Tensor]]] = []
        self._replay: BatchNormReplay | None = None
        if any(isinstance(module, _NORMS) for module in _training(encoder)):
            if checkpoint_blocks:
                raise ConfigError(
                    "checkpoint_blocks is for encoders without batch norm in train mode; with it activations "
                    "between two norms are dropped already"
                )
            with _without_autocast_cache():
                self._replay = BatchNormReplay(encoder, image_chunks)
                parts = list(self._replay.forward())
        else:
            parts = self._forward()
        self._sizes = [len(part) for part in parts]
        self.z = torch.cat(parts).requires_grad_()

    def backward(self) -> None:
        """Recompute each chunk and add the gradients of the parameters, from the gradient at `z`."""
        gradient = torch.zeros_like(self.z) if self.z.grad is None else self.z.grad
        gradients = list(torch.split(gradient, self._sizes))
        if self._replay is not None:
            with _without_autocast_cache():
                self._replay.backward(gradients)
            return
        current = generator_states(self._chunks[0].device)
        with checkpointed_blocks(self._encoder) if self._checkpoint_blocks else nullcontext():
            for chunk, before, part in zip(self._chunks, self._states, gradients, strict=True):
                _restore(before)  # dropout draws the same numbers as in the forward pass
                torch.autograd.backward(_z(self._encoder(chunk)), part)
        _restore(current)

    def _forward(self) -> list[Tensor]:
        """Z of each chunk without a graph, and the generators' states before it."""
        parts = []
        with torch.no_grad():
            for chunk in self._chunks:
                self._states.append(generator_states(chunk.device))
                parts.append(_z(self._encoder(chunk)))
        return parts


@contextmanager
def checkpointed_blocks(encoder: nn.Module) -> Iterator[None]:
    """While this lasts, an encoder's blocks hold their inputs alone and are run again on the way back.

    A block is a member of an nn.Sequential or nn.ModuleList that has members of its own and lies in no
    other block: a residual block, a transformer's layer. Backward has to be called inside. The
    second run leaves the buffers, as batch norm's running statistics, as they were before it.

    Args:
        encoder: Its blocks' `forward` are replaced until the end.

    Yields:
        Nothing.

    Example:
        >>> layers = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
        >>> with checkpointed_blocks(layers):
        ...     layers(torch.ones(1, 2)).sum().backward()
        >>> layers[0][0].weight.grad is None
        False

    Source:
        Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174, section 4.
    """
    blocks = list(_blocks(encoder))
    for block in blocks:
        block.forward = _checkpointed(block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _check(encoder: nn.Module, chunks: Sequence[Tensor]) -> None:
    if not chunks or not all(len(chunk) for chunk in chunks):
        raise ShapeError(
            f"chunks of {[len(chunk) for chunk in chunks]} images were given; at least one chunk with "
            "at least one image in each is needed"
        )
    if any(isinstance(module, SplitBatchNorm1d | SplitBatchNorm2d) for module in _training(encoder)):
        raise ConfigError(
            "split batch norm has statistics for each sub-batch, and chunks cut across them; use the whole "
            "batch, or batch norm of kind device"
        )


def _training(encoder: nn.Module) -> list[nn.Module]:
    """Modules that use batch statistics if they are batch norm."""
    return [module for module in encoder.modules() if module.training or not _tracks(module)]


def _restore(states: Sequence[tuple[Callable[[Tensor], None], Tensor]]) -> None:
    for set_state, state in states:
        set_state(state)


def _z(output: Any) -> Tensor:
    z: Tensor = output[-1] if isinstance(output, tuple) else output
    return z


def _tracks(module: nn.Module) -> bool:
    return getattr(module, "track_running_stats", True) is not False


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
            yield child
        else:
            yield from _blocks(child)


def _checkpointed(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _same_buffers(block)),
            **kwargs,
        )

    return run


@contextmanager
def _same_buffers(block: nn.Module) -> Iterator[None]:
    before = {name: buffer.clone() for name, buffer in block.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in block.named_buffers():
                buffer.copy_(before[name])


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """A weight that was cast for one chunk belongs to that chunk's graph, which is gone for the next."""
    was_on = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_on)
