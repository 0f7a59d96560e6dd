"""`querykey pretrain`: an encoder from images alone; `querykey resume` goes on with one."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.console import line
from querykey.cli.options import Column, Device, LabelColumn, Out, Split, Threads, prepare
from querykey.cli.torchrun import is_one_of_many

if TYPE_CHECKING:
    from querykey.runs.pretrain import PretrainedRun
if TYPE_CHECKING:
    from querykey.pretraining.settings.settings import PretrainSettings
    from querykey.pretraining.trainer import Course
    from querykey.runs.pretrain import Shown

__all__ = [
    "display",
    "pretrain_source",
    "resume_run",
    "show_start",
]

SaveEvery = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Between two checkpoints; 60 if not said.")
]
Workers = Annotated[
    int, typer.Option(min=1, max=1024, help="Processes that decode what does not fit in memory.")
]


def pretrain_source(
    out: Out,
    run_file: Annotated[
        Path | None, typer.Argument(metavar="[RUN.toml]", help="Settings in TOML; may name the data.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="See `querykey help sources`.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="simclr (default), moco, moco-v2, moco-v3, memory-bank, end-to-end, or xbm (with labels).",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="[moco-cifar]", help="A complete published hyperparameter preset.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="How long to train; 10 if nothing is said.")] = None,
    epochs: Annotated[float | None, typer.Option(help="How long, in passes over the data.")] = None,
    init: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Start the backbone from .safetensors or .pth.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="See `querykey help pretraining`."),
    ] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    split: Split = None,
    device: Device = "cpu",
    threads: Threads = None,
    workers: Workers = 2,
    save_every: SaveEvery = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed.")] = None,
) -> None:
    """Pretrain an encoder from images without labels.

    Labels, where there are any, are used for the online kNN on held-out images alone (xbm trains on them).
    Ctrl-C saves the state; `querykey resume` goes on from there.
    """
    from querykey.runs.pretrain_settings import read_pretrain_run

    more = [*(settings or []), *([f"backbone.init={init}"] if init else [])]
    run = read_pretrain_run(
        run_file, more, data=data, method=method, preset=preset, minutes=minutes, epochs=epochs, seed=seed,
        save_every=save_every,
    )  # fmt: skip
    given = run.as_settings()
    source = _source(given.pop("data", None))
    device = prepare(device, threads, run.seed or 0, supports_torchrun=True)
    from querykey.cli.console import note
    from querykey.cli.pretrain import display, show_start
    from querykey.runs.pretrain import pretrain

    with display() as (told, stop):
        done = pretrain(
            source, out=out, column=column, label_column=label_column, split=split, device=device,
            workers=workers, told=told, notify=note, begin=show_start, stop=stop, **given,
        )  # fmt: skip
    _end(done, out)


def resume_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `querykey pretrain` wrote.")],
    epochs: Annotated[float | None, typer.Option(help="Train on to so many epochs in all.")] = None,
    threads: Threads = None,
    workers: Workers = 2,
    save_every: SaveEvery = None,
) -> None:
    """Go on with a pretraining, or train a finished one for longer.

    On the same machine with the same number of threads a stopped run ends with the same bits as
    one that was not.
    """
    from querykey.runs.pretrain_folder import RunFolder

    before = RunFolder.read(run)
    prepare(before.device, threads or before.threads, before.settings.seed, supports_torchrun=True)
    from querykey.cli.console import note
    from querykey.cli.pretrain import display, show_start
    from querykey.runs.pretrain import resume

    with display() as (told, stop):
        done = resume(
            run, epochs=epochs, workers=workers, save_every=save_every, told=told, notify=note,
            begin=show_start, stop=stop,
        )  # fmt: skip
    _end(done, run)


def _source(named: str | None) -> str:
    if named is None:
        from querykey.errors import ConfigError

        raise ConfigError("there are no images: name them with --data SOURCE, or with data in the run file")
    return named


def _looked_up(end: dict[str, float]) -> str:
    words = [f"{end['candidates']:,.0f} candidates a query"]
    if "gap" in end:
        words.append(f"gap {end['gap']:.1f} logits")
    wrong = {"id": "false_negatives_id", "class": "false_negatives_label"}
    shares = [f"{end[name]:.1%} by {what}" for what, name in wrong.items() if name in end]
    return ", ".join(words) + (f"; false negatives {', '.join(shares)}" if shares else "")


def _dictionary(end: dict[str, float]) -> str:
    words = [f"{end['fill']:.0%} full", f"oldest row {end['age_max']:,.0f} steps"]
    drifts = {int(name.removeprefix("drift_")): name for name in end if name.startswith("drift_")}
    if drifts:
        oldest = max(drifts)
        words.append(f"drift in {oldest:,} steps {end[drifts[oldest]]:.3f} (0 to 4)")
    return ", ".join(words)


def _end(done: "PretrainedRun", folder: Path) -> None:
    from querykey.cli.console import line, note
    from querykey.cli.errors import STOPPED

    report = done.report
    if not done.is_finished:
        note(f"stopped after step {report['steps_taken']}; go on with: querykey resume {folder}")
        raise typer.Exit(STOPPED)
    line(
        f"{folder}: {report['steps_taken']:,} steps, {report['images_seen']:,} images seen, "
        f"{report['seconds'] / 60:.1f} minutes"
    )
    end, start = report["end"], report["start"]
    if "knn" in end:
        line(
            f"  kNN of h on {end['knn_queries']:.0f} images held out: {end['knn']:.3f}, untrained "
            f"{start['knn']:.3f}"
        )
    if end:
        line(
            f"  pretext task solved {end['pretext']:.0%}, effective rank of h {end['effective_rank_h']:.0f} "
            f"(untrained {start['effective_rank_h']:.0f})"
        )
    if "candidates" in end:
        line(f"  {_looked_up(end)}")
    if "fill" in end:
        line(f"  dictionary {_dictionary(end)}")
    line(f"  decoding and views took {report['views_share_of_step']:.0%} of a step's time")
    line(f"next: querykey evaluate {folder} --on SOURCE", whole=True)


def show_start(course: "Course") -> None:
    """Print everything that was chosen for a run, before its first step.

    Args:
        course: The run.
    """
    from querykey.pretraining.settings.memory_plan import describe_dictionary, describe_memory

    settings, images = course.settings, course.images
    encoder, pixels = course.learner.encoder, course.images.pixels
    weights = sum(weight.numel() for weight in encoder.backbone.parameters())
    line(
        f"{settings.method}: {len(course.split_data.train):,} images of {pixels.channels} channels, "
        f"{len(course.split_data.asking):,} held out for the online kNN"
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
    for words in describe_dictionary(settings, items=len(course.split_data.train), steps=course.steps):
        line(f"  {words}")
    items, processes = len(course.split_data.train), course.learner.processes.world_size
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
    from querykey.losses.by_name import takes_temperature

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
