"""How a cell of a study of encoders is measured: pretrain, encode, score."""

import json
import time
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
from torch.nn import functional as F

from querykey.data.augment.views import Views
from querykey.data.pixels.pixels import Pixels
from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.linear_evaluation import linear_evaluation
from querykey.io.records import Record, read, versions
from querykey.lookup.lookup import IGNORE_LABEL
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.saved_encoder import SavedEncoder, encode_rows
from querykey.runs.evaluate_encoder import knn_of, pixel_rows
from querykey.runs.fine_tune import Labelled, fine_tuned
from querykey.runs.pretrain import pretrain
from querykey.studies.engine.grid import Cell
from querykey.studies.engine.images import SIDE, StudyImages
from querykey.studies.engine.work import Work
from querykey.types import Ids

__all__ = [
    "TRANSFORMATIONS",
    "Peak",
    "measure_encoder",
    "peak_memory",
    "probe",
]

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """What was found.

    Args:
        bytes: Resident memory of the whole process at its highest; None where the system does not tell.
    """

    bytes: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure while this lasts.

    Yields:
        Filled in at the end.

    Example:
        >>> with peak_memory() as peak:
        ...     room = bytearray(1000)
        >>> peak.bytes is None or peak.bytes > len(room)
        True
    """
    peak = Peak()
    try:
        FORGET.write_text("5", encoding="ascii")  # Linux: the highest mark begins anew
    except OSError:
        yield peak
        return
    yield peak
    words = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
    peak.bytes = 1024 * int(words["VmHWM"].split()[0])


TRANSFORMATIONS = ("colour or gray", "rotation", "noise", "Sobel")
_DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "colour or gray": ("grays", {"grayscale": 0.5}),
    "rotation": ("turns", {"rotate": 1.0}),
    "noise": ("noisy", {"noise": 0.5}),
    "Sobel": ("edges", {"sobel": 0.5}),
}
"""What of the drawn parameters says it, and how often it is done."""
_PLAIN: dict[str, Any] = {"crop_scale": None, "flip": 0.0, "jitter_probability": 0.0, "grayscale": 0.0}
TRAINED, ASKED = 10_000, 5_000
HIDDEN, EPOCHS = 256, 30


class _Changed(NamedTuple):
    h: Tensor
    z: Tensor
    done: Tensor


def probe(saved: SavedEncoder, known: Pixels, asked: Pixels, *, seed: int) -> dict[str, Tensor]:
    """Train an MLP to tell each transformation, and ask it about other images.

    Every image is shown once, changed or not as a draw keyed by its number says.

    Args:
        saved: The encoder; it is put into eval mode.
        known: Images to train the MLP on; the first 10,000 count.
        asked: Others; the first 5,000 count.
        seed: Of the draws and of the MLP.

    Returns:
        "<transformation> h" and "<transformation> z" to whether each answer was right [asked].

    Source:
        Chen et al. 2020, arXiv:2002.05709, table 3; there the MLP's size is not given.
    """
    values = {}
    saved.encoder.eval()
    for name in TRANSFORMATIONS:
        what, options = _DRAWN[name]
        if saved.channels == 1 and name == "colour or gray":
            continue  # there is no colour to tell
        size, plain = saved.settings.image_size, saved.views
        assert size is not None
        views = Views(size=size, mean=plain.mean, deviation=plain.deviation, **_PLAIN | options)
        train = _changed(saved, views, known, known.ids[:TRAINED], what, seed)
        test = _changed(saved, views, asked, asked.ids[:ASKED], what, seed)
        for rows in ("h", "z"):
            both = getattr(train, rows), train.done, getattr(test, rows), test.done
            values[f"{name} {rows}"] = _told(*both, seed=seed)
    return values


@torch.no_grad()
def _changed(saved: SavedEncoder, views: Views, pixels: Pixels, rows: Ids, what: str, seed: int) -> _Changed:
    """Encoded images, and what was done to each."""
    parts = []
    for images, sizes, ids in pixels.stream(torch.split(rows, 256)):
        within = (int(images.shape[-2]), int(images.shape[-1])) if sizes is None else sizes
        drawn = views.draw(ids, seed=seed, epoch=0, view=0, sizes=within)
        h, z = saved.encoder(views.apply(images, drawn, memory_format=torch.channels_last))
        parts.append(_Changed(h, z, getattr(drawn, what).long()))
    return _Changed(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _told(train: Tensor, done: Tensor, test: Tensor, wanted: Tensor, *, seed: int) -> Tensor:
    mlp = MLPClassifier((HIDDEN,), max_iter=EPOCHS, batch_size=min(256, len(train)), random_state=seed)
    classifier = make_pipeline(StandardScaler(), mlp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs and no more
        classifier.fit(train.numpy(), done.numpy())
    return torch.from_numpy(classifier.predict(test.numpy()) == wanted.numpy()).double()


DRIFT = "drift_"
FRACTION = 0.01
"""Of the labels, where no number is said."""


class _Pretrained(NamedTuple):
    """What came of a run.

    Args:
        encoder: After its last step.
        untrained: The same before its first.
        about: Settings, and of the run what a table shows.
    """

    encoder: SavedEncoder
    untrained: SavedEncoder
    about: dict[str, Any]


def measure_encoder(cell: Cell) -> dict[str, Any]:
    """Pretrain as a cell says and score what came of it.

    Args:
        cell: With a `Work`.

    Returns:
        Measure to [right, asked], what the run said of itself, seconds, versions.
    """
    work: Work = cell.work
    torch.set_num_threads(work.threads)
    began = time.monotonic()
    values: dict[str, Tensor]
    about: dict[str, Any] = {}
    known, asked = _labelled(work.data)
    match work.arm.kind:
        case "pixels":
            values = _of_pixels(known, asked)
        case "pretrained":
            values, about = _of_pretraining(work, cell.seed, known, asked)
        case "kNN of pretrained":
            values, about = _neighbours_of_pretraining(work, cell.seed, known, asked)
        case "few labels" | "linear of few labels":
            values, about = _of_few_labels(work, cell.seed, known, asked)
        case "retrieval":
            values, about = _of_retrieval(work, cell.seed, asked)
        case "probes":
            run = _pretrained(work, cell.seed)
            about = run.about
            values = probe(run.encoder, known.pixels, asked.pixels, seed=cell.seed)
    counts = {name: [int(v.nansum()), int((~v.isnan()).sum())] for name, v in values.items()}
    return {"values": counts, **about, "seconds": time.monotonic() - began, "versions": versions()}


@lru_cache(maxsize=2)
def _labelled(images: StudyImages) -> tuple[Labelled, Labelled]:
    return images.labelled(size=SIDE)


def _of_pixels(known: Labelled, asked: Labelled) -> dict[str, Tensor]:
    rows = [pixel_rows(one.pixels, one.pixels.ids) for one in (known, asked)]
    return _scores("pixels", rows[0], known.labels, rows[1], asked.labels)


def _of_pretraining(
    work: Work, seed: int, known: Labelled, asked: Labelled
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    run = _pretrained(work, seed)
    h, z = _encoded(run.encoder, known, asked)
    values = _scores("h", h[0], known.labels, h[1], asked.labels, only=work.measures)
    values |= _scores("z", z[0], known.labels, z[1], asked.labels, only=work.measures)
    if work.arm.scores_untrained:
        before, _ = _encoded(run.untrained, known, asked)
        values |= _scores("untrained", before[0], known.labels, before[1], asked.labels)
    return values, run.about


def _neighbours_of_pretraining(
    work: Work, seed: int, known: Labelled, asked: Labelled
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a spread over seeds needs: a linear classifier would take half as long as the run."""
    run, values = _pretrained(work, seed), {}
    for name, one in (("h", run.encoder), ("untrained", run.untrained)):
        h, _ = _encoded(one, known, asked)
        values[f"kNN {name}"] = knn_of(h[0], known.labels, h[1], asked.labels)
    return values, run.about


def _of_few_labels(
    work: Work, seed: int, known: Labelled, asked: Labelled
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    run = _pretrained(work, seed)
    few = work.arm.labels_a_class
    kept = choose_labelled(known.labels, fraction=FRACTION if few is None else None, per_class=few, seed=seed)
    labels = torch.full_like(known.labels, IGNORE_LABEL)
    labels[kept] = known.labels[kept]
    h, _ = _encoded(run.encoder, Labelled(known.pixels, labels), asked, rows=known.pixels.ids[kept])
    result = linear_evaluation(h[0], known.labels[kept], h[1], asked.labels, seed=seed)
    values = {"linear h": result.correct}
    about = run.about | {"labels": len(kept)}
    if work.arm.kind == "linear of few labels":
        return values, about
    alone, how = fine_tuned(
        run.untrained,
        Labelled(known.pixels, labels),
        asked,
        epochs=work.arm.epochs,
        seed=seed,
    )
    return values | {"supervised": alone}, about | {"supervised": how}


def _of_retrieval(work: Work, seed: int, asked: Labelled) -> tuple[dict[str, Tensor], dict[str, Any]]:
    run = _pretrained(work, seed)
    values: dict[str, Tensor] = {}
    for name, one in (("", run.encoder), ("untrained ", run.untrained)):
        h, z = encode_rows(one.encoder, one.prepare, asked.pixels, asked.pixels.ids)
        values |= {f"{name}R@1 h": _nearest_is_right(h, asked.labels)}
        values |= {} if name else {"R@1 z": _nearest_is_right(z, asked.labels)}
    return values, run.about


def _nearest_is_right(rows: Tensor, labels: Tensor) -> Tensor:
    """Whether the nearest other row is of one's class; 1.0 or 0.0."""
    unit = F.normalize(rows, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return (labels[scores.argmax(dim=1)] == labels).double()


def _pretrained(work: Work, seed: int) -> _Pretrained:
    """The encoder of an arm; the next cell shares it, if it only asks for something else."""
    assert isinstance(work.data, StudyImages)
    return _run(json.dumps(work.arm.settings, sort_keys=True), work.data, work.threads, seed)


@lru_cache(maxsize=1)
def _run(settings: str, data: StudyImages, threads: int, seed: int) -> _Pretrained:  # noqa: ARG001 - of the key
    before: dict[str, Tensor] = {}

    def on_fit_start(run: Any) -> None:
        before.update(run.untrained.backbone.state_dict())

    with TemporaryDirectory() as folder, peak_memory() as peak:
        out = Path(folder) / "run"
        run = pretrain(data.training(), seed=seed, out=out, on_fit_start=on_fit_start, **json.loads(settings))
        looks = [record for record in read(out / "metrics.jsonl") if record["kind"] == "look"]
    said = {
        name: run.report[name]
        for name in ("steps_taken", "seconds", "images_seen", "views_share_of_step", "end")
    }
    said |= {"peak_memory": peak.bytes, "looks": looks, "end": said["end"] | _drifts(looks)}
    about = {"settings": run.settings.as_dict(), "run": said}
    return _Pretrained(run.encoder, _before(run.encoder, before), about)


def _drifts(looks: Sequence[Record]) -> dict[str, float]:
    """How far the oldest rows were from today's encoding, early in the run and late."""
    oldest = []
    for look in looks:
        ages = [int(name.removeprefix(DRIFT)) for name in look if name.startswith(DRIFT)]
        oldest += [float(look[f"{DRIFT}{max(ages)}"])] if ages else []
    if not oldest:
        return {}
    few = max(1, len(oldest) // 4)
    parts = {"drift, first quarter": oldest[:few], "drift, last quarter": oldest[-few:]}
    return {name: sum(part) / few for name, part in parts.items()}


def _before(saved: SavedEncoder, untrained: dict[str, Tensor]) -> SavedEncoder:
    """The encoder as it was before the first step."""
    encoder = make_encoder(saved.settings, channels=saved.channels).eval().requires_grad_(requires_grad=False)
    encoder.backbone.load_state_dict(untrained)
    return replace(saved, encoder=encoder)


def _encoded(
    saved: SavedEncoder, known: Labelled, asked: Labelled, *, rows: Tensor | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(h of training and test images), (z of them)."""
    train = encode_rows(
        saved.encoder, saved.prepare, known.pixels, known.pixels.ids if rows is None else rows
    )
    test = encode_rows(saved.encoder, saved.prepare, asked.pixels, asked.pixels.ids)
    return (train[0], test[0]), (train[1], test[1])


def _scores(
    name: str, bank: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, *,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Accuracy of neighbours and of a linear classifier, which takes a tenth of a cell: what is wanted."""
    knn, linear = f"kNN {name}", f"linear {name}"
    values = {}
    if only is None or knn in only:
        values[knn] = knn_of(bank, labels, test, wanted)
    if only is None or linear in only:
        values[linear] = linear_evaluation(bank, labels, test, wanted, seed=0).correct
    return values
