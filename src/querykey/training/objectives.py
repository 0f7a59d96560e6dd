"""Which loss an adapter is trained with: a closed set, chosen by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from querykey.errors import ConfigError
from querykey.losses.info_nce import info_nce, nca
from querykey.losses.margin import contrastive, triplet
from querykey.losses.preserving import score_difference, score_distillation
from querykey.losses.weighting import circle, multi_similarity
from querykey.types import PerQuery

__all__ = ["LossName", "Objective", "objective"]

LossName = Literal[
    "info_nce",
    "nca",
    "contrastive",
    "triplet",
    "multi_similarity",
    "circle",
    "score_distillation",
    "score_difference",
]

_LOSSES: dict[LossName, Callable[..., PerQuery]] = {
    "info_nce": info_nce,
    "nca": nca,
    "contrastive": contrastive,
    "triplet": triplet,
    "multi_similarity": multi_similarity,
    "circle": circle,
    "score_distillation": score_distillation,
    "score_difference": score_difference,
}
KEEPS_SCORES = ("score_distillation", "score_difference")


@dataclass(frozen=True)
class Objective:
    """A loss with its options filled in.

    Args:
        name: Which loss.
        loss: `loss(lookup)`, or `loss(lookup, target)` where the frozen scores are kept.
    """

    name: LossName
    loss: Callable[..., PerQuery]

    @property
    def keeps_scores(self) -> bool:
        """Whether the frozen scores are its target, so that no label is needed."""
        return self.name in KEEPS_SCORES


def objective(name: LossName, **options: Any) -> Objective:
    """A loss by its name.

    Args:
        name: One of the names of `LossName`.
        **options: The loss's own keyword arguments.

    Returns:
        The `Objective`.

    Raises:
        ConfigError: If there is no such loss, or it has no such option.

    Example:
        >>> objective("info_nce", temperature=0.07).keeps_scores
        False
    """
    if name not in _LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(get_args(LossName))}; got {name!r}")
    loss = _LOSSES[name]
    known = [p.name for p in inspect.signature(loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"the loss {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    return Objective(name, partial(loss, **options))
