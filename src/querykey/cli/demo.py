"""`querykey demo`: semantic search over Python's documentation, from docstrings to an adapter."""

from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import Threads, prepare

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder for all that is made.")],
    threads: Threads = None,
) -> None:
    """Adapt a frozen model to Python's own documentation; takes minutes.

    Summary lines are the queries and the rest of each docstring its answer; some packages are
    fitted on, others measured. Nothing is downloaded.
    """
    prepare("cpu", threads, 0)
    from querykey.cli.show import line, progress, table
    from querykey.studies.demo import DIM, MODEL, demonstrate

    made = demonstrate(out, stage=progress)
    line(
        f"{made.pairs['train']:,} pairs of docstring summary and body to fit on; "
        f"{made.pairs['test']:,} of other packages to measure on."
    )
    line(f"Frozen model: {MODEL}. All else is {DIM} wide and fitted on the first packages.")
    line()
    head, *rows = made.table.overview()
    table(head, rows)
    line("Signs: against frozen and pca; + above, - below by more than the 95% interval.")
    line()
    for question, before, after in made.searches:
        answers = [(one.id, other.id) for one, other in zip(before, after, strict=True)]
        table(["frozen", "ours, pairs"], answers, title=f'"{question}" finds', words=(0, 1))
    line(f"{out}/adapter: fitted on pairs. {out}/compressed: without labels.")
    line(f"{made.exported}: the same layer as the adapter's, for onnxruntime.")
    line(f"Took {made.seconds:.0f} s. Next:")
    search = f'querykey search {out}/adapter {out}/features/test --query "sort rows"'
    line(f"  {search}", whole=True)
    line("  querykey doctor YOUR-DATA", whole=True)
