"""Plans the cells of a study within a budget, measures them, and resumes where it was stopped."""

import math
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from querykey.adapter.settings import PRESETS, AdapterSettings
from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current
from querykey.errors import ConfigError, Notify
from querykey.io.atomic import file_lock, raises_store_error, reserve
from querykey.io.study_folder import (
    is_study,
    measures_of,
    read_study,
    records_of,
    shown_measures,
    write_study,
)
from querykey.pretraining.run import TrainingRun
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.runs.pretrain import pretrain
from querykey.studies.engine.data import StudyFeatures, StudyImages
from querykey.studies.engine.grid import Cell, Progress, Work, run_grid
from querykey.studies.engine.measure import measure_cell, protocol_of
from querykey.studies.engine.study import Arm, Study

__all__ = ["FIXED", "Budget", "StudyRun", "identity_of", "images_within", "plan_study", "run_study"]

ADDED_SETTINGS = ("dims", "bits", "ladder", "size_weights", "rotation", "precision")
"""Of a fit, added since records were stored: left out of the key of a cell where they change nothing."""

FIXED: dict[str, Any] = {"layout": "channels_last", "precision": "float32"}
"""Settings of all arms that `pretrain` would otherwise choose by timing, on a machine that may be busy."""
LOOKS = 2
"""Evaluations of a cell, unless its arm says otherwise."""
MIN_STEPS = 20
"""Fewer steps of an arm are refused."""
LOCK = "study.lock"
TRIAL_ROWS, TRIAL_STEPS = 80, 2
TRIAL: dict[str, Any] = {
    "backbone": "small_cnn:4", "batch_size": 16, "steps": TRIAL_STEPS, "looks": 1, "held_out": 8,
}  # fmt: skip
"""Settings of a trial run, which override those of the arms: a small network, small batches."""
IDENTITY = ("name", "kind", "settings", "threads", "labels_a_class", "epochs")
"""Fields of an arm that its numbers depend on."""
BATCH = 256
"""Batch size, where an arm gives none."""
UNTRAINED = ("leak", "pixels")
"""Kinds of arms on images that train no encoder on them."""


@dataclass(frozen=True)
class Budget:
    """The length of the runs of a study.

    Args:
        images: Training images that each arm sees.
        words: A sentence about it.
        minutes: For the whole grid; None: no limit.
        step_seconds: Seconds of a step of the first arm, as measured.
        scoring_seconds: Seconds of a cell besides its steps.
    """

    images: int = 0
    words: str = ""
    minutes: float | None = None
    step_seconds: float | None = None
    scoring_seconds: float | None = None


class _Stop(Exception):  # noqa: N818 - no error: ends a run once it is calibrated
    pass


def images_within(
    arms: Sequence[Arm],
    images: StudyImages,
    *,
    seconds: float,
    jobs: int,
    measures: Collection[str] | None = None,
) -> Budget:
    """Measure the first arm, and divide a time among the cells of the grid.

    Assumes that an image costs the same in all arms; arms with larger networks take longer.

    Args:
        arms: With their seeds.
        images: Data of the study.
        seconds: For the whole grid.
        jobs: Cells that run at once.
        measures: See `Work`.

    Returns:
        The budget.

    Raises:
        ConfigError: If the time is too short.
    """
    first = arms[0]
    batch, step, evaluation = _step_seconds(first, images)
    short = replace(first, settings={**FIXED, **first.settings, "steps": 1, "looks": 0})
    measured = measure_cell(
        Cell(task="", method="", seed=0, identity={}, work=Work(short, images, 1, measures))
    )
    trained = [arm for arm in arms if arm.kind != "leak"]  # a leak takes seconds
    cells, units = sum(arm.seeds for arm in trained), sum(arm.seeds * arm.images for arm in trained)
    looks = int(first.settings.get("looks", LOOKS))
    fixed = float(measured["seconds"]) + looks * evaluation  # it was measured without
    share = (seconds * jobs - cells * fixed) / (units * step)
    if share < MIN_STEPS:
        needed = math.ceil((cells * fixed + MIN_STEPS * units * step) / jobs / 60)
        raise ConfigError(
            f"{seconds / 60:g} minutes are too short for {cells} cells that take {fixed:.0f} s each besides "
            f"their steps; {needed} are the least: raise the minutes, or lower the seeds"
        )
    count = int(share * batch)
    words = (
        f"{seconds / 60:g} minutes over {cells} cells: every arm sees {count:,} images; a step takes "
        f"{step:.3f} s and the rest of a cell {fixed:.0f} s"
    )
    return Budget(count, words, seconds / 60, round(step, 4), round(fixed, 1))


def _step_seconds(arm: Arm, images: StudyImages) -> tuple[int, float, float]:
    """(batch size, seconds of a step, of an evaluation), on the threads of a cell."""
    found: list[TrainingRun] = []

    def on_fit_start(run: TrainingRun) -> None:
        found.append(run)
        raise _Stop

    with suppress(_Stop):
        settings = current(FIXED | arm.settings, PRETRAINING, warn=False)
        pretrain(images.training(), on_fit_start=on_fit_start, minutes=1.0, **settings)
    (run,) = found
    assert run.calibration is not None
    return run.settings.batch_size, run.calibration.seconds, run.calibration.evaluation_seconds or 0.0


@dataclass(frozen=True)
class StudyRun:
    """A study with its plan.

    Args:
        folder: With `study.json` and `records.jsonl`.
        described: Content of `study.json`.
        cells: All cells.
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

    The plan is made once: steps, seeds and data are in `study.json`, and a resumed study reads them from
    there.

    Args:
        study: The study.
        data: Its data.
        out: Its folder: a new one, or that of the same study, which is resumed.
        seeds: Number of seeds, at most; None: that of each arm.
        minutes: For the whole grid; determines the length of each cell. None: the study's own length.
        is_trial: Whether to train a few steps on a few rows, to test that everything works.
        jobs: Cells that run at once, each in its own process with one thread.
        progress: Called after each cell.
        notify: Called with messages for the user.

    Returns:
        The study with its plan.

    Raises:
        ConfigError: If `out` holds another study, or this one on other data; or the time is too short.
        DataError: If the images have no labels.
        OutputExistsError: If something else is at `out`.
    """
    folder, notify = Path(out), notify or (lambda _: None)
    if is_trial:
        data = replace(data, max_rows=TRIAL_ROWS)
    with ExitStack() as lock:
        if is_study(folder):
            lock.enter_context(file_lock(folder / LOCK))
            described = _read_plan(folder, study, data)
            notify(f"{folder} is resumed as it was planned")
        else:
            with reserve(folder):
                described = plan_study(
                    study, data, seeds=seeds, minutes=minutes, is_trial=is_trial, jobs=jobs
                )
                write_study(folder, described)
                lock.enter_context(file_lock(folder / LOCK))
            notify(described["budget"]["words"])
        cells = _cells(described, _arms_of(described), data)
        # an arm that uses all cores runs alone
        alone = [cell for cell in cells if cell.work.arm.threads == 0]
        others = [cell for cell in cells if cell.work.arm.threads]
        for some, count in ((alone, 1), (others, jobs)):
            run_grid(some, records_of(folder), measure_cell, jobs=count, progress=progress)
    return StudyRun(folder, described, cells)


def plan_study(
    study: Study,
    data: StudyImages | StudyFeatures,
    *,
    seeds: int | None = None,
    minutes: float | None = None,
    is_trial: bool = False,
    jobs: int = 1,
) -> dict[str, Any]:
    """The plan of a study, as `study.json` stores it.

    Args:
        study: The study.
        data: Its data.
        seeds: See `run_study`, as for the others.
        minutes: For the whole grid.
        is_trial: Whether it is a trial run.
        jobs: Cells that run at once.

    Returns:
        Question, arms with resolved lengths, data, budget, figures.

    Raises:
        ConfigError: If the data lack something that an arm needs; or the time is too short.
        DataError: If the images have no labels.
    """
    about = data.describe()
    arms = [replace(arm, seeds=min(arm.seeds, seeds or arm.seeds)) for arm in study.arms]
    if isinstance(data, StudyImages):
        arms = [_with_capacity(arm, about["trained_on"]) for arm in arms]
        _check_settings(arms, about)
        arms, budget = _plan_pretraining(study, arms, data, minutes=minutes, is_trial=is_trial, jobs=jobs)
    else:
        if minutes is not None:
            raise ConfigError("fits of adapters end by themselves, in seconds each; leave out the minutes")
        arms, budget = _plan_fits(arms, data, about, is_trial=is_trial)
    return _description(study, arms, about, budget, is_trial=is_trial)


def identity_of(described: dict[str, Any], arm: Arm, data: StudyImages | StudyFeatures) -> dict[str, Any]:
    """Everything that the numbers of an arm depend on: another identity is another cell.

    The studies behind docs/results.md have two identities of their own, under which their records were
    written. "data set": the data by name and splits, not by fingerprint. "fit": the resolved settings of an
    adapter with the recipes that fill what they leave open, so that a changed default is measured again.

    Args:
        described: Content of `study.json`.
        arm: One of its arms.
        data: Data of the study.

    Returns:
        The identity, as JSON.
    """
    about = described["data"]
    match described.get("identity", "plan"):
        case "data set":
            splits = [about["train"]["split"], about["test"]["split"]]
            return {
                "kind": arm.kind, "data": about["name"], "splits": splits, "settings": arm.settings,
                "threads": _threads(arm),
            }  # fmt: skip
        case "fit":
            assert isinstance(data, StudyFeatures)
            recipes = {kind: [preset._asdict() for preset in some] for kind, some in PRESETS.items()}
            if "method" in arm.settings:
                found = {
                    "settings": arm.settings, "metrics": shown_measures(described), "features": data.keys(),
                    "threads": _threads(arm),
                }  # fmt: skip
                found |= {} if arm.pairs is None else {"pairs": arm.pairs}
                return found | ({"recipes": recipes} if arm.kind == "adapter" else {})
            identity = {
                "dim": arm.settings["dim"], "metrics": shown_measures(described), "features": data.keys(),
                "protocol": asdict(protocol_of(tuple(described["knn"]))), "per_class": arm.labels_a_class,
                "pairs": arm.pairs, "kind": arm.kind,
            }  # fmt: skip
            if arm.kind != "adapter":
                return identity | {"name": arm.name}
            settings = AdapterSettings.from_parameters(**arm.settings).as_parameters()
            settings.pop("seed")
            default = AdapterSettings().as_parameters()
            for name in ADDED_SETTINGS:
                if settings[name] == default[name]:
                    del settings[name]
            return identity | {"settings": settings, "recipes": recipes, "threads": _threads(arm)}
        case _:
            identity = {name: getattr(arm, name) for name in IDENTITY} | {"data": about["fingerprint"]}
            return identity if arm.pairs is None else identity | {"pairs": arm.pairs}


def _threads(arm: Arm) -> int:
    return arm.threads or os.cpu_count() or 1


def _read_plan(folder: Path, study: Study, data: StudyImages | StudyFeatures) -> dict[str, Any]:
    """Content of study.json, if it is of this study and of these data."""
    described = read_study(folder)
    with raises_store_error(f"{folder}: the plan of the study", "give a new folder"):
        name, planned_on = str(described["name"]), dict(described["data"])
        _arms_of(described)
    if name != study.name:
        raise ConfigError(f"{folder} holds the study {name}, not {study.name}; give a new folder")
    # None: planned by version 0.1, which stored no fingerprint in the plan of docs/results.md
    if planned_on.get("fingerprint") not in (None, data.describe()["fingerprint"]):
        raise ConfigError(
            f"{folder}: the study was planned on {planned_on.get('name')}, and the data are not the same "
            "now; give those, with the same options, or a new folder"
        )
    return described


def _arms_of(described: dict[str, Any]) -> list[Arm]:
    """The arms in study.json; older files have fields that are no longer used."""
    names = {field.name for field in fields(Arm)}
    return [Arm(**{name: value for name, value in arm.items() if name in names}) for arm in described["arms"]]


def _check_settings(arms: list[Arm], about: dict[str, Any]) -> None:
    """Raise ConfigError if an arm needs something that the images lack, such as colours."""
    for arm in arms:
        if arm.kind in UNTRAINED:
            continue
        given = {name: value for name, value in arm.settings.items() if name != "minutes"} | {"steps": 1}
        asked = given_settings(**current(given, PRETRAINING, warn=False))
        settings = resolve_settings(
            asked, images=about["trained_on"], channels=about["channels"], side=about["side"]
        )
        settings.make_second_views(about["channels"])


def _plan_fits(
    arms: list[Arm], features: StudyFeatures, about: dict[str, Any], *, is_trial: bool
) -> tuple[list[Arm], Budget]:
    """Arms on features: those that need no more dimensions, labels or documents than there are."""
    has = "documents" if features.task().queries is not None else "labels"
    arms = [arm for arm in arms if arm.settings.get("dim", 0) <= about["width"] and arm.needs in (None, has)]
    arms = [replace(arm, settings=_with_sizes(arm, about["width"])) for arm in arms]
    if not is_trial:
        fits = sum(arm.seeds for arm in arms)
        return arms, Budget(words=f"{fits} fits, each until early stopping ends it")
    short = [
        replace(
            arm, seeds=1, settings=arm.settings | ({"steps": TRIAL_STEPS} if arm.kind == "adapter" else {})
        )
        for arm in arms
    ]
    return short, Budget(words=f"a trial: {TRIAL_STEPS} steps on {TRIAL_ROWS} rows, one seed")


def _with_sizes(arm: Arm, width: int) -> dict[str, Any]:
    """Settings of an arm, with those of its sizes that features of this width have."""
    if "dims" not in arm.settings:
        return arm.settings
    return {**arm.settings, "dims": [size for size in arm.settings["dims"] if size <= width]}


def _plan_pretraining(
    study: Study, arms: list[Arm], images: StudyImages, *, minutes: float | None, is_trial: bool, jobs: int
) -> tuple[list[Arm], Budget]:
    """Arms on images, with the number of their steps."""
    if is_trial:
        return [_shortened(arm) for arm in arms], Budget(
            words=f"a trial: {TRIAL_STEPS} steps on {TRIAL_ROWS} images, one seed"
        )
    if minutes is None and not study.images:
        return arms, Budget(words="every arm has a length of its own")
    if minutes is None:
        budget = Budget(images=study.images, words=f"every arm sees {study.images:,} images")
    else:
        measures = measures_of(_as_json(study))
        budget = images_within(arms, images, seconds=60 * minutes, jobs=jobs, measures=measures)
    return [replace(arm, settings=_with_steps(arm, budget)) for arm in arms], budget


def _shortened(arm: Arm) -> Arm:
    """An arm of a trial run."""
    if arm.kind == "leak":
        return replace(arm, seeds=1, settings={**arm.settings, "steps": TRIAL_STEPS, "tests": TRIAL_STEPS})
    few = None if arm.labels_a_class is None else min(arm.labels_a_class, 2)
    settings = {name: value for name, value in (FIXED | arm.settings | TRIAL).items() if name != "minutes"}
    return replace(arm, seeds=1, settings=settings, labels_a_class=few, epochs=1)


def _with_capacity(arm: Arm, count: int) -> Arm:
    """An arm with a memory ratio gets the capacity for this number of images, at least a batch."""
    if arm.memory_ratio is None:
        return arm
    batch = int(arm.settings.get("batch_size", BATCH))
    memory: dict[str, float] = {"capacity": max(batch, round(arm.memory_ratio * count))}
    if arm.memory_ratio == 0:
        memory |= {"memory_weight": 0.0}
    return replace(arm, settings={**arm.settings, **memory})


def _with_steps(arm: Arm, budget: Budget) -> dict[str, Any]:
    """Settings of an arm, with the steps its batch size needs for the images of the budget."""
    if arm.kind in UNTRAINED:
        return arm.settings
    batch = arm.settings.get("batch_size", BATCH)
    steps = max(1, round(budget.images * arm.images / batch))
    return {**FIXED, "looks": LOOKS, "steps": steps, **arm.settings}


def _cells(described: dict[str, Any], arms: list[Arm], data: StudyImages | StudyFeatures) -> list[Cell]:
    """Seed by seed, so that all arms have a result before any arm is repeated."""
    measures, knn = measures_of(described), tuple(described.get("knn", (10, 0.1)))
    first = [
        Cell(
            task=described["name"],
            method=arm.name,
            seed=0,
            identity=identity_of(described, arm, data),
            work=Work(arm, data, _threads(arm), measures, knn),
        )
        for arm in arms
    ]
    seeds = range(max(arm.seeds for arm in arms))
    return [replace(cell, seed=seed) for seed in seeds for cell in first if seed < cell.work.arm.seeds]


def _as_json(study: Study) -> dict[str, Any]:
    """The parts of a study that do not depend on its data, with the keys of study.json."""
    published = study.published
    return {
        "name": study.name, "title": study.title, "asks": study.asks,
        "source": study.source, "caveat": study.caveat, "needs": study.needs,
        "published": published and {"what": published.what, "rows": [list(row) for row in published.rows]},
        "asked": [asdict(one) for one in study.questions], "figures": [asdict(one) for one in study.figures],
        "references": list(study.references), "knn": list(study.knn), "identity": study.identity,
    }  # fmt: skip


def _description(
    study: Study, arms: list[Arm], about: dict[str, Any], budget: Budget, *, is_trial: bool
) -> dict[str, Any]:
    steps = sorted({arm.settings["steps"] for arm in arms if "steps" in arm.settings})
    length = ""
    if steps:
        ends = dict.fromkeys((steps[0], steps[-1]))
        length = f", {' to '.join(f'{count:,}' for count in ends)} steps"
    names, described = {arm.name for arm in arms}, _as_json(study)
    described["asked"] = [one for one in described["asked"] if {one["ours"][0], one["theirs"][0]} <= names]
    described |= {"is_trial": is_trial, "measured": f"{study.measured}, {about['name']}{length}"}
    return described | {"data": about, "budget": asdict(budget), "arms": [asdict(arm) for arm in arms]}
