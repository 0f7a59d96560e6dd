"""The parts of each method besides its encoder: dictionaries, key encoders, a prediction head."""

import copy
from typing import assert_never

import torch
from torch import nn

from querykey.dictionaries.alignment import MomentAlignment
from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.queue import KeyQueue
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.encoders.momentum import MomentumEncoder
from querykey.encoders.norm.batchnorm import convert_batch_norm
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import ConfigError, RangeError
from querykey.optim import LARS, parameter_groups
from querykey.pretraining.settings.settings import PretrainSettings

__all__ = ["TRAINED", "make_optimizer", "method_parts", "with_batch_norm"]

TRAINED = ("encoder", "predictor", "trained_keys")
"""The parts that gradients reach."""
DRIFT = 0.03
"""Of the distribution in a step, in standard deviations: in the middle of what `MomentAlignment` names."""


def with_batch_norm(
    module: nn.Module, settings: PretrainSettings, processes: ProcessGroup = SINGLE_PROCESS
) -> nn.Module:
    """A module with the settings' normalisation in the place of batch norm.

    Args:
        module: Changed in place.
        settings: Resolved.
        processes: Over which a batch is parted, and with it the groups of split batch norm.

    Returns:
        The module.

    Raises:
        RangeError: If the groups do not share out over the processes.
        ConfigError: If they are of both views at once, as SimCLR's, and there are several processes.
    """
    if settings.batch_norm != "split":
        return convert_batch_norm(module, settings.batch_norm)
    if processes.world_size > 1 and settings.method == "simclr":
        raise ConfigError(
            "split batch norm has groups of each view in simclr, and a process has both views of its images; "
            "take batch_norm = device, where each process is a group, or global"
        )
    groups, rest = divmod(settings.batch_norm_groups, processes.world_size)
    if rest:
        raise RangeError(
            f"split batch norm of {settings.batch_norm_groups} groups does not share out over "
            f"{processes.world_size} processes; take a multiple of {processes.world_size} "
            "as batch_norm_groups"
        )
    return convert_batch_norm(module, "split", groups=groups)


def method_parts(
    encoder: ViewEncoder, settings: PretrainSettings, *, items: int, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, nn.Module]:
    """What a method has besides the encoder that is kept.

    Args:
        encoder: With its first weights.
        settings: Resolved.
        items: Images that are trained on.
        processes: Among which each batch is parted.

    Returns:
        By name: "dictionary", and "key_encoder", "trained_keys", "predictor" and "align" where there are.
    """
    dim, capacity = encoder.head.dim, settings.capacity or 0
    shard_group = processes if settings.sharded else SINGLE_PROCESS
    parts: dict[str, nn.Module] = {}
    match settings.method:
        case "simclr":
            pass
        case "moco" | "moco-v2":
            parts["key_encoder"] = MomentumEncoder(encoder)
            parts["dictionary"] = KeyQueue(
                capacity=capacity, dim=dim, start=settings.start, seed=settings.seed, processes=shard_group
            )
        case "moco-v3":
            parts["key_encoder"] = MomentumEncoder(encoder)
            parts["predictor"] = _predictor(dim, settings, processes)
        case "memory-bank":
            parts["dictionary"] = MemoryBank(
                items=items,
                dim=dim,
                seed=settings.seed,
                momentum=settings.slot_momentum,
                processes=shard_group,
            )
        case "end-to-end":
            if settings.separate:
                parts["trained_keys"] = copy.deepcopy(encoder)
        case "xbm":
            parts["dictionary"] = CrossBatchMemory(capacity=capacity, dim=dim, processes=shard_group)
            if settings.align != "none":
                drift = DRIFT if settings.align == "kalman" else None
                parts["align"] = MomentAlignment(dim=dim, drift=drift)
        case never:
            assert_never(never)
    return parts


def _predictor(dim: int, settings: PretrainSettings, processes: ProcessGroup) -> nn.Module:
    """MoCo v3's prediction head."""
    predictor = ProjectionHead(
        dim,
        kind="mlp",
        layers=2,
        hidden=settings.predictor_hidden,
        dim=dim,
        batch_norm=True,
        seed=settings.seed,
    )
    return with_batch_norm(predictor, settings, processes).train()


def make_optimizer(module: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    """The optimiser that resolved settings describe.

    Args:
        module: What it trains.
        settings: Resolved.

    Returns:
        SGD, AdamW or LARS.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    assert rate is not None
    assert decay is not None
    groups = parameter_groups(module, weight_decay=decay)
    match settings.optimizer:
        case "sgd":
            momentum = settings.sgd_momentum
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        case "lars":
            return LARS(groups, lr=rate, sgd_momentum=settings.sgd_momentum)
