"""A grid whose cells never end, each holding a lock while its process is alive."""

import fcntl
import sys
import time
from pathlib import Path

from querykey.io.records import Records
from querykey.studies.engine.grid import Cell, run_grid


def held(cell):
    with Path(cell.work).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path(cell.work).with_suffix(".held").touch()
        time.sleep(600)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cells = [
        Cell(task="t", method=name, seed=0, identity={"name": name}, work=str(folder / f"{name}.lock"))
        for name in ("a", "b")
    ]
    run_grid(cells, Records(folder / "records.jsonl"), held, jobs=2)
