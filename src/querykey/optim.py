"""Optimisers and learning rates: LARS, groups without decay, scaling with the batch, warm-up and cosine."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn

from querykey.errors import ConfigError, RangeError

__all__ = ["LARS", "parameter_groups", "scaled_learning_rate", "warm_up_cosine"]

MomentumForm = Literal["simclr", "moco_v3"]


class LARS(torch.optim.Optimizer):
    r"""SGD with momentum and layer-wise adaptive rates: each step is proportional to the norm of the weights.

    With gradient :math:`\nabla`, weights :math:`w`, decay :math:`\lambda` and rate :math:`\gamma`,

    .. math:: g = \nabla + \lambda w, \qquad
              t = \eta \, \frac{\lVert w \rVert}{\lVert g \rVert}, \qquad
              v \leftarrow \mu v + \gamma t g, \qquad w \leftarrow w - v

    Tensors of one dimension or none (biases, batch norm, a learned temperature) are neither decayed
    nor adapted: :math:`t = 1` and :math:`\lambda = 0`, which is plain SGD. :math:`t = 1`, too,
    where a length is 0.

    Momentum has two published forms. "simclr", the formula above, keeps rate and trust in the
    momentum: a step that was taken at a small rate stays small. "moco_v3" keeps them out of it,
    :math:`v \leftarrow \mu v + t g,\; w \leftarrow w - \gamma v`, as PyTorch's SGD does. At a
    constant rate they are the same. While the rate rises, "moco_v3" lifts the momentum of earlier
    steps to the new rate and so steps further (up to the ratio of the rates); on the way down
    it steps less far. We take "simclr": The learning rates and warm-up of SimCLR were tuned with it.

    Args:
        params: Parameters, or groups of them (`parameter_groups`); a group may set any of the below.
        lr: :math:`\gamma \ge 0`; SimCLR uses 0.3 B / 256 (`scaled_learning_rate`).
        sgd_momentum: :math:`\mu` in [0, 1).
        weight_decay: :math:`\lambda \ge 0`; SimCLR uses 1e-6, its code by default 1e-4.
        trust_coefficient: :math:`\eta > 0`; None for :math:`t = 1`, SGD, as for a supervised head.
        momentum_form: "simclr" or "moco_v3".

    Raises:
        RangeError: If a number is outside its range.

    Example:
        A step of 0.1 x 0.5 of the length of the weights, whatever the gradient's:

        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> (1000.0 * weight[0, 0]).backward()
        >>> LARS([weight], lr=0.5, trust_coefficient=0.1).step()
        >>> weight.data
        tensor([[2.7500, 4.0000]])

    Source:
        You et al. 2017, arXiv:1708.03888, algorithm 1, whose trust divides by
        :math:`\lVert \nabla \rVert + \lambda \lVert w \rVert` instead; SimCLR's released code
        (decay first, rate inside) and Chen et al. 2021, arXiv:2104.02057 (MoCo v3; rate outside).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        sgd_momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = 0.001,
        momentum_form: MomentumForm = "simclr",
    ) -> None:
        defaults = {
            "lr": lr,
            "sgd_momentum": sgd_momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "momentum_form": momentum_form,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        _check_group(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients anew, as in PyTorch's optimisers.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [weight for weight in group["params"] if weight.grad is not None]
            for alike in _alike(trained):
                self._step_alike(group, alike)
        return loss

    def _step_alike(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """One step of tensors of one device and dtype, either all adapted or none."""
        rate, is_adapted = group["lr"], weights[0].ndim > 1
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        velocities = [self._velocity(weight) for weight in weights]
        is_decayed = is_adapted and group["weight_decay"] > 0
        if is_decayed:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))  # noqa: SLF001
        if is_adapted and group["trust_coefficient"] is not None:
            trusts = _trusts(weights, gradients, group["trust_coefficient"])
            if is_decayed:
                torch._foreach_mul_(gradients, trusts)
            else:
                gradients = list(torch._foreach_mul(gradients, trusts))  # noqa: SLF001
        torch._foreach_mul_(velocities, group["sgd_momentum"])
        form: MomentumForm = group["momentum_form"]
        match form:
            case "simclr":
                torch._foreach_add_(velocities, gradients, alpha=rate)
                torch._foreach_sub_(weights, velocities)
            case "moco_v3":
                torch._foreach_add_(velocities, gradients)
                torch._foreach_add_(weights, velocities, alpha=-rate)
            case never:
                assert_never(never)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity


def _alike(weights: list[Tensor]) -> list[list[Tensor]]:
    """Group tensors by device and dtype, with matrices and vectors separate.

    On a CPU each matrix is a group: larger groups are not faster there, and their temporaries, as large as
    the model, would be allocated at each step.
    """
    groups: dict[tuple[torch.device, torch.dtype, int], list[Tensor]] = {}
    for place, weight in enumerate(weights, start=1):
        alone = place if weight.device.type == "cpu" else 1
        kind = (weight.device, weight.dtype, alone if weight.ndim > 1 else 0)
        groups.setdefault(kind, []).append(weight)
    return list(groups.values())


def _trusts(weights: list[Tensor], gradients: list[Tensor], coefficient: float) -> list[Tensor]:
    """One number per tensor, without synchronisation with the device."""
    lengths, slopes = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))  # noqa: SLF001
    trust = torch.where((lengths > 0) & (slopes > 0), coefficient * lengths / slopes, 1.0)
    return list(trust.unbind())


def _check_group(group: dict[str, Any]) -> None:
    if not 0.0 <= group["lr"] < math.inf:
        raise RangeError(f"lr must be >= 0 and finite, got {group['lr']}; SimCLR uses 0.3 * batch / 256")
    if not 0.0 <= group["sgd_momentum"] < 1.0:
        raise RangeError(f"sgd_momentum must be from 0 to below 1, got {group['sgd_momentum']}; 0.9 is usual")
    if not 0.0 <= group["weight_decay"] < math.inf:
        raise RangeError(
            f"weight_decay must be >= 0 and finite, got {group['weight_decay']}; 1e-6 to 1e-4 is usual"
        )
    trust = group["trust_coefficient"]
    if trust is not None and not 0.0 < trust < math.inf:
        raise RangeError(
            f"trust_coefficient must be > 0 and finite, or None for plain SGD, got {trust}; 0.001 is usual"
        )
    if group["momentum_form"] not in {"simclr", "moco_v3"}:
        raise RangeError(f'momentum_form must be "simclr" or "moco_v3", got {group["momentum_form"]!r}')


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trained parameters of a module into those with weight decay and those without.

    Tensors of one dimension or none have no decay: biases, the scale and shift of a normalisation, a learned
    temperature. Decay would pull a scale to 0, not to simpler functions. Frozen parameters are left out.

    Args:
        module: The module.
        weight_decay: Of the other parameters, >= 0.

    Returns:
        Groups for any optimiser of PyTorch or `LARS`, those with decay first; empty groups are left out.

    Raises:
        RangeError: If weight_decay is negative or not finite.

    Example:
        >>> groups = parameter_groups(torch.nn.Linear(3, 2), weight_decay=0.01)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.01, 1), (0.0, 1)]
        >>> optimiser = torch.optim.SGD(groups, lr=0.1)
    """
    if not 0.0 <= weight_decay < math.inf:
        raise RangeError(f"weight_decay must be >= 0 and finite, got {weight_decay}; 1e-6 to 1e-4 is usual")
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def scaled_learning_rate(
    batch_size: int, *, rule: Literal["linear", "square_root", "none"], base: float | None = None
) -> float:
    r"""The peak learning rate for a batch size.

    .. math:: \text{linear: } b \, B / 256, \qquad \text{square root: } b \, \sqrt{B}, \qquad
              \text{none: } b

    Args:
        batch_size: *B*, images a step, from 1.
        rule: "linear", "square_root" or "none". The square root is better for small batches and few
            epochs: 62.8 against 57.5 at batch 256 and 100 epochs of ImageNet.
        base: *b* > 0. None: that of SimCLR with LARS, 0.3 (linear) or 0.075 (square root), which agree at
            B = 4096; required for "none".

    Returns:
        The rate.

    Raises:
        RangeError: If batch_size or base is not positive, or rule is "none" without a base.
        ConfigError: If there is no such rule.

    Example:
        >>> scaled_learning_rate(4096, rule="linear"), scaled_learning_rate(4096, rule="square_root")
        (4.8, 4.8)

    Source:
        Chen et al. 2020, arXiv:2002.05709, sec. 2.2 (linear) and app. B.1, Table B.1 (square root).
    """
    if batch_size < 1:
        raise RangeError(f"batch_size must be at least 1, got {batch_size}")
    if rule not in ("linear", "square_root", "none"):
        raise ConfigError(f"rule must be linear, square_root or none; got {rule!r}")
    if base is None:
        if rule == "none":
            raise RangeError('rule "none" takes the learning rate as it is; give it as base')
        base = 0.3 if rule == "linear" else 0.075
    if not 0.0 < base < math.inf:
        raise RangeError(f"base must be > 0 and finite, got {base}")
    match rule:
        case "linear":
            return base * batch_size / 256
        case "square_root":
            return base * math.sqrt(batch_size)
        case "none":
            return base
        case never:
            assert_never(never)


def warm_up_cosine(step: int, *, steps: int, warm_up: int = 0) -> float:
    r"""The factor of the peak learning rate at a step: a linear warm-up, then half a cosine to 0.

    .. math:: \min\left(1, \frac{t + 1}{w}\right) \text{ for } t < w, \qquad
              \tfrac12\left(1 + \cos\left(\pi\,\frac{t - w}{T - w}\right)\right) \text{ after}

    Args:
        step: :math:`t`, counted from 0.
        steps: :math:`T`, of the run, above warm_up.
        warm_up: :math:`w`, steps of the warm-up, from 0.

    Returns:
        A factor from 0 to 1.

    Raises:
        RangeError: If warm_up is not below steps.

    Example:
        >>> [round(warm_up_cosine(t, steps=4, warm_up=2), 2) for t in range(4)]
        [0.5, 1.0, 1.0, 0.5]

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, one period; the warm-up as in
        Chen et al. 2020, arXiv:2002.05709, app. B.1.
    """
    if not 0 <= warm_up < steps:
        raise RangeError(f"warm_up must be from 0 to below the {steps} steps, got {warm_up}")
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
