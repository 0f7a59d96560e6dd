"""A pretrained encoder beside the untrained one and raw pixels: kNN, linear evaluation, fine-tuning."""

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
from querykey.runs.data import DataAt, unseen_part
from querykey.runs.fine_tune import Labelled, fine_tuned
from querykey.runs.pretrain_folder import RunFolder
from querykey.types import PerQuery, Rows

__all__ = [
    "evaluate_encoder", "knn_of", "label_pixels", "neighbours_of", "pixel_rows",
    "trained_on",
]  # fmt: skip

KNN_TEMPERATURE = 0.1
MANY, NEIGHBOURS, FEW_NEIGHBOURS = 10_000, 200, 20
"""200 neighbours, as the papers have it, vote in banks of 10,000 rows and more; in smaller ones 20."""
RANK_ROWS, PIXELS_SIDE = 10_000, 32
H, Z, UNTRAINED, PIXELS = "h", "z = g(h)", "untrained h", "pixels"
FINE_TUNED, SUPERVISED = "fine-tuned", "supervised"

Fit = tuple[list[float], dict[str, Any]]
"""0 or 1 a test image, NaN where its class isn't known; and how it came about."""


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
    notify: Notify | None = None,
) -> Table:
    """Score a pretrained encoder on labelled images it has not seen.

    Beside h and z = g(h) always stand the untrained encoder's h and raw pixels; with fine-tuning also
    the same network trained on the same labels alone, with the same views and a tuned learning rate.

    Args:
        folder: Of a finished pretraining.
        on: Labelled test images.
        train: Labelled training images; None: those it was pretrained on.
        protocol: Of the linear evaluation.
        labels_fraction: The share of the training labels that is used, by class; None: all.
        fine_tuning: "h": from the backbone, "first layer": from the first layer of the head too.
        epochs: Of fine-tuning; None: 60, or as many as make about 400 steps of 256.
        device: Where to encode and train.
        seed: Of few labels, held-out parts, fine-tuning and intervals.
        notify: Called with what is worth knowing.

    Returns:
        Methods against "linear", "kNN" and, with more than 5 classes, "top-5".

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
        on = unseen_part(on, RunFolder.read(Path(folder)).fingerprint, notify)
    at = train or trained_on(folder, on)
    size = saved.settings.image_size or 224
    known, asked = label_pixels(at.source(), on.source(), size=size, channels=saved.channels, notify=notify)
    kept = (known.labels != IGNORE_LABEL).nonzero()[:, 0]
    if labels_fraction is not None:
        kept = choose_labelled(known.labels, fraction=labels_fraction, seed=seed)
    untrained = read_encoder(folder, untrained=True)
    features = _features(saved, untrained, known, kept, asked, place)
    per_query: dict[str, dict[str, PerQuery]] = {}
    figures: dict[str, dict[str, float]] = {}
    fits: dict[str, Any] = {}
    few = torch.full_like(known.labels, IGNORE_LABEL).index_copy_(0, kept, known.labels[kept])
    jobs = {
        name: partial(_linear, rows, known.labels[kept], asked.labels, protocol, seed)
        for name, rows in features.items()
    }
    if fine_tuning != "none":
        learned = partial(_tuned, known=Labelled(known.pixels, few), asked=asked, epochs=epochs,
                          device=place, seed=seed)  # fmt: skip
        jobs[SUPERVISED] = partial(learned, untrained, start="h")
        jobs[FINE_TUNED] = partial(learned, saved, start=fine_tuning)
    # several processes share the fits out: each has the bits that one process gives it
    for name, (correct, how) in zip(
        jobs, current_process_group().distribute_jobs([*jobs.values()]), strict=True
    ):
        per_query[name], fits[name] = {"linear": torch.tensor(correct)}, how
    for name, (bank, queries) in features.items():
        per_query[name]["kNN"] = knn_of(bank, known.labels[kept], queries, asked.labels)
        figures[name] = {"dim": float(bank.shape[1])} | _whole(queries, fits[name]["top_5"])
    k = neighbours_of(len(kept))
    return tabulate(
        per_query, figures=figures, references=(UNTRAINED, PIXELS), seed=seed,
        protocol={
            "encoder": saved.identity, "train": at.as_dict(), "on": on.as_dict(), "asked": len(asked.labels),
            "labels": len(kept), "labels_fraction": labels_fraction, "linear": fits, "protocol": protocol,
            "knn": {"k": k, "temperature": KNN_TEMPERATURE, "bank": len(kept)}, "seed": seed,
        },
    )  # fmt: skip


def label_pixels(
    train: Source, on: Source, *, size: int, channels: int | None = None, notify: Notify
) -> tuple[Labelled, Labelled]:
    """Decode training and test images, with labels that mean the same in both.

    Args:
        train: Images with labels.
        on: Others with labels.
        size: Pixels of a side that the encoder takes.
        channels: Of an image that it takes, as `read_pixels` makes them; None: those of the images.
        notify: Called with what is worth knowing.

    Returns:
        Both.

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
        notify(f"{on.name} holds the training images themselves: each finds itself, and nothing is measured")
    numbered, _ = common_labels(*parts)
    made = []
    for source, labels in zip(sources, numbered, strict=True):
        pixels = read_pixels(source, size=size, channels=channels, workers=2, notify=notify)
        made.append(Labelled(pixels, torch.from_numpy(labels)[pixels.ids]))
    return made[0], made[1]


def knn_of(bank: Rows, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> PerQuery:
    """Whether kNN gives each query its class, with the constants of this evaluation.

    Args:
        bank: Training rows.
        bank_labels: Their classes.
        queries: Test rows.
        labels: Their classes.

    Returns:
        0 or 1 a query, NaN where its class isn't known.
    """
    k, processes = neighbours_of(len(bank)), current_process_group()
    own = processes.local_slice(len(queries))
    correct = knn_correct(bank, bank_labels, queries[own], labels[own], k=k, temperature=KNN_TEMPERATURE)
    return processes.all_gather_with_grad(correct, len(queries))


def _linear(
    rows: tuple[Tensor, Tensor], labels: Tensor, wanted: Tensor, protocol: LinearProtocol, seed: int
) -> Fit:
    found = linear_evaluation(rows[0], labels, rows[1], wanted, protocol=protocol, seed=seed)
    return found.correct.tolist(), found.as_dict()


def _tuned(saved: SavedEncoder, **how: Any) -> Fit:
    correct, constants = fine_tuned(saved, **how)
    return correct.tolist(), constants


def neighbours_of(bank: int) -> int:
    """How many neighbours vote in a bank of so many rows."""
    return NEIGHBOURS if bank >= MANY else min(FEW_NEIGHBOURS, bank)


def trained_on(folder: str | Path, on: DataAt) -> DataAt:
    """Where the images of a pretraining are, to be read with labels.

    Args:
        folder: Of the pretraining.
        on: Others, whose label column is taken where the run had none.

    Returns:
        Where they are.

    Raises:
        StoreError: If they were handed over as an object, which has no name.
    """
    at = DataAt(**RunFolder.read(Path(folder)).at)
    return replace(at, label_column=at.label_column or on.label_column)


def _features(
    saved: SavedEncoder, untrained: SavedEncoder, known: Labelled, kept: Tensor, asked: Labelled,
    device: torch.device,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """(training rows, test rows) of every method, the baselines first."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    sides = ((known.pixels, known.pixels.ids[kept]), (asked.pixels, asked.pixels.ids))
    made[PIXELS] = (pixel_rows(*sides[0]), pixel_rows(*sides[1]))
    for one, names in ((untrained, (UNTRAINED, None)), (saved, (H, Z))):
        encoder = one.encoder.to(device)
        both = [encode_rows(encoder, one.prepare, pixels, rows) for pixels, rows in sides]
        if names[1] is not None and one.settings.head.kind != "none":
            made[names[1]] = (both[0][1], both[1][1])
        made[names[0]] = (both[0][0], both[1][0])
    return made


def pixel_rows(pixels: Pixels, rows: Tensor) -> Tensor:
    """Images as rows of their pixels, the baseline: at 32 a side where they are larger or of several sizes.

    Args:
        pixels: All images.
        rows: Which of them.

    Returns:
        float32 [rows, channels x height x width], from 0 to 1.
    """
    zero, one = (0.0,) * pixels.channels, (1.0,) * pixels.channels
    parts = []
    for images, sizes, _ in pixels.stream(torch.split(rows, 1024)):
        if sizes is None and max(images.shape[2:]) <= PIXELS_SIDE:
            parts.append(images.flatten(1).float() / 255)
        else:
            parts.append(
                plain_view(images, size=PIXELS_SIDE, sizes=sizes, mean=zero, deviation=one).flatten(1)
            )
    return torch.cat(parts)


def _whole(queries: Tensor, top_5: float | None) -> dict[str, float]:
    rank = {"rank": effective_rank(queries[:RANK_ROWS])}
    return rank if top_5 is None else rank | {"top-5": top_5}
