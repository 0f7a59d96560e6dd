"""What is kept and told of a pretraining while it runs."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from querykey.distributed.process_group import current_process_group
from querykey.errors import CollapseError, Notify, OutOfMemoryError
from querykey.lookup.lookup import Lookup
from querykey.pretraining.checkpoint import Saving, latest_checkpoint
from querykey.pretraining.loop import Loop, train
from querykey.pretraining.methods.step import ViewStep
from querykey.pretraining.resume import double_chunks
from querykey.pretraining.trainer import Course
from querykey.runs.pretrain_folder import CHECKPOINTS, RunFolder

__all__ = ["RunLog", "Shown", "Watch"]


@dataclass(frozen=True)
class Shown:
    """How far a run is.

    Args:
        step: Steps taken.
        steps: In all.
        images_per_second: Now; each gives two views.
        loss: Of the last step.
        knn: Of the last look at held-out images; None without labels.
    """

    step: int
    steps: int
    images_per_second: float
    loss: float
    knn: float | None


@dataclass(kw_only=True)
class Watch:
    """Whom a run tells what, and who may stop it."""

    told: Callable[[Shown], None] | None = None
    notify: Notify = field(default=lambda _: None)
    stop: Callable[[], bool] = field(default=lambda: False)


class RunLog:
    """What is kept and told of a run while it is trained."""

    def __init__(
        self, course: Course, folder: RunFolder | None, watch: Watch, *, begun: float, before: float
    ) -> None:
        self.seen: dict[str, float] = dict(course.start)
        self.spent = {"view_seconds": 0.0, "seconds": 0.0}
        self._looked_up: list[dict[str, float]] = []
        self._told: set[str] = set()
        self._course, self._folder, self._watch = course, folder, watch
        self._begun, self._before, self._last = begun, before, time.perf_counter()

    def seconds(self) -> float:
        """Since the user began to wait, in all sittings."""
        return self._before + time.monotonic() - self._begun

    def record(self, step: int, numbers: dict[str, Any]) -> None:
        for name in self.spent:
            self.spent[name] += numbers[name]
        if self._folder is not None:
            self._folder.record("step", step=step, **numbers)

    def seen_lookup(self, lookup: Lookup) -> None:
        self._looked_up.append(self._course.look_at(lookup))

    def look(self, step: int, taken: ViewStep) -> None:
        self.seen = self._course.look(taken, step=step, looked_up=self._looked_up)
        self._looked_up = []
        off = self._course.words(self.seen, step=step)
        for name in off.keys() - self._told:
            self._watch.notify(f"step {step:,}: {off[name]}")
        self._told |= off.keys()
        if self._folder is not None:
            self._folder.record("look", step=step, **self.seen)
        if reason := self._course.trouble(self.seen):
            raise CollapseError(f"step {step}: {reason}")

    def save(self, step: int) -> None:
        state = self._course.learner.tensors()  # of all processes: what is sharded goes to the first
        if self._folder is not None:
            self._folder.save(step, self._course, state, seconds=self.seconds())

    def shown(self, step: int, loss: float) -> None:
        if self._watch.told is None:
            return
        now = time.perf_counter()
        rate, self._last = self._course.settings.batch_size / (now - self._last), now
        self._watch.told(Shown(step, self._course.steps, rate, loss, self.seen.get("knn")))

    def report(self, done: int) -> dict[str, Any]:
        """What there is to say of the run in the end; of its end nothing, where nobody looks.

        Args:
            done: Steps taken.
        """
        return {
            "steps_taken": done, "seconds": self.seconds(), "start": self._course.start,
            "end": self.seen if self._course.settings.looks else {},
            "views_share_of_step": self.spent["view_seconds"] / max(sum(self.spent.values()), 1e-9),
            "images_seen": done * self._course.settings.batch_size,
        }  # fmt: skip

    def kept(self) -> str:
        """For a message: which state there is to go on from."""
        if self._folder is None:
            return ""
        step = latest_checkpoint(self._folder.path / CHECKPOINTS).step
        return f"; the state after step {step} is kept in {self._folder.path}"

    def train(self, start: int) -> int:
        """Take the steps that are left; in smaller parts from where on the memory is too small for one.

        A step that ran out of memory may be half taken, so the state that was kept last comes back.

        Args:
            start: Steps taken before.

        Returns:
            Steps taken in all: fewer than those of the run where it was asked to stop.

        Raises:
            CollapseError: If the run means nothing any more.
            OutOfMemoryError: If a step cannot be cut any further, or no state was kept.
        """
        course, folder = self._course, self._folder
        saving = Saving() if folder is None else folder.saving
        loop = Loop(
            self.look, self.seen_lookup, self.record, self.save, self.shown, self._watch.stop,
            save_every=saving.seconds,
        )  # fmt: skip
        while True:
            try:
                return train(course.learner, course.images, loop, start=start, steps=course.steps)
            except OutOfMemoryError as error:
                reason = str(error)
                if folder is None or current_process_group().world_size > 1:
                    raise OutOfMemoryError(f"{reason}; raise chunks, or lower batch_size") from error
            # outside of the handler, which held what the step had made so far
            gc.collect()
            smaller = double_chunks(course.settings, reason=reason)
            start = self._go_back(folder)
            course.settings = course.learner.settings = smaller
            folder.change(smaller, step=start)
            self._watch.notify(
                f"{reason}: from step {start} on, which was kept, steps are computed in {smaller.chunks} "
                "parts, with the gradient of the whole batch"
            )

    def _go_back(self, folder: RunFolder) -> int:
        """Put the state back that was kept last, and forget what was recorded after it."""
        kept = latest_checkpoint(folder.path / CHECKPOINTS)
        self._course.learner.restore_(kept.tensors)
        self.seen |= folder.cut_records(kept.step)
        return kept.step

    def close(self) -> None:
        """When the run ends in whatever way."""
        if self._folder is not None:
            self._folder.close()
