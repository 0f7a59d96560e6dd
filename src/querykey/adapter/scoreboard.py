"""The validation scores of the candidates of a fit, at each size of the adapted rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from querykey.adapter.closed_forms import Affine
from querykey.adapter.ladder import prefix
from querykey.adapter.selection import Scored, at_best_temperature, difference, halves
from querykey.adapter.settings import AdapterSettings, TrainingPreset
from querykey.adapter.tasks import Form, HeldOutFold, Statistics, TaskData
from querykey.adapter.training import Record, Training
from querykey.adapter.validation import Transform
from querykey.distributed.process_group import current_process_group
from querykey.types import PerQuery

__all__ = ["Begin", "Candidate", "Scoreboard"]

RATE, RATE_OF_FEW = 1e-3, 3e-4
"""Peak learning rates. With few rows a larger one would pass the best state before the first evaluation."""

Begin = Callable[[str], None]


@dataclass(eq=False)
class Candidate:
    """A candidate with its validation scores."""

    name: str
    scores: Tensor
    """[queries, temperatures] over all folds; [queries, temperatures, sizes] for several sizes."""
    seconds: float
    form: Form | None = None
    preset: int = -1
    trainings: list[Training] = field(default_factory=list)
    best_step: int = 0
    start: str = ""
    """The form that training started at."""


@dataclass(eq=False)
class Scoreboard:
    """Candidates by name, and how a further one is scored.

    Args:
        task: The data of the fit.
        presets: Training presets, each with the settings that it resolves to.
        record: Called with each record of a training run.
        say: Called with one line per candidate.
    """

    task: TaskData
    presets: list[tuple[TrainingPreset, AdapterSettings]]
    record: Record | None
    say: Begin

    def __post_init__(self) -> None:
        rate = RATE if len(self.task.folds) <= 1 else RATE_OF_FEW
        self.presets = [
            (preset, one if one.learning_rate is not None else replace(one, learning_rate=rate))
            for preset, one in self.presets
        ]
        self.settings = self.presets[0][1]
        self.seed, self.dim = self.settings.seed, int(self.settings.dim or 0)
        self.sizes, self.width = self.settings.sizes, self.task.sample.shape[1]
        self.processes = current_process_group()
        self.found: dict[str, Candidate] = {}
        self.compared: dict[str, list[dict[str, Any]]] = {}
        self.statistics: dict[HeldOutFold, Statistics] = {}
        self.notes: list[str] = []
        self.steps_taken, self.described, self.stopped = 0, False, ""
        self.raced, self.history = list[dict[str, Any]](), list[dict[str, Any]]()
        queries = sum(len(held_out.queries.numbers) for held_out in self.task.folds)
        self.selection, self.evaluation = halves(queries, seed=self.seed)

    def _score_form(self, name: str, form: Form) -> None:
        started = time.monotonic()
        scores = torch.cat(
            [self._score(self._form(form, held_out), held_out) for held_out in self.task.folds]
        )
        self.processes.broadcast_([scores])
        self._found(Candidate(name, scores, time.monotonic() - started, form=form))

    def _score(self, transform: Transform, held_out: HeldOutFold) -> Tensor:
        return self.task.scorer.score(transform, held_out.queries, self.sizes)

    def _found(self, candidate: Candidate) -> None:
        self.found[candidate.name] = candidate
        self.say(f"{candidate.name:<24} {self._mean(candidate):8.4f}  {candidate.seconds:6.1f} s")

    def _form(self, form: Form, held_out: HeldOutFold) -> Affine:
        if held_out not in self.statistics:
            self.statistics[held_out] = self.task.statistics(held_out.fold)
        return form(self.statistics[held_out])

    def _best_form(self) -> str:
        self._reference()  # if only trained candidates were requested
        closed = [one for one in self.found.values() if one.form is not None]
        return max(closed, key=self._mean).name

    def _mean(self, candidate: Candidate) -> float:
        values = at_best_temperature(candidate.scores, seed=self.seed)
        return float(values[self.selection].mean())

    def _reference(self) -> str:
        """The frozen rows at full width, otherwise the better PCA of the width."""
        if "frozen" in self.found:
            return "frozen"
        there = [name for name in ("pca", "pca_uncentred") if name in self.found]
        if not there:
            forms = self.task.forms()
            for name in ("frozen", "pca", "pca_uncentred"):
                if name in forms:
                    self._score_form(name, forms[name])
            return self._reference()
        return max(there, key=lambda name: self._mean(self.found[name]))

    def _scored(self, candidate: Candidate) -> Scored:
        values = at_best_temperature(candidate.scores, seed=self.seed)
        return Scored(candidate.name, values, candidate.seconds)

    def _layer(self, candidate: Candidate, held_out: HeldOutFold, place: int) -> nn.Module | Affine:
        if candidate.form is not None:
            return self._form(candidate.form, held_out)
        candidate.trainings[place].restore(candidate.best_step)
        return candidate.trainings[place].fc

    def _by_size(self, name: str) -> list[dict[str, Any]]:
        """Compare a candidate with the best closed form of each size, which the choosing queries select.

        The first ranking metric of the question is compared: at large sizes the softmax of a closed form
        equals that of the target up to the third digit, which no search would notice.
        """
        if name in self.compared:
            return self.compared[name]
        rows = []
        for place, size in enumerate(self.sizes):
            best = self._best_at(place)
            score = float(self._at_size(self.found[name], place).mean())
            metric, ours = self._ranks_at(self.found[name], size)
            theirs = ours if name == best else self._ranks_at(self.found[best], size)[1]
            apart = difference(ours - theirs, seed=self.seed).as_dict()
            rows.append(
                {"dim": size, "score": score, "closed_form": best, "metric": metric, "difference": apart}
            )
        self.compared[name] = rows
        return rows

    def _best_at(self, place: int) -> str:
        """The closed form that is best at a size."""
        closed = {one.name: self._at_size(one, place) for one in self.found.values() if one.form is not None}
        return max(closed, key=lambda name: float(closed[name][self.selection].mean()))

    def _ranks_at(self, candidate: Candidate, size: int) -> tuple[str, PerQuery]:
        """The first ranking metric of a candidate at a size, over all folds."""
        folds = [
            self.task.scorer.ranks(prefix(self._layer(candidate, held_out, place), size), held_out.queries)
            for place, held_out in enumerate(self.task.folds)
        ]
        metric = next(iter(folds[0]))
        values = torch.cat([one[metric] for one in folds])
        self.processes.broadcast_([values])
        return metric, values

    def _at_size(self, candidate: Candidate, place: int) -> PerQuery:
        scores = candidate.scores if candidate.scores.ndim == 2 else candidate.scores[:, :, place]
        return at_best_temperature(scores, seed=self.seed)

    def _below_at_a_size(self, name: str) -> str | None:
        """Why a candidate that is best on average over the sizes may not be returned, or None."""
        if len(self.sizes) == 1:
            return None
        for row in self._by_size(name):
            # the overlap with frozen neighbours is no criterion: retrieval can improve while it falls
            if row["difference"]["high"] < 0 and row["metric"] != "overlap@10":
                return (
                    f"{row['dim']} numbers: {row['metric']} is below {row['closed_form']} by more than the "
                    "interval"
                )
        return None
