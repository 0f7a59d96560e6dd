"""From images and settings to the course of a run: of a new one, or of one that goes on."""

import gc
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.data.items import Source
from querykey.data.pixels.pixels import Pixels, read_pixels
from querykey.data.readers.open import read_source
from querykey.distributed.process_group import current_process_group
from querykey.encoders.frozen.model import usable_device
from querykey.errors import (
    CollapseError,
    ConfigError,
    DataError,
    Notify,
    OutOfMemoryError,
    OutputError,
    StoreError,
    is_out_of_memory,
)
from querykey.io.atomic import reserve
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.checkpoint import KEPT, SAVE_SECONDS, Saving, latest_checkpoint
from querykey.pretraining.loop import make_encoder
from querykey.pretraining.resume import double_chunks, extend_training
from querykey.pretraining.saved_encoder import SavedEncoder
from querykey.pretraining.settings.memory_plan import dictionary_concerns
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.settings.settings import PretrainSettings, asked_settings
from querykey.pretraining.split import part
from querykey.pretraining.trainer import Course, build_run
from querykey.runs.pretrain_folder import CHECKPOINTS, RunFolder
from querykey.runs.pretrain_logger import RunLog, Shown, Watch

__all__ = [
    "PretrainedRun",
    "Shown",
    "decode",
    "new_course",
    "pretrain",
    "read_images",
    "resume",
    "same_course",
]

DECODED = 224
"""The size that images are decoded for where none is asked for."""


def read_images(source: Source | str | Path, **options: str | None) -> Source:
    """The images of a run.

    Args:
        source: What `read_source` takes, or what it gave.
        **options: Of `read_source`.
    """
    return source if isinstance(source, Source) else read_source(source, **options)


def decode(source: Source, size: int | None, *, limit: int | None, workers: int, notify: Notify) -> Pixels:
    """Their pixels, in memory where they fit.

    Args:
        source: Images.
        size: Pixels of a side that were asked for; None: nothing was.
        limit: Bytes that decoded images may take; None: a quarter of what is free.
        workers: Processes that decode images which do not fit in memory.
        notify: Called with what is worth knowing.
    """
    return read_pixels(source, size=size or DECODED, memory_limit=limit, workers=workers, notify=notify)


def new_course(
    asked: PretrainSettings, source: Source, pixels: Pixels, *, device: torch.device, begun: float,
    notify: Notify,
) -> Course:  # fmt: skip
    """Choose and measure what was left open, and put a run together.

    Args:
        asked: Settings as they were given.
        source: Images.
        pixels: Of them.
        device: Where to train.
        begun: `time.monotonic()` when the user began to wait.
        notify: Called with what is worth knowing.

    Returns:
        A run before its first step.

    Raises:
        ConfigError: If a method that learns from labels has none.
    """
    processes = current_process_group()

    def resolve(images: int) -> PretrainSettings:
        return resolve_settings(asked, images=images, channels=pixels.channels, side=pixels.side)

    held_out, labels = resolve(len(pixels)).held_out, _labels(source, pixels)
    if asked.method == "xbm" and (labels is None or not bool((labels != IGNORE_LABEL).any())):
        raise ConfigError(
            f"xbm learns from labels, and {source.name} has none: name them with --label-column, or take "
            "moco, which needs none"
        )
    split_data = part(pixels.ids, labels, held_out=held_out, seed=asked.seed)
    trained_on = len(split_data.train)
    settings = replace(resolve(trained_on), held_out=held_out)
    if settings.batch_size < asked.batch_size:
        notify(f"{trained_on} images to train on: lowered batch_size {asked.batch_size} to all of them")
    while True:
        encoder = make_encoder(settings, channels=pixels.channels, processes=processes)
        try:
            course = build_run(
                encoder, settings, pixels, split_data, device=device, begun=begun, processes=processes
            )
            break
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or processes.world_size > 1:
                raise
            settings = double_chunks(settings, reason="a step needs more memory than there is")
        gc.collect()  # what the trial had made refers to itself
        notify(f"the memory is too small for a whole batch: steps are computed in {settings.chunks} parts")
    for words in dictionary_concerns(course.settings, items=trained_on, steps=course.steps):
        notify(words)
    return course


def same_course(
    settings: PretrainSettings, source: Source, pixels: Pixels, *, device: torch.device, begun: float
) -> Course:
    """Put the run of some settings together again; its state is to be restored.

    Args:
        settings: Complete.
        source: Images.
        pixels: Of them.
        device: Where to train.
        begun: `time.monotonic()` when the user began to wait.

    Returns:
        A run whose weights are those before its first step, or any others where it began from given ones.
    """
    split_data = part(pixels.ids, _labels(source, pixels), held_out=settings.held_out, seed=settings.seed)
    processes = current_process_group()
    encoder = make_encoder(replace(settings, init=None), channels=pixels.channels, processes=processes)
    return build_run(
        encoder, settings, pixels, split_data, device=device, begun=begun, measure=False, processes=processes
    )


def _labels(source: Source, pixels: Pixels) -> Tensor | None:
    return None if source.labels is None else torch.from_numpy(source.labels)[pixels.ids]


@dataclass(frozen=True, eq=False)
class PretrainedRun:
    """What a pretraining leaves.

    Args:
        encoder: The pretrained encoder.
        settings: Complete: every choice that was made or measured.
        report: Steps, seconds, share of the time that views took, what the monitors saw first and last.
        folder: Where it is; None where no folder was asked for.
        is_finished: Whether all steps were taken.
    """

    encoder: SavedEncoder
    settings: PretrainSettings
    report: dict[str, Any]
    folder: Path | None
    is_finished: bool


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
    told: Callable[[Shown], None] | None = None,
    notify: Notify | None = None,
    begin: Callable[[Course], None] | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> PretrainedRun:
    """Pretrain an encoder from images, without using their labels ("xbm" alone learns from them).

    Otherwise labels, where there are any, only serve the online kNN on held-out images and the count of
    false negatives.

    Args:
        source: Images: what `read_source` takes, or what it gave.
        method: "simclr" (the default), "moco", "moco-v2", "moco-v3", "memory-bank", "end-to-end" or "xbm".
        preset: A recipe of `PRESETS`, which has a method of its own; settings win over it.
        out: A new folder for encoder, checkpoints and records; None keeps all in memory.
        label_column: As `read_source` takes it; column and split too.
        column: The images.
        split: The part to train on.
        device: Where to train.
        workers: Processes that decode images which do not fit in memory.
        memory_limit: Bytes that decoded images may take; None: a quarter of what is free.
        save_every: Seconds between two checkpoints; 0: one after each step. It changes no number.
        keep: How many checkpoints are kept.
        told: Called after each step with how far the run is.
        notify: Called with what is worth knowing.
        begin: Called once before the first step, with everything that was chosen.
        stop: Asked after each step; if it says True, the state is saved and the run ends there.
        **settings: Fields of `PretrainSettings`, such as minutes, backbone or batch_size.

    Returns:
        The run; give it to `load_encoder` for features.

    Raises:
        SourceError: If there are no images.
        ConfigError: If a setting does not exist or contradicts another.
        RangeError: If a number is outside its range.
        CollapseError: If the loss stops being a number or the embeddings collapse; the last good state
            is kept in the folder.
        OutOfMemoryError: If a step does not fit the memory, in however many parts.
        OutputExistsError: If something is at `out`.
    """
    begun = time.monotonic()
    watch = Watch(told=told, notify=notify or (lambda _: None), stop=stop or (lambda: False))
    asked, saving = asked_settings(method, preset, settings), Saving(seconds=save_every, keep=keep)
    place = usable_device(device)
    path = None if out is None else Path(out)
    at = None if isinstance(source, Source) else {
        "spec": str(source), "column": column, "label_column": label_column, "split": split,
    }  # fmt: skip
    with ExitStack() as lock:
        with nullcontext() if path is None or not current_process_group().is_main_process else reserve(path):
            data = read_images(source, column=column, label_column=label_column, split=split)
            pixels = decode(data, asked.image_size, limit=memory_limit, workers=workers, notify=watch.notify)
            course = new_course(asked, data, pixels, device=place, begun=begun, notify=watch.notify)
            if begin is not None:
                begin(course)
            folder = _new_folder(
                path, course, source=data, at=at, asked=asked, saving=saving, device=place, begun=begun
            )
            if folder is not None:
                lock.enter_context(folder.kept_for_writing())
        return _train(course, folder, watch, path=path, start=0, begun=begun)


def _new_folder(
    path: Path | None, course: Course, *, device: torch.device, begun: float, **about: Any
) -> RunFolder | None:
    """The folder of a run that begins, for the process that writes."""
    state = course.learner.tensors()  # of all processes
    if path is None or not current_process_group().is_main_process:
        return None
    own = (
        str(device) if current_process_group().world_size == 1 else device.type
    )  # each takes its own of them
    return RunFolder.new(path, course, state, device=own, seconds=time.monotonic() - begun, **about)


def resume(
    folder: str | Path,
    *,
    epochs: float | None = None,
    workers: int = 2,
    memory_limit: int | None = None,
    save_every: float | None = None,
    told: Callable[[Shown], None] | None = None,
    notify: Notify | None = None,
    begin: Callable[[Course], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> PretrainedRun:
    """Go on with a run that was stopped, or train a finished one on for more epochs.

    A stopped run ends with the same bits as one that was never stopped, on the same machine with the
    same number of threads. With more epochs the schedule is that of the longer run from here on.

    Args:
        folder: Of the run.
        epochs: Its new length in all, longer than it was; None: as long as it was planned.
        workers: As for `pretrain`; memory_limit, told, notify, begin and stop too.
        memory_limit: Bytes.
        save_every: Seconds between two checkpoints; None: as before.
        told: Called after each step.
        notify: Called with what is worth knowing.
        begin: Called once before the first step.
        stop: Asked after each step.

    Returns:
        The run.

    Raises:
        MissingPathError: If there is no run, or its images are gone.
        StoreError: If it is damaged.
        ConfigError: If it is finished and no more epochs are asked for, or settings or images have changed.
        RangeError: If epochs is not above what was trained.
        OutputError: If another process is training it.
    """
    begun = time.monotonic()
    watch = Watch(told=told, notify=notify or (lambda _: None), stop=stop or (lambda: False))
    run = RunFolder.read(Path(folder))
    with run.kept_for_writing() if current_process_group().is_main_process else nullcontext():
        return _go_on(
            run, watch, begin, begun=begun, epochs=epochs, workers=workers, memory_limit=memory_limit,
            save_every=save_every,
        )  # fmt: skip


def _go_on(
    run: RunFolder, watch: Watch, begin: Callable[[Course], None] | None, *, begun: float,
    epochs: float | None, workers: int, memory_limit: int | None, save_every: float | None,
) -> PretrainedRun:  # fmt: skip
    checkpoint, is_finished = latest_checkpoint(run.path / CHECKPOINTS), run.is_finished
    run.require_unchanged(checkpoint.about)
    is_main_process = current_process_group().is_main_process
    for damaged in checkpoint.skipped:
        watch.notify(f"a newer checkpoint is damaged and left out: {damaged}")
    for words in run.go_on(save_every=save_every) if is_main_process else []:
        watch.notify(words)
    data = read_images(run.at["spec"], **{k: run.at[k] for k in ("column", "label_column", "split")})
    if data.fingerprint != run.fingerprint:
        raise ConfigError(
            f"{run.at['spec']} has changed since the run began; give it back as it was, or start a new run"
        )
    settings = extend_training(run.settings, epochs, checkpoint.step, watch.notify, is_finished=is_finished)
    pixels = decode(data, run.decoded_size, limit=memory_limit, workers=workers, notify=watch.notify)
    course = same_course(settings, data, pixels, device=usable_device(run.device), begun=begun)
    try:
        course.learner.restore_(checkpoint.tensors)
        course.start, before = dict(checkpoint.about["start"]), float(checkpoint.about["seconds"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise StoreError(
            f"{run.path}: the checkpoint after step {checkpoint.step} does not fit the settings in run.json; "
            "one of them was changed"
        ) from error
    checkpoint.tensors.clear()  # what is trained has them now
    if not is_main_process:  # the first tells and writes
        return _train(course, None, watch, path=run.path, start=checkpoint.step, begun=begun, before=before)
    seen = run.cut_records(checkpoint.step)
    run.change(settings, step=checkpoint.step)
    if begin is not None:
        begin(course)
    return _train(
        course, run, watch, path=run.path, start=checkpoint.step, begun=begun, before=before, seen=seen
    )


def _train(
    course: Course, folder: RunFolder | None, watch: Watch, *, path: Path | None, start: int, begun: float,
    before: float = 0.0, seen: dict[str, Any] | None = None,
) -> PretrainedRun:  # fmt: skip
    """The steps that are left, and what is written while they are taken, where this process writes."""
    log = RunLog(course, folder, watch, begun=begun, before=before)
    log.seen |= seen or {}
    if folder is not None and start == 0:
        folder.record("look", step=0, **log.seen)
    try:
        done = log.train(start)
    except (CollapseError, DataError, OutOfMemoryError, OutputError) as error:
        raise type(error)(f"{error}{log.kept()}") from error
    finally:
        log.close()
    saved = course.saved(log.report(done))
    if folder is not None and done == course.steps:
        folder.finish(saved)
    current_process_group().barrier()  # none goes on before the first has written
    return PretrainedRun(saved, course.settings, saved.report, path, done == course.steps)
