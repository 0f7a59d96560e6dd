"""What a fit takes, from a short trial of the same search: for `querykey doctor`."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from querykey.adapter.fit import ignore_line, prepared_task
from querykey.adapter.ladder import rank_sizes
from querykey.adapter.scoreboard import Candidate
from querykey.adapter.search import RACE, Search
from querykey.adapter.selection import mean_at_best
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.split import TrainingPairs
from querykey.adapter.tasks import Form, HeldOutFold, LabelTask, RowTask
from querykey.adapter.training import CHECKS
from querykey.adapter.validation import ValidationQueries
from querykey.types import FrozenRows, Labels

__all__ = ["FitCost", "estimate_fit"]

T = TypeVar("T")

TRIAL_SECONDS = 10.0
"""For how long each preset is trained at most."""
PAST_BEST = 5
"""Evaluations without improvement after which a run is expected to stop early."""
LIKELY_TAKEN, LIKELY_BEST = 0.65, 0.35
"""Shares of the planned steps that are taken and are best, where the race is too short to tell: of the 800 of
banking77 and hwu64 48% and 92% were taken, and 16% and 60% best."""


@dataclass(frozen=True, kw_only=True)
class FitCost:
    """Seconds that the parts of a fit take.

    Args:
        prepare: Folds, and their queries.
        closed_forms: Statistics of the folds, and the scores of all closed forms.
        training: Of all presets on all folds, with evaluations.
        end: What the winner is checked by, and its refit on all rows.
        steps: Of all trainings.
    """

    prepare: float = 0.0
    closed_forms: float = 0.0
    training: float = 0.0
    end: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Of the whole fit."""
        return self.prepare + self.closed_forms + self.training + self.end


def estimate_fit(
    vectors: FrozenRows,
    settings: AdapterSettings,
    *,
    labels: Labels | None = None,
    pairs: TrainingPairs | None = None,
    validation: ValidationQueries | None = None,
) -> FitCost:
    """Estimate the time of `fit_adapter` on this machine, as it is now.

    The closed forms are scored on one fold, the first of each family apart from the others, because it also
    computes what they share. Then the race of the presets is run on that fold, as far as it gets in
    10 seconds each; where a fit stops early, its scores tell.

    Args:
        vectors: Frozen rows [items, width].
        settings: Of the fit.
        labels: As for `fit_adapter`, and so on.
        pairs: (query, document) pairs.
        validation: Queries that evaluate a fit without labels.

    Returns:
        The cost.

    Raises:
        DataError: If there is nothing to learn from, as for the fit.
    """
    prepare, (task, presets) = _timed(
        lambda: prepared_task(vectors, settings, labels=labels, pairs=pairs, validation=validation)
    )
    return _TrialSearch(task, presets, None, ignore_line).cost(prepare)


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    out = call()
    return time.perf_counter() - started, out


class _Run(NamedTuple):
    """Seconds of the parts of a training, and how many steps it is expected to take."""

    start: float
    step: float
    evaluation: float
    taken: int
    best: int
    score: float
    fc: nn.Module

    def seconds(self, steps: int, every: int) -> float:
        """Of a training with evaluations."""
        return self.start + steps * self.step + (steps // every) * self.evaluation


class _TrialSearch(Search):
    """A search that is run on one fold, and there in part."""

    def cost(self, prepare: float) -> FitCost:
        """Measure the parts, and multiply each by how often a fit has it."""
        folds = self.task.folds
        if not folds:  # few closed forms, or the steps that were asked for: all of it is measured
            seconds, fitted = _timed(self._not_validated)
            return FitCost(prepare=prepare, closed_forms=seconds, steps=int(fitted.report["steps_taken"]))
        statistics, _ = _timed(lambda: self._statistics_of(folds[0]))
        again, _ = _timed(lambda: self.task.statistics(folds[0].fold)) if len(folds) > 1 else (0.0, None)
        aimed, _ = _timed(lambda: self._aim(self.task) if isinstance(self.task, RowTask) else None)
        scored = self._families()
        closed = statistics + (len(folds) - 1) * again + aimed + len(folds) * scored
        if not self._trains():
            return FitCost(prepare=prepare, closed_forms=closed, end=self._ranked(self._of_form()))
        planned, every = self._planned(), max(1, -(-self._planned() // CHECKS))
        runs = [self._tried(number, planned, every) for number in range(len(self.presets))]
        best = max(runs, key=lambda run: run.score)
        raced = self.race(planned)
        training, steps = 0.0, 0
        for run in runs:
            count = len(folds) if run is best or raced == planned else 1
            length = run.taken if run is best or raced == planned else min(run.taken, raced)
            training += count * run.seconds(length, every)
            steps += count * length
        end, refitted = self._end(best, again or statistics)
        return FitCost(
            prepare=prepare, closed_forms=closed, training=training, end=end, steps=steps + refitted
        )

    def _statistics_of(self, held_out: HeldOutFold) -> None:
        self.statistics[held_out] = self.task.statistics(held_out.fold)

    def _families(self) -> float:
        """Seconds of all closed forms on one fold; keeps one of each family as a candidate."""
        forms, families = self.closed_forms(), defaultdict[str, list[str]](list)
        for name in forms:
            families[name.split()[0]].append(name)
        if isinstance(self.task, LabelTask) and "discriminant" in families:
            families["discriminant"] += self.task.filled(next(reversed(forms)))
        seconds = 0.0
        for first, *others in families.values():
            seconds += self._tried_form(first, forms[first])
            # the forms of one of several folds are a small part of a fit; those of a single one would be all
            tried = [name for name in others if name in forms][: None if len(self.task.folds) > 1 else 1]
            if tried:
                taken = sum(self._tried_form(name, forms[name]) for name in tried)
                seconds += len(others) * taken / len(tried)
        return seconds

    def _tried_form(self, name: str, form: Form) -> float:
        held_out = self.task.folds[0]
        seconds, scores = _timed(lambda: self._score(self._form(form, held_out), held_out))
        self.found[name] = Candidate(name, scores, seconds, form=form)
        return seconds

    def _start_form(self) -> str:
        return max(self.found, key=lambda name: mean_at_best(self.found[name].scores))

    def _of_form(self) -> Any:
        form = self.found[self._start_form()].form
        assert form is not None
        return self._form(form, self.task.folds[0])

    def _tried(self, number: int, planned: int, every: int) -> _Run:
        """The first steps of a preset."""
        held_out, evaluated = self.task.folds[0], list[float]()
        start, training = _timed(lambda: self._start(number, self._start_form(), held_out, 0))
        validate = training.validate
        assert validate is not None

        def timed_validate(layer: nn.Module) -> Tensor:
            seconds, scores = _timed(lambda: validate(layer))
            evaluated.append(seconds)
            return scores

        training.validate = timed_validate
        training.run(1)  # loads kernels
        evaluated.clear()
        until, seconds = min(RACE, planned), 0.0
        while training.taken < until and not training.stopped and seconds < TRIAL_SECONDS:
            seconds += _timed(lambda: training.run(min(training.taken + every, until)))[0]
        evaluation = sum(evaluated) / max(1, len(evaluated))
        step = max(0.0, seconds - sum(evaluated)) / max(1, training.taken - 1)
        best, patience = training.best_step, self.settings.n_iter_no_change
        taken = min(planned, best + patience * every)
        if training.taken - best < PAST_BEST * every:  # it may still improve
            is_open = len(self.task.folds) == 1 and not isinstance(self.task, RowTask)
            shares = (LIKELY_TAKEN, LIKELY_BEST) if is_open else (1.0, 1.0)
            taken, best = (max(1, round(share * planned)) for share in shares)
        return _Run(start, step, evaluation, taken, best, training.best_score, training.fc)

    def _end(self, run: _Run, statistics: float) -> tuple[float, int]:
        """(seconds, steps) of what follows the choice: ranks, new classes, and the refit."""
        task, single = self.task, len(self.task.folds) == 1
        seconds, steps = self._ranked(run.fc), 0
        again = run.start + run.best * run.step
        if isinstance(task, LabelTask) and task.new:
            scored, _ = _timed(lambda: self._score(self._of_form(), task.folds[0]))
            seconds += 2 * scored + (0.0 if single else statistics + again)
            steps += 0 if single else run.best
        if not (isinstance(task, RowTask) and task.validation is not None):
            seconds, steps = seconds + again, steps + run.best
        return seconds, steps

    def _ranked(self, layer: Any) -> float:
        """Seconds of the ranking metrics of winner and reference on all folds."""
        if isinstance(self.task, RowTask) and not self._is_validated():
            return 0.0
        held_out = self.task.folds[0]
        seconds, _ = _timed(lambda: rank_sizes(self.task.scorer, layer, held_out.queries, self.sizes))
        return 2 * len(self.task.folds) * seconds
