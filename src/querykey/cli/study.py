"""`querykey study`: the papers' ablations on the user's data."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.options import Column, Delimiter, LabelColumn, Split, prepare

if TYPE_CHECKING:
    from querykey.studies.engine.grid import Cell, Progress
    from querykey.studies.engine.run import StudyRun
    from querykey.studies.engine.study import Study

__all__ = ["study"]


Name = Annotated[str, typer.Argument(metavar="NAME", help="A study, or `list` for their names.")]
Data = Annotated[
    str | None, typer.Option(metavar="SOURCE|FEATURES", help="Labelled images, or features of `adapter`.")
]
Folder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A new folder, or that of a study to resume.")
]
Test = Annotated[str | None, typer.Option(metavar="SOURCE", help="Test images, if DATA has none.")]
TestSplit = Annotated[
    str | None, typer.Option(metavar="NAME", help="Test split. Default: a fifth is held out.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="A few steps on a few images, as a test.")]
Seeds = Annotated[int | None, typer.Option(min=1, max=100, help="Seeds of each arm, at most.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.1, help="Time for the whole grid; sets the length of each cell.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=256, help="Cells at once, one thread each. Default: all cores.")
]


def study(
    name: Name,
    data: Data = None,
    out: Folder = None,
    split: Split = None,
    test: Test = None,
    test_split: TestSplit = None,
    column: Column = None,
    label_column: LabelColumn = None,
    delimiter: Delimiter = None,
    smoke: Smoke = False,
    seeds: Seeds = None,
    minutes: Minutes = None,
    jobs: Jobs = None,
) -> None:
    """Run a paper's ablation on your data; `study list` names them.

    A grid of small runs, and verdicts by a rule that was fixed before the first run. The same command resumes
    a study that was stopped.
    """
    from querykey.studies.catalogue import STUDIES

    if name == "list":
        _list(STUDIES)
        return
    chosen = _find(name, STUDIES)
    if data is None or out is None:
        from querykey.errors import ConfigError

        raise ConfigError(
            f"a study needs --data SOURCE and --out DIR, as in querykey study {name} --data photos "
            f"--out {name}"
        )
    prepare("cpu", 1, 0)
    import os
    from dataclasses import replace

    from querykey.cli.console import note
    from querykey.runs.data import DataAt
    from querykey.studies.engine.data import StudyFeatures, StudyImages
    from querykey.studies.engine.run import run_study

    train = DataAt(data, column=column, label_column=label_column, split=split, delimiter=delimiter)
    has_test = test is not None or test_split is not None
    held_out = replace(train, spec=test or data, split=test_split) if has_test else None
    kind = StudyImages if chosen.needs == "images" else StudyFeatures
    study_data, jobs = kind(train=train, test=held_out), 1 if smoke else jobs or os.cpu_count() or 1
    length: dict[str, Any] = {"seeds": seeds, "minutes": minutes, "is_trial": smoke}
    with _progress(name) as progress:
        done = run_study(chosen, study_data, out, jobs=jobs, progress=progress, notify=note, **length)
    _show(done)


def _find(name: str, studies: "dict[str, Study]") -> "Study":
    if name not in studies:
        from querykey.data.readers.grammar import nearest_words
        from querykey.errors import ConfigError

        raise ConfigError(
            f"there is no study {name!r}{nearest_words(name, studies)}; `querykey study list` names them"
        )
    return studies[name]


def _list(studies: "dict[str, Study]") -> None:
    from querykey.cli.console import line

    for one in studies.values():
        cells = sum(arm.seeds for arm in one.arms)
        line(one.name)
        line(f"  {one.title}")
        line(f"  {one.source}; {len(one.arms)} arms, {cells} cells")


@contextmanager
def _progress(name: str) -> "Iterator[Progress | None]":
    """A progress bar over the cells, or one line per cell without a terminal."""
    from querykey.cli.console import note, progress

    with progress(name) as tick:

        def on_cell_end(done: int, count: int, cell: "Cell", fields: dict[str, Any]) -> None:
            scores = ", ".join(_score(*one) for one in list(fields["values"].items())[:2])
            if not sys.stderr.isatty():  # a cell takes minutes, so each has a line
                seconds = f"{fields['seconds']:.0f} s"
                note(f"{done} of {count}: {cell.method}, seed {cell.seed}: {scores} ({seconds})")
            tick(done, count)

        yield on_cell_end


def _score(measure: str, value: list[int]) -> str:
    correct, total = value
    return f"{measure} {correct / total:.3f}" if total else measure


def _show(done: "StudyRun") -> None:
    """Print the arms and the verdicts."""
    from querykey.cli.console import line, table
    from querykey.io.study_folder import open_study
    from querykey.reports.verdicts import answers, arms_rows

    stored = open_study(done.folder)
    described = stored.described
    line(described["asks"])
    line(f"{described['measured']}; {described['source']}")
    line()
    measures, rows = arms_rows(stored)
    table(["", *measures, "seeds"], rows)
    for one in answers(stored):
        line(one.ask)
        line(f"  {one.word}" + (f": {one.because}" if one.because else ""))
        line(f"  published: {one.published}")
    line()
    if described["is_trial"]:
        line("a trial run: it shows only that everything works")
    line(f"next: querykey report {done.folder} --out report.html", whole=True)
