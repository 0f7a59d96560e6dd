"""The report of a fit as text."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Report", "sentence", "summary", "unvalidated_report"]


class Report(dict[str, Any]):
    """The report of a fit. The key "helped" of earlier versions is deprecated and warns."""

    def __missing__(self, name: str) -> Any:
        if name != "helped":
            raise KeyError(name)
        warnings.warn(
            'report_["helped"] will go in the next version; use report_["verdict"] == "better"',
            FutureWarning,
            stacklevel=2,
        )
        return self.get("verdict") == "better"


def unvalidated_report(candidate: str, steps: int, *, steps_taken: int, stopped: str) -> Report:
    """The report of a fit for which no rows could be held out.

    Args:
        candidate: The closed form that is returned, or that training started from.
        steps: Planned steps; 0 if the closed form is returned.
        steps_taken: Steps that were run.
        stopped: Why training ended.

    Returns:
        A report without scores.
    """
    return Report(
        measure=None,
        verdict="not validated",
        candidate=f"trained, from {candidate}" if steps else candidate,
        reference=None,
        difference=None,
        queries_needed=None,
        checked={},
        start=None,
        best=None,
        best_step=steps,
        steps_taken=steps_taken,
        stopped=stopped,
        selection="",
        folds=0,
        refused={},
        notes=["nothing could be held out, so nothing is known of new rows"],
    )


def summary(report: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdict, and the best candidate of each kind with its interval.

    Args:
        report: Report of a fit.
        candidates: Candidates of the same fit.

    Returns:
        Lines of at most 78 characters: the verdict; the reference, the best closed form and the best trained
        candidate, as far as they exist.
    """
    lines = [sentence(report)]
    reference = report.get("reference")
    if reference is None:
        return lines
    kinds: dict[str, list[Mapping[str, Any]]] = {"start": [], "closed form": [], "trained": []}
    for one in candidates:
        trained = str(one["name"]).startswith("trained")
        kinds["start" if one["name"] == reference else "trained" if trained else "closed form"].append(one)
    for kind, some in kinds.items():
        if not some:
            continue
        best = max(some, key=lambda one: float(one["score"]))
        apart = best["difference"]
        interval = "" if kind == "start" else f"  {_interval(apart)}"
        lines.append(f"{kind:<12}{best['name']:<24}{best['score']:9.4f}{interval}")
    return lines


def sentence(report: Mapping[str, Any]) -> str:
    """The verdict as one sentence.

    Args:
        report: Report of a fit.

    Returns:
        One line.
    """
    name, reference, apart = report.get("candidate"), report.get("reference"), report.get("difference")
    match report.get("verdict"):
        case "better":
            return f"better: {name} over {reference}, {report['measure']} {_interval(apart)}"
        case "no evidence":
            needed = report.get("queries_needed")
            more = f"; {needed:,} queries would tell" if needed else ""
            return f"no evidence: {name} over {reference}, {_interval(apart)}{more}"
        case "start kept":
            return f"start kept: nothing was likely better than {reference}, so {name} is returned"
        case _:
            return f"not validated: {name}; nothing here can tell what it is worth on new rows"


def _interval(apart: Mapping[str, Any] | None) -> str:
    if apart is None:
        return ""
    return f"{apart['mean']:+.4f} [{apart['low']:+.4f}, {apart['high']:+.4f}]"
