"""Two-dimensional projections of embeddings, and thumbnail sprites, for a report."""

import base64
import io
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError, QuerykeyError
from querykey.evaluation.moments import moments
from querykey.features.features import Features
from querykey.lookup.unit_length import unit_length
from querykey.types import Rows

__all__ = ["Map", "Sprite", "make_sprite", "maps_of"]

PICTURE = 44
"""Side of a thumbnail in pixels; it fits into a list of neighbours on a phone."""
QUALITY = 70
SPLITS = (None, "train", "test", "validation")
"""A store does not record the split of its source; its fingerprint identifies it."""


class Map(NamedTuple):
    """A two-dimensional projection.

    Args:
        title: Embedding and method.
        places: Coordinates [items, 2].
        x: Title of the x axis.
        y: Title of the y axis.
    """

    title: str
    places: Tensor
    x: str
    y: str


class Sprite(NamedTuple):
    """Thumbnails of items in one image.

    Args:
        uri: The image as a data URI.
        columns: Thumbnails per row.
        rows: Rows of thumbnails.
        size: Side of a thumbnail in pixels.
        place: Item to the position of its thumbnail, in row-major order.
    """

    uri: str
    columns: int
    rows: int
    size: int
    place: dict[int, int]


def maps_of(rows: Rows, name: str) -> list[Map]:
    """Project rows by PCA, and by UMAP if umap-learn is installed.

    Args:
        rows: [items, dim].
        name: Name of the embedding.

    Returns:
        One or two maps.

    Example:
        >>> found = maps_of(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]), "frozen")[0]
        >>> found.title, found.x
        ('frozen, PCA', 'first axis, 100% of the variance')
    """
    unit, of = unit_length(rows).double(), moments(rows)
    variance, axes = of.principal_components(2, centred=True)
    ratios = [*(variance / of.covariance.trace().clamp(min=1e-12)).tolist(), 0.0]
    titles = [
        f"{axis} axis, {ratio:.0%} of the variance"
        for axis, ratio in zip(("first", "second"), ratios, strict=False)
    ]
    places = (unit - of.mean) @ axes.T
    places = F.pad(places, (0, 2 - places.shape[1]))
    maps = [Map(f"{name}, PCA", places, titles[0], titles[1])]
    if find_spec("umap") is not None and len(rows) > 15:
        maps.append(Map(f"{name}, UMAP", _umap(unit), "UMAP 1", "UMAP 2"))
    return maps


def _umap(unit: Tensor) -> Tensor:
    import umap  # type: ignore[import-not-found,unused-ignore]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that a fixed seed means one thread
        places = umap.UMAP(random_state=0, metric="cosine").fit_transform(unit.float().numpy())
    return torch.from_numpy(places).double()


def make_sprite(features: Features, items: Sequence[int]) -> Sprite | None:
    """Thumbnails of some items, if the features are of images that still exist.

    Args:
        features: Features from a store that records its source.
        items: Row numbers.

    Returns:
        The sprite; None for texts and vectors, or if the images are gone or have changed.
    """
    images = _images(features)
    if images is None:
        return None
    from PIL import Image

    wanted = sorted(set(items))
    columns = max(1, math.ceil(math.sqrt(len(wanted))))
    rows = max(1, math.ceil(len(wanted) / columns))
    sprite = Image.new("RGB", (columns * PICTURE, rows * PICTURE), "white")
    place = {}
    for number, item in enumerate(wanted):
        try:
            picture = images(item).convert("RGB")
        except (DamagedItemError, KeyError):
            continue
        picture.thumbnail((PICTURE, PICTURE))
        left = (number % columns) * PICTURE + (PICTURE - picture.width) // 2
        top = (number // columns) * PICTURE + (PICTURE - picture.height) // 2
        sprite.paste(picture, (left, top))
        place[item] = number
    file = io.BytesIO()
    sprite.save(file, "WEBP", quality=QUALITY)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Sprite(uri, columns, rows, PICTURE, place)


def _images(features: Features) -> Callable[[int], Any] | None:
    """Gives the image of a row of the features; None if there are no images."""
    about = features.meta.get("source") or {}
    if about.get("kind") != "image" or find_spec("PIL") is None:
        return None
    for split in SPLITS:
        try:
            source = read_source(about["name"], split=split)
        except (QuerykeyError, OSError, KeyError):
            continue
        if source.fingerprint == about.get("fingerprint"):
            row_of, items = {id_: row for row, id_ in enumerate(source.ids)}, source.items
            return lambda item: items[row_of[features.ids[item]]]
    return None
