"""Search for the best candidate by held-out queries: closed forms first, then trained layers.

A candidate is scored on rows that it was not fitted on; the returned one is refitted on all rows.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from querykey.adapter.closed_forms import Affine
from querykey.adapter.codes import Codes, fit_codes
from querykey.adapter.frontier import document_rows, documents_of, frontier_of
from querykey.adapter.ladder import rank_sizes
from querykey.adapter.scoreboard import Begin, Candidate, Scoreboard
from querykey.adapter.selection import (
    Choice,
    Difference,
    at_best_temperature,
    candidate_records,
    choose,
    difference,
    mean_at_best,
)
from querykey.adapter.sequential import SequentialLayer
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.split import Fold
from querykey.adapter.tasks import (
    DEFAULT_POWER,
    Form,
    HeldOutFold,
    LabelTask,
    PairTask,
    RowTask,
    select_forms,
    start_form,
)
from querykey.adapter.training import Fitted, LowRankChange, Training, describe_fit_memory, layer_at
from querykey.adapter.verdict import Report, unvalidated_report
from querykey.encoders.heads import FCLayer

__all__ = ["Begin", "Search"]

RACE = 100
"""Steps after which only the best preset is trained further."""
FOLDED, RACED = 1_000, 3_000
"""Rows up to which every preset is trained on every fold, and up to which only the best one is."""
STEPS = {"few": 150, "some": 240, "many": 800}
"""Steps per run by these limits, at most 2,000 in all runs of a fit."""
PAIR_STEPS, ROW_STEPS = 300, 600


class Search(Scoreboard):
    """The search for the best candidate of a task."""

    def run(self) -> Fitted:
        """Score the candidates and return the best one."""
        if not self.task.folds:
            return self._not_validated()
        try:
            self._closed_forms()
            if self._trains():
                self._trained()
        except KeyboardInterrupt:
            if not self.found:
                raise
            self.notes.append("stopped by Ctrl-C: the best of what was tried until then")
        reference, checked = self._reference(), dict[str, Any]()
        refuse = {
            one.name: "training found nothing better than its start"
            for one in self.found.values()
            if one.trainings and one.best_step == 0
        }
        while True:
            choice = self._choose(reference, refuse)
            if choice.winner == reference:
                break
            checked, reason = self._gates(choice.winner, reference)
            reason = reason or self._below_at_a_size(choice.winner)
            if reason is None:
                break
            refuse[choice.winner] = reason
        fc, settings = self._refitted(choice.winner)
        frontier, codes = self._frontier(choice.winner), self._codes(fc, settings)
        return Fitted(
            fc.eval().requires_grad_(False),
            settings,
            self._report(choice, checked),
            self.history,
            self._records(reference, choice.refused),
            codes,
            frontier,
        )

    def _frontier(self, winner: str) -> list[dict[str, Any]]:
        """The frontier of the layers that were fitted without each fold; empty for one size without codes."""
        if len(self.sizes) == 1 and not self.settings.bits:
            return []
        folds = self.task.folds if winner in self.found else []
        layers = [
            (held_out, self._layer(self.found[winner], held_out, place))
            for place, held_out in enumerate(folds)
        ]
        return frontier_of(self.task, self.settings, layers, self.evaluation)

    def _codes(self, fc: nn.Module, settings: AdapterSettings) -> Codes:
        if not settings.bits:
            return {}
        rows = document_rows(self.task, None, self.seed)
        return fit_codes(documents_of(fc, settings), rows, settings)

    def closed_forms(self) -> dict[str, Form]:
        """The closed forms that the settings ask for."""
        forms = self.task.forms()
        if self.settings.fc.start is not None:
            start = start_form(self.settings.fc.start, self.dim, self.width, self.seed)
            references = ("frozen",) if self._at_full_width else ("pca", "pca_uncentred")
            forms = {name: form for name, form in forms.items() if name in references} | start
        return select_forms(forms, self.settings.candidates)

    def _closed_forms(self) -> None:
        forms = self.closed_forms()
        if isinstance(self.task, RowTask):
            self._aim(self.task)
        for name, form in forms.items():
            self._score_form(name, form)
        best = self._best_form()
        if isinstance(self.task, LabelTask) and self.settings.fc.start is None:
            for name, form in self.task.filled(best).items():
                self._score_form(name, form)

    def _aim(self, task: RowTask) -> None:
        """Choose the target of a fit without labels, if there are queries with known answers."""
        if task.validation is None or task.validation.pairs is None or self.settings.target is not None:
            return
        best, top = task.power, float("-inf")
        names = ["frozen", "pca", *(name for name in task.forms() if name.startswith("soft"))]
        for name in names:
            form, held_out = task.target_form(name), task.folds[0]
            scores = task.scorer.score(self._form(form, held_out), held_out.queries)
            self.processes.broadcast_([scores])
            score = float(at_best_temperature(scores, seed=self.seed)[self.selection].mean())
            if score > top:
                best, top = name, score
        task.aim(best)
        self.notes.append(f"target: {best}, by the queries that choose")

    def _trains(self) -> bool:
        if self.settings.steps == 0 or self.settings.candidates == "closed_form":
            return False
        if isinstance(self.settings.candidates, tuple):
            return any(name.startswith("trained") for name in self.settings.candidates)
        # at full width the target is itself a closed form, so there is nothing to train
        is_itself = isinstance(self.task, RowTask) and self._at_full_width
        return not is_itself or self.settings.steps is not None

    def _planned(self) -> int:
        if self.settings.steps is not None:
            return self.settings.steps
        if isinstance(self.task, RowTask):
            return ROW_STEPS
        if len(self.task.folds) > 1:
            return STEPS["few" if self.task.trained_on(None) <= FOLDED else "some"]
        return STEPS["many"] if isinstance(self.task, LabelTask) else PAIR_STEPS

    def _trained(self) -> None:
        start, steps, folds = self._best_form(), self._planned(), self.task.folds
        every = [self._start(number, start, folds[0], 0) for number in range(len(self.presets))]
        best = 0
        if len(self.presets) > 1:
            race = self.race(steps)
            for training in every:
                self._run(training, race, self.settings.n_iter_no_change)
            best = max(range(len(every)), key=lambda number: every[number].best_score)
            for number, training in enumerate(every):
                if race == steps and number != best:
                    self._finish(number, training, start)
                elif number != best:
                    self._record_raced(number, training)
        self._finish(best, every[best], start)

    def race(self, steps: int) -> int:
        """Steps of a run of `steps` after which only the best of several presets is trained further."""
        if len(self.presets) == 1:
            return steps
        is_small = len(self.task.folds) > 1 and self.task.trained_on(None) <= FOLDED
        return steps if is_small else min(RACE, steps)

    def _start(self, number: int, start: str, held_out: HeldOutFold, first: int) -> Training:
        """Start training a preset on one fold from a closed form; `first` is the index of its first query."""
        preset, settings = self.presets[number]
        form = self.found[start].form
        assert form is not None
        affine, queries = self._form(form, held_out), held_out.queries
        fc: nn.Module = layer_at(affine, settings)
        if preset.rank is not None and preset.rank < self.width:
            fc = LowRankChange(affine, preset.rank, seed=self.seed)
            self.processes.broadcast_(fc.state_dict().values())
        if len(self.sizes) > 1 and settings.ladder != "joint":
            assert isinstance(fc, FCLayer)
            assert settings.ladder is not None
            fc = SequentialLayer(fc, self.sizes, settings.ladder, seed=self.seed)
        if not self.described:
            self.described = True
            items, world_size = self.task.trained_on(None), self.processes.world_size
            self.say(describe_fit_memory(settings, items=items, width=self.width, processes=world_size))
        return Training(
            fc,
            settings,
            self._planned(),
            self.task.plan(fc, settings, held_out.fold, self.processes),
            lambda layer: self._score(layer, held_out),
            self.selection[first : first + len(queries.numbers)],
            self.task.sample,
            self.record,
        )

    def _run(self, training: Training, until: int, patience: int | None = None) -> None:
        taken, started = training.taken, time.monotonic()
        try:
            training.run(until, patience=patience)
        finally:
            self.steps_taken += training.taken - taken
            training.seconds += time.monotonic() - started

    def _finish(self, number: int, first: Training, start: str) -> None:
        """Finish training a preset on every fold, and score it at the step that is best over all folds."""
        steps, folds, single = self._planned(), self.task.folds, len(self.task.folds) == 1
        try:
            self._run(first, steps, self.settings.n_iter_no_change)
        except KeyboardInterrupt:
            if not single:
                raise
            self.notes.append(f"training stopped by Ctrl-C at step {first.taken}: the best state so far")
        trainings, place = [first], len(folds[0].queries.numbers)
        for held_out in folds[1:]:
            trainings.append(self._start(number, start, held_out, place))
            self._run(trainings[-1], first.taken)
            place += len(held_out.queries.numbers)
        common = set.intersection(*(set(one.scores) for one in trainings))
        curves = {step: torch.cat([one.scores[step] for one in trainings]) for step in sorted(common)}
        means = {step: mean_at_best(scores[self.selection]) for step, scores in curves.items()}
        best = max(means, key=lambda step: (means[step], -step))
        if single:
            first.restore(best)
        self.history = first.history
        self.stopped = first.stopped or "all steps taken"
        name = f"trained {self.presets[number][0].name}"
        seconds = sum(one.seconds for one in trainings)
        self._found(Candidate(name, curves[best], seconds, None, number, trainings, best, start))

    def _record_raced(self, number: int, training: Training) -> None:
        """Record a preset that lost the race with its score on the queries of the first fold."""
        reference = self.found[self._reference()]
        count = len(self.task.folds[0].queries.numbers)
        ours, theirs = (
            at_best_temperature(scores[:count], seed=self.seed)
            for scores in (training.scores[training.best_step], reference.scores)
        )
        self.raced.append(
            {
                "name": f"trained {self.presets[number][0].name}",
                "score": float(ours.mean()),
                "seconds": round(training.seconds, 2),
                "refused": f"lost the race after {training.taken} steps",
                "difference": difference(ours - theirs, seed=self.seed).as_dict(),
            }
        )

    def _choose(self, reference: str, refuse: dict[str, str]) -> Choice:
        scored = [self._scored(one) for one in self.found.values()]
        choice = choose(
            scored,
            reference,
            selection=self.selection,
            evaluation=self.evaluation,
            refuse=refuse,
            seed=self.seed,
        )
        if not isinstance(self.task, RowTask) or self._is_validated():
            return choice
        # rows alone can't evaluate a target: what keeps the target's scores best is returned
        name = self.task.power
        if not self._at_full_width:
            there = [one for one in self.found.values() if one.name not in refuse]
            name = max(there, key=self._mean).name
        if self._at_full_width and name not in self.found:
            names = {"soft_whitened": f"soft_whitening {DEFAULT_POWER:g}", "centred": "pca"}
            name = names.get(name, name)
        if name not in self.found:  # the user left it out of the candidates
            name = max(self.found.values(), key=self._mean).name
        return Choice(name, reference, "not validated", None, {}, choice.selected_on)

    def _is_validated(self) -> bool:
        """Whether the fit can be evaluated: with labels, pairs or judging queries."""
        validation = self.task.validation if isinstance(self.task, RowTask) else None
        return validation is not None and (validation.pairs is not None or not self._at_full_width)

    @property
    def _at_full_width(self) -> bool:
        """Whether nothing is left out of a row, at any size."""
        return self.sizes == (self.width,)

    def _gates(self, name: str, reference: str) -> tuple[dict[str, Any], str | None]:
        """What is reported beside the measure, and why a candidate may not be returned, if so."""
        if isinstance(self.task, RowTask) and not self._is_validated():
            return {}, None
        checked: dict[str, Any] = {}
        one, start = self.found[name], self.found[reference]
        both = [
            [
                rank_sizes(
                    self.task.scorer, self._layer(candidate, held_out, place), held_out.queries, self.sizes
                )
                for place, held_out in enumerate(self.task.folds)
            ]
            for candidate in (one, start)
        ]
        groups = None
        if isinstance(self.task, LabelTask) and self.settings.classes == "new":
            groups = self.task.groups(self.task.folds)
        for metric in both[0][0]:
            ours, theirs = (torch.cat([fold[metric] for fold in side]) for side in both)
            apart = difference(ours - theirs, groups=groups, seed=self.seed)
            checked[metric] = {"ours": float(ours.mean()), "reference": float(theirs.mean())}
            checked[metric] |= apart.as_dict()
            if apart.high < 0 and metric != "overlap@10":
                return checked, f"{metric} is below {reference} by more than the interval"
        if isinstance(self.task, LabelTask) and self.settings.classes is None:
            found = self._on_new_classes(one, start)
            checked["new classes"] = "not validated" if found is None else found.as_dict()
            if found is not None and found.high < 0:
                return checked, f"on new classes it is below {reference} by more than the interval"
        return checked, None

    def _on_new_classes(self, one: Candidate, start: Candidate) -> Difference | None:
        """Candidate minus reference on classes that neither was fitted on."""
        task = self.task
        assert isinstance(task, LabelTask)
        folds = task.new
        if not folds:
            return None
        if one.form is None and len(task.folds) > 1:
            folds = folds[:1]  # a run of training costs as much as all closed forms
        values = []
        for candidate in (one, start):
            scores = []
            for held_out in folds:
                if candidate.form is not None:
                    layer: nn.Module | Affine = self._form(candidate.form, held_out)
                elif len(task.folds) == 1:  # its fold holds these classes out as well
                    layer = self._layer(candidate, task.folds[0], 0)
                else:
                    layer = self._trained_without(candidate, held_out)
                scores.append(self._score(layer, held_out))
            every = torch.cat(scores)
            self.processes.broadcast_([every])
            values.append(at_best_temperature(every, seed=self.seed))
        return difference(values[0] - values[1], groups=task.groups(folds), seed=self.seed)

    def _trained_without(self, candidate: Candidate, held_out: HeldOutFold) -> nn.Module:
        training = self._start(candidate.preset, candidate.start, held_out, 0)
        training.validate = training.record = None
        self._run(training, candidate.best_step)
        return training.fc

    def _refitted(self, name: str) -> tuple[FCLayer, AdapterSettings]:
        """The winner, fitted on all rows."""
        candidate = self.found[name]
        settings = self.presets[max(0, candidate.preset)][1]
        settings = replace(settings, steps=self._planned() if self._trains() else 0)
        if candidate.form is not None:
            return layer_at(candidate.form(self.task.statistics(None)), settings), settings
        if candidate.best_step == 0 or (isinstance(self.task, RowTask) and self.task.validation is not None):
            return self._plain(candidate.trainings[0].fc, settings), settings
        nothing = torch.empty(0, dtype=torch.int64)
        whole = HeldOutFold(Fold(nothing, nothing), self.task.folds[0].queries)
        self.statistics[whole] = self.task.statistics(None)
        if isinstance(self.task, RowTask):
            self.task.aim(self.task.power)
        training = self._start(candidate.preset, candidate.start, whole, 0)
        training.stage_ends = candidate.trainings[0].stage_ends
        training.validate = training.record = None
        try:
            self._run(training, candidate.best_step)
        except KeyboardInterrupt:
            self.notes.append("the refit on all rows was stopped by Ctrl-C: fitted on those not held out")
            candidate.trainings[0].restore(candidate.best_step)
            return self._plain(candidate.trainings[0].fc, settings), settings
        return self._plain(training.fc, settings), settings

    def _plain(self, fc: nn.Module, settings: AdapterSettings) -> FCLayer:
        if isinstance(fc, SequentialLayer):
            return fc.fold_()
        return layer_at(fc.affine(), settings) if isinstance(fc, LowRankChange) else fc  # type: ignore[return-value]

    def _not_validated(self) -> Fitted:
        """Nothing could be held out: the form that is fixed beforehand, trained where steps are given."""
        settings = replace(self.settings, steps=self.settings.steps or 0)
        forms, statistics = self.task.forms(), self.task.statistics(None)
        name = f"soft_whitening {DEFAULT_POWER:g}"
        if not isinstance(self.task, RowTask) and "discriminant 0.1" in forms:
            name = "discriminant 0.1"
        if isinstance(self.task, PairTask):
            name = "frozen" if self._at_full_width else "pca_uncentred"
        if self.settings.fc.start is not None:
            start = start_form(self.settings.fc.start, self.dim, self.width, self.seed)
            ((name, form),) = start.items()
        else:
            form = forms[name]
        fc: nn.Module = layer_at(form(statistics), settings)
        steps = settings.steps or 0
        if steps:
            plan = self.task.plan(fc, settings, None, self.processes)
            training = Training(fc, settings, steps, plan, None, None, self.task.sample, self.record)
            self._run(training, steps)
            self.history, self.stopped = training.history, training.stopped or "all steps taken"
        stopped = self.stopped or "nothing was trained"
        report = unvalidated_report(name, steps, steps_taken=self.steps_taken, stopped=stopped)
        return Fitted(
            fc.eval().requires_grad_(False),  # type: ignore[arg-type]
            settings,
            report,
            self.history,
            [],
            self._codes(fc, settings),
            self._frontier(""),
        )

    def _report(self, choice: Choice, checked: dict[str, Any]) -> Report:
        winner, reference = self.found[choice.winner], self.found[choice.reference]
        several = {"sizes": self._by_size(choice.winner)} if len(self.sizes) > 1 else {}
        ours, theirs = (self._scored(one).values[self.evaluation].mean() for one in (winner, reference))
        apart = choice.difference
        return Report(
            measure=self.task.scorer.name,
            verdict=choice.verdict,
            candidate=choice.winner,
            reference=choice.reference,
            start=float(theirs),
            best=float(ours),
            difference=None if apart is None else apart.as_dict(),
            queries_needed=apart.needed if apart is not None and choice.verdict == "no evidence" else None,
            selection=(
                "the same queries chose: the interval repeats the selection"
                if torch.equal(self.selection, self.evaluation)
                else f"{choice.selected_on:,} other queries chose"
            ),
            folds=len(self.task.folds),
            checked=checked,
            refused=choice.refused,
            best_step=winner.best_step,
            steps_taken=self.steps_taken,
            stopped=self.stopped or "nothing was trained",
            notes=self.notes,
            **several,
        )

    def _records(self, reference: str, refused: dict[str, str]) -> list[dict[str, Any]]:
        scored = [self._scored(one) for one in self.found.values()]
        start = self._scored(self.found[reference])
        return candidate_records(scored, start, refused, seed=self.seed) + self.raced
