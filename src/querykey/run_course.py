"""From images and settings to the course of a run: of a new one, or of one that goes on."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from querykey.data.items import Source
from querykey.data.pixels import Pixels, read_pixels
from querykey.data.sources import read_source
from querykey.errors import ConfigError, is_out_of_memory
from querykey.lookup import UNLABELLED
from querykey.processes import current_processes
from querykey.training.dictionary_plan import dictionary_concerns
from querykey.training.going_on import in_more_parts
from querykey.training.parting import part
from querykey.training.pretrain import make_encoder
from querykey.training.pretrain_course import Course, put_together
from querykey.training.pretrain_settings import PretrainSettings
from querykey.training.resolving import resolve_settings

__all__ = ["decode", "new_course", "read_images", "same_course"]

DECODED = 224
"""The size that images are decoded for where none is asked for."""

Notify = Callable[[str], None]


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
    processes = current_processes()

    def resolve(images: int) -> PretrainSettings:
        return resolve_settings(asked, images=images, channels=pixels.channels, side=pixels.side)

    held_out, labels = resolve(len(pixels)).held_out, _labels(source, pixels)
    if asked.method == "xbm" and (labels is None or not bool((labels != UNLABELLED).any())):
        raise ConfigError(
            f"xbm learns from labels, and {source.name} has none: name them with --label-column, or take "
            "moco, which needs none"
        )
    parted = part(pixels.ids, labels, held_out=held_out, seed=asked.seed)
    trained_on = len(parted.train)
    settings = replace(resolve(trained_on), held_out=held_out)
    if settings.batch_size < asked.batch_size:
        notify(f"{trained_on} images to train on: lowered batch_size {asked.batch_size} to all of them")
    while True:
        encoder = make_encoder(settings, channels=pixels.channels, processes=processes)
        try:
            course = put_together(
                encoder, settings, pixels, parted, device=device, begun=begun, processes=processes
            )
            break
        except (MemoryError, RuntimeError) as fault:
            if not is_out_of_memory(fault) or processes.count > 1:
                raise
            settings = in_more_parts(settings, reason="a step needs more memory than there is")
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
    parted = part(pixels.ids, _labels(source, pixels), held_out=settings.held_out, seed=settings.seed)
    processes = current_processes()
    encoder = make_encoder(replace(settings, init=None), channels=pixels.channels, processes=processes)
    return put_together(
        encoder, settings, pixels, parted, device=device, begun=begun, measure=False, processes=processes
    )


def _labels(source: Source, pixels: Pixels) -> Tensor | None:
    return None if source.labels is None else torch.from_numpy(source.labels)[pixels.ids]
