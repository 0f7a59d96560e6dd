"""Resuming a run: what must not have changed, what may, and what it does to reproducibility."""

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
    saved: Mapping[str, Any], found: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, where: str
) -> None:
    """Check that the settings of a run are those that it was trained with so far.

    Args:
        saved: Settings as nested tables, from a checkpoint.
        found: From the file of the run.
        changes: Changes that the run has made since: dotted names to values.
        where: The name of that file, for the message.

    Raises:
        ConfigError: With the name and both values of each difference.

    Example:
        >>> require_unchanged({"a": {"b": 1}}, {"a": {"b": 2}}, [{"a.b": 2}], where="run.json")
        >>> require_unchanged({"a": {"b": 1}}, {"a": {"b": 2}}, [], where="run.json")
        Traceback (most recent call last):
        querykey.errors.ConfigError: run.json was changed since the last checkpoint; put it back, or start ...
          a.b: 1 in the checkpoint, 2 now
    """
    before, now = dict(_flat(saved)), dict(_flat(found))
    changed = {name: value for change in changes for name, value in change.items()}
    lines = [
        f"  {name}: {_shown(before, name)} in the checkpoint, {_shown(now, name)} now"
        for name in sorted(before.keys() | now.keys())
        if _shown(before, name) != _shown(now, name)
        and (name not in changed or changed[name] != now.get(name))
    ]
    if lines:
        raise ConfigError(
            f"{where} was changed since the last checkpoint; put it back, or start a new run:\n"
            + "\n".join(lines)
        )


def reproducibility_warnings(
    before: Mapping[str, str],
    *,
    threads: int,
    processes: int,
    settings: PretrainSettings,
    devices: tuple[str, str] = ("cpu", "cpu"),
) -> list[str]:
    """Reasons why a resumed run may end with other bits than one that was never stopped.

    Args:
        before: The `versions` at the start of the run.
        threads: Number of threads at its start.
        processes: Number of processes at its start.
        settings: Of the run.
        devices: Before, and from now on.

    Returns:
        A message each; none if nothing differs.
    """
    differences = [
        f"{name} was {before[name]} and is {now}"
        for name, now in versions().items()
        if before.get(name, now) != now
    ]
    if torch.get_num_threads() != threads:
        differences.append(f"threads were {threads} and are {torch.get_num_threads()}")
    if devices[0] != devices[1]:
        differences.append(f"device was {devices[0]} and is {devices[1]}")
    now = current_process_group().world_size
    slices = []
    if processes != now and settings.batch_norm.kind == "device":
        slices.append(
            f"processes were {processes} and are {now}: each has batch norm over its slice of a batch, "
            "and the slices differ from here on"
        )
    elif processes != now:
        differences.append(f"processes were {processes} and are {now}")
    return [f"{one}: numbers may differ in their last bits from here on" for one in differences] + slices


def extend_training(
    settings: PretrainSettings,
    epochs: float | None,
    done: int,
    notify: Callable[[str], None],
    *,
    is_finished: bool,
) -> PretrainSettings:
    """The settings of a resumed run, with a new length if one is given.

    Args:
        settings: Complete.
        epochs: New length of the whole run; None: unchanged.
        done: Steps taken.
        notify: Called with a message about the new schedule.
        is_finished: Whether its encoder has been written, which happens after its last step.

    Raises:
        ConfigError: If the run is finished and epochs is not given.
        RangeError: If epochs is not above what was trained.
    """
    assert settings.steps is not None
    assert settings.epochs is not None
    if epochs is None:
        if is_finished and done >= settings.steps:
            raise ConfigError(
                f"the run is finished after {settings.epochs:.4g} epochs; to train on, give more epochs"
            )
        return settings
    steps = round(settings.steps * epochs / settings.epochs) if 0 < epochs < math.inf else 0
    if steps <= done:
        raise RangeError(
            f"epochs {epochs:g} is not beyond the {settings.epochs * done / settings.steps:.4g} epochs "
            "that are trained already; give more"
        )
    if steps != settings.steps:
        notify(
            f"{settings.epochs:.4g} epochs become {epochs:g}: the learning rate continues where a run of "
            f"{epochs:g} epochs would be after {done} of {steps} steps"
        )
    return replace(settings, steps=steps, epochs=epochs, minutes=None)


def double_chunks(settings: PretrainSettings, *, reason: str) -> PretrainSettings:
    """Settings with twice as many chunks: the gradient is that of the whole batch, to rounding.

    Args:
        settings: Resolved.
        reason: For the message.

    Returns:
        The settings.

    Raises:
        OutOfMemoryError: If a batch cannot be cut into more chunks.
    """
    chunks = 2 * settings.chunks
    exact = "split batch norm" if settings.batch_norm.kind == "split" else None
    if settings.method == "end-to-end":
        exact = "end-to-end keys"
    if exact is not None:
        raise OutOfMemoryError(
            f"{reason}; lower batch_size or capacity: with {exact} a step cannot be computed in chunks"
        )
    if chunks > settings.batch_size:
        raise OutOfMemoryError(
            f"{reason}, though a batch of {settings.batch_size} is computed in {settings.chunks} chunks; "
            "use a smaller network or dictionary"
        )
    # with batch norm, chunks recompute their activations anyway
    checkpointing = settings.checkpointing and settings.batch_norm.kind == "layer"
    return replace(settings, chunks=chunks, checkpointing=checkpointing)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not there"
