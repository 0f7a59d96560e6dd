"""`querykey demo`: semantic search over Python's documentation, from docstrings to an adapter."""

from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import Threads, prepare

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="A new folder: features, two adapters, an ONNX export, a page."),
    ],
    threads: Threads = None,
) -> None:
    """Adapt a frozen model to Python's own documentation; takes minutes.

    The summary line of each docstring is a query and the rest is its document. Some packages are for
    training, others for testing. Nothing is downloaded.
    """
    prepare("cpu", threads, 0)
    from querykey.cli.console import line, progress, table
    from querykey.cli.report import write_report
    from querykey.errors import MissingExtraError
    from querykey.studies.demo import DIM, MODEL, demonstrate

    made = demonstrate(out, stage=progress)
    line(
        f"{made.pairs['train']:,} pairs of docstring summary and body for training; "
        f"{made.pairs['test']:,} of other packages for testing."
    )
    line(
        f"Frozen model: {MODEL}. Adapters and baselines ({DIM} wide) are fitted on the training packages, "
        "and validated with queries of these."
    )
    line()
    head, *rows = made.table.overview()
    table(head, rows)
    line("Marks: against frozen, then pca; + better, - worse, = no difference (95% interval), blank itself.")
    line()
    for question, before, after in made.searches:
        answers = [(one.id, other.id) for one, other in zip(before, after, strict=True)]
        table(["frozen", "adapter"], answers, title=f'"{question}" finds', words=(0, 1))
    table(
        ["summary line", "frozen", "adapter"],
        [(text, str(before), str(after)) for text, before, after in made.moved],
        title="Rank of the body of a summary line: most improved, then worst",
    )
    line(f"Verdict of the fit: {made.verdict}.")
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
