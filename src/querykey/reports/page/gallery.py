"""Galleries of queries with their nearest neighbours, before and after."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from querykey.reports.page.blocks import Block, Gallery, Heading, Prose

if TYPE_CHECKING:
    from querykey.features.features import Features
    from querykey.runs.neighbours import Answer, QueryResult
    from querykey.runs.projections import Sprite
    from querykey.runs.report_data import Gathered

__all__ = ["class_name", "entry_of", "gallery_blocks", "label_of", "place_pictures", "preview_of"]

LETTERS = 140
"""Maximal length of a preview."""


def gallery_blocks(gathered: "Gathered", sprite: str) -> list[Block]:
    """Queries with their nearest neighbours: those that changed most, and the worst failures.

    Args:
        gathered: Results on the features.
        sprite: Name of the sprite of pictures.

    Returns:
        Blocks.
    """
    sprite = sprite if gathered.sprite is not None else ""
    blocks: list[Block] = []
    if len(gathered.sides) > 1:
        blocks.append(Heading("What changed most"))
        if gathered.found.changed:
            text = "Queries sorted by the number of new rows among their five nearest neighbours."
            blocks += [Prose(text), _gallery(gathered, gathered.found.changed, sprite)]
        else:
            blocks.append(Prose("No query has a new row among its five nearest neighbours."))
    blocks.append(Heading("The worst failures"))
    if gathered.found.kind == "neighbours":
        blocks.append(Prose("This needs features with labels or pairs."))
    elif gathered.found.failures:
        text = "Queries sorted by the rank of their first right answer, worst first."
        blocks += [Prose(text), _gallery(gathered, gathered.found.failures, sprite)]
    else:
        blocks.append(Prose("None: every query finds a right answer first."))
    return blocks


def _gallery(gathered: "Gathered", queries: Sequence["QueryResult"], sprite: str) -> Gallery:
    shown = [_shown(gathered, one) for one in queries]
    place_pictures(shown, queries, gathered.sprite, are_items=gathered.found.kind != "pairs")
    return Gallery(shown, sprite)


def place_pictures(
    shown: Sequence[dict[str, Any]],
    queries: Sequence["QueryResult"],
    sprite: "Sprite | None",
    *,
    are_items: bool,
) -> None:
    """Set the place of each picture in the sprite; queries that are no items have none."""
    if sprite is None:
        return
    for entry, one in zip(shown, queries, strict=True):
        entry["picture"] = sprite.place.get(one.query, -1) if are_items else -1
        for answer in (answer for side in entry["sides"] for answer in side["answers"]):
            answer["picture"] = sprite.place.get(answer["item"], -1)


def _shown(gathered: "Gathered", one: "QueryResult") -> dict[str, Any]:
    are_items = gathered.found.kind != "pairs"
    entry = entry_of(gathered.features, one, gathered.sides, ("right", "wrong"), are_items=are_items)
    ranks = [f"{name} {rank:,}" for name, rank in zip(gathered.sides, one.ranks, strict=False)]
    entry["note"] = f"first right answer at rank: {', '.join(ranks)}" if ranks else f"{one.new} of 5 are new"
    return entry


def entry_of(
    features: "Features", one: "QueryResult", names: Sequence[str], words: tuple[str, str], *, are_items: bool
) -> dict[str, Any]:
    """A query with its answers, as the template needs it.

    Args:
        features: Of the items.
        one: The query.
        names: Of the sides.
        words: For a right and for a wrong answer.
        are_items: Whether the query is an item itself, not a query of pairs.

    Returns:
        label, text, picture and note of the query, and sides with their answers.
    """
    source = features if are_items or features.queries is None else features.queries
    sides = [
        {"name": name, "answers": [_answer(features, answer, words) for answer in answers]}
        for name, answers in zip(names, one.found, strict=True)
    ]
    return _described(source, one.query) | {"note": "", "sides": sides}


def _answer(features: "Features", answer: "Answer", words: tuple[str, str]) -> dict[str, Any]:
    mark = "" if answer.is_right is None else words[0 if answer.is_right else 1]
    score = {"score": f"{answer.score:.3f}", "is_right": answer.is_right, "mark": mark}
    return {"item": answer.item} | _described(features, answer.item) | score


def _described(features: "Features", item: int) -> dict[str, Any]:
    return {"label": label_of(features, item), "text": preview_of(features, item), "picture": -1}


def preview_of(features: "Features", item: int) -> str:
    """The preview of an item, one short line."""
    words = " ".join(str(features.previews[item]).split())
    return words if len(words) <= LETTERS else words[: LETTERS - 1] + "…"


def class_name(features: "Features", label: int) -> str:
    """The name of a class; "" without one."""
    if label < 0:
        return ""
    return features.label_names[label] if features.label_names else f"class {label}"


def label_of(features: "Features", item: int) -> str:
    """The name of an item's class; "" where it has none."""
    return "" if features.labels is None else class_name(features, int(features.labels[item]))
