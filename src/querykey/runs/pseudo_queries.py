"""Pseudo-queries: first sentences of the texts behind features, which judge a fit that has no labels."""

import re

import numpy as np
import torch

from querykey.adapter.tasks import Judge
from querykey.data.readers.open import read_source
from querykey.errors import QuerykeyError
from querykey.features.features import Features
from querykey.runs.load_encoder import encoder_of_features

__all__ = ["first_sentence", "pseudo_queries"]

MOST, LEAST = 1_000, 100
"""Texts whose first sentence is embedded; fewer than the second judge nothing."""
SHORTEST = 4
"""Words of a sentence that asks, and of what it leaves of its text."""
SEED = 0
_END = re.compile(r"(?<=[.!?])\s+|\n+")


def first_sentence(text: str) -> str | None:
    """The first sentence of a text, where it is one and something follows it.

    Args:
        text: Of an item.

    Returns:
        The sentence; None where it or the rest has fewer than four words.

    Example:
        >>> first_sentence("It came after three weeks. The box was open and the cup broken.")
        'It came after three weeks.'
    """
    first, *rest = _END.split(text.strip(), maxsplit=1)
    if len(first.split()) < SHORTEST or not rest or len(rest[0].split()) < SHORTEST:
        return None
    return first


def pseudo_queries(features: Features, *, device: str = "cpu") -> tuple[Judge | None, str]:
    """Embed the first sentences of texts, each of which its own text should answer.

    Args:
        features: Of texts whose source and frozen model are named and still there.
        device: Where the frozen model runs.

    Returns:
        (queries and the row that answers each, or None; what was done, or why nothing could be, "" where the
            features are not of texts).
    """
    source, model = features.meta.get("source", {}), features.meta.get("model", {})
    if source.get("kind") != "text" or "name" not in source or not model.get("spec"):
        return None, ""
    try:
        texts = read_source(source["name"])
        if texts.fingerprint != source.get("fingerprint") or len(texts) != len(features):
            return None, f"no pseudo-queries: {source['name']} is not what the features were made of"
        order = np.random.default_rng([SEED, 9]).permutation(len(features))
        chosen = [(int(row), first_sentence(str(texts.items[int(row)]))) for row in order[: 4 * MOST]]
        asked = [(row, sentence) for row, sentence in chosen if sentence is not None][:MOST]
        if len(asked) < LEAST:
            return None, f"no pseudo-queries: {len(asked)} texts have a first sentence; {LEAST} are needed"
        encoder = encoder_of_features(model, source["name"], device=device)
        rows = encoder.encode([sentence for _, sentence in asked])
    except QuerykeyError as error:
        return None, f"no pseudo-queries: {error}"
    numbers = torch.tensor([[place, row] for place, (row, _) in enumerate(asked)])
    return Judge(rows, numbers, are_real=False), f"{len(asked):,} first sentences of the texts judge the fit"
