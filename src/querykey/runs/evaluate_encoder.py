"""Evaluates a pretrained encoder, the untrained one and raw pixels: kNN, linear evaluation, fine-tuning."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from querykey.data.augment.views import plain_view
from querykey.data.items import Source
from querykey.data.labels import common_labels
from querykey.data.pixels.pixels import Pixels, read_pixels
from querykey.distributed.process_group import current_process_group, in_default_torch_state
from querykey.encoders.frozen.model import usable_device
from querykey.errors import ConfigError, DataError, Notify
from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.geometry import effective_rank
from querykey.evaluation.knn import knn_correct
from querykey.evaluation.linear_evaluation import LinearProtocol, linear_evaluation
from querykey.evaluation.table import Table, tabulate
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.saved_encoder import SavedEncoder, encode_rows, read_encoder
from querykey.runs.adapt import Progress
from querykey.runs.data import DataAt, evaluation_split
from querykey.runs.fine_tune import Labelled, fine_tuned
from querykey.runs.pretrain_folder import RunFolder
from querykey.types import PerQuery, Rows

__all__ = ["evaluate_encoder", "knn_of", "label_pixels", "neighbours_of", "pixel_rows", "trained_on"]

KNN_TEMPERATURE = 0.1
MANY, NEIGHBOURS, FEW_NEIGHBOURS = 10_000, 200, 20
"""200 neighbours, as in the papers, for banks of at least 10,000 rows; 20 for smaller ones."""
RANK_ROWS, PIXELS_SIDE = 10_000, 32
H, Z, UNTRAINED, PIXELS = "h", "z = g(h)", "untrained h", "pixels"
FINE_TUNED, SUPERVISED = "fine-tuned", "supervised"

Fit = tuple[list[float], dict[str, Any]]
"""(0 or 1 per test image, NaN if it has no label; settings of the fit)."""


@in_default_torch_state
def evaluate_encoder(
    folder: str | Path,
    on: DataAt,
    *,
    train: DataAt | None = None,
    protocol: LinearProtocol = "lbfgs",
    labels_fraction: float | None = None,
    fine_tuning: Literal["none", "h", "first layer"] = "none",
    epochs: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Table:
    """Evaluate a pretrained encoder on labelled images.

    The baselines are h of the untrained encoder and raw pixels; with fine-tuning also the same network
    trained only on the same labels, with the same views and a tuned learning rate.

    Args:
        folder: The folder of a finished pretraining run.
        on: Labelled test images.
        train: Labelled training images; None: those of the pretraining.
        protocol: Protocol of the linear evaluation.
        labels_fraction: Fraction of the training labels to use, stratified by class; None: all.
        fine_tuning: "h": the backbone; "first layer": the first layer of the head too.
        epochs: Epochs of fine-tuning; None: 60, or as many as about 400 steps of 256 images need.
        device: Device for encoding and training.
        seed: Random seed of few labels, validation splits, fine-tuning and intervals.
        progress: Called with (fits and classifications done, total).
        notify: Called with warnings.

    Returns:
        Methods with "linear", "kNN" and, with more than 5 classes, "top-5".

    Raises:
        MissingPathError: If there is no encoder.
        DataError: If labels are missing.
    """
    notify, place = notify or (lambda _: None), usable_device(device)
    saved = read_encoder(folder)
    if fine_tuning == "first layer" and saved.settings.head.kind != "mlp":
        raise ConfigError(
            f"fine-tuning from the first layer needs an MLP head; this one is {saved.settings.head.kind}"
        )
    if train is None:
        on = evaluation_split(on, RunFolder.read(Path(folder)).fingerprint, notify)
    at = train or trained_on(folder, on)
    size = saved.settings.image_size or 224
    train_set, test_set = label_pixels(
        at.source(), on.source(), size=size, channels=saved.channels, notify=notify
    )
    kept = (train_set.labels != IGNORE_LABEL).nonzero()[:, 0]
    if labels_fraction is not None:
        kept = choose_labelled(train_set.labels, fraction=labels_fraction, seed=seed)
    untrained = read_encoder(folder, untrained=True)
    features = _features(saved, untrained, train_set, kept, test_set, place)
    per_query: dict[str, dict[str, PerQuery]] = {}
    figures: dict[str, dict[str, float]] = {}
    fits: dict[str, Any] = {}
    jobs = {
        name: partial(_linear, rows, train_set.labels[kept], test_set.labels, protocol, seed)
        for name, rows in features.items()
    }
    if fine_tuning != "none":
        few = Labelled(train_set.pixels, _only(train_set.labels, kept))
        options = {"epochs": epochs, "device": place, "seed": seed}
        jobs[SUPERVISED] = partial(_fine_tune, untrained, few, test_set, start="h", **options)
        jobs[FINE_TUNED] = partial(_fine_tune, saved, few, test_set, start=fine_tuning, **options)
    tick = _counter(len(jobs) + len(features), progress)
    # the fits are distributed over the processes; the result does not depend on their number
    results = current_process_group().distribute_jobs([partial(_counted, job, tick) for job in jobs.values()])
    for name, (correct, settings) in zip(jobs, results, strict=True):
        per_query[name], fits[name] = {"linear": torch.tensor(correct)}, settings
    for name, (bank, queries) in features.items():
        per_query[name]["kNN"] = knn_of(bank, train_set.labels[kept], queries, test_set.labels)
        tick()
        figures[name] = {"dim": float(bank.shape[1])} | _figures(queries, fits[name]["top_5"])
    k = neighbours_of(len(kept))
    about = {
        "encoder": saved.identity, "train": at.as_dict(), "on": on.as_dict(), "asked": len(test_set.labels),
        "labels": len(kept), "labels_fraction": labels_fraction, "linear": fits, "protocol": protocol,
        "knn": {"k": k, "temperature": KNN_TEMPERATURE, "bank": len(kept)}, "seed": seed,
    }  # fmt: skip
    return tabulate(per_query, figures=figures, references=(UNTRAINED, PIXELS), seed=seed, protocol=about)


def _only(labels: Tensor, kept: Tensor) -> Tensor:
    """The labels of these rows; the others have none."""
    return torch.full_like(labels, IGNORE_LABEL).index_copy_(0, kept, labels[kept])


def _counter(total: int, progress: Progress | None) -> Callable[[], None]:
    """Reports (0, total) now and one more each time that it is called."""
    done = 0
    if progress is not None:
        progress(done, total)

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def _counted(job: Callable[[], Fit], tick: Callable[[], None]) -> Fit:
    found = job()
    tick()
    return found


def label_pixels(
    train: Source, on: Source, *, size: int, channels: int | None = None, notify: Notify
) -> tuple[Labelled, Labelled]:
    """Decode training and test images, with common class numbers.

    Args:
        train: Labelled training images.
        on: Labelled test images.
        size: Input size of the encoder in pixels.
        channels: Input channels of the encoder; None: those of the images.
        notify: Called with warnings.

    Returns:
        (training images, test images).

    Raises:
        DataError: If one of them has no labels.
    """
    sources, parts = (train, on), []
    for source in sources:
        if source.labels is None:
            raise DataError(
                f"{source.name} has no labels, so nothing can be scored; name them with label_column, or "
                "learn from other images with train"
            )
        parts.append((source.labels, source.label_names))
    if train.fingerprint == on.fingerprint:
        notify(f"{on.name} contains the training images: each is its own nearest neighbour")
    numbered, _ = common_labels(*parts)
    made = []
    for source, labels in zip(sources, numbered, strict=True):
        pixels = read_pixels(source, size=size, channels=channels, workers=2, notify=notify)
        made.append(Labelled(pixels, torch.from_numpy(labels)[pixels.ids]))
    return made[0], made[1]


def knn_of(bank: Rows, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> PerQuery:
    """Whether kNN predicts the class of each query, with the constants of this evaluation.

    Args:
        bank: Training rows.
        bank_labels: Their classes.
        queries: Test rows.
        labels: Their classes.

    Returns:
        0 or 1 per query, NaN if it has no label.
    """
    k, processes = neighbours_of(len(bank)), current_process_group()
    local = processes.local_slice(len(queries))
    correct = knn_correct(bank, bank_labels, queries[local], labels[local], k=k, temperature=KNN_TEMPERATURE)
    return processes.all_gather_with_grad(correct, len(queries))


def _linear(
    rows: tuple[Tensor, Tensor], labels: Tensor, wanted: Tensor, protocol: LinearProtocol, seed: int
) -> Fit:
    found = linear_evaluation(rows[0], labels, rows[1], wanted, protocol=protocol, seed=seed)
    return found.correct.tolist(), found.as_dict()


def _fine_tune(saved: SavedEncoder, train_set: Labelled, test_set: Labelled, **options: Any) -> Fit:
    correct, constants = fine_tuned(saved, train_set, test_set, **options)
    return correct.tolist(), constants


def neighbours_of(bank: int) -> int:
    """Number of neighbours for a bank of this many rows."""
    return NEIGHBOURS if bank >= MANY else min(FEW_NEIGHBOURS, bank)


def trained_on(folder: str | Path, on: DataAt) -> DataAt:
    """The location of the training images of a pretraining run, with labels.

    Args:
        folder: The folder of the run.
        on: The test images; their label column is used if the run has none.

    Returns:
        The location.

    Raises:
        StoreError: If the images were given as an object, which has no location.
    """
    at = DataAt(**RunFolder.read(Path(folder)).at)
    return replace(at, label_column=at.label_column or on.label_column)


def _features(
    saved: SavedEncoder,
    untrained: SavedEncoder,
    train_set: Labelled,
    kept: Tensor,
    test_set: Labelled,
    device: torch.device,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(training rows, test rows) of every method, baselines first."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    sides = ((train_set.pixels, train_set.pixels.ids[kept]), (test_set.pixels, test_set.pixels.ids))
    made[PIXELS] = (pixel_rows(*sides[0]), pixel_rows(*sides[1]))
    for one, names in ((untrained, (UNTRAINED, None)), (saved, (H, Z))):
        encoder = one.encoder.to(device)
        both = [encode_rows(encoder, one.prepare, pixels, rows) for pixels, rows in sides]
        if names[1] is not None and one.settings.head.kind != "none":
            made[names[1]] = (both[0][1], both[1][1])
        made[names[0]] = (both[0][0], both[1][0])
    return made


def pixel_rows(pixels: Pixels, rows: Tensor) -> Tensor:
    """Images as rows of their pixels, a baseline; resized to 32 x 32 if larger or of several sizes.

    Args:
        pixels: All images.
        rows: Indices of the images.

    Returns:
        float32 [rows, channels x height x width], from 0 to 1.
    """
    zero, one = (0.0,) * pixels.channels, (1.0,) * pixels.channels
    parts = []
    for images, sizes, _ in pixels.stream(torch.split(rows, 1024)):
        if sizes is None and max(images.shape[2:]) <= PIXELS_SIDE:
            parts.append(images.flatten(1).float() / 255)
        else:
            resized = plain_view(images, size=PIXELS_SIDE, sizes=sizes, mean=zero, deviation=one)
            parts.append(resized.flatten(1))
    return torch.cat(parts)


def _figures(queries: Tensor, top_5: float | None) -> dict[str, float]:
    rank = {"rank": effective_rank(queries[:RANK_ROWS])}
    return rank if top_5 is None else rank | {"top-5": top_5}
