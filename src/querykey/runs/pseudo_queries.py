"""Pseudo-queries: first sentences of texts, used as validation queries for a fit without labels."""

import re

import numpy as np
import torch

from querykey.adapter.validation import ValidationQueries
from querykey.data.readers.open import read_source
from querykey.errors import QuerykeyError
from querykey.features.features import Features
from querykey.runs.load_encoder import encoder_of_features

__all__ = ["first_sentence", "pseudo_queries"]

MOST, LEAST = 1_000, 100
"""Maximum and minimum number of first sentences."""
SHORTEST = 4
"""Minimum number of words of a sentence, and of the rest of its text."""
SEED = 0
_END = re.compile(r"(?<=[.!?])\s+|\n+")


def first_sentence(text: str) -> str | None:
    """The first sentence of a text, if more text follows it.

    Args:
        text: The text of an item.

    Returns:
        The sentence; None if it or the rest has fewer than four words.

    Example:
        >>> first_sentence("It came after three weeks. The box was open and the cup broken.")
        'It came after three weeks.'
    """
    first, *rest = _END.split(text.strip(), maxsplit=1)
    if len(first.split()) < SHORTEST or not rest or len(rest[0].split()) < SHORTEST:
        return None
    return first


def pseudo_queries(features: Features, *, device: str = "cpu") -> tuple[ValidationQueries | None, str]:
    """Embed the first sentences of texts; the positive of each is the text that it comes from.

    Args:
        features: Features of texts whose source and frozen model are recorded and still exist.
        device: Device of the frozen model.

    Returns:
        (queries with the row of the positive of each, or None; a message: what was done or why not, "" if
            the features are not of texts).
    """
    source, model = features.meta.get("source", {}), features.meta.get("model", {})
    if source.get("kind") != "text" or "name" not in source or not model.get("spec"):
        return None, ""
    try:
        texts = read_source(source["name"])
        if texts.fingerprint != source.get("fingerprint") or len(texts) != len(features):
            return None, f"no pseudo-queries: {source['name']} has changed since the features were made"
        order = np.random.default_rng([SEED, 9]).permutation(len(features))
        chosen = [(int(row), first_sentence(str(texts.items[int(row)]))) for row in order[: 4 * MOST]]
        queries = [(row, sentence) for row, sentence in chosen if sentence is not None][:MOST]
        if len(queries) < LEAST:
            return None, f"no pseudo-queries: {len(queries)} texts have a first sentence; {LEAST} are needed"
        encoder = encoder_of_features(model, source["name"], device=device)
        rows = encoder.encode([sentence for _, sentence in queries])
    except QuerykeyError as error:
        return None, f"no pseudo-queries: {error}"
    pairs = torch.tensor([[place, row] for place, (row, _) in enumerate(queries)])
    return ValidationQueries(
        rows, pairs, are_real=False
    ), f"the fit is validated with {len(queries):,} first sentences"
