"""Fits an adapter with the settings of a run file, and reads and writes the folder of a run."""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from querykey.adapter.checkpoint import put_saved
from querykey.adapter.cost import FitCost, estimate_fit
from querykey.adapter.estimator import NAMES, Adapter
from querykey.adapter.rows import rows_with_direction
from querykey.adapter.split import distinct_pairs
from querykey.adapter.validation import ValidationQueries
from querykey.distributed.process_group import current_process_group, in_default_torch_state
from querykey.errors import DataError, MissingPathError, Notify
from querykey.features.features import Features
from querykey.io.atomic import new_folder, raises_store_error, reserve
from querykey.io.records import Records, versions
from querykey.runs.adapter_settings import AdaptRun, parse_run
from querykey.runs.data import DataAt, open_features
from querykey.runtime.folder import DESCRIPTION

__all__ = ["Progress", "Run", "adapt", "estimate_adapt", "estimator", "fit", "forward_warnings", "load_run"]

RUN, METRICS = "run.json", "metrics.jsonl"
VERSION = 1

Progress = Callable[[int, int | None], None]
"""Called with (done, total); total is None if it is not known in advance."""


@dataclass(frozen=True, eq=False)
class Run:
    """The output folder of `querykey adapt`.

    Args:
        folder: Its path.
        adapter: The fitted adapter.
        settings: The settings as given; None in a folder that `Adapter.save` wrote.
        features: Location, number and model of the training features.
    """

    folder: Path
    adapter: Adapter
    settings: AdaptRun | None = None
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_on(self) -> DataAt | None:
        """The location of the training features; None if the folder does not record it."""
        at = self.features.get("at")
        return None if at is None else DataAt(**at)


def estimator(run: AdaptRun) -> Adapter:
    """Create the estimator that a run describes.

    Args:
        run: Its settings; None stands for the default of the estimator.

    Returns:
        An `Adapter` that is not fitted yet.

    Example:
        >>> from querykey.runs.adapter_settings import read_run
        >>> estimator(read_run(None, ["loss.temperature=0.1", "memory=in_batch"])).get_params()["memory"]
        'in_batch'
    """
    given = {name: value for name, value in run.as_parameters().items() if name in NAMES}
    return Adapter(**given, random_state=run.seed)


@in_default_torch_state
def fit(
    run: AdaptRun,
    features: Features,
    *,
    record: Callable[[dict[str, Any]], None] | None = None,
    begin: Notify | None = None,
    validation: ValidationQueries | None = None,
) -> Adapter:
    """Fit the estimator of a run to features.

    Args:
        run: Its task decides whether labels or pairs are used.
        features: The training features.
        record: Called with each record of the history.
        begin: Called with the memory that the fit needs, and with one line per candidate.
        validation: Validation queries for a fit without labels.

    Returns:
        The fitted adapter.

    Raises:
        DataError: If the features lack the labels or pairs of the task.
    """
    adapter = estimator(run)
    match run.task:
        case "pairs":
            queries, pairs = _pairs_of(features)
            return adapter.fit_pairs(queries, features, pairs=pairs, record=record, begin=begin)
        case "labels":
            return adapter.fit(features, features.labels, record=record, begin=begin)
        case _:
            return adapter.fit(features, queries=validation, record=record, begin=begin)


def _pairs_of(features: Features) -> tuple[Features, NDArray[np.int64]]:
    """The queries, and (query, document) by number [pairs, 2]."""
    if features.queries is None or features.pairs is None:
        raise DataError(
            "pairs needs (query, document) pairs, and these features have none; make them with "
            "querykey embed from a BEIR folder, or name a pair_column"
        )
    return features.queries, features.pairs[:, :2].numpy()


@in_default_torch_state
def estimate_adapt(
    run: AdaptRun,
    features: Features,
    *,
    make_validation: Callable[[Features], tuple[ValidationQueries | None, str]] | None = None,
) -> FitCost:
    """Estimate the time of `adapt` from a short trial of the same search.

    Args:
        run: The settings.
        features: The training features.
        make_validation: Makes validation queries for a fit without labels, as for `adapt`; its time counts.

    Returns:
        The cost.

    Raises:
        DataError: If there is nothing to learn from, as for the fit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fit itself will say them
        if run.task == "pairs":
            queries, pairs = _pairs_of(features)
            documents, training, _ = distinct_pairs(queries.vectors, features.vectors, pairs)
            return estimate_fit(documents, run, pairs=training)
        started, validation, labels = time.perf_counter(), None, None
        if run.task == "labels":
            labels = features.labels
        elif make_validation is not None:
            validation, _ = make_validation(features)
        vectors, labels, validation = rows_with_direction(features.vectors, labels, validation)
        before = time.perf_counter() - started
        cost = estimate_fit(vectors, run, labels=labels, validation=validation)
        return replace(cost, prepare=cost.prepare + before)


@in_default_torch_state
def adapt(
    at: DataAt,
    run: AdaptRun,
    out: str | Path,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
    begin: Notify | None = None,
    make_validation: Callable[[Features], tuple[ValidationQueries | None, str]] | None = None,
) -> Run:
    """Fit an adapter to features and write a run folder: adapter, run.json and metrics.jsonl.

    With several processes of torch.distributed the queries of each step are distributed, and the main
    process writes.

    Args:
        at: The features; their checksums are verified.
        run: The settings.
        out: The folder, which must not exist yet.
        progress: Called with (steps taken, total steps or None).
        notify: Called with warnings, such as a setting that was lowered.
        begin: Called with the memory that the fit needs, and with one line per candidate.
        make_validation: Makes validation queries for a fit without labels, and a message about them.

    Returns:
        The run.

    Raises:
        OutputExistsError: If `out` exists.
        OutputError: If it cannot be written; no partial output remains.
        DataError: If there is nothing to learn from.
        StoreError: If the bytes of the features were changed.
    """
    out = Path(out)
    with reserve(out) if current_process_group().is_main_process else nullcontext():
        return _adapt(
            at, run, out, progress=progress, notify=notify, begin=begin, make_validation=make_validation
        )


def _adapt(
    at: DataAt,
    run: AdaptRun,
    out: Path,
    *,
    progress: Progress | None,
    notify: Notify | None,
    begin: Notify | None,
    make_validation: Callable[[Features], tuple[ValidationQueries | None, str]] | None,
) -> Run:
    """Fit and write while the output is reserved."""
    processes = current_process_group()
    features, fingerprint = open_features(at, verify=True)
    about = {
        "at": at.as_dict(),
        "rows": len(features),
        "width": features.dim,
        "key": fingerprint,
        "model": features.meta.get("model", {"key": features.model_key}),
    }
    validation = None
    if make_validation is not None and run.task == "unlabelled":
        validation, message = make_validation(features)
        if notify is not None and message:
            notify(message)
    if not processes.is_main_process:  # only the main process reports and writes
        adapter = fit(run, features, validation=validation)
        processes.barrier()
        return Run(out, adapter, run, about)
    with new_folder(out) as tmp_path:
        records = Records(tmp_path / METRICS)

        def record(metrics: dict[str, Any]) -> None:
            records.append("step", **metrics)
            if progress is not None:
                progress(metrics["step"], run.steps)

        with forward_warnings(notify):
            adapter = fit(run, features, record=record, begin=begin, validation=validation)
        records.append("fit", **adapter.report_)
        put_saved(adapter.saved(), tmp_path)
        _write_run(tmp_path / RUN, run, adapter, about)
    processes.barrier()
    return Run(out, adapter, run, about)


@in_default_torch_state
def load_run(folder: str | Path) -> Run:
    """Read a run folder, or a folder that `Adapter.save` wrote.

    Args:
        folder: A folder with an adapter.json.

    Returns:
        The run.

    Raises:
        MissingPathError: If there is no run.
        StoreError: If it is damaged or was changed.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise MissingPathError(f"{folder}: no run here; make one with querykey adapt")
    adapter = Adapter.load(folder)
    if not (folder / RUN).is_file():
        return Run(folder, adapter)
    with raises_store_error(str(folder / RUN), "fit the run again"):
        described = json.loads((folder / RUN).read_text(encoding="utf-8"))
        run = parse_run(described["settings"], name=str(folder / RUN), warn=False)
        about = dict(described["features"])
        DataAt(**about["at"])
    return Run(folder, adapter, run, about)


@contextmanager
def forward_warnings(notify: Notify | None) -> Iterator[None]:
    """Pass the text of each warning to a function, without its place in the code.

    Args:
        notify: Called with each text; None leaves warnings unchanged.

    Yields:
        Nothing.
    """
    if notify is None:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: notify(str(message))
        yield


def _write_run(path: Path, run: AdaptRun, adapter: Adapter, features: dict[str, Any]) -> None:
    described = {
        "format": "querykey run",
        "version": VERSION,
        "settings": run.as_dict(),
        "resolved": adapter.settings_.as_dict(),
        "features": features,
        "report": adapter.report_,
        "threads": torch.get_num_threads(),
        "versions": versions("scikit-learn"),
    }
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
