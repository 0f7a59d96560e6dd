"""`python -m querykey.studies.pretraining_cells`: measure what the study of pretraining lacks.

What is done is not done again: stop it whenever, start it again, and it goes on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from querykey.as_program import exit_code
from querykey.errors import MissingPathError
from querykey.records import Records
from querykey.studies.dictionaries import DICTIONARY_ARMS, DICTIONARY_ASKED
from querykey.studies.grid import Cell, run_grid, tell, write_plan
from querykey.studies.measuring_encoders import measure_encoder
from querykey.studies.pretraining import ARMS, ASKED
from querykey.studies.study import Arm
from querykey.studies.study_images import StudyImages
from querykey.studies.work import Work

__all__ = ["RECORDS", "cells_of", "main"]

RECORDS = "pretraining.jsonl"
EVERY = (*ARMS, *DICTIONARY_ARMS)
ELSEWHERE = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where the system's package puts a data set that is not in the data folder."""


def cells_of(arms: Sequence[Arm], folder: Path) -> list[Cell]:
    """The cells of arms, one a seed.

    Args:
        arms: Which.
        folder: Of real data.

    Returns:
        Cells in the order of the arms, seed by seed.

    Raises:
        MissingPathError: If data aren't there.
    """
    cells = []
    for arm in arms:
        name, train, test = arm.data
        place = next(
            (at for at in (folder / name, ELSEWHERE.get(name)) if at is not None and at.exists()), None
        )
        if place is None:
            raise MissingPathError(
                f"{folder / name} is not there; the study of pretraining needs it: give the folder of the "
                "data with --data DIR"
            )
        threads = arm.threads or os.cpu_count() or 1
        identity = {
            "kind": arm.kind, "data": name, "splits": [train, test], "settings": arm.settings,
            "threads": threads,
        }  # fmt: skip
        cells += [
            Cell(task=arm.group, method=arm.name, seed=seed, identity=identity,
                 work=Work(arm, StudyImages.of_splits(str(place), train, test), threads))
            for seed in range(arm.seeds)
        ]  # fmt: skip
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it as the command line says.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        Exit code, as `exit_code` says.
    """
    parser = argparse.ArgumentParser(prog="python -m querykey.studies.pretraining_cells", description=__doc__)
    groups = list(dict.fromkeys(arm.group for arm in EVERY))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real data")
    parser.add_argument("--records", type=Path, default=Path("results"), help="the folder of records")
    parser.add_argument("--only", action="append", choices=groups, help="this group alone; can be repeated")
    parser.add_argument("--arm", action="append", help="this arm alone; can be repeated")
    parser.add_argument("--jobs", type=int, default=2, choices=range(1, 65), help="processes")
    given = parser.parse_args(arguments)
    return exit_code(lambda: _measure(given))


def _measure(given: argparse.Namespace) -> None:
    records = Records(given.records / RECORDS)
    arms = [
        arm for arm in EVERY
        if (given.only is None or arm.group in given.only) and (given.arm is None or arm.name in given.arm)
    ]  # fmt: skip
    cells = cells_of(arms, given.data)
    write_plan(records, 0, "pretraining", {
        "arms": [{"name": arm.name, "label": arm.label, "group": arm.group} for arm in EVERY],
        "asked": [vars(question) for question in (*ASKED, *DICTIONARY_ASKED)],
    })  # fmt: skip
    # what takes all cores takes them alone
    alone = [cell for cell in cells if cell.work.arm.threads == 0]
    others = [cell for cell in cells if cell.work.arm.threads]
    run_grid(alone, records, measure_encoder, jobs=1, told=tell)
    run_grid(others, records, measure_encoder, jobs=given.jobs, told=tell)


if __name__ == "__main__":
    sys.exit(main())
