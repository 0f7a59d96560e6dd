"""How a cell of a study of encoders is measured: pretrain, encode, score."""

import json
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from querykey.config.old_names import PRETRAINING
from querykey.config.settings import current
from querykey.data.augment.views import Views
from querykey.data.pixels.pixels import Pixels
from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.linear_evaluation import linear_evaluation
from querykey.io.records import Record, read
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.lookup.unit_length import unit_length
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.saved_encoder import SavedEncoder, encode_rows
from querykey.runs.evaluate_encoder import knn_of, pixel_rows
from querykey.runs.fine_tune import Labelled, fine_tuned
from querykey.runs.pretrain import pretrain
from querykey.studies.engine.data import SIDE, StudyImages
from querykey.studies.engine.grid import Work
from querykey.types import Ids

__all__ = ["TRANSFORMATIONS", "Peak", "drift_ends", "measure_encoder", "peak_memory", "probe"]

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to clear_refs it resets the peak of the resident set (proc(5))."""


@dataclass
class Peak:
    """Peak memory.

    Args:
        bytes: Largest resident set of the process; None where the system does not report it.
    """

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak memory of a block.

    Yields:
        The result, set at the end of the block.

    Example:
        >>> with peak_memory() as peak:
        ...     room = bytearray(1000)
        >>> peak.bytes is None or peak.bytes > len(room)
        True
    """
    peak = Peak()
    try:
        CLEAR_REFS.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        yield peak
        return
    yield peak
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
    peak.bytes = 1024 * int(fields["VmHWM"].split()[0])


TRANSFORMATIONS = ("colour or gray", "rotation", "noise", "Sobel")
_PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "colour or gray": ("grays", {"grayscale": 0.5}),
    "rotation": ("turns", {"rotate": 1.0}),
    "noise": ("noisy", {"noise": 0.5}),
    "Sobel": ("edges", {"sobel": 0.5}),
}
"""Transformation to the augmentation parameter that is its class, and the options of the views."""
_PLAIN: dict[str, Any] = {"crop_scale": None, "flip": 0.0, "jitter_probability": 0.0, "grayscale": 0.0}
PROBE_TRAIN, PROBE_TEST = 10_000, 5_000
HIDDEN, EPOCHS = 256, 30


class _Probed(NamedTuple):
    """Embeddings and projections of transformed images, with the class of the transformation."""

    h: Tensor
    z: Tensor
    target: Tensor


def probe(saved: SavedEncoder, train: Pixels, test: Pixels, *, seed: int) -> dict[str, Tensor]:
    """Train an MLP to predict each transformation from h and from z, and test it on other images.

    Each image is used once; the random generator of its id decides whether it is transformed.

    Args:
        saved: The encoder; it is put into eval mode.
        train: Training images of the MLP, of which the first 10,000 are used.
        test: Test images, of which the first 5,000 are used.
        seed: Of the augmentation and of the MLP.

    Returns:
        "<transformation> h" and "<transformation> z" to whether each prediction is correct [test], 1.0 or
        0.0.

    Source:
        Chen et al. 2020, arXiv:2002.05709, table 3; the size of its MLP is not given.
    """
    values = {}
    saved.encoder.eval()
    for name in TRANSFORMATIONS:
        parameter, options = _PARAMETERS[name]
        if saved.channels == 1 and name == "colour or gray":
            continue  # gray images have no colour to remove
        size, plain = saved.settings.image_size, saved.views
        assert size is not None
        views = Views(size=size, mean=plain.mean, deviation=plain.deviation, **_PLAIN | options)
        fitted = _transformed(saved, views, train, train.ids[:PROBE_TRAIN], parameter, seed)
        tested = _transformed(saved, views, test, test.ids[:PROBE_TEST], parameter, seed)
        for rows in ("h", "z"):
            features = getattr(fitted, rows), getattr(tested, rows)
            values[f"{name} {rows}"] = _mlp_correct(*features, fitted.target, tested.target, seed=seed)
    return values


@torch.no_grad()
def _transformed(
    saved: SavedEncoder, views: Views, pixels: Pixels, rows: Ids, parameter: str, seed: int
) -> _Probed:
    parts = []
    for images, sizes, ids in pixels.stream(torch.split(rows, 256)):
        within = (int(images.shape[-2]), int(images.shape[-1])) if sizes is None else sizes
        drawn = views.draw(ids, seed=seed, epoch=0, view=0, sizes=within)
        h, z = saved.encoder(views.apply(images, drawn, memory_format=torch.channels_last))
        parts.append(_Probed(h, z, getattr(drawn, parameter).long()))
    return _Probed(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _mlp_correct(train: Tensor, test: Tensor, target: Tensor, test_target: Tensor, *, seed: int) -> Tensor:
    mlp = MLPClassifier((HIDDEN,), max_iter=EPOCHS, batch_size=min(256, len(train)), random_state=seed)
    classifier = make_pipeline(StandardScaler(), mlp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed
        classifier.fit(train.numpy(), target.numpy())
    return torch.from_numpy(classifier.predict(test.numpy()) == test_target.numpy()).double()


DRIFT = "drift_"
LABELLED_FRACTION = 0.01
"""Share of the labels, where an arm gives no number per class."""


class _Pretrained(NamedTuple):
    """A finished pretraining run.

    Args:
        encoder: After the last step.
        untrained: The same encoder before the first step.
        fields: Settings, and the figures of the run that tables show, as the record stores them.
    """

    encoder: SavedEncoder
    untrained: SavedEncoder
    fields: dict[str, Any]


def measure_encoder(work: Work, seed: int) -> dict[str, Any]:
    """Pretrain an arm, and score its encoder.

    Args:
        work: Its data are images.
        seed: Of the pretraining and of the evaluation.

    Returns:
        values (measure to [correct, count]); settings and run of the pretraining.
    """
    assert isinstance(work.data, StudyImages)
    train, test = _labelled(work.data)
    values: dict[str, Tensor]
    if work.arm.kind == "pixels":
        values, fields = _score_pixels(train, test), {}
    else:
        run = _pretrained(work.arm.settings, work.data, work.threads, seed)
        fields = run.fields
        match work.arm.kind:
            case "kNN of pretrained":
                values = _score_knn(run, train, test)
            case "few labels" | "linear of few labels":
                values, more = _score_few_labels(work, run, seed, train, test)
                fields = fields | more
            case "retrieval":
                values = _score_retrieval(run, test)
            case "probes":
                values = probe(run.encoder, train.pixels, test.pixels, seed=seed)
            case _:
                values = _score_pretrained(work, run, train, test)
    counts = {name: [int(v.nansum()), int((~v.isnan()).sum())] for name, v in values.items()}
    return {"values": counts, **fields}


@lru_cache(maxsize=2)
def _labelled(images: StudyImages) -> tuple[Labelled, Labelled]:
    return images.labelled(size=SIDE)


def _score_pixels(train: Labelled, test: Labelled) -> dict[str, Tensor]:
    rows = [pixel_rows(one.pixels, one.pixels.ids) for one in (train, test)]
    return _knn_and_linear("pixels", rows[0], train.labels, rows[1], test.labels)


def _score_pretrained(work: Work, run: _Pretrained, train: Labelled, test: Labelled) -> dict[str, Tensor]:
    h, z = _encoded(run.encoder, train, test)
    values = _knn_and_linear("h", h[0], train.labels, h[1], test.labels, only=work.measures)
    values |= _knn_and_linear("z", z[0], train.labels, z[1], test.labels, only=work.measures)
    if work.arm.scores_untrained:
        h, _ = _encoded(run.untrained, train, test)
        values |= _knn_and_linear("untrained", h[0], train.labels, h[1], test.labels)
    return values


def _score_knn(run: _Pretrained, train: Labelled, test: Labelled) -> dict[str, Tensor]:
    """KNN only: a linear classifier would take half as long as the run."""
    values = {}
    for name, one in (("h", run.encoder), ("untrained", run.untrained)):
        h, _ = _encoded(one, train, test)
        values[f"kNN {name}"] = knn_of(h[0], train.labels, h[1], test.labels)
    return values


def _score_few_labels(
    work: Work, run: _Pretrained, seed: int, train: Labelled, test: Labelled
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    per_class = work.arm.labels_a_class
    fraction = LABELLED_FRACTION if per_class is None else None
    kept = choose_labelled(train.labels, fraction=fraction, per_class=per_class, seed=seed)
    labels = torch.full_like(train.labels, IGNORE_LABEL)
    labels[kept] = train.labels[kept]
    few = Labelled(train.pixels, labels)
    h, _ = _encoded(run.encoder, few, test, rows=train.pixels.ids[kept])
    result = linear_evaluation(h[0], train.labels[kept], h[1], test.labels, seed=seed)
    values, fields = {"linear h": result.correct}, {"labels": len(kept)}
    if work.arm.kind == "linear of few labels":
        return values, fields
    supervised, how = fine_tuned(run.untrained, few, test, epochs=work.arm.epochs, seed=seed)
    return values | {"supervised": supervised}, fields | {"supervised": how}


def _score_retrieval(run: _Pretrained, test: Labelled) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    for name, one in (("", run.encoder), ("untrained ", run.untrained)):
        h, z = encode_rows(one.encoder, one.prepare, test.pixels, test.pixels.ids)
        values |= {f"{name}R@1 h": _nearest_is_right(h, test.labels)}
        values |= {} if name else {"R@1 z": _nearest_is_right(z, test.labels)}
    return values


def _nearest_is_right(rows: Tensor, labels: Tensor) -> Tensor:
    """Whether the nearest other row is of the same class; 1.0 or 0.0."""
    unit = unit_length(rows)
    scores = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return (labels[scores.argmax(dim=1)] == labels).double()


def _pretrained(settings: dict[str, Any], data: StudyImages, threads: int, seed: int) -> _Pretrained:
    return _run(json.dumps(settings, sort_keys=True), data, threads, seed)


# cells that differ in their evaluation alone follow one another, and share one run
@lru_cache(maxsize=1)
def _run(settings: str, data: StudyImages, threads: int, seed: int) -> _Pretrained:  # noqa: ARG001 - of the key
    initial: dict[str, Tensor] = {}

    def on_fit_start(run: Any) -> None:
        initial.update(run.untrained.backbone.state_dict())

    with TemporaryDirectory() as folder, peak_memory() as peak:
        out = Path(folder) / "run"
        given = current(json.loads(settings), PRETRAINING, warn=False)
        run = pretrain(data.training(), seed=seed, out=out, on_fit_start=on_fit_start, **given)
        looks = [record for record in read(out / "metrics.jsonl") if record["kind"] == "look"]
    names = ("steps_taken", "seconds", "images_seen", "views_share_of_step", "end")
    figures = {name: run.report[name] for name in names}
    figures |= {"peak_memory": peak.bytes, "looks": looks, "end": figures["end"] | drift_ends(looks)}
    fields = {"settings": run.settings.as_dict(), "run": figures}
    return _Pretrained(run.encoder, _untrained(run.encoder, initial), fields)


def drift_ends(evaluations: Sequence[Record]) -> dict[str, float]:
    """The drift of the oldest rows, averaged over the first and over the last quarter of a run.

    Args:
        evaluations: Metrics during the run, with `drift_<age>`.

    Returns:
        "drift, first quarter" and "drift, last quarter", mean squared distances; empty without drift.
    """
    oldest = []
    for metrics in evaluations:
        ages = [int(name.removeprefix(DRIFT)) for name in metrics if name.startswith(DRIFT)]
        oldest += [float(metrics[f"{DRIFT}{max(ages)}"])] if ages else []
    if not oldest:
        return {}
    few = max(1, len(oldest) // 4)
    parts = {"drift, first quarter": oldest[:few], "drift, last quarter": oldest[-few:]}
    return {name: sum(part) / few for name, part in parts.items()}


def _untrained(saved: SavedEncoder, initial: dict[str, Tensor]) -> SavedEncoder:
    """The encoder with its initial weights."""
    encoder = make_encoder(saved.settings, channels=saved.channels).eval().requires_grad_(requires_grad=False)
    encoder.backbone.load_state_dict(initial)
    return replace(saved, encoder=encoder)


def _encoded(
    saved: SavedEncoder, train: Labelled, test: Labelled, *, rows: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((h of train, h of test), (z of train, z of test)); `rows`: some of the training images."""
    ids = train.pixels.ids if rows is None else rows
    fitted = encode_rows(saved.encoder, saved.prepare, train.pixels, ids)
    tested = encode_rows(saved.encoder, saved.prepare, test.pixels, test.pixels.ids)
    return (fitted[0], tested[0]), (fitted[1], tested[1])


def _knn_and_linear(
    name: str,
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Accuracy of kNN and of a linear classifier, which takes a tenth of a cell: only the measures wanted."""
    knn, linear = f"kNN {name}", f"linear {name}"
    values = {}
    if only is None or knn in only:
        values[knn] = knn_of(train, labels, test, test_labels)
    if only is None or linear in only:
        values[linear] = linear_evaluation(train, labels, test, test_labels, seed=0).correct
    return values
