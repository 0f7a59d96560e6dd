"""Evaluates an adapter and its baselines on data that it was not fitted on."""

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
from querykey.runs.adapt import Progress, Run, adapt, forward_warnings, load_run
from querykey.runs.adapter_settings import AdaptRun, parse_run
from querykey.runs.data import DataAt, Opened, evaluation_split, open_data, open_features
from querykey.runs.load_encoder import encoder_of_features

__all__ = [
    "evaluate_run",
    "features_like_those_of",
    "fit_without_memory",
    "require_like_those_of",
    "rows_of",
    "task_of",
    "training_features",
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
    """Evaluate a run and every baseline at its width, all fitted on its training features.

    The same FC layer trained without a memory is one of the baselines. It is fitted once and stored in the
    folder of the run, like the features of a source.

    Args:
        run: A run.
        on: Features, or a source that the frozen model of the run embeds.
        device: Device of the frozen model.
        seed: Random seed of sampling, random projection and bootstrap.
        progress: Called with (items done, total) while a source is embedded.
        notify: Called with warnings.

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
        on = evaluation_split(on, source.get("fingerprint", run.features["key"]), notify)
    test, fingerprint = features_like_those_of(run, on, device=device, progress=progress, notify=notify)
    if test.labels is None and run.settings is not None and run.settings.task == "labels":
        notify(f"{on.spec} has no labels, so there are no scores by class; name them with label_column")
    if train is not None and fingerprint == run.features["key"]:
        notify(f"{on.spec} is what the run was fitted on; scores on new data are likely lower")
        task = task_of(test, None, on)
    else:
        task = task_of(test, train, on)
    methods = {ADAPTER: rows_of(run.adapter, task)}
    plain = None if train is None else fit_without_memory(run, notify=notify)
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
    """Features for the adapter of a run; a source is embedded once, by the frozen model of the run.

    Args:
        run: A run.
        at: Features, or a source.
        device: Device of the frozen model.
        progress: Called with (items done, total).
        notify: Called with warnings.

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
        cache = run.folder / CACHE / key[:16]
        return Opened(embed_source(opened, encoder, cache, progress=progress, notify=notify), key)
    opened = open_features(at)
    require_like_those_of(run, opened.features, at.spec)
    return opened


def require_like_those_of(run: Run, features: Features, name: str) -> None:
    """Check that features fit the adapter of a run.

    Args:
        run: A run.
        features: Any features.
        name: Their name, for messages.

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


def fit_without_memory(run: Run, *, notify: Notify | None = None) -> Adapter | None:
    """The same fit with in-batch keys in place of the memory, read from the folder of the run or fitted now.

    Args:
        run: A run with its settings.
        notify: Called before it is fitted.

    Returns:
        The adapter; None if the run has no memory, or does not record its settings.
    """
    if run.settings is None or run.trained_on is None or run.adapter.memory == "in_batch":
        return None
    folder = run.folder / BASELINES / WITHOUT_MEMORY
    if folder.is_dir():
        return load_run(folder).adapter
    if notify is not None:
        notify("fitting the same FC layer without a memory, once, as a baseline")
    plain = parse_run(run.settings.as_dict() | {"memory": {"kind": "in_batch"}})
    with forward_warnings(lambda _: None):
        return adapt(run.trained_on, plain, folder).adapter


def training_features(run: Run) -> Features:
    """The features that a run was fitted on.

    Args:
        run: A run.

    Returns:
        The unchanged features.

    Raises:
        DataError: If the run does not record their location, or they are missing or have changed.
    """
    if run.trained_on is None:
        raise DataError("the run does not record the location of its training features")
    try:
        features, fingerprint = open_features(run.trained_on)
    except QuerykeyError as error:
        raise DataError(f"the training features cannot be read ({error})") from error
    if fingerprint != run.features["key"]:
        raise DataError(f"{run.trained_on.spec} has changed since the fit")
    return features


def task_of(test: Features, train: Features | None, on: DataAt) -> Task:
    """The evaluation task of features, with common class numbers.

    Args:
        test: Test features.
        train: Training features of kNN and of baselines; None: no kNN, and baselines are fitted on `test`.
        on: The location of `test`, for messages.

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
    """Transform the rows of a task.

    Args:
        adapter: Fitted on features of the same model and width.
        task: The evaluation task.

    Returns:
        Transformed test, training and query rows.
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
    """The training features for the baselines; None, with a warning, if they are missing or have changed."""
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
