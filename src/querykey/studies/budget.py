"""How long the cells of a study may be, for all of them to fit into a time."""

import math
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from querykey.errors import ConfigError
from querykey.run_pretrain import pretrain
from querykey.studies.grid import Cell
from querykey.studies.measuring_cells import measure
from querykey.studies.study import Arm
from querykey.studies.study_images import StudyImages
from querykey.studies.work import Work
from querykey.training.pretrain_course import Course

__all__ = ["Budget", "images_within", "settings_here"]

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
    found: list[Course] = []

    def begin(course: Course) -> None:
        found.append(course)
        raise _Measured

    with suppress(_Measured):
        pretrain(images.training(), begin=begin, minutes=1.0, **settings_here() | arm.settings)
    (course,) = found
    assert course.calibration is not None
    return course.settings.batch_size, course.calibration.seconds
