"""What a person sees of a pretraining while it runs, and how Ctrl-C stops it between two steps."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from querykey.cli.joining import is_one_of_many
from querykey.cli.show import line

if TYPE_CHECKING:
    from querykey.run_pretrain import Shown
    from querykey.training.pretrain_course import Course
    from querykey.training.pretrain_settings import PretrainSettings

__all__ = ["display", "show_start"]


def show_start(course: "Course") -> None:
    """Print everything that was chosen for a run, before its first step.

    Args:
        course: The run.
    """
    from querykey.training.dictionary_plan import describe_dictionary, describe_memory

    settings, images = course.settings, course.images
    encoder, pixels = course.learner.encoder, course.images.pixels
    weights = sum(weight.numel() for weight in encoder.backbone.parameters())
    line(
        f"{settings.method}: {len(course.parted.train):,} images of {pixels.channels} channels, "
        f"{len(course.parted.asking):,} held out for the online kNN"
    )
    line(
        f"  backbone {settings.backbone}: {weights / 1e6:.2f} M weights, h {encoder.backbone.dim}, "
        f"{settings.image_size} px; head {settings.head}, z {encoder.head.dim}"
    )
    line(
        f"  {course.steps:,} steps of {settings.batch_size} images ({settings.epochs:.3g} epochs), "
        f"{settings.precision}, {str(settings.layout).replace('_', ' ')}"
    )
    rule = "" if settings.rule == "none" else f" (rule {settings.rule}, batch {settings.batch_size})"
    line(
        f"  {settings.optimizer}: learning rate {settings.learning_rate:.4g}{rule}, weight decay "
        f"{settings.weight_decay:.3g}, rises in the first {settings.warm_up:.0%} of the steps, then cosine"
    )
    line(f"  loss {_loss_of(settings)}")
    for words in describe_dictionary(settings, items=len(course.parted.train), steps=course.steps):
        line(f"  {words}")
    items, processes = len(course.parted.train), course.learner.processes.count
    line(f"  {describe_memory(settings, items=items, width=encoder.head.dim, processes=processes)}")
    first, second = images.views
    line(f"  views {settings.views}:")
    for words in first.describe().splitlines():
        line(f"    {words}")
    if second != first:
        line("  second view:")
        for words in second.describe().splitlines():
            line(f"    {words}")
    if course.calibration is not None:
        line(f"  a step takes {course.calibration.seconds:.3f} s here")


def _loss_of(settings: "PretrainSettings") -> str:
    from querykey.training.view_objectives import takes_temperature

    words = []
    if takes_temperature(settings.loss):
        words.append(
            f"temperature {settings.temperature:g}{', learned' if settings.learned_temperature else ''}"
        )
    words += [f"{name} {value}" for name, value in settings.loss_options.items() if name != "form"]
    return ": ".join([settings.loss, ", ".join(words)] if words else [settings.loss])


@contextmanager
def display() -> Iterator[tuple["Callable[[Shown], None] | None", Callable[[], bool]]]:
    """A live line on standard error where that is a terminal, and a polite Ctrl-C.

    The first SIGINT or SIGTERM asks the run to stop after the step it is in, so that its state is
    whole; a second one is the usual interrupt.

    Yields:
        (what to call after each step, None where nobody looks; whether to stop).
    """
    asked, is_training = threading.Event(), threading.Event()

    def ask(number: int, frame: Any) -> None:  # noqa: ARG001
        if not is_training.is_set():  # before the first step there is nothing to lose
            raise KeyboardInterrupt
        if asked.is_set():
            if number == signal.SIGTERM and is_one_of_many():
                return  # torchrun sends it after a Ctrl-C, which the process has heard itself
            raise KeyboardInterrupt
        asked.set()
        sys.stderr.write("\nstopping after this step; once more stops at once\n")

    def stop() -> bool:
        is_training.set()
        return asked.is_set()

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not sys.stderr.isatty():
            yield None, stop
            return
        with _bar() as told:
            yield told, stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _bar() -> Iterator["Callable[[Shown], None]"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None, words="reading images, measuring a step")
        rate = 0.0

        def told(shown: "Shown") -> None:
            nonlocal rate
            rate = shown.images_per_second if not rate else 0.9 * rate + 0.1 * shown.images_per_second
            knn = "" if shown.knn is None else f"  kNN {shown.knn:.3f}"
            words = f"{rate:,.0f} images/s  loss {shown.loss:.3f}{knn}"
            bar.update(task, completed=shown.step, total=shown.steps, words=words)

        yield told
