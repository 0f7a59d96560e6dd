"""Run every study on the project's data into `studies/`, then write its README.md.

    python scripts/studies.py [--only momentum] [--data DIR] [--report]

A cell that has a record is not measured again, so a run that was stopped continues.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from querykey.errors import MissingPathError
from querykey.io.program import exit_code, say
from querykey.reports.markdown.studies import write_studies
from querykey.runs.data import DataAt
from querykey.studies.catalogue import STUDIES
from querykey.studies.engine.features import StudyFeatures
from querykey.studies.engine.grid import tell
from querykey.studies.engine.images import StudyImages
from querykey.studies.engine.run import run_study
from querykey.studies.results_grid.adapters import BANKING, CRANFIELD, OMNIGLOT, DataSet
from querykey.studies.results_grid.measure_adapters import features_of

FROZEN = (OMNIGLOT, BANKING, CRANFIELD)
OTHER_CLASSES = ("memory-ratio", "drift")
"""Studies that need classes to ask for which are not trained on."""


class Planned(NamedTuple):
    """A study and what it is asked of.

    Args:
        folder: Its name below `studies/`.
        study: Name of the study.
        data: Data set: a folder of images, or one that the study of adapters embeds.
    """

    folder: str
    study: str
    data: str | DataSet


def planned() -> tuple[Planned, ...]:
    """All studies, those of images in the catalogue's order first, each with its data."""
    of_images = [
        Planned(name, name, "omniglot" if name in OTHER_CLASSES else "cifar10")
        for name, study in STUDIES.items() if study.needs == "images"
    ]  # fmt: skip
    of_features = [
        Planned(f"{name}-{data.name}", name, data)
        for name, study in STUDIES.items() if study.needs == "features" for data in FROZEN
    ]  # fmt: skip
    return (*of_images, *of_features)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it as the command line says.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        Exit code, as `exit_code` says.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [one.folder for one in planned()]
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real data")
    parser.add_argument("--out", type=Path, default=Path("studies"), help="where the studies go")
    parser.add_argument("--features", type=Path, default=Path("results/features"), help="of frozen models")
    parser.add_argument("--only", action="append", choices=names, help="this one alone; can be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), choices=range(1, 65), help="processes")
    parser.add_argument(
        "--report", action="store_true", help="write README.md and its figures, measure nothing"
    )
    given = parser.parse_args(arguments)
    wanted = [one for one in planned() if given.only is None or one.folder in given.only]
    return exit_code(lambda: _run_all(wanted, given))


def _run_all(wanted: Sequence[Planned], given: argparse.Namespace) -> None:
    for one in () if given.report else wanted:
        _run(one, given)
    write_studies(given.out)


def _run(one: Planned, given: argparse.Namespace) -> None:
    say(f"{one.folder}:")
    data = _data(one.data, given)
    run_study(STUDIES[one.study], data, given.out / one.folder, jobs=given.jobs, progress=tell, notify=say)


def _data(data: str | DataSet, given: argparse.Namespace) -> StudyImages | StudyFeatures:
    if isinstance(data, str):
        if not (given.data / data).exists():
            raise MissingPathError(
                f"{given.data / data} is not there: give the folder of the data with --data DIR, or leave "
                "its studies out with --only"
            )
        return StudyImages.of_splits(str(given.data / data), "train", "test")
    stores = {part: DataAt(at) for part, at in features_of(data, given.data, given.features, say).items()}
    if data.parts["train"] == data.parts["test"]:  # documents that their own queries search
        return StudyFeatures(train=stores["train"])
    return StudyFeatures(train=stores["train"], test=stores["test"])


if __name__ == "__main__":
    sys.exit(main())
