"""Candidates of a fit that were asked, and what they scored, at each size of the adapted rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from querykey.adapter.closed_forms import Affine
from querykey.adapter.ladder import ask_sizes, prefix
from querykey.adapter.selection import Scored, at_best_temperature, difference, halves
from querykey.adapter.settings import AdapterSettings, Recipe
from querykey.adapter.tasks import Form, HeldOutFold, Statistics, TaskData
from querykey.adapter.training import Record, Training
from querykey.adapter.validation import Transform
from querykey.distributed.process_group import current_process_group
from querykey.types import PerQuery

__all__ = ["Begin", "Candidate", "Scoreboard"]

RATE, RATE_OF_FEW = 1e-3, 3e-4
"""Peak learning rates: of few rows a larger one is past the best state before it is first scored."""

Begin = Callable[[str], None]


@dataclass(eq=False)
class Candidate:
    """A candidate while it is being asked."""

    name: str
    scores: Tensor
    """[queries, temperatures] of all folds; [queries, temperatures, sizes] of several sizes."""
    seconds: float
    form: Form | None = None
    recipe: int = -1
    trainings: list[Training] = field(default_factory=list)
    best_step: int = 0
    start: str = ""
    """The form that training began at."""


@dataclass(eq=False)
class Scoreboard:
    """Candidates by name, and what is needed to ask one more.

    Args:
        task: What the fit learns from.
        recipes: How a candidate is trained, each with the settings that it resolves to.
        record: Called with each record of a training run.
        say: Called with a line a candidate.
    """

    task: TaskData
    recipes: list[tuple[Recipe, AdapterSettings]]
    record: Record | None
    say: Begin

    def __post_init__(self) -> None:
        rate = RATE if len(self.task.folds) <= 1 else RATE_OF_FEW
        self.recipes = [
            (recipe, one if one.learning_rate is not None else replace(one, learning_rate=rate))
            for recipe, one in self.recipes
        ]
        self.settings = self.recipes[0][1]
        self.seed, self.dim = self.settings.seed, int(self.settings.dim or 0)
        self.sizes, self.width = self.settings.sizes, self.task.sample.shape[1]
        self.processes = current_process_group()
        self.found: dict[str, Candidate] = {}
        self.compared: dict[str, list[dict[str, Any]]] = {}
        self.statistics: dict[HeldOutFold, Statistics] = {}
        self.notes: list[str] = []
        self.steps_taken, self.told, self.stopped = 0, False, ""
        self.raced, self.history = list[dict[str, Any]](), list[dict[str, Any]]()
        queries = sum(len(held.asked.numbers) for held in self.task.folds)
        self.chooses, self.judges = halves(queries, seed=self.seed)

    def _ask_form(self, name: str, form: Form) -> None:
        began = time.monotonic()
        scores = torch.cat([self._ask(self._form(form, held), held) for held in self.task.folds])
        self.processes.broadcast_([scores])
        self._found(Candidate(name, scores, time.monotonic() - began, form=form))

    def _ask(self, transform: Transform, held: HeldOutFold) -> Tensor:
        return ask_sizes(self.task.question, transform, held.asked, self.sizes)

    def _found(self, candidate: Candidate) -> None:
        self.found[candidate.name] = candidate
        self.say(f"{candidate.name:<24} {self._mean(candidate):8.4f}  {candidate.seconds:6.1f} s")

    def _form(self, form: Form, held: HeldOutFold) -> Affine:
        if held not in self.statistics:
            self.statistics[held] = self.task.statistics(held.fold)
        return form(self.statistics[held])

    def _best_form(self) -> str:
        self._reference()  # where trained candidates alone were asked for
        closed = [one for one in self.found.values() if one.form is not None]
        return max(closed, key=self._mean).name

    def _mean(self, candidate: Candidate) -> float:
        values = at_best_temperature(candidate.scores, seed=self.seed)
        return float(values[self.chooses].mean())

    def _reference(self) -> str:
        """The frozen rows at full width, else the better PCA of the width."""
        if "frozen" in self.found:
            return "frozen"
        there = [name for name in ("pca", "pca_uncentred") if name in self.found]
        if not there:
            forms = self.task.forms()
            for name in ("frozen", "pca", "pca_uncentred"):
                if name in forms:
                    self._ask_form(name, forms[name])
            return self._reference()
        return max(there, key=lambda name: self._mean(self.found[name]))

    def _scored(self, candidate: Candidate) -> Scored:
        values = at_best_temperature(candidate.scores, seed=self.seed)
        return Scored(candidate.name, values, candidate.seconds)

    def _layer(self, candidate: Candidate, held: HeldOutFold, place: int) -> nn.Module | Affine:
        if candidate.form is not None:
            return self._form(candidate.form, held)
        candidate.trainings[place].restore(candidate.best_step)
        return candidate.trainings[place].fc

    def _by_size(self, name: str) -> list[dict[str, Any]]:
        """A candidate at each size beside the closed form that is best there for the queries that choose.

        They are compared by the first ranking metric of the question: at large sizes a closed form keeps the
        target's softmax to the third digit, which no search would notice.
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
        return max(closed, key=lambda name: float(closed[name][self.chooses].mean()))

    def _ranks_at(self, candidate: Candidate, size: int) -> tuple[str, PerQuery]:
        """The first ranking metric of a candidate at a size, of all folds."""
        folds = [
            self.task.question.ranks(prefix(self._layer(candidate, held, place), size), held.asked)
            for place, held in enumerate(self.task.folds)
        ]
        metric = next(iter(folds[0]))
        values = torch.cat([one[metric] for one in folds])
        self.processes.broadcast_([values])
        return metric, values

    def _at_size(self, candidate: Candidate, place: int) -> PerQuery:
        scores = candidate.scores if candidate.scores.ndim == 2 else candidate.scores[:, :, place]
        return at_best_temperature(scores, seed=self.seed)

    def _below_at_a_size(self, name: str) -> str | None:
        """Why a candidate may not be returned though it is best in the mean of the sizes, if so."""
        if len(self.sizes) == 1:
            return None
        for row in self._by_size(name):
            # neighbours of the frozen rows judge nothing: retrieval can gain where they are left
            if row["difference"]["high"] < 0 and row["metric"] != "overlap@10":
                return (
                    f"{row['dim']} numbers: {row['metric']} is below {row['closed_form']} by more than the "
                    "interval"
                )
        return None
