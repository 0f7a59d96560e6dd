"""Compares runs: differences of settings, and scores on the same queries with paired intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.frozen.model import usable_device
from querykey.errors import ConfigError, DataError, Notify, SourceError
from querykey.evaluation.linear_evaluation import linear_evaluation
from querykey.evaluation.protocol import Examination
from querykey.evaluation.table import Table, tabulate
from querykey.evaluation.task import Embedded, Protocol
from querykey.features.features import Features
from querykey.io.records import versions
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.saved_encoder import DESCRIPTION as ENCODER
from querykey.pretraining.saved_encoder import SavedEncoder, encode_rows, read_encoder
from querykey.runs.adapt import Progress, Run, load_run
from querykey.runs.data import DataAt, Opened
from querykey.runs.diff import (
    Differing,
    Kind,
    common_kind,
    differing,
    facts_of,
    transpose,
    unique_names,
)
from querykey.runs.evaluate_adapter import features_like_those_of, rows_of, task_of, training_features
from querykey.runs.evaluate_encoder import (
    KNN_TEMPERATURE,
    knn_of,
    label_pixels,
    neighbours_of,
    trained_on,
)
from querykey.runs.fine_tune import Labelled
from querykey.runs.pretrain_folder import RunFolder
from querykey.types import PerQuery

__all__ = ["Comparison", "compare_runs"]

FROZEN = "frozen"
FORMAT, VERSION = "querykey comparison", 1

_Fit = tuple[str, int]
"""Key of the frozen model and width of its features."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A comparison of runs.

    Args:
        kind: "adapter" or "pretraining".
        runs: Name to folder.
        settings: The resolved settings that differ.
        origin: Differences in training data and environment.
        ends: Final metrics that each run recorded, without intervals: name, then run.
        table: Scores on the same queries, and differences from the first run; None without data.
    """

    kind: Kind
    runs: dict[str, Path]
    settings: Differing
    origin: Differing
    ends: dict[str, dict[str, Any]]
    table: Table | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": FORMAT, "version": VERSION, "kind": self.kind,
            "runs": {name: str(folder.resolve()) for name, folder in self.runs.items()},
            "settings": {"differ": self.settings.values, "same": self.settings.same},
            "origin": {"differ": self.origin.values, "same": self.origin.same},
            "ends": self.ends, "table": None if self.table is None else self.table.as_dict(),
        }  # fmt: skip


@in_default_torch_state
def compare_runs(
    folders: Sequence[str | Path],
    on: DataAt | None = None,
    *,
    train: DataAt | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Comparison:
    """Compare the settings of runs, and their scores on the same queries with the same protocol.

    Args:
        folders: At least two runs, all adapters or all pretraining runs; the first is the reference.
        on: Test data: features, or a source that the frozen model of each adapter embeds; labelled images
            for pretraining runs. None: no scores.
        train: For pretraining runs: labelled training images for all; None: those of the first.
        device: Device of the models.
        seed: Random seed of sampling, validation splits and bootstrap.
        progress: Called with (items done, total) while a source is embedded.
        notify: Called with warnings.

    Returns:
        The differences and the scores.

    Raises:
        ConfigError: If there are fewer than two runs, one is given twice, or they are not of one kind.
        MissingPathError: If a folder is no run.
        SourceError: If a pretraining run is to be scored and is not finished.
        ModelMismatchError: If the features are of another model than that of a run.
        ShapeError: If they are of another width.
        DataError: If the runs cannot be scored on the same queries, or labels are missing.
    """
    notify = notify or (lambda _: None)
    runs = unique_names(folders, reserved=[FROZEN])
    if common_kind(runs) == "pretraining":
        pretrainings = {name: RunFolder.read(folder) for name, folder in runs.items()}
        found = _beside("pretraining", runs, pretrainings)
        for name, run in pretrainings.items():
            if not run.is_finished:
                notify(f"{name} is not finished; its final metrics are those of its last step so far")
        if on is None:
            return found
        table = _score_encoders(pretrainings, on, train, device=device, seed=seed, notify=notify)
        return replace(found, table=table)
    if train is not None:
        raise ConfigError(f"{folders[0]} is an adapter; train is for pretraining runs, leave it out")
    adapters = {name: load_run(folder) for name, folder in runs.items()}
    found = _beside("adapter", runs, adapters)
    if on is None:
        return found
    table = _score_adapters(adapters, on, device=device, seed=seed, progress=progress, notify=notify)
    return replace(found, table=table)


def _beside(kind: Kind, runs: dict[str, Path], loaded: Mapping[str, Run | RunFolder]) -> Comparison:
    facts = {name: facts_of(run) for name, run in loaded.items()}
    return Comparison(
        kind=kind,
        runs=runs,
        settings=differing({name: one.settings for name, one in facts.items()}),
        origin=differing({name: one.origin for name, one in facts.items()}),
        ends=transpose({name: one.end for name, one in facts.items()}),
    )


def _score_adapters(
    runs: Mapping[str, Run], on: DataAt, *, device: str, seed: int, progress: Progress | None, notify: Notify
) -> Table:
    tests: dict[_Fit, Opened] = {}
    embed = partial(features_like_those_of, device=device, progress=progress, notify=notify)
    for run in runs.values():
        if _fit(run) not in tests:
            tests[_fit(run)] = embed(run, on)
    _require_same_items([test.features for test in tests.values()], on)
    trains = _knn_training_features(runs, tests, on, notify)
    protocol = Protocol(references=(next(iter(runs)),), seed=seed)
    exams = {
        fit: Examination(task_of(test.features, trains.get(fit), on), protocol) for fit, test in tests.items()
    }
    numbers: dict[str, dict[str, PerQuery]] = {}
    figures: dict[str, dict[str, float]] = {}

    def score(name: str, exam: Examination, rows: Embedded) -> None:
        numbers[name], figures[name] = exam.per_query(name, rows), exam.figures(rows)

    for name, run in runs.items():
        exam = exams[_fit(run)]
        score(name, exam, rows_of(run.adapter, exam.task))
    first, *others = exams.values()
    if not others:
        task = first.task
        score(FROZEN, first, Embedded(test=task.test, train=task.train, queries=task.queries))
    keys = {name: tests[_fit(run)].fingerprint for name, run in runs.items()}
    about = {**first.describe(), "on": {**on.as_dict(), "keys": keys}}
    return tabulate(numbers, figures=figures, references=protocol.references, protocol=about, seed=seed)


def _fit(run: Run) -> _Fit:
    """Features of this model and width fit the run."""
    return run.adapter.model_key_, run.adapter.n_features_in_


def _require_same_items(tests: Sequence[Features], on: DataAt) -> None:
    first, *others = ((list(one.ids), one.queries and list(one.queries.ids)) for one in tests)
    if any(other != first for other in others):
        raise DataError(
            f"{on.spec}: the frozen models of these runs cannot all read the same items, so the queries "
            "differ; remove the damaged items"
        )


def _knn_training_features(
    runs: Mapping[str, Run], tests: Mapping[_Fit, Opened], on: DataAt, notify: Notify
) -> dict[_Fit, Features]:
    """Training features of kNN, if all runs were fitted on the same items; else none, with a warning."""
    fitted = [name for name, run in runs.items() if run.features.get("key") == tests[_fit(run)].fingerprint]
    if fitted:
        notify(f"{on.spec} is what {', '.join(fitted)} was fitted on; scores on new data are likely lower")
        return {}
    if all(test.features.labels is None for test in tests.values()):
        return {}
    found: dict[str, Features] = {}
    trains: dict[_Fit, Features] = {}
    for name, run in runs.items():
        key = run.features.get("key", "")
        try:
            trains[_fit(run)] = found[key] = found.get(key) or training_features(run)
        except DataError as error:
            notify(f"{name}: {error}: kNN is left out")
            return {}
    first, *others = found.values()
    origins = [features.meta.get("source", {}).get("fingerprint") for features in found.values()]
    same_source = len(set(origins)) == 1 and origins[0] is not None
    if others and not (same_source and all(list(other.ids) == list(first.ids) for other in others)):
        notify("the runs were fitted on different items: kNN is left out")
        return {}
    return trains


def _score_encoders(
    runs: Mapping[str, RunFolder], on: DataAt, train: DataAt | None, *, device: str, seed: int, notify: Notify
) -> Table:
    place = usable_device(device)
    encoders = {name: _finished(run) for name, run in runs.items()}
    first, *_ = runs
    at = train or trained_on(runs[first].path, on)
    if train is None and len({run.fingerprint for run in runs.values()}) > 1:
        notify(
            f"the runs were pretrained on different images; kNN and the linear evaluation of all use "
            f"{at.spec}, the training images of {first}; train names others"
        )
    train_images, test_images = at.source(), on.source()
    fitted = [name for name, run in runs.items() if run.fingerprint == test_images.fingerprint]
    if fitted:
        notify(f"{on.spec} is what {', '.join(fitted)} was pretrained on; scores on new images may be lower")
    sides: dict[tuple[int, int], tuple[Labelled, Labelled]] = {}
    numbers: dict[str, dict[str, PerQuery]] = {}
    figures: dict[str, dict[str, float]] = {}
    fits: dict[str, Any] = {}
    for name, saved in encoders.items():
        size, channels = saved.settings.image_size or 224, saved.channels
        if (size, channels) not in sides:
            sides[size, channels] = label_pixels(
                train_images, test_images, size=size, channels=channels, notify=notify
            )
        train_set, test_set = sides[size, channels]
        numbers[name], fits[name] = _score_encoder(saved, train_set, test_set, device=place, seed=seed)
        figures[name] = {"dim": float(saved.encoder.backbone.dim)}
    bank = int((train_set.labels != IGNORE_LABEL).sum())
    about = {
        "encoders": {name: saved.identity for name, saved in encoders.items()},
        "train": at.as_dict(), "on": on.as_dict(), "asked": len(test_set.labels), "labels": bank,
        "linear": fits, "knn": {"k": neighbours_of(bank), "temperature": KNN_TEMPERATURE, "bank": bank},
        "left_out": [], "seed": seed, "versions": versions("scikit-learn"),
    }  # fmt: skip
    return tabulate(numbers, figures=figures, references=[first], seed=seed, protocol=about)


def _finished(run: RunFolder) -> SavedEncoder:
    """The encoder of a finished run; while a run is extended it has the encoder of its former end."""
    if (run.path / ENCODER).is_file():
        saved = read_encoder(run.path)
        if saved.report.get("steps_taken") == run.settings.steps:
            return saved
    raise SourceError(
        f"{run.path} is a pretraining run that is not finished; resume it with querykey resume {run.path}, "
        "or compare only the settings, without test data"
    )


def _score_encoder(
    saved: SavedEncoder, train_set: Labelled, test_set: Labelled, *, device: torch.device, seed: int
) -> tuple[dict[str, PerQuery], dict[str, Any]]:
    kept = (train_set.labels != IGNORE_LABEL).nonzero()[:, 0]
    encoder = saved.encoder.to(device)
    banks = encode_rows(encoder, saved.prepare, train_set.pixels, train_set.pixels.ids[kept])
    queries = encode_rows(encoder, saved.prepare, test_set.pixels, test_set.pixels.ids)
    sides = ("h", "z") if saved.settings.head.kind != "none" else ("h",)
    numbers: dict[str, PerQuery] = {}
    fits: dict[str, Any] = {}
    for side, bank, rows in zip(sides, banks, queries, strict=False):
        fit = linear_evaluation(bank, train_set.labels[kept], rows, test_set.labels, seed=seed)
        numbers[f"linear {side}"], fits[side] = fit.correct, fit.as_dict()
        numbers[f"kNN {side}"] = knn_of(bank, train_set.labels[kept], rows, test_set.labels)
    return numbers, fits
