"""A pretraining's run -> its section, from its records; maps and neighbours where features are given."""

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
    Code,
    Heading,
    Prose,
    Section,
    TableBlock,
    VerdictBlock,
    Word,
    candidates_chart,
    made_with,
    number,
    settings_table,
)
from querykey.reports.page.evaluation import evaluation_blocks, evaluations, judged
from querykey.reports.page.gallery import gallery_blocks
from querykey.reports.page.neighbours import compared_blocks, map_blocks
from querykey.reports.page.reproduce import pretrain_command
from querykey.reports.verdicts import wilson

if TYPE_CHECKING:
    from querykey.runs.report_data import Gathered

__all__ = ["FORMAT", "pretraining_section"]

FORMAT = "querykey pretraining"
Gather = Callable[[], "Gathered"]

LOOKED = (
    ("Online kNN", "share of the held-out images right", {"knn": "kNN of h"}),
    ("Effective rank", "directions in use", {"effective_rank_h": "h", "effective_rank_z": "z = g(h)"}),
    ("Pretext task", "share of the queries right", {"pretext": "solved", "chance": "by chance"}),
    ("Scores of pairs", "mean cosine", {"positive_score": "positives", "negative_score": "negatives",
                                        "hardest_negative": "hardest negative"}),
    ("Age of the keys", "steps", {"age_mean": "mean", "age_max": "oldest"}),
    ("Dictionary", "share of the capacity", {"fill": "filled"}),
    (FALSE, "share", {"false_negatives_label": "own class", "false_negatives_id": "own item"}),
)  # fmt: skip


def pretraining_section(folder: Path, gather: Gather | None, *, name: str) -> Section:
    """The section of a pretraining.

    Args:
        folder: Of the run, finished or not.
        gather: Gives what features show of its encoder; None where none are given.
        name: Of the section.

    Returns:
        The section.

    Raises:
        StoreError: If a file of the run is damaged.
    """
    described = read_described(folder / RUN)
    records = read(folder / METRICS) if (folder / METRICS).is_file() else []
    found, seen = evaluations(folder), None if gather is None else gather()
    with raises_store_error(str(folder), "pretrain again"):
        return _section(folder, name, described, records, found, seen)


def _section(
    folder: Path, sheet: str, described: Mapping[str, Any], records: Sequence[Record],
    found: Mapping[str, dict[str, Any]], seen: "Gathered | None",
) -> Section:  # fmt: skip
    settings = described["settings"]
    looks = [record for record in records if record["kind"] == "look"]
    steps = [record for record in records if record["kind"] == "step"]
    answers = [answer for one in found.values() for answer in judged(one)]
    if not answers:
        answers = _online(looks)
    taken = steps[-1]["step"] if steps else 0
    summary = []
    if taken < settings["steps"]:
        summary.append(f"Not finished: {taken:,} of {settings['steps']:,} steps are taken.")
    if not answers:
        summary.append("There are no labels, so nothing says what the embedding is good for.")
    blocks: list[Block] = [Prose(words) for words in summary]
    blocks += [Heading("Verdicts"), *answers] if answers else []
    if answers and not found:
        blocks.append(Prose(
            "By the online kNN on images held out, with Wilson's 95% intervals: yes where they do not "
            "overlap. For a linear evaluation beside the untrained encoder and raw pixels: "
            f"querykey evaluate {folder} --on TEST-IMAGES --out {folder / 'evaluation.json'}", is_quiet=True,
        ))  # fmt: skip
    for name, one in found.items():
        blocks += evaluation_blocks(name, one)
    blocks += [Heading("Curves"), *_curves(steps, looks)]
    if seen is not None:
        blocks += [*compared_blocks(seen), *map_blocks(seen, sheet), *gallery_blocks(seen, sheet)]
    blocks += [*_end(looks), *_repeat(described)]
    images = described["data"]["trained_on"]
    about = f"{settings['method']} pretraining of {settings['backbone']} on {images:,} images"
    sheets = {} if seen is None or seen.sheet is None else {sheet: seen.sheet._asdict()}
    return Section(sheet, folder.name, about, summary, blocks, sheets, answers)


def _online(looks: Sequence[Record]) -> list[VerdictBlock]:
    """Whether the online kNN is better than before the first step."""
    asked = [look for look in looks if isinstance(look.get("knn"), float) and look.get("knn_queries")]
    if len(asked) < 2 or asked[0]["step"] != 0:
        return []
    first, last = asked[0], asked[-1]
    count = int(first["knn_queries"])
    before, after = (wilson(round(one["knn"] * count), count) for one in (first, last))
    words = (
        f"kNN {number(last['knn'])} [{number(after[0])}, {number(after[1])}] after {last['step']:,} steps, "
        f"{number(first['knn'])} [{number(before[0])}, {number(before[1])}] before; {count:,} images"
    )
    word: Word = "yes" if after[0] > before[1] else "no" if after[1] < before[0] else "can't tell"
    return [VerdictBlock("Is h better than that of the untrained encoder?", word, words)]


def _curves(steps: Sequence[Record], looks: Sequence[Record]) -> list[Block]:
    """The loss with its candidates first, then what it is good for, then health with age and drift."""
    charts: list[Chart] = []
    candidates = {float(look["step"]): float(look["candidates"]) for look in looks if look.get("candidates")}
    if steps:
        there = [
            (float(s["step"]), float(s["loss"])) for s in steps if isinstance(s.get("loss"), int | float)
        ]
        if there:
            line = Line("loss", *thinned([x for x, _ in there], [y for _, y in there]))
            charts.append(
                Lines(title="Loss", x="steps taken", y="loss", lines=[line, *_by_chance(candidates)])
            )
    if candidates:
        line = Line("candidates", list(candidates), list(candidates.values()))
        charts.append(candidates_chart(line))
    charts += curves(looks, LOOKED, without=("loss",)) + _drift(looks)
    if not charts:
        return [Prose("Nothing is recorded yet.")]
    words = (
        "The loss of a query with equal scores everywhere is the logarithm of its candidates: while a queue "
        "fills, the loss rises with it. Judge by kNN, not by the loss."
    )
    return [Prose(words), Charts(charts)]


def _by_chance(candidates: Mapping[float, float]) -> list[Line]:
    if not candidates:
        return []
    chance = [short(math.log(max(1.0, count))) for count in candidates.values()]
    return [Line("log of the candidates", list(candidates), chance, is_reference=True)]


def _drift(looks: Sequence[Record]) -> list[Chart]:
    """How far stored keys are from fresh ones, a line an age."""
    names = sorted(
        {name for look in looks for name in look if name.startswith("drift_")}, key=lambda name: int(name[6:])
    )
    wanted = {name: f"{int(name[6:]):,} steps old" for name in names}
    return (
        curves(looks, [("Drift of the stored keys", "mean squared distance, 0 to 4", wanted)])
        if wanted
        else []
    )


def _end(looks: Sequence[Record]) -> list[Block]:
    if not looks:
        return []
    first, last = looks[0], looks[-1]
    names = [name for name in last if name not in ("kind", "step") and isinstance(last[name], int | float)]
    rows = [[name, _known(first.get(name)), _known(last[name])] for name in sorted(names)]
    head = ["monitor", f"step {first['step']:,}", f"step {last['step']:,}"]
    return [Heading("Health"), TableBlock(head, rows, "What the monitors saw first and last")]


def _known(value: Any) -> str:
    return number(float(value)) if isinstance(value, int | float) else ""


def _repeat(described: Mapping[str, Any]) -> list[Block]:
    data = described["data"]
    changes = [
        f"from step {c['step']:,} on: {', '.join(k for k in c if k != 'step')}"
        for c in described.get("changes") or []
    ]
    return [
        Heading("How to repeat it"),
        Code(pretrain_command(described)),
        Prose(
            f"Images: {data['name']}, {data['images']:,}, fingerprint {data['fingerprint']}.", is_quiet=True
        ),
        Prose(f"Begun with {made_with(described)}, {described.get('processes', 1)} process.", is_quiet=True),
        *(Prose(f"The run changed settings itself, {words}.", is_quiet=True) for words in changes),
        settings_table("The run as it was resolved", described["settings"]),
    ]
