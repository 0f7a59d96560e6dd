"""`querykey search`: nearest neighbours of a query before and after adaptation."""

from typing import TYPE_CHECKING, Annotated

import typer

from querykey.cli.options import (
    AdapterFolder,
    Column,
    Delimiter,
    Device,
    LabelColumn,
    Seed,
    Split,
    Threads,
    prepare,
)

if TYPE_CHECKING:
    from querykey.runs.search import Found

__all__ = ["search"]


def search(
    run: AdapterFolder,
    features: Annotated[str, typer.Argument(metavar="SOURCE|FEATURES", help="The features to search.")],
    query: Annotated[str, typer.Option(metavar="TEXT|IMAGE|ID", help="The query.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 5,
    dim: Annotated[int | None, typer.Option(min=1, help="A size of RUN; default: the largest.")] = None,
    bits: Annotated[int | None, typer.Option(metavar="[8|1]", help="Search codes of the rows.")] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    split: Split = None,
    delimiter: Delimiter = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Search FEATURES before and after adaptation.

    Before: the frozen rows. After: the rows transformed by RUN. A query is the id of a row, or a text or
    an image, which the model of the features embeds. The column "was" is the rank before; (new): not
    among the first before. With --bits the float query searches codes.
    """
    device = prepare(device, threads, seed)
    from querykey.cli.console import note, progress
    from querykey.runs.adapt import load_run
    from querykey.runs.data import DataAt
    from querykey.runs.evaluate_adapter import features_like_those_of
    from querykey.runs.search import find, read_query

    fitted = load_run(run)
    at = DataAt(features, column, label_column, None, split, delimiter)
    with progress(f"embedding {features}") as tick:
        opened = features_like_those_of(fitted, at, device=device, progress=tick, notify=note)
    looked_up = read_query(query, opened.features, features, device=device)
    before, after = find(fitted, opened.features, looked_up, k=k, dim=dim, bits=bits)
    places = {found.id: f"({found.rank})" for found in before}
    _show(before, "before: the frozen features", [""] * len(before))
    _show(after, "after: through the adapter", [places.get(found.id, "(new)") for found in after])


def _show(found: "list[Found]", title: str, was: list[str]) -> None:
    from querykey.cli.console import table

    columns = {
        "rank": [str(one.rank) for one in found],
        "was": was,
        "score": [f"{one.score:.3f}" for one in found],
        "id": [one.id for one in found],
        "label": [one.label for one in found],
        "preview": ["" if one.preview == one.id else one.preview for one in found],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    words = [place for place, name in enumerate(shown) if name in ("id", "label", "preview")]
    table(list(shown), list(zip(*shown.values(), strict=True)), title=title, words=words)
