"""A run beside its baselines, on data it was not fitted on."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.adapter.estimator import Adapter
from querykey.data.items import Source
from querykey.data.labels import common_labels
from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import DataError, ModelMismatchError, Notify, QuerykeyError, ShapeError
from querykey.evaluation.protocol import evaluate
from querykey.evaluation.table import Table
from querykey.evaluation.task import Embedded, Protocol, Task, embed_task
from querykey.features.embed import embed as embed_source
from querykey.features.embed import features_key
from querykey.features.features import Features
from querykey.runs.adapt import Progress, Run, adapt, load_run, told
from querykey.runs.adapter_settings import AdaptRun, parse_run
from querykey.runs.data import DataAt, Opened, open_data, open_features, unseen_part
from querykey.runs.load_encoder import encoder_of_features

__all__ = [
    "evaluate_run",
    "features_like_those_of",
    "require_like_those_of",
    "rows_of",
    "task_of",
    "training_features",
    "without_memory",
]

ADAPTER, WITHOUT_MEMORY = "adapter", "no_memory"
CACHE, BASELINES = "cache", "baselines"


@in_default_torch_state
def evaluate_run(
    run: Run,
    on: DataAt,
    *,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Table:
    """Evaluate a run beside every baseline at its width, all fitted on its training features.

    The same FC layer trained without a memory is one of them; it is fitted once and kept in the
    run's folder, and so are the features of a source.

    Args:
        run: A run.
        on: Features, or a source that the run's frozen model embeds.
        device: Where the frozen model runs.
        seed: Of draws, random projection and bootstrap.
        progress: Called with (items done, items in all) while a source is embedded.
        notify: Called with what is worth knowing.

    Returns:
        The table.

    Raises:
        ModelMismatchError: If the features are of another model than the run's.
        ShapeError: If they are of another width.
        DataError: If there is nothing to evaluate.
    """
    notify = notify or (lambda _: None)
    train = _to_fit_baselines(run, notify)
    if train is not None:
        source = train.meta.get("source") or {}
        on = unseen_part(on, source.get("fingerprint", run.features["key"]), notify)
    test, fingerprint = features_like_those_of(run, on, device=device, progress=progress, notify=notify)
    if test.labels is None and run.settings is not None and run.settings.task == "labels":
        notify(f"{on.spec} has no labels, so nothing is measured by class; name them with label_column")
    if train is not None and fingerprint == run.features["key"]:
        notify(f"{on.spec} is what the run was fitted on; new data would rank it lower")
        task = task_of(test, None, on)
    else:
        task = task_of(test, train, on)
    methods = {ADAPTER: rows_of(run.adapter, task)}
    plain = None if train is None else without_memory(run, notify=notify)
    if plain is not None:
        methods = {WITHOUT_MEMORY: rows_of(plain, task), **methods}
    table = evaluate(task, methods, dim=run.adapter.fc_.dim, protocol=Protocol(seed=seed))
    table.protocol.update(_about(run, on, fingerprint))
    return table


def features_like_those_of(
    run: Run,
    at: DataAt,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Opened:
    """Features that a run's adapter can take; a source is embedded by the run's frozen model, once.

    Args:
        run: A run.
        at: Features, or a source.
        device: Where the frozen model runs.
        progress: Called with (items done, items in all).
        notify: Called with what is worth knowing.

    Returns:
        The features and their fingerprint.

    Raises:
        ModelMismatchError: If they are of another model.
        ShapeError: If they are of another width.
    """
    opened = open_data(at)
    if isinstance(opened, Source):
        encoder = encoder_of_features(run.features.get("model", {}), str(run.folder), device=device)
        key = features_key(opened, encoder)
        features = embed_source(
            opened, encoder, run.folder / CACHE / key[:16], progress=progress, notify=notify
        )
        return Opened(features, key)
    opened = open_features(at)
    require_like_those_of(run, opened.features, at.spec)
    return opened


def require_like_those_of(run: Run, features: Features, name: str) -> None:
    """See that a run's adapter can take features.

    Args:
        run: A run.
        features: Any.
        name: How the user named them.

    Raises:
        ModelMismatchError: If they are of another model.
        ShapeError: If they are of another width.
    """
    width, made_by, fitted_on = run.adapter.n_features_in_, features.model_key, run.adapter.model_key_
    if features.dim != width:
        raise ShapeError(f"{name}: rows are {features.dim} wide; the run was fitted on {width}")
    if made_by and fitted_on and made_by != fitted_on:
        theirs = features.meta.get("model", {}).get("spec", made_by[:12])
        ours = run.features.get("model", {}).get("spec", fitted_on[:12])
        raise ModelMismatchError(
            f"{name}: features of {theirs}, and the run was fitted on features of {ours}; "
            "embed with the same model"
        )


def without_memory(run: Run, *, notify: Notify | None = None) -> Adapter | None:
    """The same fit with the batch alone in place of the memory, from the run's folder or fitted now.

    Args:
        run: A run with its settings.
        notify: Told that it is fitted.

    Returns:
        The adapter; None where the run has no memory itself, or does not know its settings.
    """
    if run.settings is None or run.trained_on is None or run.adapter.memory == "in_batch":
        return None
    folder = run.folder / BASELINES / WITHOUT_MEMORY
    if folder.is_dir():
        return load_run(folder).adapter
    if notify is not None:
        notify("fitting the same FC layer without a memory, once, as a baseline")
    plain = parse_run(run.settings.as_dict() | {"memory": {"kind": "in_batch"}})
    with told(lambda _: None):
        return adapt(run.trained_on, plain, folder).adapter


def training_features(run: Run) -> Features:
    """The features that a run was fitted on.

    Args:
        run: A run.

    Returns:
        They, with the bytes they had.

    Raises:
        DataError: If the run does not say where they are, or they are gone or have changed.
    """
    if run.trained_on is None:
        raise DataError("the run does not say where its training features are")
    try:
        features, fingerprint = open_features(run.trained_on)
    except QuerykeyError as error:
        raise DataError(f"the training features cannot be read ({error})") from error
    if fingerprint != run.features["key"]:
        raise DataError(f"{run.trained_on.spec} has changed since the fit")
    return features


def task_of(test: Features, train: Features | None, on: DataAt) -> Task:
    """What is asked of features, with classes that mean the same in both.

    Args:
        test: What is evaluated.
        train: Where kNN votes and baselines are fitted; None: nowhere, and on `test`.
        on: How the user named `test`.

    Returns:
        The task.

    Raises:
        DataError: If there are fewer than two rows.
    """
    if len(test) < 2:
        raise DataError(
            f"{on.spec} has {len(test)} rows; at least 2 are needed to look one up among the others"
        )
    test_labels, train_labels = test.labels, None if train is None else train.labels
    if test_labels is not None and train is not None and train_labels is not None:
        numbered, _ = common_labels(
            (train_labels.numpy(), train.label_names), (test_labels.numpy(), test.label_names)
        )
        train_labels, test_labels = (torch.from_numpy(labels) for labels in numbered)
    return Task(
        test=test.vectors,
        test_labels=test_labels,
        train=None if train is None else train.vectors,
        train_labels=train_labels,
        queries=None if test.queries is None else test.queries.vectors,
        pairs=test.pairs,
    )


def rows_of(adapter: Adapter, task: Task) -> Embedded:
    """The rows that an adapter gives for a task.

    Args:
        adapter: Fitted on features like the task's.
        task: What is evaluated.

    Returns:
        Its test, train and query rows.
    """

    def items(rows: Tensor) -> Tensor:
        out = adapter.transform_documents(rows)
        assert isinstance(out, Tensor)
        return out

    def queries(rows: Tensor) -> Tensor:
        out = adapter.transform(rows)
        assert isinstance(out, Tensor)
        return out

    return embed_task(task, items, queries)


def _to_fit_baselines(run: Run, notify: Notify) -> Features | None:
    """Where baselines are fitted; None, and said so, where they are gone or changed."""
    try:
        return training_features(run)
    except DataError as error:
        notify(f"{error}: baselines are fitted on the test rows")
        return None


def _about(run: Run, on: DataAt, fingerprint: str) -> dict[str, Any]:
    settings: AdaptRun | None = run.settings
    return {
        "run": str(Path(run.folder).resolve()),
        "settings": None if settings is None else settings.as_dict(),
        "on": {**on.as_dict(), "key": fingerprint},
        "trained_on": run.features,
        "side": run.adapter.side,
    }
