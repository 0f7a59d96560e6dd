"""The section of a pretraining run, from its records; with features also maps and neighbours."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.io.atomic import raises_store_error
from querykey.io.records import Record
from querykey.reports.charts.spec import Chart, Line, Lines, short, thinned
from querykey.reports.page.blocks import (
    Block,
    Charts,
    CodeBlock,
    Heading,
    Prose,
    Section,
    TableBlock,
    VerdictBlock,
    made_with,
    number,
    number_interval,
    settings_table,
)
from querykey.reports.page.gallery import gallery_blocks
from querykey.reports.page.neighbours import compared_blocks, map_blocks
from querykey.reports.page.reproduce import pretrain_command
from querykey.reports.page.run import CANDIDATES, FALSE_NEGATIVES, Gather, StoredRun, curves, open_run
from querykey.reports.verdicts import verdict, wilson

if TYPE_CHECKING:
    from querykey.runs.report_data import Gathered

__all__ = ["FORMAT", "pretraining_section"]

FORMAT = "querykey pretraining"

CURVES = (
    ("Online kNN", "accuracy on validation images", {"knn": "kNN of h"}),
    ("Effective rank", "dimensions", {"effective_rank_h": "h", "effective_rank_z": "z = g(h)"}),
    ("Pretext task", "share of queries", {"pretext": "solved", "chance": "by chance"}),
    ("Scores of pairs", "mean cosine", {"positive_score": "positives", "negative_score": "negatives",
                                        "hardest_negative": "hardest negative"}),
    ("Age of the keys", "steps", {"age_mean": "mean", "age_max": "oldest"}),
    ("Dictionary", "share of the capacity", {"fill": "fill"}),
    (FALSE_NEGATIVES, "share",
     {"false_negatives_label": "same class", "false_negatives_id": "same item"}),
)  # fmt: skip


def pretraining_section(folder: Path, gather: Gather | None, *, name: str) -> Section:
    """The section of a pretraining.

    Args:
        folder: Of the run, finished or not.
        gather: Computes the results on features of its encoder; None without features.
        name: Of the section.

    Returns:
        The section.

    Raises:
        StoreError: If a file of the run is damaged.
    """
    run, gathered = open_run(folder), None if gather is None else gather()
    with raises_store_error(str(folder), "pretrain again"):
        return _section(run, gathered, name)


def _section(run: StoredRun, gathered: "Gathered | None", sprite: str) -> Section:
    described, settings = run.described, _settings(run.described)
    steps, history = run.of_kind("step"), run.of_kind("look")
    answers = run.verdicts() or _online(history)
    done = steps[-1]["step"] if steps else 0
    summary = []
    if done < settings["steps"]:
        summary.append(f"Not finished: {done:,} of {settings['steps']:,} steps are done.")
    if not answers:
        summary.append("There are no labels, so the embedding cannot be scored.")
    blocks: list[Block] = [Prose(text) for text in summary]
    blocks += [Heading("Verdicts"), *answers] if answers else []
    if answers and not run.evaluations:
        text = (
            "By the online kNN on validation images, with Wilson's 95% intervals: yes where they do not "
            "overlap. For a linear evaluation, with the untrained encoder and raw pixels as baselines: "
            f"querykey evaluate {run.folder} --on TEST-IMAGES --out {run.folder / 'evaluation.json'}"
        )
        blocks.append(Prose(text, is_quiet=True))
    blocks += [*run.evaluation_blocks(), Heading("Curves"), *_curves(steps, history)]
    if gathered is not None:
        blocks += [*compared_blocks(gathered), *map_blocks(gathered, sprite)]
        blocks += gallery_blocks(gathered, sprite)
    blocks += [*_end(history), *_reproduction(described)]
    images = described["data"]["trained_on"]
    about = f"{settings['method']} pretraining of {settings['backbone']['name']} on {images:,} images"
    sprites = {} if gathered is None or gathered.sprite is None else {sprite: gathered.sprite._asdict()}
    return Section(sprite, run.folder.name, about, summary, blocks, sprites, answers)


def _online(history: Sequence[Record]) -> list[VerdictBlock]:
    """Whether the online kNN is better than before the first step."""
    scored = [one for one in history if isinstance(one.get("knn"), float) and one.get("knn_queries")]
    if len(scored) < 2 or scored[0]["step"] != 0:
        return []
    first, last = scored[0], scored[-1]
    count = int(first["knn_queries"])
    before, after = (wilson(round(one["knn"] * count), count) for one in (first, last))
    because = (
        f"kNN {number_interval(last['knn'], *after)} after {last['step']:,} steps, "
        f"{number_interval(first['knn'], *before)} before; {count:,} images"
    )
    # the intervals do not overlap where that of the difference of their ends excludes 0
    word = verdict(after[0] - before[1], last["knn"] - first["knn"], after[1] - before[0])
    return [VerdictBlock("Is h better than that of the untrained encoder?", word, because)]


def _curves(steps: Sequence[Record], history: Sequence[Record]) -> list[Block]:
    """The loss with its candidates, then kNN, then dictionary diagnostics with age and drift."""
    charts: list[Chart] = []
    losses = [(float(s["step"]), float(s["loss"])) for s in steps if isinstance(s.get("loss"), int | float)]
    if losses:
        line = Line("loss", *thinned([x for x, _ in losses], [y for _, y in losses]))
        lines = [line, *_by_chance(history)]
        charts.append(Lines(title="Loss", x="training step", y="loss", lines=lines))
    charts += curves(history, [CANDIDATES, *CURVES, *_drift(history)])
    if not charts:
        return [Prose("Nothing is recorded yet.")]
    text = (
        "With equal scores the loss of a query is the logarithm of the number of its candidates, so the loss "
        "rises while a queue fills. Judge by kNN, not by the loss."
    )
    return [Prose(text), Charts(charts)]


def _by_chance(history: Sequence[Record]) -> list[Line]:
    """The loss with equal scores, a reference line."""
    counted = [(float(one["step"]), float(one["candidates"])) for one in history if one.get("candidates")]
    if not counted:
        return []
    losses = [short(math.log(max(1.0, count))) for _, count in counted]
    return [Line("log of the candidates", [step for step, _ in counted], losses, is_reference=True)]


def _drift(history: Sequence[Record]) -> list[tuple[str, str, dict[str, str]]]:
    """Distance between stored keys and fresh ones, a line per age."""
    ages = sorted({int(name[6:]) for metrics in history for name in metrics if name.startswith("drift_")})
    names = {f"drift_{age}": f"{age:,} steps old" for age in ages}
    return [("Drift of the stored keys", "mean squared distance, 0 to 4", names)]


def _end(history: Sequence[Record]) -> list[Block]:
    if not history:
        return []
    first, last = history[0], history[-1]
    names = [name for name in last if name not in ("kind", "step") and isinstance(last[name], int | float)]
    rows = [[name, _text(first.get(name)), _text(last[name])] for name in sorted(names)]
    head = ["metric", f"step {first['step']:,}", f"step {last['step']:,}"]
    return [Heading("Metrics"), TableBlock(head, rows, "Metrics at the first and at the last evaluation")]


def _text(value: Any) -> str:
    return number(float(value)) if isinstance(value, int | float) else ""


def _reproduction(described: Mapping[str, Any]) -> list[Block]:
    data, processes = described["data"], described.get("processes", 1)
    quiet = [
        f"Images: {data['name']}, {data['images']:,}, fingerprint {data['fingerprint']}.",
        f"Started with {made_with(described)}, {processes} process{'es' * (processes != 1)}.",
    ]
    for change in described.get("changes") or []:
        changed = ", ".join(name for name in change if name != "step")
        quiet.append(f"From step {change['step']:,} on the run had other settings: {changed}.")
    return [
        Heading("How to reproduce it"),
        CodeBlock(pretrain_command(described)),
        *(Prose(text, is_quiet=True) for text in quiet),
        settings_table("Resolved settings", _settings(described)),
    ]


def _settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings of a run, of this version or of 0.1."""
    from querykey.pretraining.settings.settings import PretrainSettings

    return PretrainSettings.from_dict(described["settings"]).as_dict()
