"""Describes the dictionary of a run before the first step, and warns about unsuitable sizes."""

import math
from typing import assert_never

from querykey.dictionaries.queue import stale_copies
from querykey.encoders.momentum import half_life
from querykey.losses.by_name import takes_form
from querykey.losses.streaming import Form, chosen_form, loss_bytes
from querykey.pretraining.settings.settings import PretrainSettings

__all__ = [
    "describe_dictionary", "describe_memory", "dictionary_concerns", "key_half_life", "look_up_size",
    "loss_form",
]  # fmt: skip


def describe_dictionary(settings: PretrainSettings, *, items: int, steps: int) -> list[str]:
    """Describe the dictionary and the key encoder.

    Args:
        settings: Resolved.
        items: Images trained on.
        steps: Of the run.

    Returns:
        Lines of at most 78 characters.
    """
    batch, capacity = settings.batch_size, settings.dictionary.capacity or 0
    both = ", both directions" if settings.key_encoder.symmetric else ""
    encoder = [line for line in (_momentum(settings, steps), _shuffled(settings)) if line]
    match settings.method:
        case "simclr":
            return [f"dictionary: the batch, {2 * batch - 1:,} candidates a query"]
        case "moco" | "moco-v2":
            age = _steps(capacity / (2 * batch if settings.key_encoder.symmetric else batch))
            return [
                f"dictionary: a queue of {capacity:,} keys ({age}), starts {settings.dictionary.start}{both}",
                *encoder,
            ]
        case "moco-v3":
            return [f"dictionary: the batch, {batch:,} candidates a query, both directions", *encoder]
        case "memory-bank":
            what = (
                "all"
                if settings.dictionary.contrast == "softmax"
                else f"{settings.dictionary.negatives:,} by {settings.dictionary.contrast}"
            )
            return [f"dictionary: a bank of {items:,} slots; looked up: {what}"]
        case "end-to-end":
            encoding = "a separate encoder" if settings.key_encoder.separate else "the same encoder"
            return [
                f"dictionary: the batch, {batch:,} candidates a query{both}; keys: {encoding}",
                *encoder,
            ]
        case "xbm":
            start = f"used after {settings.dictionary.warm_up:.0%} of the run"
            return [f"dictionary: a memory of {capacity:,} embeddings ({_steps(capacity / batch)}), {start}"]
        case never:
            assert_never(never)


def look_up_size(settings: PretrainSettings, *, items: int) -> tuple[int, int]:
    """The numbers of queries and keys of a look-up.

    Args:
        settings: Resolved.
        items: Images trained on.

    Returns:
        (queries, keys) of its largest look-up, when the dictionary is full.
    """
    batch, capacity = settings.batch_size, settings.dictionary.capacity or 0
    match settings.method:
        case "simclr":
            return 2 * batch, 2 * batch
        case "moco" | "moco-v2":
            return batch, batch + capacity
        case "moco-v3" | "end-to-end":
            return batch, batch
        case "memory-bank":
            return (
                batch,
                items if settings.dictionary.contrast == "softmax" else batch + settings.dictionary.negatives,
            )
        case "xbm":
            return batch, capacity
        case never:
            assert_never(never)


def loss_form(settings: PretrainSettings, *, items: int) -> Form:
    """The form of the loss: as given, or chosen by the size of the look-up.

    Args:
        settings: Resolved, except the form.
        items: Images trained on.

    Returns:
        "dense" or "chunked"; "dense" if the loss has no other.
    """
    if not takes_form(settings.loss.kind):
        return "dense"
    given: Form = settings.loss.options.get("form", "auto")
    size = look_up_size(settings, items=items)
    return chosen_form(given, *size, of_views=settings.method == "simclr")


def describe_memory(settings: PretrainSettings, *, items: int, width: int, processes: int = 1) -> str:
    """Describe the memory of loss and dictionary, without that of the encoder.

    Args:
        settings: Resolved.
        items: Images trained on.
        width: Of z.
        processes: Over which a sharded dictionary is split.

    Returns:
        A line of at most 78 characters.
    """
    queries, keys = look_up_size(settings, items=items)
    form = loss_form(settings, items=items)
    rows = items if settings.method == "memory-bank" else settings.dictionary.capacity
    if settings.dictionary.sharded and rows is not None:
        shard = -(-rows // processes)
        keys, rows = keys - rows + shard if keys >= rows else keys, shard
    size = loss_bytes(queries, keys, width, form)
    message = f"memory: loss about {max(1, size >> 20):,} MiB ({form}, {queries:,} x {keys:,} scores)"
    return message if rows is None else f"{message}, dictionary {max(1, 4 * rows * width >> 20):,} MiB"


def key_half_life(settings: PretrainSettings) -> float | None:
    """Half-life of the momentum encoder in steps.

    Args:
        settings: Resolved.

    Returns:
        At the momentum of the first step; None without a momentum encoder.
    """
    return half_life(settings.key_encoder.momentum) if settings.method.startswith("moco") else None


def dictionary_concerns(settings: PretrainSettings, *, items: int, steps: int) -> list[str]:
    """Warnings about the sizes of dictionary and run.

    Args:
        settings: Resolved.
        items: Images trained on.
        steps: Of the run.

    Returns:
        A message each, with numbers and what to do.
    """
    found, batch, life = [], settings.batch_size, key_half_life(settings)
    capacity, keys_of = settings.dictionary.capacity, settings.key_encoder
    if settings.method in ("moco", "moco-v2") and capacity is not None:
        keys = 2 if keys_of.symmetric else 1
        warning = stale_copies(capacity, items, batch, keys_an_item=keys)
        found += [] if warning is None else [warning]
        if capacity < keys * batch:
            found.append(
                f"a queue of {capacity:,} keys holds the last of the {keys * batch:,} that a step "
                "makes; raise dictionary.capacity or lower batch_size to use them all"
            )
        if capacity > keys * steps * batch:
            found.append(
                f"a queue of {capacity:,} keys is not full after {steps:,} steps of {batch:,}; "
                "lower dictionary.capacity or train longer"
            )
    if life is not None and life > steps:
        found.append(
            f"a key encoder of momentum {keys_of.momentum:g} has a half-life of {_steps(life)}, "
            f"and the run has {steps:,}; lower key_encoder.momentum"
        )
    return found


def _momentum(settings: PretrainSettings, steps: int) -> str:
    life = key_half_life(settings)
    if life is None:
        return ""
    key_encoder = settings.key_encoder
    towards = " to 1 (cosine)" if key_encoder.schedule == "cosine" else ""
    return f"key encoder: momentum {key_encoder.momentum:g}{towards}, half-life {_steps(life)} of {steps:,}"


def _shuffled(settings: PretrainSettings) -> str:
    if not settings.key_encoder.shuffle:
        return ""
    if settings.batch_norm.kind == "split":
        return f"keys: shuffled over {settings.batch_norm.groups} groups of split batch norm"
    return "keys: shuffled over processes"


def _steps(count: float) -> str:
    if math.isinf(count):
        return "no end"
    return f"{count:,.0f} steps" if count >= 10 else f"{count:.2g} steps"
