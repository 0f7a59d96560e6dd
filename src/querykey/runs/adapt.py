"""From settings to objects: the fit of a run file, and the folder of a run."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from querykey.adapter.checkpoint import DESCRIPTION, put_saved
from querykey.adapter.estimator import NAMES, Adapter
from querykey.adapter.tasks import Judge
from querykey.distributed.process_group import current_process_group, in_default_torch_state
from querykey.errors import DataError, MissingPathError, Notify
from querykey.features.features import Features
from querykey.io.atomic import new_folder, raises_store_error, reserve
from querykey.io.records import Records, versions
from querykey.runs.adapter_settings import AdaptRun, parse_run
from querykey.runs.data import DataAt, open_features

__all__ = ["Progress", "Run", "adapt", "estimator", "fit", "load_run", "told"]

RUN, METRICS = "run.json", "metrics.jsonl"
VERSION = 1

Progress = Callable[[int, int | None], None]
"""Called with (done, total); total is None where it is not known beforehand."""


@dataclass(frozen=True, eq=False)
class Run:
    """A folder that `querykey adapt` wrote.

    Args:
        folder: Where it is.
        adapter: The fitted adapter.
        settings: What was asked for; None in a folder that `Adapter.save` wrote.
        features: Where the training features are, how many, and of which model.
    """

    folder: Path
    adapter: Adapter
    settings: AdaptRun | None = None
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def trained_on(self) -> DataAt | None:
        """The training features; None where the folder does not say."""
        at = self.features.get("at")
        return None if at is None else DataAt(**at)


def estimator(run: AdaptRun) -> Adapter:
    """The estimator that a run describes, not fitted yet.

    Args:
        run: What is None is left to the estimator's own default.

    Returns:
        An `Adapter`.

    Example:
        >>> from querykey.runs.adapter_settings import read_run
        >>> estimator(read_run(None, ["loss.temperature=0.1", "memory=in_batch"])).get_params()["memory"]
        'in_batch'
    """
    given = {name: value for name, value in run.as_parameters().items() if name in NAMES}
    return Adapter(**given, random_state=run.seed)


@in_default_torch_state
def fit(
    run: AdaptRun, features: Features, *, record: Callable[[dict[str, Any]], None] | None = None,
    begin: Notify | None = None, judge: Judge | None = None,
) -> Adapter:  # fmt: skip
    """Fit the estimator of a run to features.

    Args:
        run: Whose task says whether labels or pairs are used.
        features: The training features.
        record: Called with each record of the history as it is made.
        begin: Called with what the fit takes of the memory, and with a line a candidate.
        judge: Queries that tell what a fit without labels is worth.

    Returns:
        The fitted adapter.

    Raises:
        DataError: If the features have not what the task needs.
    """
    adapter = estimator(run)
    match run.task:
        case "pairs":
            if features.queries is None or features.pairs is None:
                raise DataError(
                    "pairs needs (query, document) pairs, and these features have none; make them with "
                    "querykey embed from a BEIR folder, or with --pair-column"
                )
            return adapter.fit_pairs(
                features.queries,
                features,
                pairs=features.pairs[:, :2].numpy(),
                record=record,
                begin=begin,
            )
        case "labels":
            return adapter.fit(features, features.labels, record=record, begin=begin)
        case _:
            return adapter.fit(features, queries=judge, record=record, begin=begin)


@in_default_torch_state
def adapt(
    at: DataAt,
    run: AdaptRun,
    out: str | Path,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
    begin: Notify | None = None,
    judge: Callable[[Features], tuple[Judge | None, str]] | None = None,
) -> Run:
    """Fit an adapter to features and write a run folder: adapter, run.json and metrics.jsonl.

    Many processes of torch.distributed share out the queries of each step; the first writes.

    Args:
        at: The features; their bytes are verified.
        run: The settings.
        out: The folder, which must not exist yet.
        progress: Called with (steps taken, steps in all, where the run says them) now and then.
        notify: Called with what is worth knowing, such as a setting that was lowered.
        begin: Called with what the fit takes of the memory, and with a line a candidate.
        judge: Makes queries that tell what a fit without labels is worth, and says what it did.

    Returns:
        The run.

    Raises:
        OutputExistsError: If something is at `out`.
        OutputError: If it cannot be written; nothing is left behind.
        DataError: If there is nothing to learn from.
        StoreError: If the bytes of the features were changed.
    """
    out = Path(out)
    with reserve(out) if current_process_group().is_main_process else nullcontext():
        return _adapt(at, run, out, progress=progress, notify=notify, begin=begin, judge=judge)


def _adapt(
    at: DataAt, run: AdaptRun, out: Path, *, progress: Progress | None, notify: Notify | None,
    begin: Notify | None, judge: Callable[[Features], tuple[Judge | None, str]] | None,
) -> Run:  # fmt: skip
    """Fit and write, while the output is reserved."""
    processes = current_process_group()
    features, fingerprint = open_features(at, verify=True)
    about = {
        "at": at.as_dict(), "rows": len(features), "width": features.dim, "key": fingerprint,
        "model": features.meta.get("model", {"key": features.model_key}),
    }  # fmt: skip
    asked = None
    if judge is not None and run.task == "unlabelled":
        asked, said = judge(features)
        if notify is not None and said:
            notify(said)
    if not processes.is_main_process:  # the first tells and writes
        adapter = fit(run, features, judge=asked)
        processes.barrier()
        return Run(out, adapter, run, about)
    with new_folder(out) as tmp_path:
        metrics = Records(tmp_path / METRICS)

        def record(looked: dict[str, Any]) -> None:
            metrics.append("step", **looked)
            if progress is not None:
                progress(looked["step"], run.steps)

        with told(notify):
            adapter = fit(run, features, record=record, begin=begin, judge=asked)
        metrics.append("fit", **adapter.report_)
        put_saved(adapter.saved(), tmp_path)
        _write_run(tmp_path / RUN, run, adapter, about)
    processes.barrier()
    return Run(out, adapter, run, about)


@in_default_torch_state
def load_run(folder: str | Path) -> Run:
    """Read a run folder, or a folder that `Adapter.save` wrote.

    Args:
        folder: With an adapter.json.

    Returns:
        The run.

    Raises:
        MissingPathError: If there is no run.
        StoreError: If it is damaged or was changed.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise MissingPathError(f"{folder}: no run here; make one with querykey adapt FEATURES --out {folder}")
    adapter = Adapter.load(folder)
    if not (folder / RUN).is_file():
        return Run(folder, adapter)
    with raises_store_error(str(folder / RUN), "fit the run again"):
        said = json.loads((folder / RUN).read_text(encoding="utf-8"))
        run = parse_run(said["settings"], name=str(folder / RUN), warn=False)
        about = dict(said["features"])
        DataAt(**about["at"])
    return Run(folder, adapter, run, about)


@contextmanager
def told(notify: Notify | None) -> Iterator[None]:
    """Hand warnings to whoever tells the user, without the line of code they came from.

    Args:
        notify: Called with the text of each; None leaves warnings as they are.

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
