"""The folder of a study: what is planned in `study.json`, what is measured in `records.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querykey.errors import MissingPathError, StoreError
from querykey.io.atomic import new_folder, raises_store_error
from querykey.io.records import Record, Records

__all__ = [
    "cells_of", "is_study", "measures_of", "read_study", "records_of", "shown_measures", "write_study",
]  # fmt: skip

DESCRIPTION, RECORDS = "study.json", "records.jsonl"
FORMAT, VERSION = "querykey study", 1


def is_study(folder: Path) -> bool:
    """Whether a study left this folder.

    Args:
        folder: Any path.

    Returns:
        True if there is a study.json.
    """
    return (folder / DESCRIPTION).is_file()


def write_study(folder: Path, described: Mapping[str, Any]) -> None:
    """Begin a study.

    Args:
        folder: Must not be there yet.
        described: What is planned, as JSON.

    Raises:
        OutputExistsError: If something is there.
        OutputError: If it cannot be written.
    """
    said = {"format": FORMAT, "version": VERSION, **described}
    with new_folder(folder) as tmp_path:
        (tmp_path / DESCRIPTION).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def read_study(folder: Path) -> dict[str, Any]:
    """What is planned.

    Args:
        folder: Of a study.

    Returns:
        What study.json says.

    Raises:
        MissingPathError: If there is no study.
        StoreError: If it is damaged, or of another version.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise MissingPathError(f"{folder}: no study here; make one with querykey study NAME --out {folder}")
    with raises_store_error(str(file), "run the study again, in a new folder"):
        study = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(study, dict) or study.get("format") != FORMAT:
        raise StoreError(f"{file}: this is not what a study wrote; give the folder of a study, or a new one")
    if study.get("version") != VERSION:
        raise StoreError(f"{file}: written as version {study.get('version')}; this querykey reads {VERSION}")
    return study


def shown_measures(study: Mapping[str, Any]) -> list[str]:
    """What the figures of a study show of each arm; curves show what was seen on the way.

    Args:
        study: What study.json says.

    Returns:
        Measures, each once.
    """
    figures = (figure for figure in study.get("figures", []) if figure["kind"] != "curves")
    return list(dict.fromkeys(name for figure in figures for name in figure["measures"]))


def measures_of(study: Mapping[str, Any]) -> list[str]:
    """What the figures of a study show and its questions are about: no cell need measure more.

    Args:
        study: What study.json says.

    Returns:
        Measures, each once.

    Example:
        >>> figure = {"kind": "lines", "measures": ["kNN h"]}
        >>> asked = {"ours": ("a", "linear h"), "theirs": ("b", "kNN h")}
        >>> measures_of({"figures": [figure], "asked": [asked]})
        ['kNN h', 'linear h']
    """
    asked = (measure for one in study.get("asked", []) for _, measure in (one["ours"], one["theirs"]))
    return list(dict.fromkeys((*shown_measures(study), *asked)))


def records_of(folder: Path) -> Records:
    """What is measured, to be read and to be added to.

    Args:
        folder: Of a study.
    """
    return Records(folder / RECORDS)


def cells_of(study: Mapping[str, Any], records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """The last record of each arm and seed; arms that the study does not name are left out.

    Args:
        study: What study.json says.
        records: Of its folder.

    Returns:
        Arms in the study's order, seeds ascending; none that nothing is measured of.
    """
    cells: dict[str, dict[int, Record]] = {str(arm["name"]): {} for arm in study["arms"]}
    for record in records:
        if record["kind"] == "cell" and record["method"] in cells:
            cells[record["method"]][int(record["seed"])] = record
    return {name: dict(sorted(seeds.items())) for name, seeds in cells.items() if seeds}
