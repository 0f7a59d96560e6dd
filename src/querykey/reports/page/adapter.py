"""The section of an adapter run, from its records and from stored embeddings."""

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
    CodeBlock,
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


def served_blocks(gathered: "Gathered", sprite: str, resolved: Mapping[str, Any], task: str) -> list[Block]:
    """Rows that the memory returns as top-k, and the share of them that may be false negatives.

    Args:
        gathered: Results on the features.
        sprite: Name of the sprite of the rows served.
        resolved: Settings of the fit.
        task: "labels", "pairs" or "unlabelled".

    Returns:
        Blocks; none without the training features.
    """
    served, features = gathered.served, gathered.fitted_on
    if served is None or features is None:
        return []
    blocks: list[Block] = [Heading("Top-k rows of the memory"), Prose(_selection(resolved, served.rows))]
    if served.suspects is not None:
        blocks.append(Prose(_suspects(served.suspects, served.by_chance, served.k, served.asked, task)))
    elif task == "unlabelled":
        blocks.append(Prose("The features have no labels, so false negatives cannot be counted."))
    are_items = task != "pairs"
    words = ("other class", "same class") if are_items else ("below the positive", "above the positive")
    shown = [entry_of(features, one, ["served"], words, are_items=are_items) for one in served.shown]
    if task == "labels":  # the same class is a positive
        for answer in (answer for one in shown for side in one["sides"] for answer in side["answers"]):
            answer["is_right"] = not answer["is_right"]
    place_pictures(shown, served.shown, gathered.served_sprite, are_items=are_items)
    blocks.append(Gallery(shown, sprite if gathered.served_sprite is not None else ""))
    return blocks


def _parameters(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings, of this version or of 0.1, as parameters of `Adapter`."""
    from querykey.adapter.settings import AdapterSettings

    return AdapterSettings.from_dict(resolved).as_parameters() if resolved else {}


def _selection(resolved: Mapping[str, Any], rows: int) -> str:
    if resolved.get("memory") == "in_batch":
        return (
            "The run had no memory: candidates were the rows of the batch. Below are the rows that a memory "
            "of all rows would return."
        )
    capacity = int(resolved["capacity"])
    stored = f"all {rows:,} rows" if capacity >= rows else f"the newest {capacity:,} of {rows:,} rows"
    names = {
        "sampled": "drawn at random for all queries", "negatives": "hardest negatives per query",
        "positives": "farthest positives per query",
    }  # fmt: skip
    parts = [f"{resolved[name]:,} {words}" for name, words in names.items() if resolved.get(name)]
    if resolved.get("loss") == "score_difference":
        parts = [f"{resolved['neighbours']:,} most similar rows per query"]
    selected = ", ".join(parts) if parts else "all of them"
    return (
        f"The memory stores {stored} (without the validation rows); a step selects from it: {selected}. "
        "Below are the rows with the highest frozen scores in a memory of all rows."
    )


def _suspects(share: float, chance: float | None, k: int, queries: int, task: str) -> str:
    of = f"of the {k} rows with the highest scores for {queries:,} queries"
    match task:
        case "pairs":
            return (
                f"False negatives: {share:.0%} {of} are not positives of the query but score above its "
                "positive; these are the likely false negatives."
            )
        case "labels":
            return (
                f"{share:.0%} {of} are of the query's class ({chance or 0:.1%} by chance). They count as "
                "positives, so none of them is a false negative."
            )
        case _:
            return (
                f"{share:.0%} {of} are of the query's class ({chance or 0:.1%} by chance): false negatives "
                "of a contrastive loss. A loss that preserves the frozen scores has no negatives."
            )


ADAPTER, RUN, METRICS = "adapter.json", "run.json", "metrics.jsonl"
Gather = Callable[[], "Gathered"]

FALSE = "False negatives among the negatives"
CURVES = (
    ("Loss", "loss, in nats for a log-likelihood", {"loss": "loss"}),
    ("Scores of pairs", "mean cosine", {"positive_score": "positives", "negative_score": "negatives"}),
    ("Memory", "share of the capacity", {"fill": "fill"}),
    ("Age of the stored rows", "enqueues", {"age_mean": "mean", "age_max": "oldest"}),
    ("Effective rank", "dimensions", {"effective_rank": "adapted rows"}),
    (FALSE, "share", {"false_negatives_label": "same class"}),
    ("Gradient", "norm", {"gradient_norm": "gradient"}),
)

RENAMED = {"memory_fill": "fill", "false_negatives": "false_negatives_label"}
"""Metrics of version 0.1, and their names now."""

CHANCE = "chance"
"""A field drawn as a reference line."""
FROM_ZERO = (
    "Memory", "Dictionary", "Age of the stored rows", "Age of the keys", "Gradient", FALSE,
)  # fmt: skip


def adapter_section(folder: Path, gather: Gather, *, name: str) -> Section:
    """The section of an adapter.

    Args:
        folder: Of the run.
        gather: Computes the results on features.
        name: Of the section.

    Returns:
        The section.

    Raises:
        StoreError: If a file of the run is damaged.
    """
    described = read_described(folder / RUN)
    records = read(folder / METRICS) if (folder / METRICS).is_file() else []
    gathered, found = gather(), evaluations(folder)
    with raises_store_error(str(folder), "fit the run again"):
        return _section(folder, name, described, records, found, gathered)


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
            raise StoreError(f"{file} is damaged: it holds no table; make the run again")
        return content


def curves(
    steps: Sequence[Record], wanted: Sequence[tuple[str, str, dict[str, str]]], *, without: Sequence[str] = ()
) -> list[Chart]:
    """Curves of metrics over the steps of a run.

    Args:
        steps: Records, each with its "step".
        wanted: Title, title of the y axis, and field to name in the legend.
        without: Fields left out at step 0, before they are measured.

    Returns:
        A chart for each entry of `wanted` that some record has.
    """
    charts: list[Chart] = []
    for title, y, names in wanted:
        lines = []
        for name, label in names.items():
            points = [
                (float(record["step"]), float(record[name])) for record in steps
                if isinstance(record.get(name), int | float) and not (name in without and record["step"] == 0)
            ]  # fmt: skip
            if points:
                xs, ys = [x for x, _ in points], [v for _, v in points]
                lines.append(Line(label, xs, ys, is_reference=name == CHANCE))
        if lines:
            # a single line has no legend, so its name goes into the axis title
            unit = f"{y}, {lines[0].name}" if len(lines) < len(names) else y
            from_zero = title in FROM_ZERO
            charts.append(Lines(title=title, x="training step", y=unit, lines=lines, from_zero=from_zero))
    return charts


def _section(
    folder: Path, sprite: str, described: Mapping[str, Any], records: Sequence[Record],
    found: Mapping[str, dict[str, Any]], gathered: "Gathered",
) -> Section:  # fmt: skip
    steps = [_renamed(record) for record in records if record["kind"] == "step"]
    report, resolved = described.get("report") or {}, _parameters(described.get("resolved") or {})
    answers = [answer for one in found.values() for answer in judged(one)]
    on_features = None if answers else gathered_answer(gathered)
    answers += [on_features] if on_features is not None else []
    blocks: list[Block] = [Heading("Verdicts"), *answers, *_rule(answers), Prose(_verdict(report))]
    for name, one in found.items():
        blocks += evaluation_blocks(name, one)
    if not found:
        blocks += [
            Heading("Comparison with baselines"),
            Prose("Not measured yet. This command measures it; the next report shows the result:"),
            CodeBlock(f"querykey evaluate {folder} --on DATA --out {folder / 'evaluation.json'}"),
        ]
    blocks += compared_blocks(gathered)
    blocks += [*map_blocks(gathered, sprite), *gallery_blocks(gathered, sprite)]
    blocks += served_blocks(gathered, f"{sprite}-served", resolved, _task(described.get("settings") or {}))
    blocks += _health(steps, report, resolved)
    blocks += _repeat(described)
    fitted = described.get("features") or {}
    about = f"An adapter of {fitted.get('width', '?')} to {resolved.get('dim', '?')} dimensions"
    model = (fitted.get("model") or {}).get("spec")
    pictured = {sprite: gathered.sprite, f"{sprite}-served": gathered.served_sprite}
    sprites = {name: one._asdict() for name, one in pictured.items() if one is not None}
    return Section(
        sprite, folder.name, f"{about}, on {model}" if model else about,
        [] if answers else [_verdict(report)], blocks, sprites, answers,
    )  # fmt: skip


def _rule(answers: Sequence[VerdictBlock]) -> list[Block]:
    if not answers:
        return []
    return [Prose(
        "Yes where the 95% interval of the paired difference over queries lies above 0, no where it lies "
        "below, else can't tell.", is_quiet=True,
    )]  # fmt: skip


def _task(settings: Mapping[str, Any]) -> str:
    if settings.get("pairs"):
        return "pairs"
    return "unlabelled" if settings.get("labels") is None else "labels"


def _verdict(report: Mapping[str, Any]) -> str:
    """The verdict of the fit; runs of version 0.1 have two scores and whether training helped instead."""
    if "verdict" in report:
        return f"{sentence(report)}."
    if "guard" not in report:
        return "The folder has no report of its training."
    start, best = number(report["start"]), number(report["best"])
    helped = f"it helped at step {report['best_step']:,}" if report.get("helped") else "it did not help"
    return f"On validation rows, {report['guard']} went from {start} to {best}: {helped}."


def _renamed(record: Record) -> Record:
    return {RENAMED.get(name, name): value for name, value in record.items()}


def _health(steps: Sequence[Record], report: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[Block]:
    if not steps:
        return []
    measure, key = str(report.get("measure", report.get("guard", ""))), "validation"
    if any("guard" in step for step in steps):  # written by version 0.1
        key = "guard"
    wanted = [("Validation", measure, {key: "validation rows"}), *CURVES[:1]]
    stays = not any(step.get("age_max") for step in steps)
    health = [one for one in CURVES[1:] if not (stays and set(one[2]) & {"fill", "age_max"})]
    drawn = curves(steps, wanted) + _candidates(steps) + curves(steps, health)
    stopped = report.get("stopped")
    text = (
        "Judge by the validation score, not by the loss: with more candidates the same layer has a higher "
        "loss."
    )
    if stopped:
        text += f" Training stopped after {report['steps_taken']:,} steps: {stopped}."
    return [Heading("Training"), Prose(text), Prose(_memory(resolved, stays=stays)), Charts(drawn)]


def _memory(resolved: Mapping[str, Any], *, stays: bool) -> str:
    """Whether stored rows age, and whether they drift."""
    if resolved.get("memory") == "in_batch":
        return "There was no memory, so no stored rows could age or drift."
    aged = "The memory stored all rows from the first step, so none aged." if stays else ""
    if resolved.get("holds") == "projections":
        return f"{aged} It stored projections, which drift as the layer learns.".strip()
    return f"{aged} It stored frozen features, which do not drift.".strip()


def _candidates(steps: Sequence[Record]) -> list[Chart]:
    """Number of candidates per query, which the loss depends on."""
    counted = [step for step in steps if step.get("candidates")]
    x, y = ([float(step[name]) for step in counted] for name in ("step", "candidates"))
    return [candidates_chart(Line("candidates", x, y))] if counted else []


def _repeat(described: Mapping[str, Any]) -> list[Block]:
    if not described:
        return []
    return [
        Heading("How to reproduce it"),
        CodeBlock(adapt_command(described)),
        Prose(
            f"Features: {described['features']['rows']:,} rows, fingerprint {described['features']['key']}.",
            is_quiet=True,
        ),
        Prose(f"Made with {made_with(described)}.", is_quiet=True),
        settings_table("Resolved settings", described["resolved"]),
    ]
