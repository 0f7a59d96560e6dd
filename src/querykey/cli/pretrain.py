"""`querykey pretrain`: train an encoder on images; `querykey resume`: continue a run."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.console import heartbeat, line
from querykey.cli.options import Column, Device, LabelColumn, Out, Split, Threads, prepare
from querykey.cli.torchrun import is_distributed

if TYPE_CHECKING:
    from querykey.pretraining.run import TrainingRun
    from querykey.pretraining.settings.settings import PretrainSettings
    from querykey.pretraining.trainer import Progress
    from querykey.runs.pretrain import PretrainedRun

__all__ = ["display", "pretrain_source", "resume_run", "show_start"]

SaveEvery = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Between two checkpoints; default: 60.")
]
Workers = Annotated[
    int, typer.Option(min=1, max=1024, help="Processes that decode images which do not fit in memory.")
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
        str | None, typer.Option(metavar="[moco-cifar]", help="A published set of settings.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="About how long the command takes; default: 10.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Training length in epochs.")] = None,
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
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed; default: 0.")] = None,
) -> None:
    """Pretrain an encoder from images without labels.

    Labels, if there are any, are only used for the kNN on validation images (xbm learns from them).
    Ctrl-C saves the state; `querykey resume` continues from there.
    """
    from querykey.runs.pretrain_settings import read_pretrain_run

    more = [*(settings or []), *([f"backbone.init={init}"] if init else [])]
    options = {"method": method, "preset": preset, "minutes": minutes, "epochs": epochs, "seed": seed}
    given = read_pretrain_run(run_file, more, data=data, save_every=save_every, **options)
    source = _source(given.pop("data", None))
    device = prepare(device, threads, given.get("seed") or 0, supports_torchrun=True)
    from querykey.cli.console import note
    from querykey.cli.pretrain import display, show_start
    from querykey.runs.pretrain import pretrain

    given |= {"device": device, "workers": workers}
    given |= {"column": column, "label_column": label_column, "split": split}
    with display() as hooks:
        done = pretrain(source, out=out, notify=note, on_fit_start=show_start, **hooks, **given)
    _end(done, out)


def resume_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An output folder of `querykey pretrain`.")],
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Present place of the images, if they were moved.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="New total number of epochs.")] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="Device; default: as before.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads; default: as before.")
    ] = None,
    workers: Workers = 2,
    save_every: SaveEvery = None,
) -> None:
    """Resume a pretraining run, or train a finished one for longer.

    On the same machine with the same number of threads, a resumed run ends with the same bits as one
    that was not stopped. A run that was copied to another machine is resumed with --data and --device.
    """
    from querykey.errors import MissingPathError
    from querykey.runs.pretrain_folder import RunFolder

    before = RunFolder.read(run)
    from querykey.cli.console import note
    from querykey.cli.pretrain import display, show_start
    from querykey.runs.pretrain import resume, resumed_device

    found = str(resumed_device(before, device))
    place = prepare(found, threads or before.threads, before.settings.seed, supports_torchrun=True)
    options: dict[str, Any] = {"epochs": epochs, "device": place, "workers": workers}
    try:
        with display() as hooks:
            done = resume(
                run, data, save_every=save_every, notify=note, on_fit_start=show_start, **hooks, **options
            )
    except MissingPathError as error:
        raise MissingPathError(f"{error}: querykey resume {run} --data SOURCE") from error
    _end(done, run)


def _source(named: str | None) -> str:
    if named is None:
        from querykey.errors import ConfigError

        raise ConfigError("there are no images: name them with --data SOURCE, or with data in the run file")
    return named


def _candidates(end: dict[str, float]) -> str:
    words = [f"{end['candidates']:,.0f} candidates a query"]
    if "gap" in end:
        words.append(f"gap {end['gap']:.1f} logits")
    wrong = {"id": "false_negatives_id", "class": "false_negatives_label"}
    rates = [f"{end[name]:.1%} by {what}" for what, name in wrong.items() if name in end]
    return ", ".join(words) + (f"; false negatives {', '.join(rates)}" if rates else "")


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
        note(f"stopped after step {report['steps_taken']}; continue with: querykey resume {folder}")
        raise typer.Exit(STOPPED)
    line(
        f"{folder}: {report['steps_taken']:,} steps, {report['images_seen']:,} images seen, "
        f"{report['seconds'] / 60:.1f} minutes"
    )
    end, start = report["end"], report["start"]
    if "knn" in end:
        line(
            f"  kNN of h on {end['knn_queries']:.0f} validation images: {end['knn']:.3f}, untrained "
            f"{start['knn']:.3f}"
        )
    if end:
        line(
            f"  pretext task solved {end['pretext']:.0%}, effective rank of h {end['effective_rank_h']:.0f} "
            f"(untrained {start['effective_rank_h']:.0f})"
        )
    if "candidates" in end:
        line(f"  {_candidates(end)}")
    if "fill" in end:
        line(f"  dictionary {_dictionary(end)}")
    line(f"  decoding and views took {report['views_share_of_step']:.0%} of the time of a step")
    line(f"next: querykey evaluate {folder} --on SOURCE", whole=True)


def show_start(run: "TrainingRun") -> None:
    """Print the resolved settings of a run before its first step.

    Args:
        run: The run.
    """
    from querykey.pretraining.settings.memory_plan import describe_dictionary, describe_memory

    settings, images = run.settings, run.images
    encoder, pixels = run.learner.encoder, run.images.pixels
    weights = sum(weight.numel() for weight in encoder.backbone.parameters())
    line(
        f"{settings.method}: {len(run.split_data.train):,} images of {pixels.channels} channels, "
        f"{len(run.split_data.queries):,} validation images for the online kNN"
    )
    line(
        f"  backbone {settings.backbone.name}: {weights / 1e6:.2f} M weights, h {encoder.backbone.dim}, "
        f"{settings.image_size} px; head {settings.head.kind}, z {encoder.head.dim}"
    )
    # the steps were fixed by a measurement; the run ends after them, however long they take
    length = "" if settings.minutes is None else f"about {settings.minutes:g} minutes, "
    line(
        f"  {run.steps:,} steps of {settings.batch_size} images ({settings.epochs:.3g} epochs), {length}"
        f"{settings.precision}, {str(settings.layout).replace('_', ' ')}"
    )
    optimizer = settings.optimizer
    scaled = f" ({optimizer.lr_scaling} scaling, batch {settings.batch_size})"
    scaled = "" if optimizer.lr_scaling == "none" else scaled
    line(
        f"  {optimizer.kind}: learning rate {optimizer.learning_rate:.4g}{scaled}, weight decay "
        f"{optimizer.weight_decay:.3g}, rises in the first {optimizer.warm_up:.0%} of the steps, then cosine"
    )
    line(f"  loss {_loss_of(settings)}")
    for words in describe_dictionary(settings, items=len(run.split_data.train), steps=run.steps):
        line(f"  {words}")
    items, processes = len(run.split_data.train), run.learner.processes.world_size
    line(f"  {describe_memory(settings, items=items, width=encoder.head.dim, processes=processes)}")
    first, second = images.views
    line(f"  views {settings.views.preset}:")
    for words in first.describe().splitlines():
        line(f"    {words}")
    if second != first:
        line("  second view:")
        for words in second.describe().splitlines():
            line(f"    {words}")
    if run.calibration is not None:
        evaluation = run.calibration.evaluation_seconds
        words = "" if not evaluation else f", an evaluation {evaluation:.1f} s"
        line(f"  a step takes {run.calibration.seconds:.3f} s here{words}")


def _loss_of(settings: "PretrainSettings") -> str:
    from querykey.losses.by_name import takes_temperature

    words, loss = [], settings.loss
    if takes_temperature(loss.kind):
        words.append(f"temperature {loss.temperature:g}{', learned' if loss.learned_temperature else ''}")
    words += [f"{name} {value}" for name, value in loss.options.items() if name != "form"]
    return ": ".join([loss.kind, ", ".join(words)] if words else [loss.kind])


@contextmanager
def display() -> Iterator[dict[str, Any]]:
    """A progress bar on standard error, a line every 30 s if that is no terminal, and a graceful Ctrl-C.

    After the first SIGINT or SIGTERM the run stops after the current step, so that its state can be
    saved; a second one interrupts it.

    Yields:
        The hooks "on_step_end" and "stop" of `pretrain` and `resume`.
    """
    is_stopping, is_training = threading.Event(), threading.Event()

    def interrupt(number: int, frame: Any) -> None:  # noqa: ARG001
        if not is_training.is_set():  # before the first step there is nothing to save
            raise KeyboardInterrupt
        if is_stopping.is_set():
            if number == signal.SIGTERM and is_distributed():
                return  # torchrun sends it after a Ctrl-C, which the process has received too
            raise KeyboardInterrupt
        is_stopping.set()
        sys.stderr.write("\nstopping after this step; once more stops at once\n")

    def stop() -> bool:
        is_training.set()
        return is_stopping.is_set()

    former = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not sys.stderr.isatty():
            with heartbeat("pretraining") as tell:
                yield {"on_step_end": lambda progress: tell(_far(progress)), "stop": stop}
            return
        with _bar() as on_step_end:
            yield {"on_step_end": on_step_end, "stop": stop}
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _far(progress: "Progress") -> str:
    """How far a pretraining is, in a line."""
    knn = "" if progress.knn is None else f", kNN {progress.knn:.3f}"
    return f"step {progress.step:,} of {progress.steps:,}, loss {progress.loss:.3f}{knn}"


@contextmanager
def _bar() -> Iterator["Callable[[Progress], None]"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    text = TextColumn("{task.fields[text]}")
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn(), text)
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, text="reading images, measuring a step")
        rate = 0.0

        def on_step_end(progress: "Progress") -> None:
            nonlocal rate
            now = progress.images_per_second
            rate = now if not rate else 0.9 * rate + 0.1 * now  # smoothed
            knn = "" if progress.knn is None else f"  kNN {progress.knn:.3f}"
            text = f"{rate:,.0f} images/s  loss {progress.loss:.3f}{knn}"
            bar.update(task, completed=progress.step, total=progress.steps, text=text)

        yield on_step_end
