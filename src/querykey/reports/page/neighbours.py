"""What stored embeddings show -> blocks: comparison and maps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from querykey.reports.charts.spec import Points, short
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
from querykey.reports.page.evaluation import verdict_of
from querykey.reports.page.gallery import class_name, label_of, preview_of

if TYPE_CHECKING:
    from querykey.features.features import Features
    from querykey.runs.report_data import Gathered

__all__ = ["compared_blocks", "gathered_answer", "map_blocks"]

CLASSES = 6
"""Coloured on a map: the largest; more colours cannot be told apart."""


def gathered_answer(seen: "Gathered") -> VerdictBlock | None:
    """Whether the adapted rows find more than the frozen ones.

    Args:
        seen: What features show.

    Returns:
        The verdict; None where nothing says what is right, or there is one side.
    """
    if not seen.found.compared or seen.found.compared[0].difference is None:
        return None
    first = seen.found.compared[0]
    before, after = first.sides[0].mean, first.sides[-1].mean
    where = "on the rows it was fitted on" if seen.is_fitted_on else f"on {seen.spec}"
    assert first.difference is not None
    return verdict_of(
        f"Do the adapted rows find more than the frozen ones, {where}?", first.name, after, before,
        first.difference.as_dict(),
    )  # fmt: skip


def compared_blocks(seen: "Gathered") -> list[Block]:
    """The metrics of each side, with intervals.

    Args:
        seen: What features show.

    Returns:
        Blocks; none where nothing was measured.
    """
    compared = seen.found.compared
    if not compared:
        return []
    if seen.found.kind == "neighbours":
        kept = compared[0].sides[0]
        words = (
            f"Nothing says which answer is right, so this is how much stayed: of a row's ten nearest frozen "
            f"rows, {kept.mean:.0%} [{kept.low:.0%}, {kept.high:.0%}] are still among its ten nearest."
        )
        return [Heading("Before and after"), Prose(words)]
    rows = []
    for one in compared:
        sides = [f"{number(s.mean)} [{number(s.low)}, {number(s.high)}]" for s in one.sides]
        d = one.difference
        apart = [] if d is None else [f"{signed(d.mean)} [{signed(d.low)}, {signed(d.high)}]"]
        rows.append([one.name, *sides, *apart])
    head = ["metric [95%]", *seen.sides, *(["difference [95%]"] if len(seen.sides) > 1 else [])]
    what = "each query among the items" if seen.found.kind == "pairs" else "each item among the others"
    caption = f"{seen.found.asked:,} queries, {what}; intervals: bootstrap over queries"
    title = "Before and after" if len(seen.sides) > 1 else "What neighbours tell"
    blocks: list[Block] = [Heading(title), TableBlock(head, rows, caption)]
    if seen.is_fitted_on:
        blocks.append(Prose(
            "These are the rows that the adapter was fitted on, so it does better here than on new ones; "
            "give others with --features, or measure with querykey evaluate.", is_quiet=True,
        ))  # fmt: skip
    return blocks


def map_blocks(seen: "Gathered", sheet: str) -> list[Block]:
    """Maps of the embeddings beside each other.

    Args:
        seen: What features show.
        sheet: Name of the sheet of pictures.

    Returns:
        Blocks.
    """
    words = [_words(seen.features, item) for item in seen.mapped]
    groups = _groups(seen.features, seen.mapped)
    pictures = [] if seen.sheet is None else [seen.sheet.place.get(item, -1) for item in seen.mapped]
    charts = []
    for one in seen.maps:
        size = float(one.places.abs().max()) or 1.0
        places = [(short(x / size, 4), short(y / size, 4)) for x, y in one.places.tolist()]
        charts.append(Points(
            title=f"Map: {one.title}", x=one.x, y=one.y, groups=groups, places=places, words=words,
            pictures=pictures, sheet=sheet if pictures else "",
        ))  # fmt: skip
    which = "all" if len(seen.mapped) == len(seen.features) else f"{len(seen.mapped):,} drawn of"
    text = (
        f"{which} {len(seen.features):,} items. A map keeps what two axes can keep: far apart on it is far "
        "apart, close together may not be close."
    )
    return [Heading("The embedding as a map"), Prose(text[0].upper() + text[1:]), Charts(charts)]


def _groups(features: "Features", mapped: Sequence[int]) -> dict[str, Sequence[int]]:
    """Points by class: the largest classes, and all others last."""
    if features.labels is None:
        return {"items": list(range(len(mapped)))}
    by_class: dict[int, list[int]] = {}
    for place, item in enumerate(mapped):
        by_class.setdefault(int(features.labels[item]), []).append(place)
    order = sorted(
        (label for label in by_class if label >= 0), key=lambda label: (-len(by_class[label]), label)
    )
    largest = order if len(order) <= CLASSES + 1 else order[:CLASSES]
    groups: dict[str, Sequence[int]] = {class_name(features, label): by_class[label] for label in largest}
    rest = sorted(place for label, places in by_class.items() if label not in largest for place in places)
    return groups | ({f"{len(by_class) - len(largest)} other classes": rest} if rest else {})


def _words(features: "Features", item: int) -> str:
    return ": ".join(part for part in (label_of(features, item), preview_of(features, item)) if part)
