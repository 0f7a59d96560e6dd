"""The files of a run and curves of its metrics, for the sections of adapters and of encoders."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from querykey.errors import StoreError
from querykey.io.atomic import raises_store_error
from querykey.io.records import Record, read
from querykey.reports.charts.spec import Chart, Line, Lines
from querykey.reports.page.blocks import Block, VerdictBlock
from querykey.reports.page.evaluation import evaluation_blocks, evaluations, judged

if TYPE_CHECKING:
    from querykey.runs.report_data import Gathered

__all__ = [
    "CANDIDATES",
    "FALSE_NEGATIVES",
    "RUN",
    "Gather",
    "StoredRun",
    "curves",
    "open_run",
    "read_described",
]

RUN, METRICS = "run.json", "metrics.jsonl"
Gather = Callable[[], "Gathered"]
"""Computes the results on stored embeddings."""

FALSE_NEGATIVES = "False negatives among the negatives"
CANDIDATES = ("Candidates of the loss", "candidates per query", {"candidates": "candidates"})
"""A curve that the loss depends on."""
FROM_ZERO = (
    "Memory", "Dictionary", "Age of the stored rows", "Age of the keys", "Gradient", FALSE_NEGATIVES,
    CANDIDATES[0],
)  # fmt: skip
"""Titles of the charts whose y axis begins at 0."""
CHANCE = "chance"
"""A field drawn as a reference line."""


class StoredRun(NamedTuple):
    """The files of a run.

    Args:
        folder: Of the run.
        described: Content of run.json; empty without one.
        records: Of metrics.jsonl, in order; empty without one.
        evaluations: File name to what `querykey evaluate --out` wrote.
    """

    folder: Path
    described: dict[str, Any]
    records: list[Record]
    evaluations: dict[str, dict[str, Any]]

    def of_kind(self, kind: str) -> list[Record]:
        """Records of one kind: "step", or "look" for an evaluation during training."""
        return [record for record in self.records if record["kind"] == kind]

    def verdicts(self) -> list[VerdictBlock]:
        """The verdicts of its evaluations."""
        return [answer for found in self.evaluations.values() for answer in judged(found)]

    def evaluation_blocks(self) -> list[Block]:
        """Its evaluations as charts and tables."""
        return [block for one in self.evaluations.items() for block in evaluation_blocks(*one)]


def open_run(folder: Path) -> StoredRun:
    """Read the files of a run.

    Args:
        folder: Of the run, finished or not.

    Returns:
        Their content.

    Raises:
        StoreError: If a file is damaged.
    """
    records = read(folder / METRICS) if (folder / METRICS).is_file() else []
    return StoredRun(folder, read_described(folder / RUN), records, evaluations(folder))


def read_described(file: Path) -> dict[str, Any]:
    """Read a run's run.json.

    Args:
        file: The file; a folder written by `Adapter.save` has none.

    Returns:
        Its content; empty without the file.

    Raises:
        StoreError: If it is damaged.
    """
    if not file.is_file():
        return {}
    with raises_store_error(str(file), "make the run again"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise StoreError(f"{file} is damaged: its content is not a JSON object; make the run again")
        return content


def curves(steps: Sequence[Record], wanted: Sequence[tuple[str, str, dict[str, str]]]) -> list[Chart]:
    """Curves of metrics over the steps of a run.

    Args:
        steps: Records, each with its "step".
        wanted: Title, title of the y axis, and field to name in the legend.

    Returns:
        A chart for each entry of `wanted` that some record has.
    """
    charts: list[Chart] = []
    for title, y, names in wanted:
        lines = []
        for name, label in names.items():
            measured = [record for record in steps if isinstance(record.get(name), int | float)]
            if measured:
                xs, ys = ([float(record[field]) for record in measured] for field in ("step", name))
                lines.append(Line(label, xs, ys, is_reference=name == CHANCE))
        if lines:
            # a single line has no legend, so its name goes into the axis title
            unit = f"{y}, {lines[0].name}" if len(lines) < len(names) else y
            from_zero = title in FROM_ZERO
            charts.append(Lines(title=title, x="training step", y=unit, lines=lines, from_zero=from_zero))
    return charts
