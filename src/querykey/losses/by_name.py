"""Which loss an adapter is trained with: a closed set, chosen by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor

from querykey.errors import ConfigError
from querykey.lookup.lookup import Lookup
from querykey.losses.decoupled import decoupled
from querykey.losses.hard_negative import debiased, hard_negative
from querykey.losses.info_nce import check_temperature, info_nce, nca
from querykey.losses.logistic import nt_logistic
from querykey.losses.margin import contrastive, triplet
from querykey.losses.preserving import score_difference, score_distillation
from querykey.losses.weighting import circle, multi_similarity
from querykey.types import PerQuery

__all__ = [
    "LossName",
    "Objective",
    "ViewLoss",
    "ViewLossName",
    "objective",
    "takes_form",
    "takes_temperature",
    "view_objective",
]

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


ViewLossName = Literal[
    "nt_xent", "info_nce", "decoupled", "debiased", "hard_negative", "nt_logistic", "margin", "contrastive",
    "multi_similarity",
]  # fmt: skip
ViewLoss = Callable[[Lookup], PerQuery]

_VIEW_LOSSES: dict[ViewLossName, Callable[..., PerQuery]] = {
    "nt_xent": info_nce,
    "info_nce": info_nce,
    "decoupled": decoupled,
    "debiased": debiased,
    "hard_negative": hard_negative,
    "nt_logistic": nt_logistic,
    "margin": triplet,
    "contrastive": contrastive,
    "multi_similarity": multi_similarity,
}


def view_objective(name: ViewLossName, temperature: float | Tensor, **options: Any) -> ViewLoss:
    """A loss on a look-up, by its name.

    Args:
        name: "nt_xent" is `info_nce` on the look-up of two views, "margin" is `triplet`; the
            others are called what they are in `querykey.losses`.
        temperature: Above 0; a tensor where it is learned.
        **options: The loss's other keyword arguments.

    Returns:
        `loss(lookup) -> PerQuery`.

    Raises:
        ConfigError: If there is no such loss, or it has no such option.
        RangeError: If the temperature is not above 0.

    Example:
        >>> from querykey.lookup.two_view_pairs import look_up_views
        >>> import torch
        >>> loss = view_objective("nt_xent", 0.5)
        >>> bool(loss(look_up_views(torch.eye(2), torch.eye(2))).mean() > 0)
        True
    """
    if name not in _VIEW_LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(get_args(ViewLossName))}; got {name!r}")
    loss = _VIEW_LOSSES[name]
    known = _options(name)
    own = [option for option in known if option != "temperature"]
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise ConfigError(
            f"the loss {name} has no option {', '.join(unknown)}; it has {', '.join(own) or 'none'}"
        )
    if "temperature" in known:
        check_temperature("temperature", temperature)
        options["temperature"] = temperature
    return partial(loss, **options)


def takes_temperature(name: ViewLossName) -> bool:
    """Whether a loss has a temperature.

    Args:
        name: As `view_objective` takes it.

    Returns:
        False of "margin", "contrastive" and "multi_similarity".
    """
    return "temperature" in _options(name)


def takes_form(name: ViewLossName) -> bool:
    """Whether a loss can be streamed.

    Args:
        name: As `view_objective` takes it.

    Returns:
        True of InfoNCE and its decoupled form.
    """
    return "form" in _options(name)


def _options(name: ViewLossName) -> list[str]:
    parameters = inspect.signature(_VIEW_LOSSES[name]).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
