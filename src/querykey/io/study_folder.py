"""The folder of a study: its plan in `study.json`, its results in `records.jsonl`."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from querykey.errors import MissingPathError, StoreError
from querykey.io.atomic import new_folder, raises_store_error
from querykey.io.records import Record, Records

__all__ = [
    "Cells",
    "StoredStudy",
    "cells_of",
    "is_study",
    "measures_of",
    "open_study",
    "raises_study_error",
    "read_study",
    "records_of",
    "shown_measures",
    "write_study",
]

DESCRIPTION, RECORDS = "study.json", "records.jsonl"
FORMAT, VERSION = "querykey study", 1

Cells = Mapping[str, Mapping[int, Record]]
"""Name of an arm to seed to the record of its cell."""


class StoredStudy(NamedTuple):
    """A study with the results so far.

    Args:
        name: Name of its folder.
        described: Content of study.json.
        cells: The measured cells.
    """

    name: str
    described: dict[str, Any]
    cells: Cells


def is_study(folder: Path) -> bool:
    """Whether a folder is a study.

    Args:
        folder: Any path.

    Returns:
        True if there is a study.json.
    """
    return (folder / DESCRIPTION).is_file()


def write_study(folder: Path, described: Mapping[str, Any]) -> None:
    """Write the plan of a new study.

    Args:
        folder: The folder, which must not exist.
        described: The plan, as JSON.

    Raises:
        OutputExistsError: If the folder exists.
        OutputError: If it cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, **described}
    with new_folder(folder) as tmp_path:
        (tmp_path / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_study(folder: Path) -> dict[str, Any]:
    """Read the plan.

    Args:
        folder: Of a study.

    Returns:
        Content of study.json.

    Raises:
        MissingPathError: If there is no study.
        StoreError: If it is damaged, or of another version.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise MissingPathError(f"{folder}: no study here; make one with querykey study")
    with raises_store_error(str(file), "run the study again, in a new folder"):
        study = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(study, dict) or study.get("format") != FORMAT:
        raise StoreError(f"{file}: this is not a study; give the folder of a study, or a new one")
    if study.get("version") != VERSION:
        raise StoreError(f"{file}: written as version {study.get('version')}; this querykey reads {VERSION}")
    return study


def shown_measures(study: Mapping[str, Any]) -> list[str]:
    """The measures that the figures of a study show, except curves, which show metrics during training.

    Args:
        study: Content of study.json.

    Returns:
        Measures, each once.
    """
    figures = (figure for figure in study.get("figures", []) if figure["kind"] != "curves")
    return list(dict.fromkeys(name for figure in figures for name in figure["measures"]))


def measures_of(study: Mapping[str, Any]) -> list[str]:
    """The measures that the figures and the questions of a study need.

    Args:
        study: Content of study.json.

    Returns:
        Measures, each once.

    Example:
        >>> figure = {"kind": "lines", "measures": ["kNN h"]}
        >>> asked = {"ours": ("a", "linear h"), "theirs": ("b", "kNN h")}
        >>> measures_of({"figures": [figure], "asked": [asked]})
        ['kNN h', 'linear h']
    """
    compared = (measure for one in study.get("asked", []) for _, measure in (one["ours"], one["theirs"]))
    return list(dict.fromkeys((*shown_measures(study), *compared)))


def records_of(folder: Path) -> Records:
    """The records of a study.

    Args:
        folder: Of a study.
    """
    return Records(folder / RECORDS)


def open_study(folder: Path) -> StoredStudy:
    """Read a study with its results.

    Args:
        folder: Of a study.

    Returns:
        The study with the results so far.

    Raises:
        MissingPathError: If there is no study.
        StoreError: If one of its files is damaged.
    """
    described, records = read_study(folder), records_of(folder).read()
    with raises_study_error(folder):
        return StoredStudy(folder.name, described, cells_of(described, records))


def raises_study_error(folder: Path) -> AbstractContextManager[None]:
    """Turn errors of reading a record into one error about a damaged study.

    Args:
        folder: Of the study.
    """
    return raises_store_error(str(folder), "run the study again, or give back its files as they were written")


def cells_of(study: Mapping[str, Any], records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """The last record of each arm and seed; arms and seeds that are not in the plan are left out.

    Args:
        study: Content of study.json.
        records: Of its folder.

    Returns:
        Arms in the study's order, seeds ascending; arms without a measured cell are left out.
    """
    cells: dict[str, dict[int, Record]] = {str(arm["name"]): {} for arm in study["arms"]}
    seeds = {str(arm["name"]): arm.get("seeds", math.inf) for arm in study["arms"]}
    for record in records:
        if record["kind"] == "cell" and record["seed"] < seeds.get(record["method"], 0):
            cells[record["method"]][int(record["seed"])] = _as_now(record)
    return {name: dict(sorted(found.items())) for name, found in cells.items() if found}


def _as_now(record: Record) -> Record:
    """A record of docs/results.md by version 0.1: its values were per query, and "fit" held the run."""
    if "fit" not in record:
        return record
    counted = {name: [v for v in column if v is not None] for name, column in record["values"].items()}
    values = {name: [sum(column), len(column)] for name, column in counted.items()}
    return record | {"queries": record["values"], "values": values, "run": {"end": record["fit"]}}
