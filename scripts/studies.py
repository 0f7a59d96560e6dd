"""Run the project's own studies, then write their report.

    python scripts/studies.py results    # into results/, then docs/results.md
    python scripts/studies.py papers     # into studies/, then studies/README.md

`--only NAME` runs some of them, `--report` measures nothing. A cell that has a record is not measured again,
so the same command resumes a run that was stopped.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from querykey.errors import MissingPathError
from querykey.io.program import exit_code, say
from querykey.reports.markdown.results import write_results
from querykey.reports.markdown.studies import write_studies
from querykey.studies.catalogue import STUDIES
from querykey.studies.catalogue.results_adapters import RESULTS_ADAPTERS
from querykey.studies.catalogue.results_pretraining import RESULTS_PRETRAINING
from querykey.studies.catalogue.results_sizes import RESULTS_SIZES
from querykey.studies.data_sets import (
    BANKING,
    CIFAR10,
    CRANFIELD,
    OMNIGLOT,
    OMNIGLOT_IMAGES,
    FrozenDataSet,
    Images,
)
from querykey.studies.engine.data import StudyFeatures, StudyImages
from querykey.studies.engine.grid import Cell
from querykey.studies.engine.run import run_study
from querykey.studies.engine.study import Study

FROZEN = (OMNIGLOT, BANKING, CRANFIELD)
NEW_CLASSES = ("memory-ratio", "drift")
"""Studies whose test classes are not those of the training."""


class Planned(NamedTuple):
    """A study with its data.

    Args:
        folder: Name of its folder.
        study: The study.
        data: Its data set.
    """

    folder: str
    study: Study
    data: Images | FrozenDataSet


def planned(part: str) -> tuple[Planned, ...]:
    """The studies of a part, in the order of its report.

    Args:
        part: "results" or "papers".

    Returns:
        Studies with their data.
    """
    if part == "results":
        of_images = [Planned(f"pretraining/{_slug(s.name)}", s, data) for data, s in RESULTS_PRETRAINING]
        results = [("adapters", data, study) for data, study in RESULTS_ADAPTERS]
        results += [("sizes", data, study) for data, study in RESULTS_SIZES]
        return (*of_images, *(Planned(f"{folder}/{_slug(s.name)}", s, data) for folder, data, s in results))
    of_images, of_features = [], []
    for name, study in STUDIES.items():
        if study.needs == "images":
            of_images.append(Planned(name, study, OMNIGLOT_IMAGES if name in NEW_CLASSES else CIFAR10))
        else:
            of_features += [Planned(f"{name}-{data.name}", study, data) for data in FROZEN]
    return (*of_images, *of_features)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.replace(",0", "0"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        arguments: Without the program's name; None: those of the process.

    Returns:
        Exit code, see `exit_code`.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["results", "papers"], help="which studies")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the data folder")
    parser.add_argument("--out", type=Path, help="folder of the studies (default: results or studies)")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), help="report of the results")
    parser.add_argument("--features", type=Path, default=Path("results/features"), help="feature stores")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="run these, as in 'adapters/hwu64*'; repeatable"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), choices=range(1, 65), help="processes")
    parser.add_argument("--report", action="store_true", help="write the report, measure nothing")
    given = parser.parse_args(arguments)
    studies = planned(given.part)
    for name in given.only or ():
        if not any(fnmatch(one.folder, name) for one in studies):
            names = ", ".join(one.folder for one in studies)
            parser.error(f"argument --only: there is no study {name!r}; choose from {names}")
    return exit_code(lambda: _run_all(studies, given))


def _run_all(studies: Sequence[Planned], given: argparse.Namespace) -> None:
    out = given.out or Path("results" if given.part == "results" else "studies")
    wanted = [one for one in studies if any(fnmatch(one.folder, name) for name in given.only or "*")]

    @cache
    def opened(data: Images | FrozenDataSet) -> StudyImages | StudyFeatures:
        try:
            if isinstance(data, Images):
                return data.open(given.data)
            return data.open(given.data, given.features, say)
        except MissingPathError as error:
            raise MissingPathError(f"{error} (--data DIR, --only NAME)") from error

    for one in () if given.report else wanted:
        say(f"{one.folder}:")
        run_study(
            one.study,
            opened(one.data),
            out / one.folder,
            jobs=given.jobs,
            progress=_print_progress,
            notify=say,
        )
    if given.part == "results":
        write_results([out / one.folder for one in studies], given.page)
    else:
        write_studies(out)


def _print_progress(done: int, count: int, cell: Cell, fields: dict[str, Any]) -> None:
    """A line with the scores of a cell."""
    means = (
        f"{name} {total / queries:.4f}" for name, (total, queries) in fields["values"].items() if queries
    )
    say(f"[{done}/{count}] {cell.method}, seed {cell.seed}: {', '.join(means)}, {fields['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
