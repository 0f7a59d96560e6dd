"""A run that goes on: with the settings it began with, or with those that it changed itself."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from querykey.distributed.process_group import current_process_group
from querykey.errors import ConfigError, OutOfMemoryError, RangeError
from querykey.io.records import versions
from querykey.pretraining.settings.settings import PretrainSettings

__all__ = ["double_chunks", "extend_training", "reproducibility_warnings", "require_unchanged"]


def require_unchanged(
    kept: Mapping[str, Any], found: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, where: str
) -> None:
    """See that what a run goes on with is what it was trained with so far.

    Args:
        kept: Settings as nested tables, as a checkpoint holds them.
        found: As the file of the run holds them.
        changes: What the run has changed itself since: dotted names to values.
        where: The name of that file, for the message.

    Raises:
        ConfigError: Naming all that differs, with both values.

    Example:
        >>> require_unchanged({"a": {"b": 1}}, {"a": {"b": 2}}, [{"a.b": 2}], where="run.json")
        >>> require_unchanged({"a": {"b": 1}}, {"a": {"b": 2}}, [], where="run.json")
        Traceback (most recent call last):
        querykey.errors.ConfigError: run.json was changed since the last checkpoint; put it back, or start ...
          a.b: 1 in the checkpoint, 2 now
    """
    before, now = dict(_flat(kept)), dict(_flat(found))
    own = {name: value for change in changes for name, value in change.items()}
    lines = [
        f"  {name}: {_said(before, name)} in the checkpoint, {_said(now, name)} now"
        for name in sorted(before.keys() | now.keys())
        if _said(before, name) != _said(now, name) and (name not in own or own[name] != now.get(name))
    ]
    if lines:
        raise ConfigError(
            f"{where} was changed since the last checkpoint; put it back, or start a new run:\n"
            + "\n".join(lines)
        )


def reproducibility_warnings(
    before: Mapping[str, str], *, threads: int, processes: int, settings: PretrainSettings
) -> list[str]:
    """What may keep a run that goes on from ending with the bits of one that never stopped.

    Args:
        before: The `versions` it began with.
        threads: With which it began.
        processes: Likewise.
        settings: Of the run.

    Returns:
        A sentence each; none where all is as it was.
    """
    others = [
        f"{name} was {before[name]} and is {now}"
        for name, now in versions().items()
        if before.get(name, now) != now
    ]
    if torch.get_num_threads() != threads:
        others.append(f"threads were {threads} and are {torch.get_num_threads()}")
    now = current_process_group().world_size
    groups = []
    if processes != now and settings.batch_norm == "device":
        words = (
            f"processes were {processes} and are {now}: each has batch norm over its own part of a batch, "
        )
        groups.append(f"{words}and the parts are others from here on")
    elif processes != now:
        others.append(f"processes were {processes} and are {now}")
    return [f"{words}: numbers may differ in their last bits from here on" for words in others] + groups


def extend_training(
    settings: PretrainSettings, epochs: float | None, done: int, notify: Callable[[str], None],
    *, is_finished: bool,
) -> PretrainSettings:  # fmt: skip
    """The settings of a run that goes on, for longer where that is asked for.

    Args:
        settings: Complete.
        epochs: Its length in all from now on; None: as long as it was planned.
        done: Steps taken.
        notify: Told where the schedule goes on.
        is_finished: Whether its encoder is written, which comes after its last step.

    Raises:
        ConfigError: If it is finished, and no more epochs are asked for.
        RangeError: If epochs is not above what was trained.
    """
    assert settings.steps is not None
    assert settings.epochs is not None
    if epochs is None:
        if is_finished and done >= settings.steps:
            raise ConfigError(
                f"the run is finished after {settings.epochs:.4g} epochs; --epochs N, with more, trains on"
            )
        return settings
    steps = round(settings.steps * epochs / settings.epochs) if 0 < epochs < math.inf else 0
    if steps <= done:
        raise RangeError(
            f"--epochs {epochs:g} is not beyond the {settings.epochs * done / settings.steps:.4g} epochs "
            "that are trained already; give more"
        )
    if steps != settings.steps:
        notify(
            f"{settings.epochs:.4g} epochs become {epochs:g}: the learning rate goes on where a run of "
            f"{epochs:g} epochs would be after {done} of {steps} steps"
        )
    return replace(settings, steps=steps, epochs=epochs, minutes=None)


def double_chunks(settings: PretrainSettings, *, reason: str) -> PretrainSettings:
    """The same steps in twice as many parts: the gradient is the whole batch's, to rounding.

    Args:
        settings: Resolved.
        reason: Why, for the message.

    Returns:
        The settings.

    Raises:
        OutOfMemoryError: If a batch cannot be cut any further.
    """
    chunks = 2 * settings.chunks
    whole = "split batch norm" if settings.batch_norm == "split" else None
    if settings.method == "end-to-end":
        whole = "end-to-end keys"
    if whole is not None:
        raise OutOfMemoryError(
            f"{reason}; lower batch_size or capacity: with {whole} a step cannot be computed in parts"
        )
    if chunks > settings.batch_size:
        raise OutOfMemoryError(
            f"{reason}, though a batch of {settings.batch_size} is computed in {settings.chunks} parts; "
            "take a smaller network or dictionary"
        )
    # with batch norm, parts drop their activations by themselves
    checkpointing = settings.checkpointing and settings.batch_norm == "layer"
    return replace(settings, chunks=chunks, checkpointing=checkpointing)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _said(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"
