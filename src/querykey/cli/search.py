"""`querykey search`: what a query finds, before and after."""

from typing import Annotated

import typer

from querykey.cli.options import Column, Device, LabelColumn, RunFolder, Seed, Split, Threads, prepare

__all__ = ["search"]


def search(
    run: RunFolder,
    features: Annotated[str, typer.Argument(metavar="FEATURES", help="What is searched.")],
    query: Annotated[str, typer.Option(metavar="TEXT|IMAGE|ID", help="What to look up.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Answers wanted.")] = 5,
    column: Column = None,
    label_column: LabelColumn = None,
    split: Split = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Show what a query finds among FEATURES: as they are, and through the adapter of RUN.

    A query is the id of a row, or else a text or an image, which the model of the features embeds.
    """
    prepare(device, threads, seed)
    from querykey.build import load_run
    from querykey.cli.show import table
    from querykey.run_data import DataAt
    from querykey.run_evaluation import features_like_those_of
    from querykey.run_search import find, read_query

    fitted = load_run(run)
    opened = features_like_those_of(fitted, DataAt(features, column, label_column, None, split))
    asked = read_query(query, opened.features, features, device=device)
    before, after = find(fitted, opened.features, asked, k=k)
    was = {found.id: found.rank for found in before}
    rows = [(f"{f.rank}", "", f"{f.score:.3f}", f.id, f.label, f.preview[:60]) for f in before]
    table(
        ("rank", "", "score", "id", "label", "preview"),
        rows,
        title="before: the frozen features",
        words=(3, 4, 5),
    )
    rows = [
        (
            f"{f.rank}",
            f"({was[f.id]})" if f.id in was else "(new)",
            f"{f.score:.3f}",
            f.id,
            f.label,
            f.preview[:60],
        )
        for f in after
    ]
    table(
        ("rank", "was", "score", "id", "label", "preview"),
        rows,
        title="after: through the adapter",
        words=(3, 4, 5),
    )
