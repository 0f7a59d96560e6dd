"""`querykey demo`: semantic search over Python's documentation, from docstrings to an adapter."""

from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import Threads, prepare

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder: features, two adapters, an ONNX export.")
    ],
    threads: Threads = None,
) -> None:
    """Adapt a frozen model to Python's own documentation; takes minutes.

    Summary lines are the queries and the rest of each docstring its answer; some packages are
    fitted on, others measured. Nothing is downloaded.
    """
    prepare("cpu", threads, 0)
    from querykey.cli.console import line, progress, table
    from querykey.cli.report import write_report
    from querykey.errors import MissingExtraError
    from querykey.studies.demo import DIM, MODEL, demonstrate

    made = demonstrate(out, stage=progress)
    line(
        f"{made.pairs['train']:,} pairs of docstring summary and body to fit on; "
        f"{made.pairs['test']:,} of other packages to measure on."
    )
    line(
        f"Frozen model: {MODEL}. All is fitted on the first packages, the baselines {DIM} wide; queries of "
        "theirs choose what is returned."
    )
    line()
    head, *rows = made.table.overview()
    table(head, rows)
    line("Marks: against frozen, then pca; + better, - worse, = no difference (95% interval).")
    line()
    for question, before, after in made.searches:
        answers = [(one.id, other.id) for one, other in zip(before, after, strict=True)]
        table(["frozen", "adapter"], answers, title=f'"{question}" finds', words=(0, 1))
    table(
        ["summary line", "frozen", "adapter"],
        [(text, str(before), str(after)) for text, before, after in made.moved],
        title="Where its own body stands among all: helped most, then failed most",
    )
    line(f"The fit said of itself: {made.verdict}.")
    line(f"{out}/adapter: full width. {out}/compressed: {DIM} numbers.")
    line(f"{made.exported}: the same layer as the adapter's, for onnxruntime.")
    try:
        write_report([out / "adapter"], out / "report.html", features=str(out / "features" / "test"))
    except MissingExtraError as error:
        line(str(error))
    line(f"Took {made.seconds:.0f} s. Next:")
    search = f'querykey search {out}/adapter {out}/features/test --query "sort rows"'
    line(f"  {search}", whole=True)
    line("  querykey doctor YOUR-DATA", whole=True)
