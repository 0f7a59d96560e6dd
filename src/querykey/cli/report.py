"""`querykey report`: runs and studies as one HTML page."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from querykey.cli.options import reserve_output

__all__ = ["report", "write_report"]


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN|STUDY...", help="Folders of runs and of studies.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new, self-contained HTML file.")],
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the figures as SVG.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(metavar="FEATURES", help="Features to show a run on; default: its training features."),
    ] = None,
) -> None:
    """Show runs and studies on one page.

    Verdicts, comparison with baselines, curves, a map of the embedding, and nearest neighbours before
    and after adaptation. No model is run, and the same records and features give the same bytes.
    """
    reserve_output(out)
    if figures is not None:
        reserve_output(figures)
    write_report(folders, out, figures=figures, features=features)


def write_report(
    folders: Sequence[Path], out: Path, *, figures: Path | None = None, features: str | None = None
) -> None:
    """Write the page and print its path.

    Args:
        folders: Folders of runs and of studies.
        out: A new file.
        figures: A new folder for the figures.
        features: Features to show a run on; None: its training features.
    """
    from querykey.cli.console import line
    from querykey.io.atomic import new_file, new_folder
    from querykey.reports.page import figures_of, render, sections_of

    sections = sections_of(folders, features=features)
    words = ["querykey", "report", *map(str, folders), "--out", str(out)]
    words += ["--figures", str(figures)] if figures is not None else []
    words += ["--features", features] if features is not None else []
    page, drawn = render(sections, command=shlex.join(words)), figures_of(sections)
    with new_file(out) as tmp_path:
        tmp_path.write_text(page, encoding="utf-8")
        if figures is not None:
            with new_folder(figures) as folder:
                for name, text in drawn.items():
                    (folder / name).write_text(text, encoding="utf-8")
    line(f"{out}: {len(drawn)} figures, {len(page.encode()) / 1e6:.1f} MB")
    if figures is not None:
        line(f"{figures}: the figures as SVG")
