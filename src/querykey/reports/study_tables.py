"""Records of a study -> what each arm scored, and the verdict of each question."""

from collections.abc import Mapping, Sequence
from typing import Any

from querykey.records import Record
from querykey.reports.seed_tables import Cells, measured, verdict_of

__all__ = ["arms_rows", "cells_of_study", "verdict_rows"]


def cells_of_study(described: Mapping[str, Any], records: Sequence[Record]) -> Cells:
    """The last record of each arm and seed, of the arms that the study names.

    Args:
        described: What `study.json` says.
        records: Of the study.

    Returns:
        Arm to seed to its cell.
    """
    names = {arm["name"] for arm in described["arms"]}
    cells: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["kind"] == "cell" and record["method"] in names:
            cells.setdefault(record["method"], {})[record["seed"]] = record
    return cells


def arms_rows(described: Mapping[str, Any], records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """A row an arm: what the figures of the study show of it.

    Args:
        described: What `study.json` says.
        records: Of the study.

    Returns:
        (measures, rows of label, means over seeds and number of seeds).
    """
    cells = cells_of_study(described, records)
    measures = list(dict.fromkeys(name for figure in described["figures"] for name in figure["measures"]))
    rows = []
    for arm in described["arms"]:
        row = [arm["label"]]
        for measure in measures:
            found = measured(cells, arm["name"], measure)
            row.append(f"{sum(found.values()) / len(found):.3f}" if found else "")
        rows.append([*row, str(len(cells.get(arm["name"], {})))])
    return measures, rows


def verdict_rows(described: Mapping[str, Any], records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    """The questions of a study with their answers.

    Args:
        described: What `study.json` says.
        records: Of the study.

    Returns:
        (question, verdict, the numbers it is read from, what was published) of each.
    """
    cells = cells_of_study(described, records)
    return [
        (one["ask"], *verdict_of(measured(cells, *one["ours"]), measured(cells, *one["theirs"])),
         one["published"])
        for one in described["asked"]
    ]  # fmt: skip
