"""From resolved settings to the objects of a run: encoder, dictionary, optimizer, loss, step context."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeVar, assert_never

import torch
from torch import Tensor, nn

from querykey.dictionaries.alignment import MomentAlignment
from querykey.dictionaries.bank import MemoryBank
from querykey.dictionaries.cross_batch import CrossBatchMemory
from querykey.dictionaries.queue import KeyQueue
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.encoders.backbones import load_backbone_weights, make_backbone
from querykey.encoders.momentum import MomentumEncoder
from querykey.encoders.norm.batchnorm import convert_batch_norm
from querykey.encoders.norm.split import key_order
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import ConfigError, RangeError
from querykey.losses.by_name import ViewLoss, view_objective
from querykey.optim import LARS, parameter_groups
from querykey.pretraining.methods.end_to_end import EndToEnd
from querykey.pretraining.methods.memory_bank import InstanceDiscrimination, nce_over_bank
from querykey.pretraining.methods.moco import MoCo, MoCoV3
from querykey.pretraining.methods.simclr import SimCLR
from querykey.pretraining.methods.step import StepContext
from querykey.pretraining.methods.xbm import XBM
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.types import PerQuery

__all__ = [
    "TRAINED",
    "StepModules",
    "make_context",
    "make_encoder",
    "make_optimizer",
    "method_parts",
    "step_modules",
    "with_batch_norm",
]

StepModules = SimCLR | MoCo | MoCoV3 | InstanceDiscrimination | EndToEnd | XBM
"""The first argument of a step of each method."""

TRAINED = ("encoder", "predictor", "trained_keys")
"""The modules that have gradients."""
DRIFT = 0.03
"""Of the distribution in a step, in standard deviations: in the middle of what `MomentAlignment` names."""


def make_encoder(
    settings: PretrainSettings, *, channels: int, processes: ProcessGroup = SINGLE_PROCESS
) -> ViewEncoder:
    """The encoder that resolved settings describe, with its initial weights.

    Args:
        settings: Resolved.
        channels: Of an image.
        processes: Over which each batch is sliced.

    Returns:
        Backbone and projection head, in train mode, on the CPU; the same bits for the same seed.
    """
    assert settings.image_size is not None
    chosen, size, seed = settings.backbone, settings.image_size, settings.seed
    backbone = make_backbone(chosen.name, channels=channels, image_size=size, stem=chosen.stem, seed=seed)
    if chosen.init is not None:
        load_backbone_weights(backbone, chosen.init)
    head = ProjectionHead(backbone.dim, **asdict(settings.head), seed=seed)
    encoder = ViewEncoder(backbone, head)
    with_batch_norm(encoder, settings, processes)
    return encoder.train()


def with_batch_norm(
    module: nn.Module, settings: PretrainSettings, processes: ProcessGroup = SINGLE_PROCESS
) -> nn.Module:
    """A module with the settings' normalisation in the place of batch norm.

    Args:
        module: Changed in place.
        settings: Resolved.
        processes: Over which a batch is sliced, and with it the groups of split batch norm.

    Returns:
        The module.

    Raises:
        RangeError: If the number of groups is not a multiple of the number of processes.
        ConfigError: For SimCLR, whose groups contain both views, with several processes.
    """
    if settings.batch_norm.kind != "split":
        return convert_batch_norm(module, settings.batch_norm.kind)
    if processes.world_size > 1 and settings.method == "simclr":
        raise ConfigError(
            "split batch norm has groups of each view in simclr, and a process has both views of its images; "
            "take batch_norm = device, where each process is a group, or global"
        )
    groups, rest = divmod(settings.batch_norm.groups, processes.world_size)
    if rest:
        raise RangeError(
            f"split batch norm of {settings.batch_norm.groups} groups cannot be distributed over "
            f"{processes.world_size} processes; take a multiple of {processes.world_size} "
            "as batch_norm.groups"
        )
    return convert_batch_norm(module, "split", groups=groups)


def method_parts(
    encoder: ViewEncoder, settings: PretrainSettings, *, items: int, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, nn.Module]:
    """The modules of a method besides the encoder.

    Args:
        encoder: With its initial weights.
        settings: Resolved.
        items: Number of training images.
        processes: Over which each batch is sliced.

    Returns:
        By name: "dictionary", "key_encoder", "trained_keys", "predictor" and "align", as far as the method
        has them.
    """
    dim, capacity = encoder.head.dim, settings.dictionary.capacity or 0
    shard_group = processes if settings.dictionary.sharded else SINGLE_PROCESS
    parts: dict[str, nn.Module] = {}
    match settings.method:
        case "simclr":
            pass
        case "moco" | "moco-v2":
            parts["key_encoder"] = MomentumEncoder(encoder)
            parts["dictionary"] = KeyQueue(
                capacity=capacity,
                dim=dim,
                start=settings.dictionary.start,
                seed=settings.seed,
                processes=shard_group,
            )
        case "moco-v3":
            parts["key_encoder"] = MomentumEncoder(encoder)
            parts["predictor"] = _predictor(dim, settings, processes)
        case "memory-bank":
            parts["dictionary"] = MemoryBank(
                items=items,
                dim=dim,
                seed=settings.seed,
                momentum=settings.dictionary.momentum,
                processes=shard_group,
            )
        case "end-to-end":
            if settings.key_encoder.separate:
                parts["trained_keys"] = copy.deepcopy(encoder)
        case "xbm":
            parts["dictionary"] = CrossBatchMemory(capacity=capacity, dim=dim, processes=shard_group)
            if settings.dictionary.align != "none":
                drift = DRIFT if settings.dictionary.align == "kalman" else None
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
        hidden=settings.key_encoder.predictor_hidden,
        dim=dim,
        batch_norm=True,
        seed=settings.seed,
    )
    return with_batch_norm(predictor, settings, processes).train()


def make_optimizer(module: nn.Module, settings: PretrainSettings) -> torch.optim.Optimizer:
    """The optimizer that resolved settings describe.

    Args:
        module: With the parameters to train.
        settings: Resolved.

    Returns:
        SGD, AdamW or LARS.
    """
    rate, decay = settings.optimizer.learning_rate, settings.optimizer.weight_decay
    assert rate is not None
    assert decay is not None
    groups = parameter_groups(module, weight_decay=decay)
    match settings.optimizer.kind:
        case "sgd":
            momentum = settings.optimizer.sgd_momentum
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate)
        case "lars":
            return LARS(groups, lr=rate, sgd_momentum=settings.optimizer.sgd_momentum)


Part = TypeVar("Part", bound=nn.Module)


def step_modules(
    settings: PretrainSettings, parts: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> StepModules:
    """The modules of a method as its step takes them.

    Args:
        settings: Resolved.
        parts: The "encoder" and the `method_parts`, by name.
        optimizer: Of the trained ones.

    Returns:
        The first argument of the step.
    """
    encoder = parts["encoder"]
    match settings.method:
        case "simclr":
            return SimCLR(encoder, optimizer)
        case "moco" | "moco-v2":
            key_encoder, queue = (
                _part(parts, "key_encoder", MomentumEncoder),
                _part(parts, "dictionary", KeyQueue),
            )
            return MoCo(
                encoder,
                key_encoder,
                queue,
                optimizer,
                settings.dictionary.same_id,
                settings.key_encoder.symmetric,
            )
        case "moco-v3":
            key_encoder = _part(parts, "key_encoder", MomentumEncoder)
            return MoCoV3(encoder, key_encoder, parts["predictor"], optimizer, settings.loss.temperature)
        case "memory-bank":
            negatives = None if settings.dictionary.contrast == "softmax" else settings.dictionary.negatives
            bank = _part(parts, "dictionary", MemoryBank)
            return InstanceDiscrimination(encoder, bank, optimizer, negatives, settings.dictionary.proximal)
        case "end-to-end":
            keys = parts["trained_keys"] if settings.key_encoder.separate else encoder
            return EndToEnd(encoder, keys, optimizer, settings.key_encoder.symmetric)
        case "xbm":
            memory = _part(parts, "dictionary", CrossBatchMemory)
            align = _part(parts, "align", MomentAlignment) if "align" in parts else None
            return XBM(encoder, memory, optimizer, settings.dictionary.weight, align)
        case never:
            assert_never(never)


def make_context(
    settings: PretrainSettings, parts: Mapping[str, nn.Module], processes: ProcessGroup = SINGLE_PROCESS
) -> StepContext:
    """The step context that resolved settings describe.

    Args:
        settings: Resolved.
        parts: May contain a learned "temperature" and a "dictionary".
        processes: Over which each batch is sliced.

    Returns:
        The context of all steps of a run.
    """
    order = None
    if settings.key_encoder.shuffle:
        groups = settings.batch_norm.groups
        order = key_order(settings.batch_norm.kind, groups=groups, world_size=processes.world_size)
    return StepContext(
        loss=_make_loss(settings, parts, processes),
        precision=torch.bfloat16 if settings.precision == "bfloat16" else torch.float32,
        chunks=settings.chunks,
        checkpointing=settings.checkpointing,
        normalised=settings.loss.normalised,
        process_group=processes,
        key_order=order,
    )


def _make_loss(
    settings: PretrainSettings, parts: Mapping[str, nn.Module], processes: ProcessGroup
) -> ViewLoss:
    learned = parts.get("temperature")

    def temperature() -> float | Tensor:
        return settings.loss.temperature if learned is None else learned()

    if settings.method != "memory-bank":
        loss = view_objective(settings.loss.kind, settings.loss.temperature, **settings.loss.options)
    elif settings.dictionary.contrast == "nce":
        return nce_over_bank(_part(parts, "dictionary", MemoryBank), temperature, processes)
    else:
        form = settings.loss.options.get("form", "auto")
        loss = view_objective("info_nce", settings.loss.temperature, form=form)
    return loss if learned is None else _at_temperature(loss, temperature)


def _at_temperature(loss: Callable[..., PerQuery], temperature: Callable[[], float | Tensor]) -> ViewLoss:
    # a graph of its own in each call: two directions of a step run backward one after the other
    return lambda lookup: loss(lookup, temperature=temperature())


def _part(parts: Mapping[str, nn.Module], name: str, kind: type[Part]) -> Part:
    found = parts[name]
    assert isinstance(found, kind)
    return found
