"""Blocks on the evaluations that `querykey evaluate --out` wrote into a run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querykey.io.records import json_tables
from querykey.reports.charts.spec import Bars
from querykey.reports.page.blocks import Block, Charts, Heading, Prose, TableBlock, VerdictBlock, number
from querykey.reports.verdicts import signed_interval, verdict

__all__ = ["evaluation_blocks", "evaluations", "judged"]

OURS = ("adapter", "h")
"""The method that gets a verdict: of an adapter's evaluation, or of a pretraining's."""
NAMES = {
    "no_memory": "no memory", "pca": "PCA", "pca_uncentred": "PCA, uncentred", "whitened_pca": "whitened PCA",
    "lda": "LDA", "random_projection": "random projection",
}  # fmt: skip
"""Methods in tables and charts, where they differ from the names in the file."""
NAMES_IN_QUESTIONS = {
    **NAMES, "frozen": "the frozen features", "adapter": "the adapter", "h": "the pretrained encoder",
    "no_memory": "the same layer without a memory", "untrained h": "the untrained encoder",
    "pixels": "raw pixels",
}  # fmt: skip


def evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluations in a folder.

    Args:
        folder: Of a run.

    Returns:
        File name to content; other JSON files are skipped.
    """
    wanted = {"protocol", "references", "methods"}
    return {name: table for name, table in json_tables(folder).items() if wanted <= set(table)}


def judged(found: Mapping[str, Any]) -> list[VerdictBlock]:
    """Whether the run is better than each reference, by the first metric.

    Args:
        found: An evaluation.

    Returns:
        A verdict for each reference: yes where the 95% interval of the paired difference lies above 0,
        no where it lies below.
    """
    ours = next((name for name in OURS if name in found["methods"]), None)
    if ours is None:
        return []
    metrics = found["methods"][ours]["metrics"]
    metric = next((name for name in metrics if metrics[name]["against"]), None)
    if metric is None:
        return []
    cell, answers = metrics[metric], []
    for reference, difference in cell["against"].items():
        mean = cell["mean"] - difference["mean"]
        theirs = found["methods"][reference]["metrics"].get(metric, {"mean": mean})
        names = [NAMES_IN_QUESTIONS.get(name, name) for name in (ours, reference)]
        ask = f"Is {names[0]} better than {names[1]}?"
        answers.append(verdict_of(ask, metric, cell["mean"], theirs["mean"], difference))
    return answers


def verdict_of(
    ask: str, metric: str, ours: float, theirs: float, difference: Mapping[str, float]
) -> VerdictBlock:
    """A question about a paired difference over queries, with its verdict.

    Args:
        ask: The question.
        metric: What is compared.
        ours: Mean.
        theirs: Mean.
        difference: Ours minus theirs: mean, low, high.

    Returns:
        Yes where the interval lies above 0, no where it lies below, can't tell otherwise.

    Example:
        >>> difference = {"mean": 0.1, "low": 0.05, "high": 0.15}
        >>> verdict_of("Is a better than b?", "R@1", 0.6, 0.5, difference).because
        'R@1 0.600 against 0.500: +0.100 [+0.050, +0.150]'
    """
    because = f"{metric} {number(ours)} against {number(theirs)}: {_difference(difference)}"
    return VerdictBlock(ask, verdict(difference["low"], difference["mean"], difference["high"]), because)


def evaluation_blocks(name: str, found: Mapping[str, Any]) -> list[Block]:
    """An evaluation as bars and as a table.

    Args:
        name: Of its file.
        found: Its content.

    Returns:
        Blocks.
    """
    methods, about = found["methods"], found["protocol"]
    metrics = list(dict.fromkeys(m for row in methods.values() for m in row["metrics"]))
    on = (about.get("on") or {}).get("spec")
    counted = f"{about['asked']:,} queries" if isinstance(about.get("asked"), int) else "queries"
    where = f" on {on}" if on else ""
    blocks: list[Block] = [
        Heading("Comparison with baselines"),
        Prose(
            f"From {name}: {counted}{where}. Intervals are 95% bootstrap intervals over queries; differences "
            "are paired, query by query."
        ),
    ]
    if not metrics:
        return [*blocks, Prose("It has no metric to compare.")]
    first = metrics[0]
    shown = [(method, row["metrics"][first]) for method, row in methods.items() if first in row["metrics"]]
    labels = [NAMES.get(method, method) for method, _ in shown]
    values = [(cell["mean"], cell["low"], cell["high"]) for _, cell in shown]
    note = "Whiskers are 95% intervals over queries; the paired differences below are more precise."
    title = f"{first} of all methods"
    bars = Bars(title=title, x=first, labels=labels, groups={first: values}, strong=OURS, note=note)
    differences = _differences(methods, first, found["references"])
    return [*blocks, Charts([bars]), _means(methods, metrics), differences]


def _means(methods: Mapping[str, Any], metrics: Sequence[str]) -> TableBlock:
    rows = []
    for name, row in methods.items():
        dim = row.get("figures", {}).get("dim")
        cells = [NAMES.get(name, name), "" if dim is None else f"{dim:.0f}"]
        rows.append([*cells, *(_mean(_cell(row, metric)) for metric in metrics)])
    return TableBlock(["method", "dim", *metrics], rows, "All methods, all metrics", _strong(methods))


def _differences(methods: Mapping[str, Any], metric: str, references: Sequence[str]) -> TableBlock:
    cells = {name: _cell(row, metric).get("against", {}) for name, row in methods.items()}
    against = [r for r in references if any(r in cell for cell in cells.values())]
    rows = [
        [NAMES.get(name, name), *(_difference(cell.get(r)) for r in against)] for name, cell in cells.items()
    ]
    head = ["method", *(f"minus {NAMES.get(r, r)} [95%]" for r in against)]
    return TableBlock(head, rows, f"{metric}: paired differences", _strong(methods))


def _strong(methods: Mapping[str, Any]) -> list[int]:
    return [place for place, name in enumerate(methods) if name in OURS]


def _cell(row: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    cell: Mapping[str, Any] = row["metrics"].get(metric, {})
    return cell


def _mean(cell: Mapping[str, Any]) -> str:
    return number(cell["mean"]) if cell else ""


def _difference(found: Mapping[str, float] | None) -> str:
    return "" if found is None else signed_interval(found["mean"], found["low"], found["high"])
