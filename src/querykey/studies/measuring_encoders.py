"""How a cell of a study of encoders is measured: pretrain, encode, score."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.evaluation.few_labels import choose_labelled
from querykey.evaluation.linear_protocols import linear_evaluation
from querykey.lookup import UNLABELLED
from querykey.records import Record, read, versions
from querykey.run_fine_tune import Labelled, fine_tuned
from querykey.run_linear import knn_of, pixel_rows
from querykey.run_pretrain import pretrain
from querykey.studies.grid import Cell
from querykey.studies.peak_memory import peak_memory
from querykey.studies.probing import probe
from querykey.studies.study_images import SIDE, StudyImages
from querykey.studies.work import Work
from querykey.training.pretrain import make_encoder
from querykey.training.saved_encoder import SavedEncoder, encode_rows

__all__ = ["measure_encoder"]

DRIFT = "drift_"
FRACTION = 0.01
"""Of the labels, where no number is said."""


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
            saved, about = _pretrained(work, cell.seed)
            about.pop("untrained")
            values = probe(saved, known.pixels, asked.pixels, seed=cell.seed)
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
    saved, about = _pretrained(work, seed)
    h, z = _encoded(saved, known, asked)
    values = _scores("h", h[0], known.labels, h[1], asked.labels)
    values |= _scores("z", z[0], known.labels, z[1], asked.labels)
    untrained = _before(saved, about.pop("untrained"))
    if work.arm.scores_untrained:
        before, _ = _encoded(untrained, known, asked)
        values |= _scores("untrained", before[0], known.labels, before[1], asked.labels)
    return values, about


def _neighbours_of_pretraining(
    work: Work, seed: int, known: Labelled, asked: Labelled
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a spread over seeds needs: a linear classifier would take half as long as the run."""
    saved, about = _pretrained(work, seed)
    values = {}
    for name, one in (("h", saved), ("untrained", _before(saved, about.pop("untrained")))):
        h, _ = _encoded(one, known, asked)
        values[f"kNN {name}"] = knn_of(h[0], known.labels, h[1], asked.labels)
    return values, about


def _of_few_labels(
    work: Work, seed: int, known: Labelled, asked: Labelled
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved, about = _pretrained(work, seed)
    few = work.arm.labels_a_class
    kept = choose_labelled(known.labels, fraction=FRACTION if few is None else None, per_class=few, seed=seed)
    labels = torch.full_like(known.labels, UNLABELLED)
    labels[kept] = known.labels[kept]
    h, _ = _encoded(saved, Labelled(known.pixels, labels), asked, rows=known.pixels.ids[kept])
    result = linear_evaluation(h[0], known.labels[kept], h[1], asked.labels, seed=seed)
    values = {"linear h": result.correct}
    if work.arm.kind == "linear of few labels":
        about.pop("untrained")
        return values, about | {"labels": len(kept)}
    alone, how = fine_tuned(
        _before(saved, about.pop("untrained")),
        Labelled(known.pixels, labels),
        asked,
        epochs=work.arm.epochs,
        seed=seed,
    )
    return values | {"supervised": alone}, about | {"supervised": how, "labels": len(kept)}


def _of_retrieval(work: Work, seed: int, asked: Labelled) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved, about = _pretrained(work, seed)
    values: dict[str, Tensor] = {}
    for name, encoder in (("", saved), ("untrained ", _before(saved, about.pop("untrained")))):
        h, z = encode_rows(encoder.encoder, encoder.prepare, asked.pixels, asked.pixels.ids)
        values |= {f"{name}R@1 h": _nearest_is_right(h, asked.labels)}
        values |= {} if name else {"R@1 z": _nearest_is_right(z, asked.labels)}
    return values, about


def _nearest_is_right(rows: Tensor, labels: Tensor) -> Tensor:
    """Whether the nearest other row is of one's class; 1.0 or 0.0."""
    unit = F.normalize(rows, dim=1)
    scores = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return (labels[scores.argmax(dim=1)] == labels).double()


def _pretrained(work: Work, seed: int) -> tuple[SavedEncoder, dict[str, Any]]:
    """The encoder, and of the run what a table shows."""
    with TemporaryDirectory() as folder, peak_memory() as peak:
        out = Path(folder) / "run"
        saved, about = _run(work, seed, out)
        looks = [record for record in read(out / "metrics.jsonl") if record["kind"] == "look"]
    about["run"] |= {"peak_memory": peak.bytes, "looks": looks}
    about["run"]["end"] = about["run"]["end"] | _drifts(looks)
    return saved, about


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


def _run(work: Work, seed: int, out: Path) -> tuple[SavedEncoder, dict[str, Any]]:
    untrained: dict[str, Tensor] = {}

    def begin(course: Any) -> None:
        untrained.update(course.untrained.backbone.state_dict())

    assert isinstance(work.data, StudyImages)
    run = pretrain(work.data.training(), seed=seed, out=out, begin=begin, **work.arm.settings)
    report = run.report
    return run.encoder, {
        "settings": run.settings.as_dict(), "untrained": untrained,
        "run": {name: report[name] for name in ("steps_taken", "seconds", "images_seen",
                                                 "views_share_of_step", "end")},
    }  # fmt: skip


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


def _scores(name: str, bank: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    linear = linear_evaluation(bank, labels, test, wanted, seed=0)
    return {f"kNN {name}": knn_of(bank, labels, test, wanted), f"linear {name}": linear.correct}
