"""Run the grid of results, then write docs/results.md.

    python scripts/results.py [pretraining | adapters | report] [--only banking77] [--data DIR]

Without the first argument all three are done. A cell that has a record is not measured again, so a run that
was stopped continues.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from querykey.io.program import exit_code
from querykey.reports.markdown.results import write_results
from querykey.studies.results_grid.adapters import TASKS
from querykey.studies.results_grid.measure_adapters import RECORDS, measure_tasks
from querykey.studies.results_grid.pretraining import EVERY, measure_arms


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it as the command line says.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        Exit code, as `exit_code` says.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = dict.fromkeys([*(arm.group for arm in EVERY), *(task.name.split()[0] for task in TASKS)])
    processes = range(1, 65)
    parser.add_argument(
        "part", nargs="?", choices=["pretraining", "adapters", "report"], help="this part alone"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real data")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="the report")
    parser.add_argument(
        "--records", type=Path, default=Path("results"), help="folder of records and features"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(names),
        help="this data set or group of arms alone; repeatable",
    )
    parser.add_argument("--arm", action="append", help="this arm of pretraining alone; repeatable")
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6), help="of adapters, at most")
    parser.add_argument("--jobs", type=int, default=2, choices=processes, help="processes")
    parser.add_argument(
        "--threads", type=int, default=1, choices=processes, help="of each process (adapters)"
    )
    given = parser.parse_args(arguments)
    return exit_code(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    if given.part in (None, "pretraining"):
        arms = [
            arm for arm in EVERY
            if (given.only is None or arm.group in given.only)
            and (given.arm is None or arm.name in given.arm)
        ]  # fmt: skip
        measure_arms(arms, data=given.data, folder=given.records, jobs=given.jobs)
    if given.part in (None, "adapters"):
        tasks = [task for task in TASKS if given.only is None or task.name.split()[0] in given.only]
        measure_tasks(
            tasks, data=given.data, folder=given.records, seeds=given.seeds, jobs=given.jobs,
            threads=given.threads,
        )  # fmt: skip
    if given.part != "pretraining":
        write_results(given.records / RECORDS, given.out)


if __name__ == "__main__":
    sys.exit(main())
