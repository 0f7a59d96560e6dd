"""studies/README.md and its figures, from records alone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from querykey.errors import MissingPathError
from querykey.io.atomic import new_file, raises_store_error
from querykey.io.study_folder import cells_of, is_study, read_study, records_of
from querykey.reports.charts.spec import Chart
from querykey.reports.charts.study import figure
from querykey.reports.charts.svg import as_svg
from querykey.reports.study_tables import Verdict, verdict_rows
from querykey.reports.verdicts import Word, table

__all__ = ["Claim", "claim", "studies_report", "write_studies"]

Claim = Literal["confirmed", "not confirmed", "can't tell", "not measured yet", "no claim"]
FIGURES = "figures"
INTRODUCTION = """# What the papers claim, measured small

Written by `make studies` from the records in these folders alone: the same records give the same bytes. Do
not edit it.

Each study is a question, a grid of small runs, and the rule by which the answer is read, all fixed before the
first run and kept in its `study.json`; `records.jsonl` has a line a run. Images are CIFAR-10's 50,000 for
training and 10,000 to be asked for, unless it says Omniglot, where characters of other alphabets are asked
for. The network is `small_cnn`, 0.39 million weights, on one thread; runs see 40,000 to 307,200 images, one
to six minutes of one core. So these are answers for the first minutes of training on a small network, no
more: where a paper says otherwise after days on a large one, both can be right.

**Verdict.** *yes* where the 95% interval of the paired difference lies above 0, *no* where it lies below,
*can't tell* otherwise. The interval is over seeds (t distribution), that of adapters over queries (percentile
bootstrap of means over seeds). **Claim.** *confirmed* where the verdict is the paper's answer, *not
confirmed* where it is the opposite. Questions that no paper answers have no claim.
"""


class _Read(NamedTuple):
    """A study as far as it is measured."""

    folder: str
    study: dict[str, Any]
    measured: int
    verdicts: list[Verdict]
    charts: dict[str, Chart]


def claim(verdict: Word, published: str) -> Claim:
    """What a verdict says of a published answer.

    Args:
        verdict: "yes", "no", "can't tell" or "not measured yet".
        published: An answer that begins with yes or no; anything else is none.

    Returns:
        The claim's state.

    Example:
        >>> claim("yes", "yes, by 3 points (fig. 8)"), claim("yes", "no: as good"), claim("no", "not asked")
        ('confirmed', 'not confirmed', 'no claim')
    """
    theirs = published.replace(",", " ").replace(":", " ").partition(" ")[0]
    if theirs not in ("yes", "no"):
        return "no claim"
    if verdict == "can't tell" or verdict == "not measured yet":  # noqa: PLR1714 - the types see this alone
        return verdict
    return "confirmed" if verdict == theirs else "not confirmed"


def studies_report(folder: Path) -> tuple[str, dict[str, str]]:
    """The page of all studies in a folder.

    Args:
        folder: With a folder for each study.

    Returns:
        (Markdown, name of each figure below the folder to its SVG).

    Raises:
        MissingPathError: If there is no study.
        StoreError: If one of them is damaged.
    """
    places = sorted(path for path in folder.iterdir() if is_study(path)) if folder.is_dir() else []
    if not places:
        raise MissingPathError(f"{folder} holds no study; run them with python scripts/studies.py")
    found = [_read(place) for place in places]
    parts = [INTRODUCTION, "## Claims\n", _counted(found), _claims(found), *map(_section, found)]
    drawn = {name: as_svg(chart, is_file=True) for one in found for name, chart in one.charts.items()}
    return "\n".join(parts), drawn


def _read(place: Path) -> _Read:
    study = read_study(place)
    with raises_store_error(str(place), "run the study again, or give back its files as they were written"):
        cells = cells_of(study, records_of(place).read())
        drawn = [
            chart for one in study["figures"] if (chart := figure(one, study["arms"], cells)) is not None
        ]
        charts = {
            f"{FIGURES}/{place.name}-{number}.svg": chart for number, chart in enumerate(drawn, start=1)
        }
        return _Read(place.name, study, sum(map(len, cells.values())), verdict_rows(study, cells), charts)


def _counted(found: Sequence[_Read]) -> str:
    claims = Counter(claim(one.word, one.published) for study in found for one in study.verdicts)
    others = claims.pop("no claim", 0)
    order: tuple[Claim, ...] = ("confirmed", "not confirmed", "can't tell", "not measured yet")
    counts = ", ".join(f"{claims[word]} {word}" for word in order if claims[word])
    return f"Of {claims.total()} claims: {counts}. {others} questions besides, which no paper answers.\n"


def _claims(found: Sequence[_Read]) -> str:
    rows = [
        [f"[{study.folder}](#{study.folder})", one.ask, f"**{one.word}**", claim(one.word, one.published)]
        for study in found for one in study.verdicts
    ]  # fmt: skip
    return table(["study", "question", "verdict", "claim of the paper"], rows)


def _section(one: _Read) -> str:
    study, planned = one.study, sum(int(arm["seeds"]) for arm in one.study["arms"])
    missing = "" if one.measured >= planned else f" {one.measured} of {planned} cells are measured."
    if study.get("is_trial"):
        missing += " A trial: its numbers say nothing."
    lines = [
        f"## {one.folder}\n", f"**{study['asks']}** {study['title']}: {study['source']}.{missing}\n",
        f"Measured: {study['measured']}.\n",
        table(
            ["question", "verdict", "difference [95%]", "published"],
            [[each.ask, f"**{each.word}**", each.because, each.published] for each in one.verdicts],
        ),
    ]  # fmt: skip
    for name, chart in one.charts.items():
        lines += [f"![{chart.title}]({name})\n", *([f"{chart.note}\n"] if chart.note else [])]
    lines.append(f"{study['caveat']}\n")
    return "\n".join(lines)


def write_studies(folder: Path) -> None:
    """Write README.md and its figures into the folder of studies.

    Args:
        folder: With a folder for each study.

    Raises:
        MissingPathError: If there is no study.
        StoreError: If one of them is damaged.
    """
    text, figures = studies_report(folder)
    for name, drawing in {"README.md": text, **figures}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with new_file(folder / name, overwrite=True) as tmp_path:
            tmp_path.write_text(drawing, encoding="utf-8")
