"""The table of losses by name, for adapters and for pretraining alike."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

import torch
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
    "LOSSES",
    "RENAMED",
    "LossName",
    "Objective",
    "ViewLoss",
    "current_name",
    "loss_names",
    "loss_options",
    "objective",
    "takes_form",
    "takes_target",
    "takes_temperature",
    "view_objective",
]

LossName = str
"""A key of `LOSSES`."""
ViewLoss = Callable[[Lookup], PerQuery]

# A new loss is its own file and one line here.
LOSSES: dict[LossName, Callable[..., PerQuery]] = {
    "info_nce": info_nce,
    "nca": nca,
    "decoupled": decoupled,
    "debiased": debiased,
    "hard_negative": hard_negative,
    "nt_logistic": nt_logistic,
    "contrastive": contrastive,
    "triplet": triplet,
    "multi_similarity": multi_similarity,
    "circle": circle,
    "score_distillation": score_distillation,
    "score_difference": score_difference,
}
RENAMED = {"nt_xent": "info_nce", "margin": "triplet"}
"""Names of 0.1, accepted with a warning for one version; saved runs are read under them for ever."""


@dataclass(frozen=True)
class Objective:
    """A loss with its options filled in.

    Args:
        name: A key of `LOSSES`.
        loss: `loss(lookup)`, or `loss(lookup, target)` where the frozen scores are kept.
    """

    name: LossName
    loss: Callable[..., PerQuery]

    @property
    def keeps_scores(self) -> bool:
        """Whether the frozen scores are its target, so that no label is needed."""
        return takes_target(self.name)


def loss_names(*, with_target: bool = True) -> list[LossName]:
    """The names of the table.

    Args:
        with_target: Whether to include losses that keep the scores of a second look-up.

    Returns:
        The names, in the table's order.
    """
    return [name for name in LOSSES if with_target or not takes_target(name)]


def loss_options(*, with_target: bool = True) -> Mapping[LossName, Mapping[str, Any]]:
    """The keyword arguments of each loss.

    Args:
        with_target: As for `loss_names`.

    Returns:
        Name to (argument to its type), in the table's order.

    Example:
        >>> list(loss_options()["triplet"])
        ['margin', 'mining', 'soft']
    """
    return {
        name: {option: get_type_hints(_loss(name), include_extras=True)[option] for option in _options(name)}
        for name in loss_names(with_target=with_target)
    }


def current_name(name: str, *, warn: bool = True) -> LossName:
    """The name that a loss has today.

    Args:
        name: A name of today, or one of `RENAMED`.
        warn: Whether an old name warns. A saved run is read without.

    Returns:
        The name of today; a name that is in neither table is returned as it is.

    Example:
        >>> current_name("margin", warn=False)
        'triplet'
    """
    if name not in RENAMED:
        return name
    if warn:
        message = f"the loss {name!r} is named {RENAMED[name]!r} now; the old name goes with the next version"
        warnings.warn(message, FutureWarning, stacklevel=3)
    return RENAMED[name]


def objective(name: LossName, **options: Any) -> Objective:
    """A loss by its name.

    Args:
        name: A key of `LOSSES`.
        **options: The loss's own keyword arguments.

    Returns:
        The `Objective`.

    Raises:
        ConfigError: If there is no such loss, or it has no such option.
        RangeError: If an option is outside its range.

    Example:
        >>> objective("info_nce", temperature=0.07).keeps_scores
        False
    """
    _require_options(name, options, known=_options(name))
    if "temperature" in options or not takes_temperature(name):
        _try(name, options)
    return Objective(name, partial(LOSSES[name], **options))


def view_objective(name: LossName, temperature: float | Tensor, **options: Any) -> ViewLoss:
    """A loss of a look-up alone, at a temperature that may be learned.

    Args:
        name: A key of `LOSSES` that takes no target.
        temperature: Above 0; a tensor where it is learned. A loss without a temperature ignores it.
        **options: The loss's other keyword arguments.

    Returns:
        `loss(lookup) -> PerQuery`.

    Raises:
        ConfigError: If there is no such loss, it needs a target, or it has no such option.
        RangeError: If the temperature is not above 0, or an option is outside its range.

    Example:
        >>> from querykey.lookup.two_view_pairs import look_up_views
        >>> import torch
        >>> loss = view_objective("info_nce", 0.5)
        >>> bool(loss(look_up_views(torch.eye(2), torch.eye(2))).mean() > 0)
        True
    """
    known = _options(name)
    if takes_target(name):
        raise ConfigError(
            f"the loss {name} needs the scores of a frozen model as its target, and pretraining has none; "
            f"choose one of {', '.join(loss_names(with_target=False))}"
        )
    _require_options(name, options, known=[option for option in known if option != "temperature"])
    if "temperature" in known:
        check_temperature("temperature", temperature)
        _try(name, {**options, "temperature": 1.0 if isinstance(temperature, Tensor) else temperature})
        options["temperature"] = temperature
    else:
        _try(name, options)
    return partial(LOSSES[name], **options)


def takes_temperature(name: LossName) -> bool:
    """Whether a loss has a temperature.

    Args:
        name: A key of `LOSSES`.

    Returns:
        False of the margin losses, such as "triplet", and of "score_difference".
    """
    return "temperature" in _options(name)


def takes_form(name: LossName) -> bool:
    """Whether a loss can be chunked.

    Args:
        name: A key of `LOSSES`.

    Returns:
        True of "info_nce", "decoupled" and "score_distillation".
    """
    return "form" in _options(name)


def takes_target(name: LossName) -> bool:
    """Whether a loss compares the look-up with a second one: the frozen model's scores.

    Args:
        name: A key of `LOSSES`.

    Returns:
        True of "score_distillation" and "score_difference".
    """
    return "target" in inspect.signature(_loss(name)).parameters


def _loss(name: LossName) -> Callable[..., PerQuery]:
    if name not in LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(LOSSES)}; got {name!r}")
    return LOSSES[name]


def _options(name: LossName) -> list[str]:
    parameters = inspect.signature(_loss(name)).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]


@torch.no_grad()
def _try(name: LossName, options: Mapping[str, Any]) -> None:
    """Compute the loss of one query: what it refuses is known before data is read."""
    is_positive = torch.tensor([[True, False]])
    lookup = Lookup.from_scores(torch.zeros(1, 2), is_positive, ~is_positive)
    LOSSES[name](*[lookup] * (1 + takes_target(name)), **options)


def _require_options(name: LossName, options: dict[str, Any], *, known: list[str]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"the loss {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
