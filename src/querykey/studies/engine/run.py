"""How long the cells of a study may be, for all of them to fit into a time."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from querykey.errors import ConfigError, Notify
from querykey.io.atomic import file_lock, raises_store_error, reserve
from querykey.io.study_folder import is_study, measures_of, read_study, records_of, write_study
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.pretraining.settings.settings import asked_settings
from querykey.runs.pretrain import pretrain
from querykey.studies.engine.features import StudyFeatures
from querykey.studies.engine.grid import Cell, run_grid
from querykey.studies.engine.images import StudyImages
from querykey.studies.engine.measure import measure
from querykey.studies.engine.study import Arm, Study
from querykey.studies.engine.work import Work

__all__ = [
    "Budget",
    "Progress",
    "StudyRun",
    "images_within",
    "run_study",
    "settings_here",
]

LEAST_STEPS = 20
"""Below that a cell says nothing."""


@dataclass(frozen=True)
class Budget:
    """What an arm is given.

    Args:
        images: That it sees.
        words: How that came about, a sentence.
        minutes: For the whole grid; None: as long as it takes.
        step_seconds: Of a step of the first arm, as measured.
        scoring_seconds: Of what each cell takes besides its steps.
    """

    images: int = 0
    words: str = ""
    minutes: float | None = None
    step_seconds: float | None = None
    scoring_seconds: float | None = None


class _Measured(Exception):  # noqa: N818 - no fault: it ends a run that has said what was asked
    pass


def settings_here() -> dict[str, Any]:
    """What all arms share, so that nothing of a cell is measured on a machine that may be busy."""
    return {"layout": "channels_last", "precision": "float32"}


def images_within(
    arms: Sequence[Arm],
    images: StudyImages,
    *,
    seconds: float,
    jobs: int,
    measures: Collection[str] | None = None,
) -> Budget:
    """Measure the first arm, and share a time out over the grid.

    A cell's steps are taken to cost what the first arm's cost an image; arms of dearer networks take longer.

    Args:
        arms: With their seeds.
        images: Of the study.
        seconds: For the whole grid.
        jobs: Cells at once.
        measures: As `Work` has them.

    Returns:
        The budget.

    Raises:
        ConfigError: If the time is too short for every cell to be more than a trial.
    """
    first = arms[0]
    batch, step = _step_seconds(first, images)
    short = replace(first, settings={**settings_here(), **first.settings, "steps": 1, "looks": 0})
    seen = measure(Cell(task="", method="", seed=0, identity={}, work=Work(short, images, 1, measures)))
    trained = [arm for arm in arms if arm.kind != "leak"]  # which takes seconds
    cells, units = sum(arm.seeds for arm in trained), sum(arm.seeds * arm.images for arm in trained)
    fixed = float(seen["seconds"])
    share = (seconds * jobs - cells * fixed) / (units * step)
    if share < LEAST_STEPS:
        needed = math.ceil((cells * fixed + LEAST_STEPS * units * step) / jobs / 60)
        raise ConfigError(
            f"{seconds / 60:g} minutes are too short for {cells} cells that take {fixed:.0f} s each besides "
            f"their steps; {needed} are the least: raise --minutes, or lower --seeds"
        )
    count = int(share * batch)
    return Budget(
        images=count, minutes=seconds / 60, step_seconds=round(step, 4), scoring_seconds=round(fixed, 1),
        words=f"{seconds / 60:g} minutes over {cells} cells: every arm sees {count:,} images; a step takes "
        f"{step:.3f} s and the rest of a cell {fixed:.0f} s",
    )  # fmt: skip


def _step_seconds(arm: Arm, images: StudyImages) -> tuple[int, float]:
    """Images of a step and its seconds, on as many threads as a cell has."""
    found: list[TrainingRun] = []

    def on_fit_start(run: TrainingRun) -> None:
        found.append(run)
        raise _Measured

    with suppress(_Measured):
        pretrain(images.training(), on_fit_start=on_fit_start, minutes=1.0, **settings_here() | arm.settings)
    (run,) = found
    assert run.calibration is not None
    return run.settings.batch_size, run.calibration.seconds


LOCK = "study.lock"
TRIAL_ROWS, TRIAL_STEPS = 80, 2
TRIAL: dict[str, Any] = {
    "backbone": "small_cnn:4", "batch_size": 16, "steps": TRIAL_STEPS, "looks": 1, "held_out": 8,
}  # fmt: skip
"""Of a trial run, in the place of what the arms say: a network and batches that take no time."""
IDENTITY = ("name", "kind", "settings", "threads", "labels_a_class", "epochs")
"""Of an arm: what its numbers depend on."""
BATCH = 256
"""Images a step, where an arm says nothing."""

Progress = Callable[[int, int, Cell, dict[str, Any]], None]


@dataclass(frozen=True)
class StudyRun:
    """A study as it was planned.

    Args:
        folder: With `study.json` and `records.jsonl`.
        described: What `study.json` says.
        cells: All of them.
    """

    folder: Path
    described: dict[str, Any]
    cells: list[Cell]


def run_study(
    study: Study,
    data: StudyImages | StudyFeatures,
    out: str | Path,
    *,
    seeds: int | None = None,
    minutes: float | None = None,
    is_trial: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> StudyRun:
    """Measure the cells of a study that have no record yet.

    What was planned first stays: steps, seeds and data are in `study.json`, and a study that goes on takes
    them from there.

    Args:
        study: Which.
        data: On what.
        out: Its folder: a new one, or that of the same study, which goes on.
        seeds: At most so many; None: as many as each arm has.
        minutes: Time for the whole grid, from which the length of each cell follows; None: the study's own.
        is_trial: Whether a few steps on a few images are enough: to see that all works, not to learn.
        jobs: Cells at once, each in its own process with one thread.
        progress: Called after each cell with (cells done now, cells to do now, cell, its record).
        notify: Called with what is worth knowing.

    Returns:
        The study.

    Raises:
        ConfigError: If `out` holds another study, or this one on other data; or the time is too short.
        DataError: If the images have no labels.
        OutputExistsError: If something else is at `out`.
    """
    folder, notify = Path(out), notify or (lambda _: None)
    if is_trial:
        data = replace(data, most=TRIAL_ROWS)
    with ExitStack() as lock:
        if is_study(folder):
            lock.enter_context(file_lock(folder / LOCK))
            described = _planned_before(folder, study, data)
            notify(f"{folder} goes on as it was planned")
        else:
            with reserve(folder):
                described, budget = _plan(
                    study, data, seeds=seeds, minutes=minutes, is_trial=is_trial, jobs=jobs
                )
                write_study(folder, described)
                lock.enter_context(file_lock(folder / LOCK))
            notify(budget.words)
        cells = _cells(described, _arms_of(described), data)
        run_grid(cells, records_of(folder), measure, jobs=jobs, told=progress)
    return StudyRun(folder, described, cells)


def _planned_before(folder: Path, study: Study, data: StudyImages | StudyFeatures) -> dict[str, Any]:
    """What study.json says, if it is of this study and these data."""
    described = read_study(folder)
    with raises_store_error(f"{folder}: the plan of the study", "give a new folder with --out"):
        begun, on = str(described["name"]), dict(described["data"])
        _arms_of(described)
    _require_same(folder, study, data.describe(), begun=begun, on=on)
    return described


def _arms_of(described: dict[str, Any]) -> list[Arm]:
    """The arms that study.json describes."""
    return [Arm(**arm | {"data": tuple(arm["data"])}) for arm in described["arms"]]


def _plan(
    study: Study, data: StudyImages | StudyFeatures, *, seeds: int | None, minutes: float | None,
    is_trial: bool, jobs: int,
) -> tuple[dict[str, Any], Budget]:  # fmt: skip
    """What study.json says of a new study."""
    about = data.describe()
    arms = [replace(arm, seeds=min(arm.seeds, seeds or arm.seeds)) for arm in study.arms]
    if isinstance(data, StudyImages):
        arms = [_with_memory(arm, about["trained_on"]) for arm in arms]
        _require_possible(arms, about)
        arms, budget = _planned(study, arms, data, minutes=minutes, is_trial=is_trial, jobs=jobs)
    else:
        if minutes is not None:
            raise ConfigError("fits of adapters end by themselves, in seconds each; leave out --minutes")
        arms, budget = _fits(arms, data, about, is_trial=is_trial)
    return _description(study, arms, about, budget, is_trial=is_trial), budget


def _require_possible(arms: list[Arm], about: dict[str, Any]) -> None:
    """See that the images have what every arm needs, such as colours, before anything is written."""
    for arm in arms:
        if arm.kind != "leak":
            given = {**arm.settings, "steps": 1}
            asked = asked_settings(given.pop("method", None), None, given)
            settings = resolve_settings(
                asked, images=about["trained_on"], channels=about["channels"], side=about["side"]
            )
            settings.make_second_views(about["channels"])


def _fits(
    arms: list[Arm], features: StudyFeatures, about: dict[str, Any], *, is_trial: bool
) -> tuple[list[Arm], Budget]:
    """Adapters and projections that the features are wide enough for, and have what they need."""
    has = "documents" if features.task().queries is not None else "labels"
    arms = [arm for arm in arms if arm.settings.get("dim", 0) <= about["width"] and arm.needs in (None, has)]
    if not is_trial:
        return arms, Budget(words=f"{sum(arm.seeds for arm in arms)} fits, each until its guard sees no gain")
    short = [
        replace(
            arm, seeds=1, settings=arm.settings | ({"steps": TRIAL_STEPS} if arm.kind == "adapter" else {})
        )
        for arm in arms
    ]
    return short, Budget(words=f"a trial: {TRIAL_STEPS} steps on {TRIAL_ROWS} rows, one seed")


def _planned(
    study: Study, arms: list[Arm], images: StudyImages, *, minutes: float | None, is_trial: bool, jobs: int
) -> tuple[list[Arm], Budget]:
    """The arms with their steps, and how they came about."""
    if is_trial:
        return [_shortened(arm) for arm in arms], Budget(
            words=f"a trial: {TRIAL_STEPS} steps on {TRIAL_ROWS} images, one seed"
        )
    if minutes is None:
        budget = Budget(images=study.images, words=f"every arm sees {study.images:,} images")
    else:
        measures = measures_of(asdict(study))
        budget = images_within(arms, images, seconds=60 * minutes, jobs=jobs, measures=measures)
    return [replace(arm, settings=_lengthened(arm, budget)) for arm in arms], budget


def _shortened(arm: Arm) -> Arm:
    """An arm of a trial."""
    if arm.kind == "leak":
        return replace(arm, seeds=1, settings={**arm.settings, "steps": TRIAL_STEPS, "tests": TRIAL_STEPS})
    few = None if arm.labels_a_class is None else min(arm.labels_a_class, 2)
    settings = settings_here() | arm.settings | TRIAL
    return replace(arm, seeds=1, settings=settings, labels_a_class=few, epochs=1)


def _with_memory(arm: Arm, count: int) -> Arm:
    """With the capacity that its share of the images comes to."""
    if arm.memory_ratio is None:
        return arm
    least = int(arm.settings.get("batch_size", BATCH))
    memory: dict[str, float] = {"capacity": max(least, round(arm.memory_ratio * count))}
    if arm.memory_ratio == 0:
        memory |= {"memory_weight": 0.0}
    return replace(arm, settings={**arm.settings, **memory})


def _lengthened(arm: Arm, budget: Budget) -> dict[str, Any]:
    """An arm's settings with as many steps as its batches need for the images it sees."""
    if arm.kind == "leak":  # noise, of a length of its own
        return arm.settings
    batch = arm.settings.get("batch_size", BATCH)
    steps = max(1, round(budget.images * arm.images / batch))
    return {**settings_here(), "looks": 2, "steps": steps, **arm.settings}


def _cells(described: dict[str, Any], arms: list[Arm], data: StudyImages | StudyFeatures) -> list[Cell]:
    """Seed by seed: what was measured of every arm can be read before anything is measured twice."""
    last, measures = max(arm.seeds for arm in arms), measures_of(described)
    fingerprint = described["data"]["fingerprint"]
    return [
        Cell(
            task=described["name"], method=arm.name, seed=seed,
            work=Work(arm, data, arm.threads, measures),
            identity={name: getattr(arm, name) for name in IDENTITY} | {"data": fingerprint},
        )
        for seed in range(last)
        for arm in arms
        if seed < arm.seeds
    ]  # fmt: skip


def _description(
    study: Study, arms: list[Arm], about: dict[str, Any], budget: Budget, *, is_trial: bool
) -> dict[str, Any]:
    steps = {arm.settings["steps"] for arm in arms if "steps" in arm.settings}
    length = (
        ""
        if not steps
        else f", {min(steps):,} steps"
        if len(steps) == 1
        else (f", {min(steps):,} to {max(steps):,} steps")
    )
    names = {arm.name for arm in arms}
    asked = [one for one in study.asked if {one.ours[0], one.theirs[0]} <= names]
    return {
        "name": study.name, "title": study.title, "asks": study.asks,
        "source": study.source, "caveat": study.caveat, "is_trial": is_trial,
        "measured": f"{study.measured}, {about['name']}{length}",
        "published": {"what": study.published.what, "rows": [list(row) for row in study.published.rows]},
        "data": about, "budget": asdict(budget),
        "arms": [asdict(arm) for arm in arms],
        "asked": [asdict(one) for one in asked], "figures": [asdict(one) for one in study.figures],
    }  # fmt: skip


def _require_same(
    folder: Path, study: Study, about: dict[str, Any], *, begun: str, on: dict[str, Any]
) -> None:
    if begun != study.name:
        raise ConfigError(f"{folder} holds the study {begun}, not {study.name}; give a new folder with --out")
    if on.get("fingerprint") != about["fingerprint"]:
        raise ConfigError(
            f"{folder}: the study was begun on {on.get('name')}, and the data are not the same now; give "
            "those, with the same options, or a new folder with --out"
        )
