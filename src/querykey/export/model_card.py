"""A model card: the Hub's front matter, what was measured with its intervals, and the limits."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["front_matter", "limits", "results_section"]

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TAGS = {
    "sentence-transformers": ("sentence-transformers", "feature-extraction", "sentence-similarity"),
    "onnx": ("onnx", "feature-extraction"),
    "querykey": ("safetensors", "feature-extraction"),
}


def front_matter(library: str, *, model: str, data_key: str) -> str:
    """The YAML at the head of a model card, as the Hugging Face Hub reads it.

    Args:
        library: What loads the files: "sentence-transformers", "onnx" or "querykey".
        model: As the frozen model was named; one that is no name of a model is left out.
        data_key: Fingerprint of the features of the fit; "" where none is known.

    Returns:
        Lines from --- to ---.

    Example:
        >>> print(front_matter("onnx", model="st:org/name", data_key=""))
        ---
        library_name: onnx
        base_model: org/name
        tags:
        - onnx
        - feature-extraction
        - querykey
        ---
    """
    lines = ["---", f"library_name: {library}"]
    if library == "sentence-transformers":
        lines.append("pipeline_tag: sentence-similarity")
    name = model.partition(":")[2]
    if _NAME.fullmatch(name):
        lines.append(f"base_model: {name}")
    lines += ["tags:", *(f"- {tag}" for tag in (*_TAGS[library], "querykey"))]
    if data_key:
        lines += ["querykey:", f'  data_fingerprint: "{data_key}"']
    return "\n".join([*lines, "---"])


def results_section(report: Mapping[str, Any]) -> str:
    """What the fit measured on validation queries, as a table.

    Args:
        report: `Adapter.report_`; {} where none is known. Reports of version 0.1 name their measure alone.

    Returns:
        Markdown, with 95% intervals of the paired difference where there are any.
    """
    if not report:
        return "The export came without the report of its fit: nothing measured is known."
    reference = report.get("reference", "the start")
    lines = [f"Verdict of the fit: {report.get('verdict', 'none, it is of version 0.1')}."]
    checked = report.get("checked") or {}
    # where nothing could be measured there is the reason, a text
    reasons = {name: said for name, said in checked.items() if not isinstance(said, Mapping)}
    rows = [
        _row(name, said.get("ours"), said.get("reference"), said)
        for name, said in checked.items()
        if name not in reasons
    ]
    lines += ["", *(f"- {name}: {said}" for name, said in reasons.items())] if reasons else []
    measure = report.get("measure", report.get("guard"))
    if measure not in (None, *checked):
        rows.insert(0, _row(measure, report.get("best"), report.get("start"), report.get("difference")))
    if rows:
        lines += [
            "",
            f"| measure | adapter | {reference} | difference [95% interval] | queries |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            "Measured on validation queries of the data of the fit; an interval without 0 is a difference.",
        ]
    return "\n".join(lines)


def limits(side: str) -> str:
    """Where an adapter does not hold.

    Args:
        side: "both" or "query".
    """
    other = (
        "- Adapted queries compare with frozen documents alone."
        if side == "query"
        else "- Adapted rows do not compare with frozen rows, nor with those of another adapter."
    )
    lines = (
        "- Only for features of the model named here: same weights, pooling, prompt and preprocessing.",
        other,
        "- The figures hold for data like those of the fit; measure on your own with `querykey evaluate`.",
        "- Biases of the frozen model stay.",
    )
    return "\n".join(lines)


def _row(name: str, ours: Any, reference: Any, difference: Any) -> str:
    said, queries = "", ""
    if isinstance(difference, Mapping) and {"mean", "low", "high"} <= set(difference):
        said = f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
        queries = f"{difference['queries']:,}" if "queries" in difference else ""
    return f"| {name} | {_number(ours)} | {_number(reference)} | {said} | {queries} |"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""
