"""The page: sections of runs and studies in one self-contained HTML file.

Each chart is rendered twice as SVG, for a narrow and for a wide column. CSS shows the one that fits, so that
text is never scaled. A short script shows the numbers of the mark under the pointer.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from querykey.errors import ConfigError, MissingExtraError, MissingPathError, SourceError
from querykey.io.study_folder import is_study
from querykey.reports.charts.spec import Chart
from querykey.reports.charts.svg import as_svg
from querykey.reports.page.adapter import ADAPTER, adapter_section
from querykey.reports.page.blocks import Charts, Section
from querykey.reports.page.pretraining import FORMAT, pretraining_section
from querykey.reports.page.run import RUN, read_described
from querykey.reports.page.study import study_section
from querykey.reports.verdicts import Word

__all__ = ["figures_of", "render", "sections_of"]

NARROW, WIDE, ALONE = 316, 470, 700
"""Width of a chart in pixels: on a phone 390 px wide, in one of two columns, in a single column."""


def sections_of(folders: Sequence[Path], *, features: str | None = None) -> list[Section]:
    """Read runs and studies.

    Args:
        folders: Of adapters, pretraining runs and studies.
        features: Features on which the only run among them is shown; None: those an adapter was fitted on.

    Returns:
        One section per folder, in their order, with unique names.

    Raises:
        MissingPathError: If a folder or the features of an adapter do not exist.
        SourceError: If a folder is neither a run nor a study.
        StoreError: If a file in it is damaged.
        ConfigError: If features are given, and there is not exactly one run.
    """
    runs = [folder for folder in folders if not is_study(folder)]
    if features is not None and len(runs) != 1:
        raise ConfigError(f"features are for a report of one run; {len(runs)} are given")
    readers = [_reader(folder, features) for folder in folders]
    sections: list[Section] = []
    for read in readers:
        sections.append(read({section.name for section in sections}))
    return sections


def render(sections: Sequence[Section], *, command: str) -> str:
    """The whole page.

    Args:
        sections: At least one.
        command: Command line that made it.

    Returns:
        HTML; the same for the same sections and versions of vl-convert and Jinja2.

    Raises:
        MissingExtraError: If vl-convert or Jinja2 is not installed.
    """
    template = _template()
    names = {id(chart): f"figure-{place}" for place, (_, chart) in enumerate(_charts(sections), start=1)}
    answers = [answer for section in sections for answer in section.answers]
    given = Counter(answer.word for answer in answers)
    words: tuple[Word, ...] = get_args(Word)
    values = {"sections": sections, "names": names, "drawings": _drawings, "key": id, "command": command}
    counts = [(word, given[word]) for word in words if given[word]]
    text = template.render(values, asked=len(answers), counts=counts)
    return re.sub(r"\n\s*\n+", "\n", text).strip() + "\n"


def _drawings(chart: Chart, beside: int) -> str:
    """A chart for a narrow and for a wide column; a chart without a neighbour is wider."""
    widths = {"narrow": NARROW, "broad": WIDE if beside > 1 else ALONE}
    return "".join(as_svg(chart, width=width, kind=f"drawing {kind}") for kind, width in widths.items())


def figures_of(sections: Sequence[Section]) -> dict[str, str]:
    """All charts as SVG files.

    Args:
        sections: Of a page.

    Returns:
        File name (the section's name and the chart's number) to SVG.
    """
    figures: dict[str, str] = {}
    counts: dict[str, int] = {}
    for section, chart in _charts(sections):
        counts[section.name] = counts.get(section.name, 0) + 1
        figures[f"{section.name}-{counts[section.name]}.svg"] = as_svg(chart, is_file=True)
    return figures


def _reader(folder: Path, features: str | None) -> Callable[[set[str]], Section]:
    """A function from the names in use to the section of a folder.

    It only checks the kind of the folder, so that errors are raised before any long computation.
    """
    if is_study(folder):
        return lambda used: _renamed(study_section(folder), used)
    if (folder / ADAPTER).is_file():

        def gather_adapter() -> Any:
            from querykey.runs.report_data import gather_adapter as gather

            return gather(folder, features)

        return lambda used: adapter_section(folder, gather_adapter, name=_free(folder.name, used))
    if (folder / RUN).is_file() and read_described(folder / RUN).get("format") == FORMAT:

        def gather_encoder() -> Any:
            from querykey.runs.report_data import gather_encoder as gather

            assert features is not None
            return gather(folder, features)

        given = None if features is None else gather_encoder
        return lambda used: pretraining_section(folder, given, name=_free(folder.name, used))
    if not folder.exists():
        raise MissingPathError(f"there is nothing at {folder}; give the folder of a run or of a study")
    raise SourceError(
        f"{folder} is neither a run nor a study; give a folder that querykey adapt, querykey pretrain or "
        "querykey study wrote"
    )


def _renamed(section: Section, used: set[str]) -> Section:
    return replace(section, name=_free(section.name, used))


def _free(name: str, used: set[str]) -> str:
    """A name that is valid as an id and as a file name, and not in use."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "section"
    return next(one for one in (slug, *(f"{slug}-{n}" for n in range(2, len(used) + 3))) if one not in used)


def _charts(sections: Sequence[Section]) -> list[tuple[Section, Chart]]:
    return [
        (section, chart)
        for section in sections
        for block in section.blocks
        if isinstance(block, Charts)
        for chart in block.charts
    ]


def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("jinja2", extra="report", purpose="a report") from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.loader = PackageLoader("querykey.reports.page")
    return environment.get_template("page.html.j2")
