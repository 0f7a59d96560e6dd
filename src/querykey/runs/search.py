"""Nearest neighbours of a query among frozen and adapted rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from querykey.distributed.process_group import in_default_torch_state
from querykey.errors import MissingExtraError, SourceError
from querykey.features.features import Features
from querykey.lookup.nearest import nearest
from querykey.lookup.unit_length import unit_length
from querykey.runs.adapt import Run
from querykey.runs.load_encoder import encoder_of_features
from querykey.runtime.codes import search_codes

__all__ = ["Found", "Query", "find", "read_query"]

BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Query:
    """One query.

    Args:
        row: Its frozen features [1, width].
        kind: How the user gave it.
        item: Index of the query among the rows, which is excluded from its results; -1 if it is none of them.
    """

    row: Tensor
    kind: Literal["id", "text", "image"]
    item: int = -1


@dataclass(frozen=True)
class Found:
    """One search result.

    Args:
        rank: From 1.
        score: Cosine similarity.
        id: Id of the item.
        label: Name of its class; "" if it has none.
        preview: One short line.
    """

    rank: int
    score: float
    id: str
    label: str
    preview: str


@in_default_torch_state
def read_query(given: str, features: Features, name: str, *, device: str = "cpu") -> Query:
    """Read a query: the id of an item or of a query, or else an image or a text to embed.

    Args:
        given: The id, the path of an image, or the text.
        features: The rows that are searched.
        name: Name of the features, for messages.
        device: Device of the frozen model.

    Returns:
        The query.

    Raises:
        SourceError: If it is no id and the features do not name their model, or there is no such image.
        ModelMismatchError: If the model has changed.
    """
    for side, is_items in ((features, True), (features.queries, False)):
        place = None if side is None else _place(side, given)
        if side is not None and place is not None:
            return Query(side.vectors[place : place + 1].float(), "id", place if is_items else -1)
    encoder = encoder_of_features(features.meta.get("model", {}), name, device=device)
    if encoder.kind == "text":
        return Query(encoder.encode([given]), "text")
    if not Path(given).is_file():
        raise SourceError(f"{given!r} is neither an id in {name} nor the path of an image")
    return Query(encoder.encode([_image(Path(given))]), "image")


@in_default_torch_state
def find(
    run: Run, features: Features, query: Query, *, k: int, dim: int | None = None, bits: int | None = None
) -> tuple[list[Found], list[Found]]:
    """Search the frozen and the adapted rows.

    Args:
        run: The run of the adapter.
        features: The rows that are searched.
        query: The query.
        k: Number of results.
        dim: One of the sizes of the adapter; None: the largest.
        bits: 8 or 1 to search codes of the rows with the float query; None: search float rows.

    Returns:
        (results among the frozen rows, results among the adapted rows), best first.

    Raises:
        ModelMismatchError: If the features are of another model than the run's.
        RangeError: If the adapter was not fitted with this size or these bits.
    """
    adapted_query = run.adapter.transform(query.row, dim=dim)
    assert isinstance(adapted_query, Tensor)
    before = _nearest(unit_length(query.row), features.vectors, query.item, k)
    if bits is None:
        adapted = run.adapter.transform_documents(features, dim=dim)
        after = _nearest(adapted_query, torch.as_tensor(adapted), query.item, k)
    else:
        code, codes = run.adapter.code(dim=dim, bits=bits), run.adapter.quantize(features, dim=dim, bits=bits)
        # one more than wanted, since the item of the query is left out
        scores, rows = search_codes(code, adapted_query.numpy(), codes, min(k + 1, len(codes)))
        pairs = zip(scores[0].tolist(), rows[0].tolist(), strict=True)
        others = [(score, item) for score, item in pairs if item != query.item]
        after = [(rank, *pair) for rank, pair in enumerate(others[:k], start=1)]
    return [_named(features, *pair) for pair in before], [_named(features, *pair) for pair in after]


def _nearest(query: Tensor, rows: Tensor, item: int, k: int) -> list[tuple[int, float, int]]:
    k, ids = min(k, len(rows)), torch.arange(len(rows))
    scores, index = nearest(query, rows, k, query_ids=torch.tensor([item]), key_ids=ids)
    pairs = zip(scores[0].tolist(), index[0].tolist(), strict=True)
    return [(rank, score, item) for rank, (score, item) in enumerate(pairs, start=1) if item >= 0]


def _named(features: Features, rank: int, score: float, item: int) -> Found:
    label = "" if features.labels is None else int(features.labels[item])
    if isinstance(label, int):
        label = "" if label < 0 else features.label_names[label] if features.label_names else str(label)
    return Found(rank, score, features.ids[item], label, " ".join(features.previews[item].split()))


def _place(features: Features, given: str) -> int | None:
    return next((place for place, id_ in enumerate(features.ids) if id_ == given), None)


def _image(path: Path) -> object:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pillow", extra="vision", purpose="a query by image") from error
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError) as error:
        raise SourceError(f"{path} cannot be read as an image: {error}") from error
