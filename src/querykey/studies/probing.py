"""Whether a classifier can tell from h, or from g(h), what was done to an image."""

import warnings
from typing import Any, NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from querykey.data.pixels import Pixels
from querykey.data.views import Views
from querykey.training.saved_encoder import SavedEncoder
from querykey.types import Ids

__all__ = ["TRANSFORMATIONS", "probe"]

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
