"""What a cell of a study needs in order to be measured."""

from collections.abc import Collection
from typing import NamedTuple

from querykey.studies.engine.features import StudyFeatures
from querykey.studies.engine.images import StudyImages
from querykey.studies.engine.study import Arm

__all__ = ["Work"]


class Work(NamedTuple):
    """An arm and its data, wherever it is measured.

    Args:
        arm: With its settings as planned.
        data: What it learns from and is asked for.
        threads: Of torch.
        measures: What its study asks for or draws, of what its kind can measure; None: all of it.
    """

    arm: Arm
    data: StudyImages | StudyFeatures
    threads: int
    measures: Collection[str] | None = None
