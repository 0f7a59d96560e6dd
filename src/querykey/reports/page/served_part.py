"""What the memory served as top-k -> blocks, with how many of it may be false negatives."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from querykey.reports.page.blocks import Block, Gallery, Heading, Prose
from querykey.reports.page.gallery_part import entry_of, place_pictures

if TYPE_CHECKING:
    from querykey.run_report import Gathered

__all__ = ["served_blocks"]


def served_blocks(seen: "Gathered", sheet: str, resolved: Mapping[str, Any], task: str) -> list[Block]:
    """What the memory served as top-k, and how many of it may be false negatives.

    Args:
        seen: What features show.
        sheet: Name of the sheet of pictures of what was served.
        resolved: The settings of the fit.
        task: "labels", "pairs" or "unlabelled".

    Returns:
        Blocks; none where the training features are not there.
    """
    served, features = seen.served, seen.fitted_on
    if served is None or features is None:
        return []
    blocks: list[Block] = [Heading("What the memory served"), Prose(_selection(resolved, served.rows))]
    if served.suspects is not None:
        blocks.append(Prose(_suspects(served.suspects, served.by_chance, served.k, served.asked, task)))
    elif task == "unlabelled":
        blocks.append(
            Prose("The features have no labels, so nothing tells which of them are false negatives.")
        )
    are_items = task != "pairs"
    words = (
        ("other class", "own class") if are_items else ("below the own document", "above the own document")
    )
    shown = [entry_of(features, one, ["served"], words, are_items=are_items) for one in served.shown]
    if task == "labels":  # there the own class is what is looked for
        for answer in (answer for one in shown for side in one["sides"] for answer in side["answers"]):
            answer["is_right"] = not answer["is_right"]
    place_pictures(shown, served.shown, seen.served_sheet, are_items=are_items)
    blocks.append(Gallery(shown, sheet if seen.served_sheet is not None else ""))
    return blocks


def _selection(resolved: Mapping[str, Any], rows: int) -> str:
    if resolved.get("memory") == "in_batch":
        return (
            "The run had no memory: a batch met itself alone. This is what a memory of all rows would have "
            "served."
        )
    capacity = int(resolved["capacity"])
    held = f"all {rows:,} rows" if capacity >= rows else f"the newest {capacity:,} of {rows:,} rows"
    names = {
        "sampled": "drawn at random for all queries", "negatives": "hardest negatives a query",
        "positives": "farthest positives a query",
    }  # fmt: skip
    parts = [f"{resolved[name]:,} {words}" for name, words in names.items() if resolved.get(name)]
    if resolved.get("loss") == "score_difference":
        parts = [f"{resolved['neighbours']:,} most similar a query"]
    taken = ", ".join(parts) if parts else "all of them"
    return (
        f"The memory had room for {held} (rows held out are not in it); of these a step took: {taken}. "
        "Below are the rows that score highest with the frozen features, of a memory that holds all rows."
    )


def _suspects(share: float, chance: float | None, k: int, asked: int, task: str) -> str:
    of = f"of the {k} rows that scored highest for {asked:,} queries"
    match task:
        case "pairs":
            return (
                f"False negatives: {share:.0%} {of}, and are not the query's own, score above its own "
                "document: among these are the likely false negatives."
            )
        case "labels":
            return (
                f"{share:.0%} {of} are of the query's own class ({chance or 0:.1%} by chance). They count as "
                "positives, so none of them is a false negative."
            )
        case _:
            return (
                f"{share:.0%} {of} are of the query's own class ({chance or 0:.1%} by chance): false "
                "negatives, where a loss pushes away what is near. A loss that keeps the frozen scores does "
                "not."
            )
