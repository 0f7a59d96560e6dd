"""`querykey study`: the papers' questions, asked of the user's own data."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from querykey.cli.options import Column, LabelColumn, Split, prepare

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
    Path | None, typer.Option(metavar="DIR", help="A new folder, or that of a study to go on with.")
]
Test = Annotated[
    str | None, typer.Option(metavar="SOURCE", help="Images to ask for, where DATA has none of them.")
]
TestSplit = Annotated[
    str | None, typer.Option(metavar="NAME", help="The part to ask for; a fifth is held out if not said.")
]
Smoke = Annotated[bool, typer.Option("--smoke", help="A few steps on a few images: to see that it works.")]
Seeds = Annotated[int | None, typer.Option(min=1, max=100, help="Of each arm, at the most.")]
Minutes = Annotated[
    float | None, typer.Option(min=0.1, help="For the whole grid; cells are made as long as that allows.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=256, help="Cells at once, a thread each; all cores if not said.")
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
    smoke: Smoke = False,
    seeds: Seeds = None,
    minutes: Minutes = None,
    jobs: Jobs = None,
) -> None:
    """Ask a paper's question of your own data; `study list` names them.

    A grid of small runs, and a verdict by a rule that was fixed beforehand. Cells that are done aren't done
    again: the same command goes on with a study that was stopped.
    """
    from querykey.studies.catalogue import STUDIES

    if name == "list":
        _list(STUDIES)
        return
    asked = _asked(name, STUDIES)
    if data is None or out is None:
        from querykey.errors import ConfigError

        raise ConfigError(
            f"a study needs --data SOURCE and --out DIR, as in querykey study {name} --data photos "
            f"--out {name}"
        )
    prepare("cpu", 1, 0)
    import os

    from querykey.cli.console import note
    from querykey.runs.data import DataAt
    from querykey.studies.engine.data import StudyFeatures, StudyImages
    from querykey.studies.engine.run import run_study

    train = DataAt(data, column=column, label_column=label_column, split=split)
    others = None
    if test is not None or test_split is not None:
        others = DataAt(test or data, column=column, label_column=label_column, split=test_split)
    kind = StudyImages if asked.needs == "images" else StudyFeatures
    with _progress(name) as progress:
        done = run_study(
            asked, kind(train=train, test=others), out, seeds=seeds, minutes=minutes, is_trial=smoke,
            jobs=1 if smoke else jobs or os.cpu_count() or 1, progress=progress, notify=note,
        )  # fmt: skip
    _tell(done)


def _asked(name: str, studies: "dict[str, Study]") -> "Study":
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
    """A bar over the cells, and a line for each that is done."""
    from querykey.cli.console import note, progress

    with progress(name) as tick:

        def told(done: int, count: int, cell: "Cell", fields: dict[str, Any]) -> None:
            scores = ", ".join(_score(*one) for one in list(fields["values"].items())[:2])
            if not sys.stderr.isatty():  # a cell takes minutes: each has its line
                seconds = f"{fields['seconds']:.0f} s"
                note(f"{done} of {count}: {cell.method}, seed {cell.seed}: {scores} ({seconds})")
            else:
                tick(done, count)

        yield told


def _score(measure: str, value: list[int]) -> str:
    right, asked = value
    return f"{measure} {right / asked:.3f}" if asked else measure


def _tell(done: "StudyRun") -> None:
    """The arms and the verdicts."""
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
        line("a trial: that it ran is all it says")
    line(f"next: querykey report {done.folder} --out report.html", whole=True)
