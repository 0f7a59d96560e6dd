"""An adapter's run -> its section, from its records and what stored embeddings show."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.adapter.verdict import sentence
from querykey.errors import StoreError
from querykey.io.atomic import raises_store_error
from querykey.io.records import Record, read
from querykey.reports.charts.spec import Chart, Line, Lines
from querykey.reports.page.blocks import (
    Block,
    Charts,
    Code,
    Gallery,
    Heading,
    Prose,
    Section,
    VerdictBlock,
    candidates_chart,
    made_with,
    number,
    settings_table,
)
from querykey.reports.page.evaluation import evaluation_blocks, evaluations, judged
from querykey.reports.page.gallery import entry_of, gallery_blocks, place_pictures
from querykey.reports.page.neighbours import (
    compared_blocks,
    gathered_answer,
    map_blocks,
)
from querykey.reports.page.reproduce import adapt_command

if TYPE_CHECKING:
    from querykey.runs.report_data import Gathered

__all__ = [
    "ADAPTER",
    "METRICS",
    "RUN",
    "adapter_section",
    "curves",
    "read_described",
    "served_blocks",
]


def served_blocks(seen: "Gathered", sheet: str, resolved: Mapping[str, Any], task: str) -> list[Block]:
    """What the memory served as top-k, and how many of it may be false negatives.

    Args:
        seen: What features show.
        sheet: Name of the sheet of pictures of what was served.
        resolved: The settings of the fit.
        task: "labels", "pairs" or "unlabelled".

    Returns:
        Blocks; none where the training features are not there.
    """
    served, features = seen.served, seen.fitted_on
    if served is None or features is None:
        return []
    blocks: list[Block] = [Heading("What the memory served"), Prose(_selection(resolved, served.rows))]
    if served.suspects is not None:
        blocks.append(Prose(_suspects(served.suspects, served.by_chance, served.k, served.asked, task)))
    elif task == "unlabelled":
        blocks.append(
            Prose("The features have no labels, so nothing tells which of them are false negatives.")
        )
    are_items = task != "pairs"
    words = (
        ("other class", "own class") if are_items else ("below the own document", "above the own document")
    )
    shown = [entry_of(features, one, ["served"], words, are_items=are_items) for one in served.shown]
    if task == "labels":  # there the own class is what is looked for
        for answer in (answer for one in shown for side in one["sides"] for answer in side["answers"]):
            answer["is_right"] = not answer["is_right"]
    place_pictures(shown, served.shown, seen.served_sheet, are_items=are_items)
    blocks.append(Gallery(shown, sheet if seen.served_sheet is not None else ""))
    return blocks


def _selection(resolved: Mapping[str, Any], rows: int) -> str:
    if resolved.get("memory") == "in_batch":
        return (
            "The run had no memory: a batch met itself alone. This is what a memory of all rows would have "
            "served."
        )
    capacity = int(resolved["capacity"])
    held = f"all {rows:,} rows" if capacity >= rows else f"the newest {capacity:,} of {rows:,} rows"
    names = {
        "sampled": "drawn at random for all queries", "negatives": "hardest negatives a query",
        "positives": "farthest positives a query",
    }  # fmt: skip
    parts = [f"{resolved[name]:,} {words}" for name, words in names.items() if resolved.get(name)]
    if resolved.get("loss") == "score_difference":
        parts = [f"{resolved['neighbours']:,} most similar a query"]
    taken = ", ".join(parts) if parts else "all of them"
    return (
        f"The memory had room for {held} (rows held out are not in it); of these a step took: {taken}. "
        "Below are the rows that score highest with the frozen features, of a memory that holds all rows."
    )


def _suspects(share: float, chance: float | None, k: int, asked: int, task: str) -> str:
    of = f"of the {k} rows that scored highest for {asked:,} queries"
    match task:
        case "pairs":
            return (
                f"False negatives: {share:.0%} {of}, and are not the query's own, score above its own "
                "document: among these are the likely false negatives."
            )
        case "labels":
            return (
                f"{share:.0%} {of} are of the query's own class ({chance or 0:.1%} by chance). They count as "
                "positives, so none of them is a false negative."
            )
        case _:
            return (
                f"{share:.0%} {of} are of the query's own class ({chance or 0:.1%} by chance): false "
                "negatives, where a loss pushes away what is near. A loss that keeps the frozen scores does "
                "not."
            )


ADAPTER, RUN, METRICS = "adapter.json", "run.json", "metrics.jsonl"
Gather = Callable[[], "Gathered"]

FALSE = "False negatives among the negatives"
CURVES = (
    ("Loss", "loss, nats where it is a likelihood", {"loss": "loss"}),
    ("Scores of pairs", "mean cosine", {"positive_score": "positives", "negative_score": "negatives"}),
    ("Memory", "share of the capacity", {"fill": "filled"}),
    ("Age of the stored rows", "enqueues ago", {"age_mean": "mean", "age_max": "oldest"}),
    ("Effective rank", "directions in use", {"effective_rank": "adapted rows"}),
    (FALSE, "share", {"false_negatives_label": "own class"}),
    ("Gradient", "norm", {"gradient_norm": "gradient"}),
)

RENAMED = {"memory_fill": "fill", "false_negatives": "false_negatives_label"}
"""Metrics of version 0.1, and their names now."""

CHANCE = "chance"
"""A field that others are compared with."""
FROM_ZERO = (
    "Memory", "Dictionary", "Age of the stored rows", "Age of the keys", "Gradient", FALSE,
)  # fmt: skip


def adapter_section(folder: Path, gather: Gather, *, name: str) -> Section:
    """The section of an adapter.

    Args:
        folder: Of the run.
        gather: Gives what features show of it.
        name: Of the section.

    Returns:
        The section.

    Raises:
        StoreError: If a file of the run is damaged.
    """
    described = read_described(folder / RUN)
    records = read(folder / METRICS) if (folder / METRICS).is_file() else []
    seen, found = gather(), evaluations(folder)
    with raises_store_error(str(folder), "fit the run again"):
        return _section(folder, name, described, records, found, seen)


def read_described(file: Path) -> dict[str, Any]:
    """What a run's run.json says.

    Args:
        file: The file; a folder that `Adapter.save` wrote has none.

    Returns:
        Empty where it is not there.

    Raises:
        StoreError: If it is damaged.
    """
    if not file.is_file():
        return {}
    with raises_store_error(str(file), "make the run again"):
        said = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise StoreError(f"{file} is damaged: it holds no table; make the run again")
        return said


def curves(
    steps: Sequence[Record], wanted: Sequence[tuple[str, str, dict[str, str]]], *, without: Sequence[str] = ()
) -> list[Chart]:
    """Curves over the steps of a run.

    Args:
        steps: Records, each with its "step".
        wanted: Title, title of the y axis, and the fields with what each is called.
        without: Fields that are left out before the first step, when they are not measured yet.

    Returns:
        A chart for each that some record has.
    """
    charts: list[Chart] = []
    for title, y, names in wanted:
        lines = []
        for name, words in names.items():
            there = [
                (float(record["step"]), float(record[name])) for record in steps
                if isinstance(record.get(name), int | float) and not (name in without and record["step"] == 0)
            ]  # fmt: skip
            if there:
                xs, ys = [x for x, _ in there], [v for _, v in there]
                lines.append(Line(words, xs, ys, is_reference=name == CHANCE))
        if lines:
            # one line of several has no legend
            unit = f"{y}, {lines[0].name}" if len(lines) < len(names) else y
            from_zero = title in FROM_ZERO
            charts.append(Lines(title=title, x="steps taken", y=unit, lines=lines, from_zero=from_zero))
    return charts


def _section(
    folder: Path, sheet: str, described: Mapping[str, Any], records: Sequence[Record],
    found: Mapping[str, dict[str, Any]], seen: "Gathered",
) -> Section:  # fmt: skip
    steps = [_renamed(record) for record in records if record["kind"] == "step"]
    report, resolved = described.get("report") or {}, described.get("resolved") or {}
    answers = [answer for one in found.values() for answer in judged(one)]
    own = None if answers else gathered_answer(seen)
    answers += [own] if own is not None else []
    blocks: list[Block] = [Heading("Verdicts"), *answers, *_rule(answers), Prose(_verdict(report))]
    for name, one in found.items():
        blocks += evaluation_blocks(name, one)
    if not found:
        blocks += [
            Heading("Beside every baseline"),
            Prose("Not measured yet. This measures it, and the next report shows it:"),
            Code(f"querykey evaluate {folder} --on DATA --out {folder / 'evaluation.json'}"),
        ]
    blocks += compared_blocks(seen)
    blocks += [*map_blocks(seen, sheet), *gallery_blocks(seen, sheet)]
    blocks += served_blocks(seen, f"{sheet}-served", resolved, _task(described.get("settings") or {}))
    blocks += _health(steps, report, resolved)
    blocks += _repeat(described)
    fitted = described.get("features") or {}
    about = f"An adapter of {fitted.get('width', '?')} to {resolved.get('dim', '?')} dimensions"
    model = (fitted.get("model") or {}).get("spec")
    pictured = {sheet: seen.sheet, f"{sheet}-served": seen.served_sheet}
    sheets = {name: one._asdict() for name, one in pictured.items() if one is not None}
    return Section(
        sheet, folder.name, f"{about}, on {model}" if model else about,
        [] if answers else [_verdict(report)], blocks, sheets, answers,
    )  # fmt: skip


def _rule(answers: Sequence[VerdictBlock]) -> list[Block]:
    if not answers:
        return []
    return [Prose(
        "Yes where the 95% interval of the paired difference over queries lies above 0, no where it lies "
        "below, can't tell otherwise.", is_quiet=True,
    )]  # fmt: skip


def _task(settings: Mapping[str, Any]) -> str:
    if settings.get("pairs"):
        return "pairs"
    return "unlabelled" if settings.get("labels") is None else "labels"


def _verdict(report: Mapping[str, Any]) -> str:
    """What the fit says of itself; runs of version 0.1 told two scores and whether training helped."""
    if "verdict" in report:
        return f"{sentence(report)}."
    if "guard" not in report:
        return "The folder holds no report of its training."
    start, best = number(report["start"]), number(report["best"])
    helped = f"it helped at step {report['best_step']:,}" if report.get("helped") else "it did not help"
    return f"Of rows held out of training, {report['guard']} went from {start} to {best}: {helped}."


def _renamed(record: Record) -> Record:
    return {RENAMED.get(name, name): value for name, value in record.items()}


def _health(steps: Sequence[Record], report: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[Block]:
    if not steps:
        return []
    measure, key = str(report.get("measure", report.get("guard", ""))), "validation"
    if any("guard" in step for step in steps):  # written by version 0.1
        key = "guard"
    wanted = [("Validation", measure, {key: "rows held out"}), *CURVES[:1]]
    stays = not any(step.get("age_max") for step in steps)
    health = [one for one in CURVES[1:] if not (stays and set(one[2]) & {"fill", "age_max"})]
    drawn = curves(steps, wanted) + _candidates(steps) + curves(steps, health)
    stopped = report.get("stopped")
    text = (
        "Judge by the validation score, not by the loss: more candidates make a higher loss of an equal "
        "layer."
    )
    if stopped:
        text += f" Training took {report['steps_taken']:,} steps and stopped: {stopped}."
    return [Heading("Health of the run"), Prose(text), Prose(_memory(resolved, stays=stays)), Charts(drawn)]


def _memory(resolved: Mapping[str, Any], *, stays: bool) -> str:
    """Whether what is stored grows old, and whether it drifts."""
    if resolved.get("memory") == "in_batch":
        return "There was no memory, so nothing was stored that could grow old or drift."
    aged = "The memory held all rows from the first step, so none grew old." if stays else ""
    if resolved.get("holds") == "projections":
        return f"{aged} It held projections, which drift as the layer learns.".strip()
    return f"{aged} It held frozen features, which do not drift.".strip()


def _candidates(steps: Sequence[Record]) -> list[Chart]:
    """How many rows a query met, beside the loss."""
    there = [step for step in steps if step.get("candidates")]
    x, y = ([float(step[name]) for step in there] for name in ("step", "candidates"))
    return [candidates_chart(Line("candidates", x, y))] if there else []


def _repeat(described: Mapping[str, Any]) -> list[Block]:
    if not described:
        return []
    return [
        Heading("How to repeat it"),
        Code(adapt_command(described)),
        Prose(
            f"Features: {described['features']['rows']:,} rows, fingerprint {described['features']['key']}.",
            is_quiet=True,
        ),
        Prose(f"Made with {made_with(described)}.", is_quiet=True),
        settings_table("The run as it was resolved", described["resolved"]),
    ]
