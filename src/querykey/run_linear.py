"""A pretrained encoder beside the untrained one and raw pixels: kNN, linear evaluation, fine-tuning."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from querykey.data.labels import common_labels
from querykey.data.pixels import Pixels, read_pixels
from querykey.data.sources import read_source
from querykey.data.views import plain_view
from querykey.encoders.frozen_model import usable_device
from querykey.errors import ConfigError, DataError
from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.geometry import effective_rank
from querykey.evaluation.knn import knn_correct
from querykey.evaluation.linear_protocols import LinearProtocol, linear_evaluation
from querykey.evaluation.table import Table, tabulate
from querykey.lookup import UNLABELLED
from querykey.run_data import DataAt
from querykey.run_folder import RunFolder
from querykey.training.fine_tune import FineTuning, LabelledImages, fine_tune
from querykey.training.saved_encoder import SavedEncoder, encode_rows, read_encoder
from querykey.training.tune_rate import tune_learning_rate
from querykey.types import Labels, PerQuery, Rows

__all__ = ["Labelled", "evaluate_encoder", "knn_of", "pixel_rows", "read_labelled", "supervised"]

KNN_TEMPERATURE = 0.1
MANY, NEIGHBOURS, FEW_NEIGHBOURS = 10_000, 200, 20
"""200 neighbours, as the papers have it, vote in banks of 10,000 rows and more; in smaller ones 20."""
RANK_ROWS = 10_000
PIXELS_SIDE = 32
TUNING_STEPS = 400
H, Z, UNTRAINED, PIXELS = "h", "z = g(h)", "untrained h", "pixels"
FINE_TUNED, SUPERVISED = "fine-tuned", "supervised"

Notify = Callable[[str], None]


class Labelled(NamedTuple):
    """Images and their classes, numbered as everywhere in one evaluation."""

    pixels: Pixels
    labels: Labels


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
    if fine_tuning == "first layer" and saved.settings.head != "mlp":
        raise ConfigError(
            f"fine-tuning from the first layer needs an MLP head; this one is {saved.settings.head}"
        )
    at = train or _trained_on(Path(folder), on)
    known, asked = read_labelled(at, on, size=saved.settings.image_size or 224, notify=notify)
    if known.pixels.channels != saved.channels or asked.pixels.channels != saved.channels:
        raise DataError(
            f"the encoder takes images of {saved.channels} channels; {at.spec} has {known.pixels.channels} "
            f"and {on.spec} {asked.pixels.channels}"
        )
    kept = (known.labels != UNLABELLED).nonzero()[:, 0]
    if labels_fraction is not None:
        kept = choose_labelled(known.labels, fraction=labels_fraction, seed=seed)
    untrained = read_encoder(folder, untrained=True)
    features = _features(saved, untrained, known, kept, asked, place)
    per_query: dict[str, dict[str, PerQuery]] = {}
    figures: dict[str, dict[str, float]] = {}
    fits: dict[str, Any] = {}
    for name, (bank, queries) in features.items():
        result = linear_evaluation(
            bank, known.labels[kept], queries, asked.labels, protocol=protocol, seed=seed
        )
        per_query[name] = {"linear": result.correct}
        per_query[name]["kNN"] = knn_of(bank, known.labels[kept], queries, asked.labels)
        figures[name] = {"dim": float(bank.shape[1])} | _whole(queries, result.top_5)
        fits[name] = result.as_dict()
    if fine_tuning != "none":
        few = torch.full_like(known.labels, UNLABELLED)
        few[kept] = known.labels[kept]
        learned = Labelled(known.pixels, few)
        for name, one in ((SUPERVISED, untrained), (FINE_TUNED, saved)):
            start: Literal["h", "first layer"] = "h" if name == SUPERVISED else fine_tuning
            correct, fits[name] = _fit(one, learned, asked, start, epochs, place, seed)
            per_query[name] = {"linear": correct}
    k = _neighbours(len(kept))
    return tabulate(
        per_query, figures=figures, references=(UNTRAINED, PIXELS), seed=seed,
        protocol={
            "encoder": saved.identity, "train": at.as_dict(), "on": on.as_dict(), "asked": len(asked.labels),
            "labels": len(kept), "labels_fraction": labels_fraction, "linear": fits, "protocol": protocol,
            "knn": {"k": k, "temperature": KNN_TEMPERATURE, "bank": len(kept)}, "seed": seed,
        },
    )  # fmt: skip


def read_labelled(train: DataAt, on: DataAt, *, size: int, notify: Notify) -> tuple[Labelled, Labelled]:
    """Read training and test images with labels that mean the same in both.

    Args:
        train: Images with labels.
        on: Others with labels.
        size: Pixels of a side that the encoder takes.
        notify: Called with what is worth knowing.

    Returns:
        Both.

    Raises:
        DataError: If one of them has no labels.
    """
    sources = []
    for at in (train, on):
        source = read_source(at.spec, column=at.column, label_column=at.label_column, split=at.split)
        if source.labels is None:
            raise DataError(
                f"{at.spec} has no labels, so nothing can be scored; name them with --label-column, or learn "
                "from other images with --train"
            )
        sources.append(source)
    if sources[0].fingerprint == sources[1].fingerprint:
        notify(f"{on.spec} holds the training images themselves: each finds itself, and nothing is measured")
    parts = [(source.labels, source.label_names) for source in sources if source.labels is not None]
    numbered, _ = common_labels(*parts)
    made = []
    for source, labels in zip(sources, numbered, strict=True):
        pixels = read_pixels(source, size=size, memory_limit=None, workers=2, notify=notify)
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
    k = _neighbours(len(bank))
    return knn_correct(bank, bank_labels, queries, labels, k=k, temperature=KNN_TEMPERATURE)


def _neighbours(bank: int) -> int:
    return NEIGHBOURS if bank >= MANY else min(FEW_NEIGHBOURS, bank)


def _trained_on(folder: Path, on: DataAt) -> DataAt:
    at = DataAt(**RunFolder.read(folder).at)
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
        if names[1] is not None and one.settings.head != "none":
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


def supervised(
    untrained: SavedEncoder, known: Labelled, asked: Labelled, *, seed: int, epochs: int | None = None,
    device: torch.device | None = None,
) -> tuple[PerQuery, dict[str, Any]]:  # fmt: skip
    """The baseline of few labels: the same network trained on them alone, from the weights before step 0.

    Args:
        untrained: The encoder before the first step of pretraining.
        known: Training images; those without a label have no part.
        asked: Test images.
        seed: Of the new layer, the order and the views.
        epochs: None: 60, or as many as make 400 steps of 256.
        device: Where; None: the CPU.

    Returns:
        (0 or 1 a test image, how it was trained).
    """
    return _fit(untrained, known, asked, "h", epochs, device or torch.device("cpu"), seed)


def _whole(queries: Tensor, top_5: float | None) -> dict[str, float]:
    rank = {"rank": effective_rank(queries[:RANK_ROWS])}
    return rank if top_5 is None else rank | {"top-5": top_5}


def _fit(
    saved: SavedEncoder, known: Labelled, asked: Labelled, start: Literal["h", "first layer"],
    epochs: int | None, device: torch.device, seed: int,
) -> tuple[PerQuery, dict[str, Any]]:  # fmt: skip
    """Train an encoder on the labelled images with the views of pretraining and a tuned learning rate."""
    count = int((known.labels != UNLABELLED).sum())
    plan = FineTuning(
        epochs=epochs or max(60, round(TUNING_STEPS * 256 / max(256, count))), batch_size=min(256, count),
        seed=seed,
    )  # fmt: skip
    images, test = _shown(saved, known, seed), _shown(saved, asked, seed)
    encoder = copy.deepcopy(saved.encoder).to(device).requires_grad_()
    head = encoder.head.layers[0] if start == "first layer" else None
    tuned = tune_learning_rate(encoder.backbone, images, plan, head_layers=head)
    made = fine_tune(
        encoder.backbone, images, replace(plan, learning_rate=tuned.learning_rate), head_layers=head
    )
    how = made.settings | {"tuned": {f"{rate:g}": share for rate, share in tuned.accuracies.items()}}
    return made.correct(test), how


def _shown(saved: SavedEncoder, known: Labelled, seed: int) -> LabelledImages:
    """Images by place: for training as the views of pretraining at full size, else as in evaluation."""
    assert saved.settings.image_size is not None
    views = replace(saved.views, size=saved.settings.image_size)
    pixels = known.pixels

    def images_of(places: Tensor) -> Tensor:
        images, sizes, _ = next(pixels.stream([pixels.ids[places]]))
        if sizes is None:
            return images
        # of several sizes: the middle square at one size, back on the scale of pixels
        shown = saved.prepare(images, sizes)
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (views.mean, views.deviation))
        return (shown * deviation + mean).clamp(0, 1)

    def view(images: Tensor, places: Tensor, epoch: int) -> Tensor:
        return views(images, places, seed=seed, epoch=epoch, view=0)

    return LabelledImages(images_of=images_of, labels=known.labels, view=view, plain=saved.prepare)
