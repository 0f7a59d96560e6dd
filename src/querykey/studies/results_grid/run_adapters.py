"""`python -m querykey.studies.results_grid.run_adapters`: run the study of adapters and write its report.

What is done is not done again: stop it whenever, start it again, and it goes on.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querykey.io.program import exit_code, say
from querykey.io.records import Records
from querykey.studies.engine.grid import Cell, run_grid, write_plan
from querykey.studies.results_grid.adapters import TASKS, StudyTask
from querykey.studies.results_grid.measure_adapters import cells_of, features_of, measure

__all__ = ["main", "run_study"]

RECORDS, STORES = "records.jsonl", "features"


def run_study(
    tasks: Sequence[StudyTask], *, data: Path, folder: Path, seeds: int = 3, jobs: int = 1, threads: int = 1
) -> int:
    """Measure what is missing.

    Args:
        tasks: Which; their place is that in the report.
        data: The folder of real data.
        folder: Of records and feature stores.
        seeds: For what is trained.
        jobs: Processes.
        threads: Of each.

    Returns:
        How many cells were measured now.
    """
    records, wanted = Records(folder / RECORDS), list[tuple[int, Cell]]()
    stores: dict[str, dict[str, str]] = {}
    for task in tasks:
        if task.data.name not in stores:
            stores[task.data.name] = features_of(task.data, data, folder / STORES, say)
        cells = cells_of(task, stores[task.data.name], seeds=seeds, threads=threads)
        place = TASKS.index(task) if task in TASKS else len(TASKS)
        write_plan(records, place, task.name, _plan(task, cells))
        for method in task.methods:
            wanted += [(method.order, cell) for cell in cells[method.name]]
    wanted.sort(key=lambda pair: pair[0])
    return run_grid([cell for _, cell in wanted], records, measure, jobs=jobs, told=_tell)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it as the command line says.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        Exit code, as `exit_code` says.
    """
    given = _parser().parse_args(arguments)
    tasks = [task for task in TASKS if given.only is None or task.name.split()[0] in given.only]
    code = exit_code(
        lambda: run_study(
            tasks, data=given.data, folder=given.records, seeds=given.seeds, jobs=given.jobs,
            threads=given.threads,
        )
    )  # fmt: skip
    if code:
        return code
    # a process of its own: a report knows nothing of the study but its records
    command = [
        sys.executable,
        "-m",
        "querykey.reports.markdown.results",
        "--records",
        str(given.records / RECORDS),
    ]
    return subprocess.run([*command, "--out", str(given.out)], check=False).returncode  # noqa: S603


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m querykey.studies.results_grid.run_adapters", description=__doc__
    )
    names = list(dict.fromkeys(task.name.split()[0] for task in TASKS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of real data")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="the report")
    parser.add_argument(
        "--records", type=Path, default=Path("results"), help="folder of records and features"
    )
    parser.add_argument("--only", action="append", choices=names, help="this data set alone; can be repeated")
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 6), help="at most")
    parser.add_argument("--jobs", type=int, default=2, choices=range(1, 65), help="processes")
    parser.add_argument(
        "--threads", type=int, default=1, choices=range(1, 65), help="threads of each process"
    )
    return parser


def _plan(task: StudyTask, cells: dict[str, list[Cell]]) -> dict[str, Any]:
    return {
        "title": task.title,
        "data": task.data.name,
        "model": task.data.model,
        "dim": task.dim,
        "metrics": task.metrics,
        "references": task.references,
        "knn": dict(zip(("k", "temperature"), task.knn, strict=True)),
        "methods": [
            {"name": method.name, "label": method.label, "kind": method.kind,
             "keys": [cell.key for cell in cells[method.name]]}
            for method in task.methods
        ],
        "questions": [vars(question) for question in task.questions],
    }  # fmt: skip


def _tell(done: int, count: int, cell: Cell, fields: dict[str, Any]) -> None:
    means = (
        f"{name} {sum(v for v in values if v is not None) / max(1, sum(v is not None for v in values)):.4f}"
        for name, values in fields["values"].items()
    )
    seconds = f", {fields['seconds']:.0f} s" if "seconds" in fields else ""
    say(f"[{done}/{count}] {cell.task}: {cell.method}, seed {cell.seed}: {', '.join(means)}{seconds}")


if __name__ == "__main__":
    sys.exit(main())
