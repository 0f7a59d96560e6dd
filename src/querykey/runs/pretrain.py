"""`pretrain` and `resume`: train an encoder on images, and write the folder of the run."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.data.items import Source
from querykey.data.pixels.pixels import Pixels, read_pixels
from querykey.data.readers.open import read_source
from querykey.distributed.process_group import current_process_group, default_torch_state
from querykey.encoders.frozen.model import usable_device
from querykey.errors import (
    CollapseError,
    ConfigError,
    DataError,
    MissingPathError,
    Notify,
    OutOfMemoryError,
    OutputError,
    StoreError,
    is_out_of_memory,
)
from querykey.io.atomic import reserve
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.autotune import Autotuned, autotune
from querykey.pretraining.checkpoint import KEPT, SAVE_SECONDS, Checkpoint, Saving, latest_checkpoint
from querykey.pretraining.images import DataSplit, train_val_split
from querykey.pretraining.resume import double_chunks, extend_training
from querykey.pretraining.run import TrainingRun, build_run
from querykey.pretraining.saved_encoder import SavedEncoder
from querykey.pretraining.settings.memory_plan import dictionary_concerns
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.pretraining.trainer import Callback, Progress, Trainer
from querykey.runs.pretrain_callbacks import (
    CheckpointWriter,
    DictionaryWarnings,
    MetricsLog,
    ProgressDisplay,
    TensorBoard,
)
from querykey.runs.pretrain_folder import CHECKPOINTS, RunFolder

__all__ = ["PretrainedRun", "pretrain", "resolve_for", "resume", "resumed_device"]

DECODED = 224
"""Image size for decoding if the settings give none."""


@dataclass(frozen=True, eq=False)
class PretrainedRun:
    """The result of a pretraining run.

    Args:
        encoder: The pretrained encoder.
        settings: The resolved settings, with every chosen or measured value.
        report: Steps, seconds, fraction of the time spent on views, metrics before the first step and after
            the last.
        folder: The folder of the run; None if it was not written.
        is_finished: Whether all steps were taken.
    """

    encoder: SavedEncoder
    settings: PretrainSettings
    report: dict[str, Any]
    folder: Path | None
    is_finished: bool


def resolve_for(
    given: PretrainSettings, source: Source, pixels: Pixels, notify: Notify
) -> tuple[PretrainSettings, DataSplit]:
    """Resolve settings for images.

    Args:
        given: The settings as given.
        source: The images.
        pixels: Their pixels.
        notify: Called with warnings.

    Returns:
        (settings, which images are trained on and which are evaluated).

    Raises:
        ConfigError: If a method that learns from labels has none.
    """

    def resolve(images: int) -> PretrainSettings:
        return resolve_settings(given, images=images, channels=pixels.channels, side=pixels.side)

    held_out, labels = resolve(len(pixels)).held_out, _labels(source, pixels)
    if given.method == "xbm" and (labels is None or not bool((labels != IGNORE_LABEL).any())):
        raise ConfigError(
            f"xbm learns from labels, and {source.name} has none: name them with label_column, or use "
            "moco, which needs none"
        )
    split_data = train_val_split(pixels.ids, labels, held_out=held_out, seed=given.seed)
    count = len(split_data.train)
    resolved = replace(resolve(count), held_out=held_out)
    if resolved.batch_size < given.batch_size:
        notify(f"{count} images to train on: lowered batch_size {given.batch_size} to all of them")
    return resolved, split_data


def _new_run(
    given: PretrainSettings,
    source: Source,
    pixels: Pixels,
    *,
    device: torch.device,
    tune: Callable[..., Autotuned],
    notify: Notify,
) -> TrainingRun:
    """Resolve the settings, measure what is to be measured, then build the run.

    Args:
        given: The settings as given.
        source: The images.
        pixels: Their pixels.
        device: Device of the training.
        tune: `autotune` with what is known of the command.
        notify: Called with warnings.

    Returns:
        A run before its first step.

    Raises:
        ConfigError: If a method that learns from labels has none.
    """
    resolved, split_data = resolve_for(given, source, pixels, notify)
    count, processes = len(split_data.train), current_process_group()
    while True:
        try:
            tuned = tune(resolved, pixels, split_data, device=device, processes=processes)
            run = build_run(
                tuned.settings,
                pixels,
                split_data,
                device=device,
                start=tuned.start,
                calibration=tuned.calibration,
                processes=processes,
            )
            break
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or processes.world_size > 1:
                raise
            resolved = double_chunks(resolved, reason="a step needs more memory than there is")
        gc.collect()  # the trial's modules form reference cycles
        notify(f"a batch does not fit in memory: steps are computed in {resolved.chunks} chunks")
    for message in dictionary_concerns(run.settings, items=count, steps=run.steps):
        notify(message)
    return run


def _new_folder(
    path: Path | None,
    run: TrainingRun,
    data: Source,
    at: dict[str, str | None] | None,
    given: PretrainSettings,
    *,
    device: torch.device,
    saving: Saving,
    since: float,
) -> RunFolder | None:
    """The folder of a new run, with its state; None without a path, and on all but the main process."""
    state = run.learner.tensors()  # on all processes: shards go to the main process
    if path is None or not current_process_group().is_main_process:
        return None
    return RunFolder.new(
        path,
        run,
        state,
        source=data,
        at=at,
        given=given,
        device=_device_name(device),
        saving=saving,
        seconds=time.monotonic() - since,
    )


def _labels(source: Source, pixels: Pixels) -> Tensor | None:
    return None if source.labels is None else torch.from_numpy(source.labels)[pixels.ids]


def pretrain(
    source: Source | str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    label_column: str | None = None,
    column: str | None = None,
    split: str | None = None,
    device: str = "cpu",
    workers: int = 2,
    memory_limit: int | None = None,
    save_every: float = SAVE_SECONDS,
    keep: int = KEPT,
    notify: Notify | None = None,
    callbacks: Sequence[Callback] = (),
    on_fit_start: Callable[[TrainingRun], None] | None = None,
    on_step_end: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> PretrainedRun:
    """Pretrain an encoder on images.

    Only "xbm" learns from labels. With other methods labels, if there are any, are used for the online kNN on
    validation images and for counting false negatives.

    Args:
        source: The images: an argument or a result of `read_source`.
        method: "simclr" (the default), "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end" or "xbm".
        preset: Name of a set of settings in `PRESETS`, including the method; settings override it.
        out: A new folder for encoder, checkpoints and records; None writes nothing.
        label_column: The column with the classes, as for `read_source`.
        column: The column with the images.
        split: The split to train on.
        device: Device of the training.
        workers: Processes that decode images which do not fit in memory.
        memory_limit: Maximum size of decoded images in bytes; None: a quarter of the free memory.
        save_every: Seconds between two checkpoints; 0: one after each step. Results do not depend on it.
        keep: Number of checkpoints to keep.
        notify: Called with warnings.
        callbacks: Hooks of the training loop.
        on_fit_start: Called with the run after all settings are resolved, before its folder is made.
        on_step_end: Called after each step.
        stop: Called after each step; if it returns True, the state is saved and training stops.
        **settings: Settings of `PretrainSettings`, such as batch_size=64, backbone="timm:resnet18",
            head={"dim": 64} or **{"head.dim": 64}.

    Returns:
        The run; `load_encoder` takes it for features.

    Raises:
        SourceError: If there are no images.
        ConfigError: If a setting does not exist or contradicts another.
        RangeError: If a number is outside its range.
        CollapseError: If the loss is not finite or the embeddings collapse; the last good state is kept in
            the folder.
        OutOfMemoryError: If a step does not fit into memory, in however many chunks.
        OutputExistsError: If `out` exists.
    """
    started_at, notify = time.monotonic(), notify or _ignore
    given, saving = given_settings(method, preset, **settings), Saving(seconds=save_every, keep=keep)
    place, path = usable_device(device), None if out is None else Path(out)
    columns = {"column": column, "label_column": label_column, "split": split}

    is_main = current_process_group().is_main_process
    with default_torch_state(), ExitStack() as lock:
        with nullcontext() if path is None or not is_main else reserve(path) as claim:
            data = source if isinstance(source, Source) else read_source(source, **columns)
            size = given.image_size or DECODED
            pixels = read_pixels(data, size=size, memory_limit=memory_limit, workers=workers, notify=notify)
            scratch = None if claim is None else claim.folder
            tune = partial(autotune, started_at=started_at, scratch=scratch, save_every=saving.seconds)
            run = _new_run(given, data, pixels, device=place, tune=tune, notify=notify)
            if on_fit_start is not None:
                on_fit_start(run)
            at = _at(source, columns)
            folder = _new_folder(path, run, data, at, given, device=place, saving=saving, since=started_at)
            if folder is not None:
                lock.enter_context(folder.lock())
        trainer = Trainer(
            run,
            [*_callbacks(folder, notify), *callbacks, ProgressDisplay(on_step_end)],
            started_at=started_at,
            stop=stop or _never,
            save_every=saving.seconds,
            checkpoints=None if path is None else path / CHECKPOINTS,
        )
        return _fit(trainer, folder, path)


def resume(
    folder: str | Path,
    source: Source | str | Path | None = None,
    *,
    epochs: float | None = None,
    device: str | None = None,
    workers: int = 2,
    memory_limit: int | None = None,
    save_every: float | None = None,
    notify: Notify | None = None,
    callbacks: Sequence[Callback] = (),
    on_fit_start: Callable[[TrainingRun], None] | None = None,
    on_step_end: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> PretrainedRun:
    """Resume a run that was stopped, or train a finished one for more epochs.

    A resumed run ends with the same bits as one that was never stopped, on the same machine with the same
    number of threads. With more epochs, the schedule from here on is that of the longer run.

    Args:
        folder: The folder of the run.
        source: Its images, if they have moved; their fingerprint must be the same.
        epochs: New total number of epochs, larger than before; None: unchanged.
        device: Device of the training; None: as before.
        workers: Processes that decode images which do not fit in memory.
        memory_limit: Maximum size of decoded images in bytes; None: a quarter of the free memory.
        save_every: Seconds between two checkpoints; None: as before.
        notify: Called with warnings.
        callbacks: Hooks of the training loop.
        on_fit_start: Called with the run before its first step.
        on_step_end: Called after each step.
        stop: Called after each step; if it returns True, the state is saved and training stops.

    Returns:
        The run.

    Raises:
        MissingPathError: If there is no run, or its images have moved.
        StoreError: If it is damaged.
        ConfigError: If it is finished and epochs is not given, settings or images have changed, or there is
            no such device.
        RangeError: If epochs is not larger than the number of epochs trained so far.
        OutputError: If another process is training it.
    """
    started_at, notify = time.monotonic(), notify or _ignore
    stored = RunFolder.read(Path(folder))
    is_main = current_process_group().is_main_process
    with default_torch_state(), stored.lock() if is_main else nullcontext():
        checkpoint, is_finished = latest_checkpoint(stored.path / CHECKPOINTS), stored.is_finished
        stored.require_unchanged(checkpoint.about)
        for damaged in checkpoint.skipped:
            notify(f"a newer checkpoint is damaged and left out: {damaged}")
        place = resumed_device(stored, device)
        if is_main:
            stored.prepare_resume(save_every=save_every)
            for message in stored.reproducibility_warnings(_device_name(place)):
                notify(message)
        data = _resumed_images(stored, source)
        settings = extend_training(stored.settings, epochs, checkpoint.step, notify, is_finished=is_finished)
        size = stored.decoded_size or DECODED
        pixels = read_pixels(data, size=size, memory_limit=memory_limit, workers=workers, notify=notify)
        run, before = _restored(stored, settings, data, pixels, checkpoint, place)
        metrics = dict(run.start)
        if is_main:
            metrics |= stored.cut_records(checkpoint.step)
            at = None if source is None else _at(source, _columns(stored))
            stored.move(at=at, device=_device_name(place), step=checkpoint.step)
            stored.change(settings, step=checkpoint.step)
            if on_fit_start is not None:
                on_fit_start(run)
        folder_of_main = stored if is_main else None
        trainer = Trainer(
            run,
            [*_callbacks(folder_of_main, notify), *callbacks, ProgressDisplay(on_step_end)],
            start=checkpoint.step,
            metrics=metrics,
            seconds=before,
            started_at=started_at,
            stop=stop or _never,
            save_every=stored.saving.seconds,
            checkpoints=stored.path / CHECKPOINTS,
        )
        return _fit(trainer, folder_of_main, stored.path)


def resumed_device(stored: RunFolder, device: str | None) -> torch.device:
    """The device of a resumed run.

    Args:
        stored: The folder of the run.
        device: As given; None: the device of the run.

    Raises:
        ConfigError: If there is no such device on this machine.
    """
    try:
        return usable_device(device or stored.device)
    except ConfigError as error:
        if device is not None:
            raise
        raise ConfigError(
            f"{stored.path} was trained on {stored.device}: {error}; give another device"
        ) from error


def _resumed_images(stored: RunFolder, source: Source | str | Path | None) -> Source:
    """The images of a run at their current location; the fingerprint must be unchanged."""
    if isinstance(source, Source):
        data = source
    elif source is not None:
        data = read_source(source, **_columns(stored))
    else:
        try:
            data = read_source(stored.at["spec"], **_columns(stored))
        except MissingPathError as error:
            raise MissingPathError(
                f"{stored.path}: its images are not at {stored.at['spec']} any more; give their present place"
            ) from error
    if data.fingerprint != stored.fingerprint:
        name = stored.at["spec"] if source is None else data.name
        raise ConfigError(
            f"{name} is not what the run was trained on: its fingerprint has changed; give the unchanged "
            "images, or start a new run"
        )
    return data


def _restored(
    stored: RunFolder,
    settings: PretrainSettings,
    data: Source,
    pixels: Pixels,
    checkpoint: Checkpoint,
    device: torch.device,
) -> tuple[TrainingRun, float]:
    """The run after the steps of a checkpoint, and its seconds so far; frees the checkpoint's tensors."""
    labels = _labels(data, pixels)
    split_data = train_val_split(pixels.ids, labels, held_out=settings.held_out, seed=settings.seed)
    run = build_run(
        settings, pixels, split_data, device=device, is_restored=True, processes=current_process_group()
    )
    try:
        run.learner.restore_(checkpoint.tensors)
        start, seconds = dict(checkpoint.about["start"]), float(checkpoint.about["seconds"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{stored.path}: the checkpoint after step {checkpoint.step} does not fit the settings in "
            "run.json; one of them was changed"
        ) from error
    checkpoint.tensors.clear()
    return replace(run, start=start), seconds


def _at(source: Source | str | Path, columns: dict[str, str | None]) -> dict[str, str | None] | None:
    return None if isinstance(source, Source) else {"spec": str(source), **columns}


def _columns(stored: RunFolder) -> dict[str, str | None]:
    """The columns and split of the images; none if they were given as an object."""
    if stored.described["data"]["at"] is None:
        return {}
    return {name: stored.at[name] for name in ("column", "label_column", "split")}


def _device_name(device: torch.device) -> str:
    # with several processes each has its own device index
    return str(device) if current_process_group().world_size == 1 else device.type


def _ignore(_: str) -> None:
    """The default of `notify`."""


def _never() -> bool:
    """The default of `stop`."""
    return False


def _callbacks(folder: RunFolder | None, notify: Notify) -> list[Callback]:
    writers: list[Callback] = []
    if folder is not None:
        writers = [MetricsLog(folder), TensorBoard(folder), CheckpointWriter(folder)]
    return [*writers, DictionaryWarnings(notify)]


def _fit(trainer: Trainer, folder: RunFolder | None, path: Path | None) -> PretrainedRun:
    """Train; write the encoder after the last step, on the main process."""
    try:
        done = trainer.fit()
    except (CollapseError, DataError, OutOfMemoryError, OutputError) as error:
        if folder is None:
            raise
        step = latest_checkpoint(folder.path / CHECKPOINTS).step
        message = f"{error}; the state after step {step} is kept in {folder.path}"
        raise type(error)(message) from error
    run = trainer.run
    saved = run.saved_encoder(trainer.report())
    if folder is not None and done == run.steps:
        folder.finish(saved)
    current_process_group().barrier()  # no process reads the encoder before it is written
    return PretrainedRun(saved, run.settings, saved.report, path, done == run.steps)
