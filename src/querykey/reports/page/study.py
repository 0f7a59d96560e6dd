"""The section of a study: questions with verdicts, figures, and the published numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querykey.io.study_folder import Cells, StoredStudy, measures_of, open_study, raises_study_error
from querykey.reports.charts.study import figures, training_charts
from querykey.reports.page.blocks import (
    Block,
    Charts,
    CodeBlock,
    Heading,
    Prose,
    Section,
    TableBlock,
    VerdictBlock,
    made_with,
    number,
    settings_table,
)
from querykey.reports.page.reproduce import study_command
from querykey.reports.verdicts import answers, scores

__all__ = ["study_section"]

TRIAL = "A trial run: a few steps on a few rows, to test that everything works. Its numbers mean nothing."
NAMED = 8
"""Arms that are named, if many are missing."""
RULES = {
    "above": "yes where the 95% interval of the paired difference lies above 0",
    "at or above": "yes where the mean of the paired difference is at least 0",
    "not below": "yes where the 95% interval of the paired difference does not lie below 0",
}


def study_section(folder: Path) -> Section:
    """A study as far as it is measured.

    Args:
        folder: With study.json and, after the first cell, records.jsonl.

    Returns:
        The section.

    Raises:
        MissingPathError: If there is no study.json.
        StoreError: If one of the files is damaged.
    """
    study = open_study(folder)
    with raises_study_error(folder):
        return _section(study)


def _section(stored: StoredStudy) -> Section:
    study, cells = stored.described, stored.cells
    verdicts = [VerdictBlock(one.ask, one.word, one.because, one.published) for one in answers(stored)]
    drawn = figures(stored)
    blocks: list[Block] = [Prose(f"{study['source']}. Measured here: {study['measured']}.", is_quiet=True)]
    unfinished = _unfinished(study, cells)
    blocks += [Prose(text) for text in unfinished]
    if verdicts:
        blocks += [Heading("Verdicts"), *verdicts, Prose(_rules(study["asked"]), is_quiet=True)]
    blocks += [Charts([chart]) for chart in drawn]
    blocks += _numbers(study, cells, measures_of(study))
    during = training_charts(study["arms"], cells)
    if during:
        blocks += [Heading("During training"), Charts(during)]
    blocks += [Heading("Limits"), Prose(str(study["caveat"]))]
    blocks += _reproduce(stored)
    name, title, asks = (str(study[field]) for field in ("name", "title", "asks"))
    return Section(name, title, asks, unfinished[:1], blocks, answers=verdicts)


def _rules(asked: Sequence[Mapping[str, Any]]) -> str:
    """A paragraph on the rules of a study's questions."""
    used = dict.fromkeys(str(one.get("rule", "above")) for one in asked)
    rules = "; ".join(f"{RULES[rule]} ({rule})" if len(used) > 1 else RULES[rule] for rule in used)
    seeds = "" if any(one.get("min_seeds") == 1 for one in asked) else " With one seed it is can't tell."
    return (
        f"The rule was fixed before the first run: {rules}; no where the interval lies below 0, else can't "
        f"tell. The interval is over seeds, for adapters over queries.{seeds}"
    )


def _unfinished(study: Mapping[str, Any], cells: Cells) -> list[str]:
    """Sentences on what is missing: a trial run, or cells that are not measured."""
    planned = {str(arm["label"]): int(arm.get("seeds") or 1) for arm in study["arms"]}
    done = {str(arm["label"]): len(cells.get(arm["name"], {})) for arm in study["arms"]}
    lines = [TRIAL] if study.get("is_trial") else []
    missing = [f"{label} ({done[label]} of {n} seeds)" for label, n in planned.items() if done[label] < n]
    if missing:
        count = sum(min(done[label], n) for label, n in planned.items())
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        lines += [
            f"Not finished: {count} of {sum(planned.values())} cells are measured.",
            f"Still missing: {', '.join(missing[:NAMED])}{more}. The results below are of the other cells.",
        ]
    return lines


def _numbers(study: Mapping[str, Any], cells: Cells, measures: Sequence[str]) -> list[Block]:
    """Results, and the published ones next to those of arms with the same name."""
    rows = []
    for arm in study["arms"]:
        found = [scores(cells, arm["name"], measure) for measure in measures]
        if any(found):
            seeds = sorted({seed for values in found for seed in values})
            rows.append([str(arm["label"]), *map(_spread, found), str(len(seeds))])
    blocks: list[Block] = [Heading("Numbers")]
    if rows and not all(arm.get("row") for arm in study["arms"]):  # a heat map shows all of them
        caption = "Mean over seeds, lowest to highest in brackets"
        blocks.append(TableBlock(["arm", *measures, "seeds"], rows, caption))
    published = study.get("published")
    if published and published.get("rows"):
        blocks.append(_published_table(study, cells, measures))
    return blocks


def _published_table(study: Mapping[str, Any], cells: Cells, measures: Sequence[str]) -> TableBlock:
    published = study["published"]
    names = {str(arm[key]): arm["name"] for arm in study["arms"] for key in ("name", "label")}
    rows = []
    for configuration, *results in published["rows"]:
        name = names.get(str(configuration))
        here = scores(cells, name, measures[0]) if name is not None and measures else {}
        rows.append([str(configuration), ", ".join(map(str, results)), _spread(here)])
    head = ["published", str(published["what"]), f"here, {measures[0]}" if measures else "here"]
    if not any(row[2] for row in rows):
        head, rows = head[:2], [row[:2] for row in rows]
    return TableBlock(head, rows, "Published results, at another scale: compare the order")


def _spread(values: Mapping[int, float]) -> str:
    if not values:
        return ""
    mean = sum(values.values()) / len(values)
    if len(values) == 1:
        return number(mean)
    return f"{number(mean)} ({number(min(values.values()))} to {number(max(values.values()))})"


def _reproduce(stored: StoredStudy) -> list[Block]:
    study, cells = stored.described, stored.cells
    data, budget = study.get("data") or {}, study.get("budget") or {}
    blocks: list[Block] = [Heading("How to reproduce it"), CodeBlock(study_command(study, stored.name))]
    if budget.get("words"):
        blocks.append(Prose(f"Length: {budget['words']}.", is_quiet=True))
    if data.get("fingerprint"):
        blocks.append(Prose(f"Fingerprint of the data: {data['fingerprint']}", is_quiet=True))
    every = [cell for seeds in cells.values() for cell in seeds.values()]
    common = _common_settings([cell.get("settings") or {} for cell in every])
    if common:
        blocks.append(settings_table("Settings of all arms", common))
    found = sorted({made_with(cell) for cell in every if cell.get("versions")})
    blocks += [Prose(f"Measured with {words}.", is_quiet=True) for words in found]
    return blocks


def _common_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not settings:
        return {}
    equal = (name for name, value in settings[0].items() if all(one.get(name) == value for one in settings))
    return {name: settings[0][name] for name in equal if name != "seed" and settings[0][name] is not None}
