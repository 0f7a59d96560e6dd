"""Queries with what they find, before and after -> galleries."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from querykey.reports.page.blocks import Block, Gallery, Heading, Prose

if TYPE_CHECKING:
    from querykey.features.features import Features
    from querykey.runs.neighbours import Looked
    from querykey.runs.projections import Sheet
    from querykey.runs.report_data import Gathered

__all__ = ["class_name", "entry_of", "gallery_blocks", "label_of", "place_pictures", "preview_of"]

LETTERS = 140
"""Of a preview."""


def gallery_blocks(seen: "Gathered", sheet: str) -> list[Block]:
    """Queries with their nearest neighbours: those that changed most, and the worst failures.

    Args:
        seen: What features show.
        sheet: Name of the sheet of pictures.

    Returns:
        Blocks.
    """
    sheet = sheet if seen.sheet is not None else ""
    blocks: list[Block] = []
    if len(seen.sides) > 1:
        blocks.append(Heading("What changed most"))
        if seen.found.changed:
            blocks.append(Prose("Queries sorted by how many of their five nearest neighbours are new."))
            blocks.append(_gallery(seen, seen.found.changed, sheet))
        else:
            blocks.append(Prose("No query has another neighbour among its first five."))
    blocks.append(Heading("The worst failures"))
    if seen.found.kind == "neighbours":
        blocks.append(Prose("Nothing says which answer is right: features with labels or pairs would."))
    elif seen.found.failures:
        blocks.append(Prose("Queries sorted by how far down their first right answer stands now."))
        blocks.append(_gallery(seen, seen.found.failures, sheet))
    else:
        blocks.append(Prose("None: every query finds a right answer first."))
    return blocks


def _gallery(seen: "Gathered", looked: Sequence["Looked"], sheet: str) -> Gallery:
    shown = [_shown(seen, one) for one in looked]
    place_pictures(shown, looked, seen.sheet, are_items=seen.found.kind != "pairs")
    return Gallery(shown, sheet)


def place_pictures(
    shown: Sequence[dict[str, Any]], looked: Sequence["Looked"], sheet: "Sheet | None", *, are_items: bool
) -> None:
    """Say where the pictures are; queries that are no items have none."""
    if sheet is None:
        return
    for entry, one in zip(shown, looked, strict=True):
        entry["picture"] = sheet.place.get(one.query, -1) if are_items else -1
        for answer in (answer for side in entry["sides"] for answer in side["answers"]):
            answer["picture"] = sheet.place.get(answer["item"], -1)


def _shown(seen: "Gathered", one: "Looked") -> dict[str, Any]:
    are_items = seen.found.kind != "pairs"
    entry = entry_of(seen.features, one, seen.sides, ("right", "wrong"), are_items=are_items)
    ranks = [f"{name} {rank:,}" for name, rank in zip(seen.sides, one.ranks, strict=False)]
    entry["note"] = f"first right answer at rank: {', '.join(ranks)}" if ranks else f"{one.new} of 5 are new"
    return entry


def entry_of(
    features: "Features", one: "Looked", names: Sequence[str], words: tuple[str, str], *, are_items: bool
) -> dict[str, Any]:
    """A query with what it finds, as the template takes it.

    Args:
        features: What is looked up in.
        one: The query.
        names: Of the sides.
        words: For what is right and for what is not.
        are_items: Whether the query is an item itself, and not a query of pairs.

    Returns:
        label, text, picture and note of the query, and sides with their answers.
    """
    asking = features if are_items or features.queries is None else features.queries
    lists = [
        {"name": name, "answers": [
            {"item": a.item, "label": label_of(features, a.item), "text": preview_of(features, a.item),
             "score": f"{a.score:.3f}", "is_right": a.is_right, "picture": -1,
             "mark": "" if a.is_right is None else words[0 if a.is_right else 1]}
            for a in answers
        ]}
        for name, answers in zip(names, one.found, strict=True)
    ]  # fmt: skip
    return {
        "label": label_of(asking, one.query), "text": preview_of(asking, one.query), "picture": -1,
        "note": "", "sides": lists,
    }  # fmt: skip


def preview_of(features: "Features", item: int) -> str:
    """One short line of an item."""
    words = " ".join(str(features.previews[item]).split())
    return words if len(words) <= LETTERS else words[: LETTERS - 1] + "…"


def class_name(features: "Features", label: int) -> str:
    """What a class is called; "" where it is not known."""
    if label < 0:
        return ""
    return features.label_names[label] if features.label_names else f"class {label}"


def label_of(features: "Features", item: int) -> str:
    """What the class of an item is called; "" where it has none."""
    return "" if features.labels is None else class_name(features, int(features.labels[item]))
