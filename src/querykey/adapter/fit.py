"""The one way to fit an adapter; the estimator and the command line both call it."""

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from querykey.adapter.diagnostics import collapse_reason, health
from querykey.adapter.fit_memory import describe_fit_memory
from querykey.adapter.sampling import Course, course_of_items, course_of_pairs
from querykey.adapter.settings import AdapterSettings, resolve, situation_of
from querykey.adapter.split import Split, TrainingPairs, check_labels, split_items, split_pairs, unit_rows
from querykey.adapter.validation import Guard
from querykey.encoders.heads import FCLayer, Start
from querykey.errors import DataError
from querykey.evaluation.geometry import effective_rank
from querykey.optim import warm_up_cosine
from querykey.processes import current_processes
from querykey.types import FrozenRows, Labels

__all__ = ["Begin", "Fitted", "Record", "fit_adapter"]

START_ROWS = 50_000
"""Rows that the start is computed from, at the most."""
CHECKS = 25
"""How often a run is scored."""

Record = Callable[[dict[str, Any]], None]
Begin = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit gives.

    Args:
        fc: The FC layer, in eval mode, never worse on the held-out part than its start.
        settings: As resolved.
        report: Guard scores (start, best, at which step), whether training helped, why it stopped, seconds.
        history: A record for each time the run was scored: step, guard score and health.
    """

    fc: FCLayer
    settings: AdapterSettings
    report: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)


def fit_adapter(
    vectors: FrozenRows,
    settings: AdapterSettings,
    *,
    labels: Labels | None = None,
    pairs: TrainingPairs | None = None,
    record: Record | None = None,
    begin: Begin | None = None,
) -> Fitted:
    """Train an FC layer on frozen rows.

    Args:
        vectors: Frozen rows [items, width]: the items, or the documents of pairs. May be memory-mapped.
        settings: What to do; None fields are chosen here.
        labels: Class of each item, -1 where it is not known.
        pairs: (query, document) pairs.
        record: Called with each record of the history as it is made.
        begin: Called before the first step with what the fit takes of the memory.

    Returns:
        A `Fitted`. The same seed, data and number of threads give the same bits.

    Raises:
        DataError: If there is nothing to learn from.
        RangeError: If a setting is outside its range.
        ConfigError: If settings contradict each other.
    """
    began = time.monotonic()
    if labels is not None:
        check_labels(labels, len(vectors))
    if min(len(vectors), len(vectors) if pairs is None else len(pairs.query_ids)) < 2:
        raise DataError(f"{min(len(vectors), 1)} row is too few to learn from; at least 2 are needed")
    share, seed = settings.held_out, settings.seed
    if pairs is None:
        split = split_items(vectors, labels, share=share, seed=seed)
    else:
        split = split_pairs(vectors, pairs, share=share, seed=seed, moves_documents=settings.side == "both")
    situation = situation_of(labels=labels, has_pairs=pairs is not None)
    resolved = resolve(settings, situation=situation, items=len(split.train), width=vectors.shape[1])

    fc, start = _started(vectors, resolved, split)
    resolved = replace(resolved, start=start)
    processes = current_processes()
    processes.copy_first_(fc.state_dict().values())  # another machine's bits may differ, and then its scores
    if pairs is None:
        course = course_of_items(fc, resolved, vectors, split.train, labels, processes=processes)
    else:
        course = course_of_pairs(fc, resolved, vectors, split.train, pairs, processes=processes)
    if begin is not None:
        width, count = vectors.shape[1], processes.count
        begin(describe_fit_memory(resolved, items=len(split.train), width=width, processes=count))
    report, history = _train(course, resolved, split, record)
    report["seconds"] = round(time.monotonic() - began, 2)
    return Fitted(fc.eval().requires_grad_(False), resolved, report, history)


def _started(vectors: FrozenRows, settings: AdapterSettings, split: Split) -> tuple[FCLayer, Start]:
    """An FC layer at the start that was asked for, or at the one that the guard scores highest."""
    assert settings.dim is not None
    assert settings.fc is not None
    rows = torch.arange(len(vectors))
    if len(rows) > START_ROWS:
        rows = torch.from_numpy(
            np.sort(np.random.default_rng([settings.seed, 3]).permutation(len(rows))[:START_ROWS])
        )
    sample = unit_rows(vectors, rows)
    starts: list[Start] = ["pca", "pca_centred"] if settings.start is None else [settings.start]
    if settings.fc == "residual":
        starts = ["identity"]
    best: tuple[float, FCLayer, Start] | None = None
    for start in starts:
        fc = FCLayer(vectors.shape[1], settings.dim, kind=settings.fc)
        fc.start_(start, sample, seed=settings.seed)
        score = split.guard.score(fc) if len(starts) > 1 else 0.0
        if best is None or score > best[0]:
            best = score, fc, start
    assert best is not None
    return best[1], best[2]


def _train(
    course: Course, settings: AdapterSettings, split: Split, record: Record | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Take the steps, score the held-out part now and then, and leave the layer at its best."""
    fc, steps = course.learner.fc, settings.steps or 0
    best_score, best_step, best_state = _score(fc, split.guard), 0, copy.deepcopy(fc.state_dict())
    report = {"guard": split.guard.name, "start": best_score}
    with torch.no_grad():
        start_rank = effective_rank(fc(split.sample))
    every, stopped, history, since = max(1, -(-steps // CHECKS)), "all steps taken", list[dict[str, Any]](), 0
    for step in range(steps):
        for group in course.learner.optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_up_cosine(step, steps=steps)
        taken = course.take(step)
        if (step + 1) % every and step + 1 != steps:
            continue
        seen = health(taken, course.memory, course.capacity, fc, split.sample)
        score = _score(fc, split.guard)
        history.append({"step": step + 1, "guard": score, **seen})
        if record is not None:
            record(history[-1])
        if (reason := collapse_reason(seen, start_rank)) is not None:
            stopped = reason
            warnings.warn(f"training stopped at step {step + 1}: {reason}", UserWarning, stacklevel=4)
            break
        since = 0 if score > best_score else since + 1
        if score > best_score:
            best_score, best_step, best_state = score, step + 1, copy.deepcopy(fc.state_dict())
        if since >= settings.patience:
            stopped = f"no better guard score in {since} looks"
            break
    fc.load_state_dict(best_state)
    taken_steps = history[-1]["step"] if history else 0
    report |= {"best": best_score, "best_step": best_step, "helped": best_step > 0}
    return report | {"steps_taken": taken_steps, "stopped": stopped}, history


def _score(fc: torch.nn.Module, guard: Guard) -> float:
    with torch.no_grad():
        return current_processes().from_first(guard.score(fc))
