"""The section of an adapter run, from its records and from stored embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.adapter.verdict import sentence
from querykey.io.atomic import raises_store_error
from querykey.io.records import Record
from querykey.reports.page.blocks import (
    Block,
    Charts,
    CodeBlock,
    Gallery,
    Heading,
    Prose,
    Section,
    made_with,
    number,
    settings_table,
)
from querykey.reports.page.gallery import entry_of, gallery_blocks, place_pictures
from querykey.reports.page.neighbours import compared_blocks, gathered_answer, map_blocks
from querykey.reports.page.reproduce import adapt_command
from querykey.reports.page.run import CANDIDATES, FALSE_NEGATIVES, Gather, StoredRun, curves, open_run
from querykey.reports.page.sizes import size_blocks

if TYPE_CHECKING:
    from querykey.runs.report_data import Gathered

__all__ = ["ADAPTER", "adapter_section", "served_blocks"]

ADAPTER = "adapter.json"

CURVES = (
    ("Loss", "loss, in nats for a log-likelihood", {"loss": "loss"}),
    ("Scores of pairs", "mean cosine", {"positive_score": "positives", "negative_score": "negatives"}),
    ("Memory", "share of the capacity", {"fill": "fill"}),
    ("Age of the stored rows", "enqueues", {"age_mean": "mean", "age_max": "oldest"}),
    ("Effective rank", "dimensions", {"effective_rank": "adapted rows"}),
    (FALSE_NEGATIVES, "share", {"false_negatives_label": "same class"}),
    ("Gradient", "norm", {"gradient_norm": "gradient"}),
)

RENAMED = {"memory_fill": "fill", "false_negatives": "false_negatives_label"}
"""Metrics of version 0.1, and their names now."""
RULE = (
    "Yes where the 95% interval of the paired difference over queries lies above 0, no where it lies below, "
    "else can't tell."
)


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
        blocks.append(Prose(_suspects(served.suspects, served.by_chance, served.k, served.num_queries, task)))
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
    run, gathered = open_run(folder), gather()
    with raises_store_error(str(folder), "fit the run again"):
        return _section(run, gathered, name)


def _section(run: StoredRun, gathered: "Gathered", sprite: str) -> Section:
    described = run.described
    steps = [_renamed(record) for record in run.of_kind("step")]
    report, resolved = described.get("report") or {}, _parameters(described.get("resolved") or {})
    answers = run.verdicts()
    on_features = None if answers else gathered_answer(gathered)
    answers += [on_features] if on_features is not None else []
    verdict = _verdict(report)
    blocks: list[Block] = [Heading("Verdicts"), *answers]
    blocks += [Prose(RULE, is_quiet=True)] if answers else []
    blocks += [Prose(verdict), *run.evaluation_blocks()]
    if not run.evaluations:
        blocks += [
            Heading("Comparison with baselines"),
            Prose("Not measured yet. This command measures it; the next report shows the result:"),
            CodeBlock(f"querykey evaluate {run.folder} --on DATA --out {run.folder / 'evaluation.json'}"),
        ]
    blocks += [*size_blocks(run.folder), *compared_blocks(gathered)]
    blocks += [*map_blocks(gathered, sprite), *gallery_blocks(gathered, sprite)]
    blocks += served_blocks(gathered, f"{sprite}-served", resolved, _task(described.get("settings") or {}))
    blocks += _training(steps, report, resolved)
    blocks += _reproduction(described)
    fitted = described.get("features") or {}
    about = f"An adapter of {fitted.get('width', '?')} to {resolved.get('dim', '?')} dimensions"
    model = (fitted.get("model") or {}).get("spec")
    about = f"{about}, on {model}" if model else about
    pictured = {sprite: gathered.sprite, f"{sprite}-served": gathered.served_sprite}
    sprites = {name: one._asdict() for name, one in pictured.items() if one is not None}
    summary = [] if answers else [verdict]
    return Section(sprite, run.folder.name, about, summary, blocks, sprites, answers)


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


def _training(steps: Sequence[Record], report: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[Block]:
    if not steps:
        return []
    measure, key = str(report.get("measure", report.get("guard", ""))), "validation"
    if any("guard" in step for step in steps):  # written by version 0.1
        key = "guard"
    loss, *health = CURVES
    wanted = [("Validation", measure, {key: "validation rows"}), loss]
    stays = not any(step.get("age_max") for step in steps)
    health = [one for one in health if not (stays and set(one[2]) & {"fill", "age_max"})]
    drawn = curves(steps, [*wanted, CANDIDATES, *health])
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


def _reproduction(described: Mapping[str, Any]) -> list[Block]:
    if not described:
        return []
    features = described["features"]
    return [
        Heading("How to reproduce it"),
        CodeBlock(adapt_command(described)),
        Prose(f"Features: {features['rows']:,} rows, fingerprint {features['key']}.", is_quiet=True),
        Prose(f"Made with {made_with(described)}.", is_quiet=True),
        settings_table("Resolved settings", described["resolved"]),
    ]
