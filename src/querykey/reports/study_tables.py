"""Records of a study -> what each arm scored, and the verdict of each question."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from querykey.records import Record
from querykey.reports.seed_tables import Word, measured, verdict_of
from querykey.study_folder import cells_of

__all__ = ["Verdict", "arms_rows", "shown_measures", "verdict_rows"]


class Verdict(NamedTuple):
    """A question with its answer.

    Args:
        ask: In words.
        word: The verdict.
        because: The numbers that it is read from.
        published: What the paper found.
    """

    ask: str
    word: Word
    because: str
    published: str


def arms_rows(described: Mapping[str, Any], records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """A row an arm: what the figures of the study show of it.

    Args:
        described: What `study.json` says.
        records: Of the study.

    Returns:
        (measures, rows of label, means over seeds and number of seeds).
    """
    cells = cells_of(described, records)
    measures = shown_measures(described)
    rows = []
    for arm in described["arms"]:
        row = [arm["label"]]
        for measure in measures:
            found = measured(cells, arm["name"], measure)
            row.append(f"{sum(found.values()) / len(found):.3f}" if found else "")
        rows.append([*row, str(len(cells.get(arm["name"], {})))])
    return measures, rows


def shown_measures(described: Mapping[str, Any]) -> list[str]:
    """What the figures of a study show of each arm; curves show what was seen on the way.

    Args:
        described: What `study.json` says.

    Returns:
        Measures, each once.
    """
    figures = (figure for figure in described.get("figures", []) if figure["kind"] != "curves")
    return list(dict.fromkeys(name for figure in figures for name in figure["measures"]))


def verdict_rows(described: Mapping[str, Any], records: Sequence[Record]) -> list[Verdict]:
    """The questions of a study with their answers.

    Args:
        described: What `study.json` says.
        records: Of the study.

    Returns:
        One each, in their order.
    """
    cells = cells_of(described, records)
    return [
        Verdict(one["ask"], *verdict_of(measured(cells, *one["ours"]), measured(cells, *one["theirs"])),
                one["published"])
        for one in described["asked"]
    ]  # fmt: skip
