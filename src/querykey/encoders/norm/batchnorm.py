"""What stands where a network has batch norm: per device, over all devices, split, or layer norm."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.distributed.process_group import current_process_group
from querykey.encoders.norm.sync_batchnorm import GlobalBatchNorm
from querykey.errors import ConfigError, RangeError, ShapeError

__all__ = ["BatchNormKind", "SplitBatchNorm1d", "SplitBatchNorm2d", "convert_batch_norm"]

BatchNormKind = Literal["device", "global", "layer", "split"]

_Norm = nn.BatchNorm1d | nn.BatchNorm2d


def _split(norm: _Norm, rows: Tensor, groups: int) -> Tensor:
    """Batch norm with the statistics of each group of consecutive rows, in train mode."""
    if len(rows) % groups:
        raise ShapeError(
            f"split batch norm has {groups} groups, and {len(rows)} rows do not split into so many of one "
            "size; drop the smaller last batch, or take another number of groups"
        )
    if rows[0, 0].numel() * len(rows) == groups:
        raise ShapeError(
            f"split batch norm with {groups} groups has one value a channel and group in {len(rows)} rows; "
            "two are needed: take fewer groups or a larger batch"
        )
    means = rows.new_zeros(groups, norm.num_features, dtype=_dtype_of_statistics(norm, rows))
    variances = torch.zeros_like(means)
    normalised = [
        F.batch_norm(part, mean, variance, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
        for part, mean, variance in zip(rows.chunk(groups), means, variances, strict=True)
    ]
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        part = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(means.mean(dim=0), part)
        norm.running_var.lerp_(variances.mean(dim=0), part)
    return torch.cat(normalised)


def _dtype_of_statistics(norm: _Norm, rows: Tensor) -> torch.dtype:
    return rows.dtype if norm.running_mean is None else norm.running_mean.dtype


class SplitBatchNorm1d(nn.BatchNorm1d):
    """Batch norm over sub-batches of consecutive rows, as if each were on a device of its own.

    In eval mode it is plain batch norm; the running statistics are moved by the mean over the
    sub-batches.

    Args:
        num_features: Channels.
        groups: Sub-batches of one size, >= 1; 1 is plain batch norm.
        options: Those of torch.nn.BatchNorm1d.

    Raises:
        RangeError: If groups is below 1.
        ShapeError: At a forward in train mode, if the rows do not split into so many of one size.

    Example:
        >>> rows = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
        >>> SplitBatchNorm1d(1, groups=2)(rows).T.round().tolist()
        [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(self, num_features: int, *, groups: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.groups = _at_least_one(groups)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        self._check_input_dim(input)
        return _split(self, input, self.groups) if self.training else super().forward(input)


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`SplitBatchNorm1d` for maps [images, channels, height, width].

    Args:
        num_features: Channels.
        groups: Sub-batches of one size, >= 1; 1 is plain batch norm.
        options: Those of torch.nn.BatchNorm2d.

    Raises:
        RangeError: If groups is below 1.
        ShapeError: At a forward in train mode, if the images do not split into so many of one size.
    """

    def __init__(self, num_features: int, *, groups: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.groups = _at_least_one(groups)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        self._check_input_dim(input)
        return _split(self, input, self.groups) if self.training else super().forward(input)


def convert_batch_norm(module: nn.Module, kind: BatchNormKind, *, groups: int | None = None) -> nn.Module:
    """Put another normalisation in the place of every batch norm, with its scale, shift and eps.

    - "device": what there is; the statistics are those of the rows on one device.
    - "global": over the rows of all processes, if torch.distributed runs with more than one (see
      `GlobalBatchNorm`); the same as "device" if it does not.
    - "layer": over channels and places of one image, GroupNorm with one group. The scale and the
      shift stay one number a channel, so that images of any size fit; nothing of an image depends
      on the others, and there are no running statistics.
    - "split": over `groups` sub-batches of consecutive rows, on one device. With fewer rows a
      statistic, what a positive pair shares through the batch becomes easier to see.

    Args:
        module: Changed in place, where it is no batch norm itself.
        kind: As above.
        groups: Of "split", >= 1, and of nothing else.

    Returns:
        The module; another one only if it was a batch norm itself.

    Raises:
        ConfigError: If the kind is not known, groups are missing or given without need, or a
            library's own batch norm does more than torch's.
        RangeError: If groups is below 1.

    Source:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        arXiv:2002.05709, section 2.2 (global; layer norm named as another remedy, after Henaff et al.,
        2019, arXiv:1905.09272). He et al., Momentum Contrast, 2019, arXiv:1911.05722, section 3.3, shuffles
        the rows over devices to the same end.
    """
    if (groups is not None) != (kind == "split"):
        raise ConfigError(
            f"groups belong to split batch norm, and to it alone; got {kind!r}, groups {groups}"
        )
    match kind:
        case "device":
            return module
        case "global":
            return module if current_process_group().world_size == 1 else _replaced(module, _global_norm)
        case "layer":
            return _replaced(module, _layer_norm)
        case "split":
            count = _at_least_one(groups or 0)
            return _replaced(module, lambda norm: _split_norm(norm, count))
        case _:
            raise ConfigError(
                f"batch norm of kind {kind!r} is not known; it is device, global, layer or split"
            )


def _at_least_one(groups: int) -> int:
    if groups < 1:
        raise RangeError(f"groups of split batch norm must be >= 1, got {groups}")
    return groups


def _require_plain(module: nn.Module) -> None:
    for name, norm in module.named_modules():
        if isinstance(norm, _Norm) and type(norm) not in _PLAIN:
            raise ConfigError(
                f"{name or 'the module'} is a {type(norm).__name__}, which does more than batch norm; "
                "only torch's own can be replaced: leave batch norm at device, or take another network"
            )


def _replaced(module: nn.Module, make: Callable[[_Norm], nn.Module]) -> nn.Module:
    _require_plain(module)
    if isinstance(module, _Norm):
        return make(module)
    for name, child in list(module.named_modules()):
        for key, inner in list(child.named_children()):
            if isinstance(inner, _Norm):
                setattr(module.get_submodule(name), key, make(inner))
    return module


def _layer_norm(norm: _Norm) -> nn.Module:
    layer = nn.GroupNorm(1, norm.num_features, eps=norm.eps, affine=norm.affine)
    return _with_parameters(layer, norm)


def _split_norm(norm: _Norm, groups: int) -> nn.Module:
    kind = SplitBatchNorm1d if isinstance(norm, nn.BatchNorm1d) else SplitBatchNorm2d
    return _with_parameters(kind(norm.num_features, groups=groups, **_options(norm)), norm)


def _global_norm(norm: _Norm) -> nn.Module:
    return _with_parameters(GlobalBatchNorm(norm.num_features, **_options(norm)), norm)


def _options(norm: _Norm) -> dict[str, Any]:
    return {
        "eps": norm.eps, "momentum": norm.momentum, "affine": norm.affine,
        "track_running_stats": norm.track_running_stats,
    }  # fmt: skip


def _with_parameters(new: nn.Module, norm: _Norm) -> nn.Module:
    for name, _ in list(new.named_buffers()):
        setattr(new, name, getattr(norm, name))
    new.register_parameter("weight", norm.weight)
    new.register_parameter("bias", norm.bias)
    return new.train(norm.training)


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, SplitBatchNorm1d, SplitBatchNorm2d)
