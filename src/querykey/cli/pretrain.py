"""`querykey pretrain`: an encoder from images alone; `querykey resume` goes on with one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from querykey.cli.options import Column, Device, LabelColumn, Out, Split, Threads, prepare

if TYPE_CHECKING:
    from querykey.run_pretrain import PretrainedRun

__all__ = ["pretrain_source", "resume_run"]

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
        str | None, typer.Option(metavar="[moco-cifar]", help="A whole recipe of a paper's authors.")
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
    seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it.")] = None,
) -> None:
    """Pretrain an encoder from images without labels.

    Labels, where there are any, only serve to show how it gets on: kNN on images held out.
    Ctrl-C saves the state; `querykey resume` goes on from there.
    """
    from querykey.config_pretrain import read_pretrain_run

    more = [*(settings or []), *([f"backbone.init={init}"] if init else [])]
    run = read_pretrain_run(
        run_file, more, data=data, method=method, preset=preset, minutes=minutes, epochs=epochs, seed=seed,
        save_every=save_every,
    )  # fmt: skip
    given = run.as_settings()
    source = _source(given.pop("data", None))
    device = prepare(device, threads, run.seed or 0, shares_out=True)
    from querykey.cli.pretrain_display import display, show_start
    from querykey.cli.show import note
    from querykey.run_pretrain import pretrain

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
    from querykey.run_folder import RunFolder

    before = RunFolder.read(run)
    prepare(before.device, threads or before.threads, before.settings.seed, shares_out=True)
    from querykey.cli.pretrain_display import display, show_start
    from querykey.cli.show import note
    from querykey.run_pretrain import resume

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
    from querykey.cli.faults import STOPPED
    from querykey.cli.show import line, note

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
