"""Blocks on the evaluations that `querykey evaluate --out` wrote into a run's folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from querykey.reports.charts.spec import Bars
from querykey.reports.page.blocks import (
    Block,
    Charts,
    Heading,
    Prose,
    TableBlock,
    VerdictBlock,
    number,
    signed,
)
from querykey.reports.verdicts import verdict

__all__ = ["evaluation_blocks", "evaluations", "judged"]

OURS = ("adapter", "h")
"""The method that gets a verdict: of an adapter's evaluation, or of a pretraining's."""
NAMES = {
    "no_memory": "no memory", "pca": "PCA", "pca_uncentred": "PCA, uncentred", "whitened_pca": "whitened PCA",
    "lda": "LDA", "random_projection": "random projection",
}  # fmt: skip


def evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluations in a folder.

    Args:
        folder: Of a run.

    Returns:
        File name to content; other JSON files are skipped.
    """
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and {"protocol", "references", "methods"} <= set(content):
            found[file.name] = content
    return found


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
    for reference, apart in cell["against"].items():
        theirs = found["methods"][reference]["metrics"].get(metric, {"mean": cell["mean"] - apart["mean"]})
        answers.append(verdict_of(
            f"Is {_the(ours)} better than {_the(reference)}?", metric, cell["mean"], theirs["mean"], apart
        ))  # fmt: skip
    return answers


def verdict_of(ask: str, metric: str, ours: float, theirs: float, apart: Mapping[str, float]) -> VerdictBlock:
    """A question about a paired difference over queries, with its verdict.

    Args:
        ask: The question.
        metric: What is compared.
        ours: Mean.
        theirs: Mean.
        apart: Their difference: mean, low, high.

    Returns:
        Yes where the interval lies above 0, no where it lies below, can't tell otherwise.

    Example:
        >>> apart = {"mean": 0.1, "low": 0.05, "high": 0.15}
        >>> verdict_of("Is a better than b?", "R@1", 0.6, 0.5, apart).because
        'R@1 0.600 against 0.500: +0.100 [+0.050, +0.150]'
    """
    words = f"{metric} {number(ours)} against {number(theirs)}: {_apart(apart)}"
    return VerdictBlock(ask, verdict(apart["low"], apart["mean"], apart["high"]), words)


def evaluation_blocks(name: str, found: Mapping[str, Any]) -> list[Block]:
    """An evaluation as bars and as a table.

    Args:
        name: Of its file.
        found: What it holds.

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
    blocks.append(Charts([Bars(
        title=f"{first} of all methods", x=first, labels=[NAMES.get(m, m) for m, _ in shown],
        groups={first: [(c["mean"], c["low"], c["high"]) for _, c in shown]},
        strong=OURS,
        note="Whiskers are 95% intervals over queries; the paired differences below are more precise.",
    )]))  # fmt: skip
    blocks += [_means(methods, metrics), _differences(methods, first, found["references"])]
    return blocks


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
    rows = [[NAMES.get(name, name), *(_apart(cell.get(r)) for r in against)] for name, cell in cells.items()]
    head = ["method", *(f"minus {NAMES.get(r, r)} [95%]" for r in against)]
    return TableBlock(head, rows, f"{metric}: paired differences", _strong(methods))


def _strong(methods: Mapping[str, Any]) -> list[int]:
    return [place for place, name in enumerate(methods) if name in OURS]


def _cell(row: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    cell: Mapping[str, Any] = row["metrics"].get(metric, {})
    return cell


def _mean(cell: Mapping[str, Any]) -> str:
    return number(cell["mean"]) if cell else ""


def _apart(apart: Mapping[str, float] | None) -> str:
    return (
        "" if apart is None else f"{signed(apart['mean'])} [{signed(apart['low'])}, {signed(apart['high'])}]"
    )


def _the(name: str) -> str:
    words = {"frozen": "the frozen features", "adapter": "the adapter", "h": "the pretrained encoder",
             "no_memory": "the same layer without a memory", "untrained h": "the untrained encoder",
             "pixels": "raw pixels"}  # fmt: skip
    return words.get(name, NAMES.get(name, name))
