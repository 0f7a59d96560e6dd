"""Replaces the batch norm of a network: per device, global, split, or layer norm."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from querykey.distributed.process_group import current_process_group
from querykey.encoders.norm.split import BatchNorm, SplitBatchNorm1d, SplitBatchNorm2d, at_least_one_group
from querykey.encoders.norm.sync_batchnorm import GlobalBatchNorm
from querykey.errors import ConfigError

__all__ = ["BatchNormKind", "convert_batch_norm"]

BatchNormKind = Literal["device", "global", "layer", "split"]


def convert_batch_norm(module: nn.Module, kind: BatchNormKind, *, groups: int | None = None) -> nn.Module:
    """Replace every batch norm by another normalisation, with its scale, shift and eps.

    - "device": unchanged; the statistics are those of the rows on one device.
    - "global": over the rows of all processes, if torch.distributed runs with more than one (see
      `GlobalBatchNorm`); the same as "device" if it does not.
    - "layer": over channels and positions of an image, GroupNorm with one group. Scale and shift are one
      number per channel, so that images of any size fit. Images do not depend on each other, and there are
      no running statistics.
    - "split": over `groups` sub-batches of consecutive rows, on one device. With fewer rows per statistic, a
      positive pair in the same sub-batch is easier to recognise.

    Args:
        module: Changed in place, unless it is a batch norm.
        kind: As above.
        groups: Of "split", >= 1, and of nothing else.

    Returns:
        The module; another one only if it was a batch norm.

    Raises:
        ConfigError: If the kind is not known, groups are missing or not needed, or the
            network has a subclass of batch norm that does more.
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
            count = at_least_one_group(groups or 0)
            return _replaced(module, lambda norm: _split_norm(norm, count))
        case _:
            raise ConfigError(
                f"batch norm of kind {kind!r} is not known; it is device, global, layer or split"
            )


def _require_plain(module: nn.Module) -> None:
    for name, norm in module.named_modules():
        if isinstance(norm, BatchNorm) and type(norm) not in _PLAIN:
            raise ConfigError(
                f"{name or 'the module'} is a {type(norm).__name__}, which does more than batch norm; "
                "only torch's own can be replaced: use batch norm of kind device, or another network"
            )


def _replaced(module: nn.Module, make: Callable[[BatchNorm], nn.Module]) -> nn.Module:
    _require_plain(module)
    if isinstance(module, BatchNorm):
        return make(module)
    for name, child in list(module.named_modules()):
        for key, inner in list(child.named_children()):
            if isinstance(inner, BatchNorm):
                setattr(module.get_submodule(name), key, make(inner))
    return module


def _layer_norm(norm: BatchNorm) -> nn.Module:
    layer = nn.GroupNorm(1, norm.num_features, eps=norm.eps, affine=norm.affine)
    return _with_parameters(layer, norm)


def _split_norm(norm: BatchNorm, groups: int) -> nn.Module:
    kind = SplitBatchNorm1d if isinstance(norm, nn.BatchNorm1d) else SplitBatchNorm2d
    return _with_parameters(kind(norm.num_features, groups=groups, **_options(norm)), norm)


def _global_norm(norm: BatchNorm) -> nn.Module:
    return _with_parameters(GlobalBatchNorm(norm.num_features, **_options(norm)), norm)


def _options(norm: BatchNorm) -> dict[str, Any]:
    return {
        "eps": norm.eps, "momentum": norm.momentum, "affine": norm.affine,
        "track_running_stats": norm.track_running_stats,
    }  # fmt: skip


def _with_parameters(new: nn.Module, norm: BatchNorm) -> nn.Module:
    for name, _ in list(new.named_buffers()):
        setattr(new, name, getattr(norm, name))
    new.register_parameter("weight", norm.weight)
    new.register_parameter("bias", norm.bias)
    return new.train(norm.training)


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, SplitBatchNorm1d, SplitBatchNorm2d)
