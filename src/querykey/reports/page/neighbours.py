"""Blocks on stored embeddings: comparison of sides, and maps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from querykey.reports.charts.spec import Chart, Points, short
from querykey.reports.page.blocks import (
    Block,
    Charts,
    Heading,
    Prose,
    TableBlock,
    VerdictBlock,
    number_interval,
)
from querykey.reports.page.evaluation import verdict_of
from querykey.reports.page.gallery import class_name, label_of, preview_of
from querykey.reports.verdicts import signed_interval

if TYPE_CHECKING:
    from querykey.features.features import Features
    from querykey.runs.report_data import Gathered

__all__ = ["compared_blocks", "gathered_answer", "map_blocks"]

CLASSES = 6
"""Classes with a colour on a map, the largest; more colours cannot be distinguished."""


def gathered_answer(gathered: "Gathered") -> VerdictBlock | None:
    """Whether retrieval with the adapted rows is better than with the frozen ones.

    Args:
        gathered: Results on the features.

    Returns:
        The verdict; None without labels or pairs, or with one side only.
    """
    if not gathered.found.metrics or gathered.found.metrics[0].difference is None:
        return None
    first = gathered.found.metrics[0]
    before, after = first.sides[0].mean, first.sides[-1].mean
    where = "on the rows it was fitted on" if gathered.is_fitted_on else f"on {gathered.spec}"
    assert first.difference is not None
    ask = f"Is retrieval with the adapted rows better than with the frozen ones, {where}?"
    return verdict_of(ask, first.name, after, before, first.difference.as_dict())


def compared_blocks(gathered: "Gathered") -> list[Block]:
    """The metrics of each side, with intervals.

    Args:
        gathered: Results on the features.

    Returns:
        Blocks; none where nothing was measured.
    """
    compared = gathered.found.metrics
    if not compared:
        return []
    if gathered.found.kind == "neighbours":
        overlap = compared[0].sides[0]
        text = (
            "Without labels or pairs there are no scores, only the overlap: of the ten nearest frozen rows "
            f"of a row, {overlap.mean:.0%} [{overlap.low:.0%}, {overlap.high:.0%}] are among its ten nearest "
            "adapted rows."
        )
        return [Heading("Before and after"), Prose(text)]
    rows = []
    for one in compared:
        sides = [number_interval(side.mean, side.low, side.high) for side in one.sides]
        d = one.difference
        rows.append([one.name, *sides, *([] if d is None else [signed_interval(d.mean, d.low, d.high)])])
    head = ["metric [95%]", *gathered.sides, *(["difference [95%]"] if len(gathered.sides) > 1 else [])]
    what = "each query among the items" if gathered.found.kind == "pairs" else "each item among the others"
    caption = f"{gathered.found.num_queries:,} queries, {what}; intervals: bootstrap over queries"
    title = "Before and after" if len(gathered.sides) > 1 else "Retrieval"
    blocks: list[Block] = [Heading(title), TableBlock(head, rows, caption)]
    if gathered.is_fitted_on:
        text = (
            "The adapter was fitted on these rows, so it scores higher here than on new ones; name other "
            "features for the report, or measure with querykey evaluate."
        )
        blocks.append(Prose(text, is_quiet=True))
    return blocks


def map_blocks(gathered: "Gathered", sprite: str) -> list[Block]:
    """Maps of the embeddings, side by side.

    Args:
        gathered: Results on the features.
        sprite: Name of the sprite of pictures.

    Returns:
        Blocks.
    """
    features, mapped = gathered.features, gathered.mapped
    words = [_words(features, item) for item in mapped]
    pictures = [] if gathered.sprite is None else [gathered.sprite.place.get(item, -1) for item in mapped]
    shared: dict[str, Any] = {"groups": _groups(features, mapped), "words": words, "pictures": pictures}
    shared["sprite"] = sprite if pictures else ""
    charts: list[Chart] = []
    for one in gathered.maps:
        size = float(one.places.abs().max()) or 1.0
        places = [(short(x / size, 4), short(y / size, 4)) for x, y in one.places.tolist()]
        charts.append(Points(title=f"Map: {one.title}", x=one.x, y=one.y, places=places, **shared))
    which = "All" if len(mapped) == len(features) else f"{len(mapped):,} random ones of"
    text = (
        f"{which} {len(features):,} items. A map has two of many dimensions: distant points are distant, "
        "near points may not be near."
    )
    return [Heading("The embedding as a map"), Prose(text), Charts(charts)]


def _groups(features: "Features", mapped: Sequence[int]) -> dict[str, Sequence[int]]:
    """Points by class: the largest classes, and the others together as the last group."""
    if features.labels is None:
        return {"items": list(range(len(mapped)))}
    by_class: dict[int, list[int]] = {}
    for place, item in enumerate(mapped):
        by_class.setdefault(int(features.labels[item]), []).append(place)
    classes = (label for label in by_class if label >= 0)
    order = sorted(classes, key=lambda label: (-len(by_class[label]), label))
    largest = order if len(order) <= CLASSES + 1 else order[:CLASSES]
    groups: dict[str, Sequence[int]] = {class_name(features, label): by_class[label] for label in largest}
    rest = sorted(place for label, places in by_class.items() if label not in largest for place in places)
    return groups | ({f"{len(by_class) - len(largest)} other classes": rest} if rest else {})


def _words(features: "Features", item: int) -> str:
    return ": ".join(part for part in (label_of(features, item), preview_of(features, item)) if part)
