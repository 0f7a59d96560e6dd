"""The section of a pretraining run, from its records; with features also maps and neighbours."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.io.atomic import raises_store_error
from querykey.io.records import Record, read
from querykey.reports.charts.spec import Chart, Line, Lines, short, thinned
from querykey.reports.page.adapter import FALSE, METRICS, RUN, curves, read_described
from querykey.reports.page.blocks import (
    Block,
    Charts,
    CodeBlock,
    Heading,
    Prose,
    Section,
    TableBlock,
    VerdictBlock,
    candidates_chart,
    made_with,
    number,
    settings_table,
)
from querykey.reports.page.evaluation import evaluation_blocks, evaluations, judged
from querykey.reports.page.gallery import gallery_blocks
from querykey.reports.page.neighbours import compared_blocks, map_blocks
from querykey.reports.page.reproduce import pretrain_command
from querykey.reports.verdicts import verdict, wilson

if TYPE_CHECKING:
    from querykey.runs.report_data import Gathered

__all__ = ["FORMAT", "pretraining_section"]

FORMAT = "querykey pretraining"
Gather = Callable[[], "Gathered"]

CURVES = (
    ("Online kNN", "accuracy on validation images", {"knn": "kNN of h"}),
    ("Effective rank", "dimensions", {"effective_rank_h": "h", "effective_rank_z": "z = g(h)"}),
    ("Pretext task", "share of queries", {"pretext": "solved", "chance": "by chance"}),
    ("Scores of pairs", "mean cosine", {"positive_score": "positives", "negative_score": "negatives",
                                        "hardest_negative": "hardest negative"}),
    ("Age of the keys", "steps", {"age_mean": "mean", "age_max": "oldest"}),
    ("Dictionary", "share of the capacity", {"fill": "fill"}),
    (FALSE, "share", {"false_negatives_label": "same class", "false_negatives_id": "same item"}),
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
    described = read_described(folder / RUN)
    records = read(folder / METRICS) if (folder / METRICS).is_file() else []
    found, gathered = evaluations(folder), None if gather is None else gather()
    with raises_store_error(str(folder), "pretrain again"):
        return _section(folder, name, described, records, found, gathered)


def _section(
    folder: Path, sprite: str, described: Mapping[str, Any], records: Sequence[Record],
    found: Mapping[str, dict[str, Any]], gathered: "Gathered | None",
) -> Section:  # fmt: skip
    settings = _settings(described)
    history = [record for record in records if record["kind"] == "look"]
    steps = [record for record in records if record["kind"] == "step"]
    answers = [answer for one in found.values() for answer in judged(one)]
    if not answers:
        answers = _online(history)
    done = steps[-1]["step"] if steps else 0
    summary = []
    if done < settings["steps"]:
        summary.append(f"Not finished: {done:,} of {settings['steps']:,} steps are done.")
    if not answers:
        summary.append("There are no labels, so the embedding cannot be scored.")
    blocks: list[Block] = [Prose(text) for text in summary]
    blocks += [Heading("Verdicts"), *answers] if answers else []
    if answers and not found:
        blocks.append(Prose(
            "By the online kNN on validation images, with Wilson's 95% intervals: yes where they do not "
            "overlap. For a linear evaluation, with the untrained encoder and raw pixels as baselines: "
            f"querykey evaluate {folder} --on TEST-IMAGES --out {folder / 'evaluation.json'}", is_quiet=True,
        ))  # fmt: skip
    for name, one in found.items():
        blocks += evaluation_blocks(name, one)
    blocks += [Heading("Curves"), *_curves(steps, history)]
    if gathered is not None:
        blocks += [
            *compared_blocks(gathered),
            *map_blocks(gathered, sprite),
            *gallery_blocks(gathered, sprite),
        ]
    blocks += [*_end(history), *_repeat(described)]
    images = described["data"]["trained_on"]
    about = f"{settings['method']} pretraining of {settings['backbone']['name']} on {images:,} images"
    sprites = {} if gathered is None or gathered.sprite is None else {sprite: gathered.sprite._asdict()}
    return Section(sprite, folder.name, about, summary, blocks, sprites, answers)


def _online(history: Sequence[Record]) -> list[VerdictBlock]:
    """Whether the online kNN is better than before the first step."""
    scored = [one for one in history if isinstance(one.get("knn"), float) and one.get("knn_queries")]
    if len(scored) < 2 or scored[0]["step"] != 0:
        return []
    first, last = scored[0], scored[-1]
    count = int(first["knn_queries"])
    before, after = (wilson(round(one["knn"] * count), count) for one in (first, last))
    because = (
        f"kNN {number(last['knn'])} [{number(after[0])}, {number(after[1])}] after {last['step']:,} steps, "
        f"{number(first['knn'])} [{number(before[0])}, {number(before[1])}] before; {count:,} images"
    )
    # the intervals do not overlap where that of the difference of their ends excludes 0
    word = verdict(after[0] - before[1], last["knn"] - first["knn"], after[1] - before[0])
    return [VerdictBlock("Is h better than that of the untrained encoder?", word, because)]


def _curves(steps: Sequence[Record], history: Sequence[Record]) -> list[Block]:
    """The loss with its candidates, then kNN, then dictionary diagnostics with age and drift."""
    charts: list[Chart] = []
    candidates = {
        float(metrics["step"]): float(metrics["candidates"])
        for metrics in history
        if metrics.get("candidates")
    }
    if steps:
        points = [
            (float(s["step"]), float(s["loss"])) for s in steps if isinstance(s.get("loss"), int | float)
        ]
        if points:
            line = Line("loss", *thinned([x for x, _ in points], [y for _, y in points]))
            charts.append(
                Lines(title="Loss", x="training step", y="loss", lines=[line, *_by_chance(candidates)])
            )
    if candidates:
        line = Line("candidates", list(candidates), list(candidates.values()))
        charts.append(candidates_chart(line))
    charts += curves(history, CURVES, without=("loss",)) + _drift(history)
    if not charts:
        return [Prose("Nothing is recorded yet.")]
    text = (
        "With equal scores the loss of a query is the logarithm of the number of its candidates, so the loss "
        "rises while a queue fills. Judge by kNN, not by the loss."
    )
    return [Prose(text), Charts(charts)]


def _by_chance(candidates: Mapping[float, float]) -> list[Line]:
    if not candidates:
        return []
    chance = [short(math.log(max(1.0, count))) for count in candidates.values()]
    return [Line("log of the candidates", list(candidates), chance, is_reference=True)]


def _drift(history: Sequence[Record]) -> list[Chart]:
    """Distance between stored keys and fresh ones, a line per age."""
    names = sorted(
        {name for metrics in history for name in metrics if name.startswith("drift_")},
        key=lambda name: int(name[6:]),
    )
    wanted = {name: f"{int(name[6:]):,} steps old" for name in names}
    return (
        curves(history, [("Drift of the stored keys", "mean squared distance, 0 to 4", wanted)])
        if wanted
        else []
    )


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


def _repeat(described: Mapping[str, Any]) -> list[Block]:
    data = described["data"]
    changes = [
        f"from step {c['step']:,} on: {', '.join(k for k in c if k != 'step')}"
        for c in described.get("changes") or []
    ]
    return [
        Heading("How to reproduce it"),
        CodeBlock(pretrain_command(described)),
        Prose(
            f"Images: {data['name']}, {data['images']:,}, fingerprint {data['fingerprint']}.", is_quiet=True
        ),
        Prose(
            f"Started with {made_with(described)}, {described.get('processes', 1)} process.", is_quiet=True
        ),
        *(Prose(f"The run changed its settings: {words}.", is_quiet=True) for words in changes),
        settings_table("Resolved settings", _settings(described)),
    ]


def _settings(described: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings of a run, of this version or of 0.1."""
    from querykey.pretraining.settings.settings import PretrainSettings

    return PretrainSettings.from_dict(described["settings"]).as_dict()
