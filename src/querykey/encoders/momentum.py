"""The momentum encoder: an exponential moving average of an encoder, which encodes the keys."""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from querykey.errors import ConfigError, RangeError, ShapeError

__all__ = ["MomentumEncoder", "MomentumSchedule", "half_life", "momentum_at"]

MomentumSchedule = Literal["constant", "cosine"]


class MomentumEncoder(nn.Module):
    r"""A copy of an encoder whose weights are an exponential moving average (EMA) of its weights.

    .. math:: \theta_k \leftarrow m\,\theta_k + (1 - m)\,\theta_q

    Only parameters are averaged. Buffers, such as the running statistics of batch norm, are computed from
    the keys that it encodes, in train mode. Call `ema_update_` before encoding.

    Args:
        encoder: Any module; copied with its mode and device.

    Example:
        >>> encoder = torch.nn.Linear(1, 1)
        >>> key_encoder = MomentumEncoder(encoder)
        >>> with torch.no_grad():
        ...     before = encoder.weight.clone()
        ...     _ = encoder.weight.add_(1.0)
        >>> key_encoder.ema_update_(encoder, 0.75)
        >>> bool(torch.isclose(key_encoder.encoder.weight, before + 0.25))
        True

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, eq. 2. Algorithm 1 updates at the end of a step; the authors' code and this
        library update just before the keys are encoded.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def ema_update_(self, encoder: nn.Module, momentum: float) -> None:
        """Move every parameter towards the encoder's, in place.

        Args:
            encoder: The encoder that was copied.
            momentum: EMA coefficient, from 0 (a copy of the encoder) to 1 (unchanged).

        Raises:
            RangeError: If momentum is not from 0 to 1.
            ShapeError: If the encoder has other parameters.
        """
        if not 0 <= momentum <= 1:
            raise RangeError(f"momentum of the key encoder must be from 0 to 1, got {momentum}")
        weights, others = dict(self.encoder.named_parameters()), dict(encoder.named_parameters())
        shapes = [{name: tuple(weight.shape) for name, weight in one.items()} for one in (weights, others)]
        if shapes[0] != shapes[1]:
            differing = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
            raise ShapeError(
                f"the key encoder cannot follow an encoder with other parameters ({', '.join(differing[:3])})"
                "; make it from that encoder"
            )
        if weights:
            torch._foreach_lerp_(list(weights.values()), [others[name] for name in weights], 1 - momentum)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """The output of the encoder, here (h, z), without gradient."""
        return self.encoder(images)


def half_life(momentum: float) -> float:
    r"""The number of steps after which half of the weight of the average has been replaced.

    .. math:: \log \tfrac{1}{2} / \log m

    Args:
        momentum: From 0 to 1.

    Returns:
        Steps; 0 at momentum 0 and infinity at 1.

    Raises:
        RangeError: If momentum is not from 0 to 1.

    Example:
        >>> round(half_life(0.99)), round(half_life(0.999))
        (69, 693)
    """
    if not 0 <= momentum <= 1:
        raise RangeError(f"momentum of the key encoder must be from 0 to 1, got {momentum}")
    if momentum in (0, 1):
        return math.inf if momentum else 0.0
    return -math.log(2) / math.log(momentum)


def momentum_at(step: int, *, steps: int, momentum: float, schedule: MomentumSchedule = "constant") -> float:
    r"""The key encoder's momentum at a step.

    Constant, or rising to 1 along half a cosine:

    .. math:: m_t = 1 - (1 - m)\,\frac{1 + \cos(\pi t / T)}{2}

    Args:
        step: *t*, from 0 to `steps`.
        steps: *T* of the whole run, >= 1.
        momentum: *m* of the first step, from 0 to 1.
        schedule: "constant" or "cosine".

    Returns:
        From `momentum` to 1.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If the schedule is not known.

    Example:
        >>> [round(momentum_at(t, steps=4, momentum=0.9, schedule="cosine"), 3) for t in (0, 2, 4)]
        [0.9, 0.95, 1.0]

    Source:
        Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, 2021,
        arXiv:2104.02057 (MoCo v3): the schedule is in the authors' code; after Grill et al. 2020,
        arXiv:2006.07733, section 3.2.
    """
    if not 0 <= momentum <= 1:
        raise RangeError(f"momentum of the key encoder must be from 0 to 1, got {momentum}")
    if steps < 1 or not 0 <= step <= steps:
        raise RangeError(f"a step is from 0 to steps, and steps >= 1; got step {step} of {steps}")
    match schedule:
        case "constant":
            return momentum
        case "cosine":
            return 1 - (1 - momentum) * (1 + math.cos(math.pi * step / steps)) / 2
        case _:
            raise ConfigError(f"the momentum schedule is constant or cosine; got {schedule!r}")
