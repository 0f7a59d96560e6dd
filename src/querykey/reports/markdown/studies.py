"""studies/README.md and its figures, from the records of the studies alone."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from querykey.errors import MissingPathError
from querykey.io.atomic import new_file
from querykey.io.study_folder import StoredStudy, is_study, open_study, raises_study_error
from querykey.reports.charts.spec import Chart
from querykey.reports.charts.study import figures
from querykey.reports.charts.svg import as_svg
from querykey.reports.verdicts import Verdict, Word, answers, markdown_table

__all__ = ["Claim", "claim", "studies_report", "write_studies"]

Claim = Literal["confirmed", "not confirmed", "can't tell", "not measured yet", "no claim"]
FIGURES = "figures"
INTRODUCTION = """# The papers' claims at small scale

Written by `make studies` from the records in these folders alone: the same records give the same bytes. Do
not edit it.

Each study is a question, a grid of small runs, and the rule that gives the verdict, all fixed before the
first run and stored in its `study.json`; `records.jsonl` has a line per run. The data are CIFAR-10, 50,000
training and 10,000 test images, unless it says Omniglot, whose test characters are of other alphabets. The
network is `small_cnn`, 0.39 million parameters, on one thread; runs see 40,000 to 307,200 images, one to
six minutes on one core. These are results for the first minutes of training a small network, no more: where
a paper reports otherwise after days of training a large one, both can be right.

**Verdict.** *yes* where the 95% interval of the paired difference lies above 0, *no* where it lies below,
else *can't tell*. The interval is over seeds (t distribution); for adapters it is over queries (percentile
bootstrap of means over seeds). **Claim.** *confirmed* where the verdict is the paper's answer, *not
confirmed* where it is the opposite. Questions that no paper answers have no claim.
"""


class _Evaluated(NamedTuple):
    """A study as far as it is measured, with verdicts, and charts by file name."""

    study: StoredStudy
    verdicts: list[Verdict]
    charts: dict[str, Chart]


def claim(verdict: Word, published: str) -> Claim:
    """Whether a verdict confirms a published answer.

    Args:
        verdict: "yes", "no", "can't tell" or "not measured yet".
        published: An answer that begins with "yes" or "no"; anything else is no claim.

    Returns:
        The state of the claim.

    Example:
        >>> claim("yes", "yes, by 3 points (fig. 8)"), claim("yes", "no: as good"), claim("no", "not asked")
        ('confirmed', 'not confirmed', 'no claim')
    """
    theirs = published.replace(",", " ").replace(":", " ").partition(" ")[0]
    if theirs not in ("yes", "no"):
        return "no claim"
    if verdict == "can't tell" or verdict == "not measured yet":  # noqa: PLR1714 - mypy narrows this form
        return verdict
    return "confirmed" if verdict == theirs else "not confirmed"


def studies_report(folder: Path) -> tuple[str, dict[str, str]]:
    """The page of all studies in a folder.

    Args:
        folder: With a folder per study.

    Returns:
        (Markdown, file name of each figure to its SVG).

    Raises:
        MissingPathError: If there is no study.
        StoreError: If one of them is damaged.
    """
    places = sorted(path for path in folder.iterdir() if is_study(path)) if folder.is_dir() else []
    if not places:
        raise MissingPathError(f"{folder} holds no study; run the studies into this folder first")
    found = [_evaluate(place) for place in places]
    parts = [INTRODUCTION, "## Claims\n", _counted(found), _claims(found), *map(_section, found)]
    drawn = {name: as_svg(chart, is_file=True) for one in found for name, chart in one.charts.items()}
    return "\n".join(parts), drawn


def _evaluate(place: Path) -> _Evaluated:
    study = open_study(place)
    with raises_study_error(place):
        drawn = figures(study)
        names = (f"{FIGURES}/{place.name}-{number}.svg" for number in range(1, len(drawn) + 1))
        return _Evaluated(study, answers(study), dict(zip(names, drawn, strict=True)))


def _counted(found: Sequence[_Evaluated]) -> str:
    claims = Counter(claim(one.word, one.published) for study in found for one in study.verdicts)
    others = claims.pop("no claim", 0)
    order: tuple[Claim, ...] = ("confirmed", "not confirmed", "can't tell", "not measured yet")
    counts = ", ".join(f"{claims[word]} {word}" for word in order if claims[word])
    return f"Of {claims.total()} claims: {counts}. {others} more questions, which no paper answers.\n"


def _claims(found: Sequence[_Evaluated]) -> str:
    rows = []
    for each in found:
        link = f"[{each.study.name}](#{each.study.name})"
        rows += [[link, one.ask, f"**{one.word}**", claim(one.word, one.published)] for one in each.verdicts]
    return markdown_table(["study", "question", "verdict", "claim of the paper"], rows)


def _section(one: _Evaluated) -> str:
    study, measured = one.study.described, sum(map(len, one.study.cells.values()))
    planned = sum(int(arm["seeds"]) for arm in study["arms"])
    missing = "" if measured >= planned else f" {measured} of {planned} cells are measured."
    if study.get("is_trial"):
        missing += " A trial run: its numbers mean nothing."
    rows = [[each.ask, f"**{each.word}**", each.because, each.published] for each in one.verdicts]
    lines = [
        f"## {one.study.name}\n",
        f"**{study['asks']}** {study['title']}: {study['source']}.{missing}\n",
        f"Measured: {study['measured']}.\n",
        markdown_table(["question", "verdict", "difference [95%]", "published"], rows),
    ]
    for name, chart in one.charts.items():
        lines += [f"![{chart.title}]({name})\n", *([f"{chart.note}\n"] if chart.note else [])]
    lines.append(f"{study['caveat']}\n")
    return "\n".join(lines)


def write_studies(folder: Path) -> None:
    """Write README.md and its figures into the folder of studies.

    Args:
        folder: With a folder per study.

    Raises:
        MissingPathError: If there is no study.
        StoreError: If one of them is damaged.
    """
    page, drawings = studies_report(folder)
    for name, text in {"README.md": page, **drawings}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with new_file(folder / name, overwrite=True) as tmp_path:
            tmp_path.write_text(text, encoding="utf-8")
