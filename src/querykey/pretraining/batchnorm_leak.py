"""Measures whether batch norm leaks the positive key, by training on noise without other information."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor, nn

from querykey.data.augment.rng import keyed_bits
from querykey.dictionaries.queue import KeyQueue
from querykey.encoders.momentum import MomentumEncoder
from querykey.encoders.norm.batchnorm import BatchNormKind, convert_batch_norm
from querykey.encoders.norm.split import spread_order
from querykey.encoders.small_cnn import SmallCNN
from querykey.errors import ConfigError, RangeError
from querykey.lookup.lookup import DensePairs, Lookup
from querykey.losses.info_nce import info_nce
from querykey.pretraining.methods.end_to_end import EndToEnd, end_to_end_step
from querykey.pretraining.methods.moco import MoCo, moco_step
from querykey.pretraining.methods.step import StepContext, ViewPair
from querykey.types import ImageRows, PerQuery

__all__ = ["Leakage", "ProbedMethod", "probe_leakage"]

ProbedMethod = Literal["moco", "end-to-end"]

CHANNELS, SIDE = 3, 8
"""Of a noise image."""
CONTRAST = 0.5
"""Deviation of the logarithm of an image's contrast: photographs differ in it, and so do their statistics."""
TEMPERATURE = 0.1
RATE = 0.01
MOMENTUM = 0.99
BATCHES_HELD = 4
"""Batches that the queue of MoCo holds."""


@dataclass(frozen=True)
class Leakage:
    """How often a query finds its positive key if the two share only the batch.

    Args:
        accuracy: Fraction of the queries whose positive key scored above all others.
        low: Lower end of its 95% interval (exact binomial).
        high: Upper end.
        chance: One over the candidates.
        queries: Number of queries.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    queries: int

    @property
    def is_found(self) -> bool:
        """Whether chance is below the interval."""
        return self.low > self.chance


def probe_leakage(
    method: ProbedMethod,
    *,
    kind: BatchNormKind = "split",
    groups: int = 16,
    group_size: int = 4,
    shuffle: bool = False,
    steps: int = 150,
    tests: int = 100,
    make_encoder: Callable[[], nn.Module] | None = None,
    seed: int = 0,
) -> Leakage:
    """Train a method on noise whose pairs share no content, and measure whether it finds the positive keys.

    In each group of consecutive rows one row is a query, and the others are context. A context row is the
    same noise image as query and as key, like two views of a photograph. A query and its key are independent
    noise images, which occur nowhere else. So they have only batch statistics in common, which the context
    makes similar. Loss and accuracy are those of the queries among the keys of queries.

    First the method is trained; then the weights are frozen, and the accuracy is measured on new noise, with
    all candidates from the same weights. Otherwise the keys in MoCo's queue would differ from the positive
    key by their older encoder, and that would solve a part of the pretext task with any normalisation.

    Args:
        method: "moco" (a queue of earlier batches) or "end-to-end" (keys of the batch,
            one encoder).
        kind: Of the normalisation; see `convert_batch_norm`.
        groups: Queries in a batch, and groups of "split"; at least 2.
        group_size: Rows of one group, at least 2.
        shuffle: Whether keys are encoded in a random order, drawn at each step; see `spread_order`.
        steps: Of training, at least 1.
        tests: Steps that are measured, `groups` queries each, at least 1.
        make_encoder: Makes images [images, 3, 8, 8] -> (h, z). None: two small blocks with batch norm.
        seed: Of weights, noise and order.

    Returns:
        The accuracy over the tests, and chance: 1 / groups end to end, and 1 / (1 + 4 * groups) in MoCo.

    Raises:
        RangeError: If a number is outside its range.
        ConfigError: If the method or the kind is not known.

    Example:
        >>> found = probe_leakage("end-to-end", groups=2, steps=1, tests=5)
        >>> found.chance, found.queries
        (0.5, 10)

    Source:
        He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019,
        arXiv:1911.05722, section 3.3 and figure A.1 (there the accuracy on real pairs, with and without
        shuffling). Pairs of noise are this library's.
    """
    if min(groups, group_size) < 2 or min(steps, tests) < 1:
        raise RangeError(
            "a probe needs at least 2 groups of at least 2 rows, 1 step and 1 test; "
            f"got {groups} of {group_size}, {steps} and {tests}"
        )
    if method not in get_args(ProbedMethod):
        raise ConfigError(f"batch norm is probed in {', '.join(get_args(ProbedMethod))}; got {method!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = (make_encoder or _Small)()
    encoder = convert_batch_norm(encoder, kind, groups=groups if kind == "split" else None).train()
    probe = _Probe(method, encoder, groups=groups, group_size=group_size)
    settling = BATCHES_HELD if method == "moco" else 0
    for step in range(steps + settling + tests):
        if step == steps:
            probe.hold_still()
        if step == steps + settling:
            probe.solved, probe.queries = 0, 0
        order = _order((seed, step, 2), groups, group_size) if shuffle else None
        probe.step(*_pairs(seed, step, groups, group_size), step, order)
    low, high = _interval(probe.solved, probe.queries)
    return Leakage(probe.solved / probe.queries, low, high, 1 / probe.candidates, probe.queries)


class _Small(nn.Module):
    """Images [images, 3, 8, 8] to (h [images, 32], z [images, 32])."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SmallCNN(CHANNELS, widths=(16, 32), strides=(2, 2))
        self.head = nn.Linear(32, 32)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = self.backbone(images)
        return h, self.head(h)


class _Probe:
    """One method, its optimizer and its queue, and the count of what was found."""

    def __init__(self, method: ProbedMethod, encoder: nn.Module, *, groups: int, group_size: int) -> None:
        self.encoder, self.group_size = encoder, group_size
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=RATE)
        self.momentum = MOMENTUM
        self.key_encoder: MomentumEncoder | None = None
        self.queue: KeyQueue | None = None
        if method == "moco":
            self.key_encoder = MomentumEncoder(encoder)
            rows = groups * group_size
            with torch.no_grad():
                _, z = self.key_encoder(torch.zeros(rows, CHANNELS, SIDE, SIDE))
            self.queue = KeyQueue(capacity=BATCHES_HELD * rows, dim=z.shape[1])
        self.solved = self.queries = self.candidates = 0

    def hold_still(self) -> None:
        """From here on no weight moves."""
        self.momentum = 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0

    def step(self, queries: ImageRows, keys: ImageRows, step: int, permutation: Tensor | None) -> None:
        """The step of the method on one batch of noise."""
        ids = torch.arange(step * len(queries), (step + 1) * len(queries))
        of_keys = ids if self.queue is None else torch.cat([ids, self.queue.read().ids])
        is_asked = of_keys % self.group_size == 0

        def loss(lookup: Lookup) -> PerQuery:
            return info_nce(_those(lookup, is_asked), temperature=TEMPERATURE)

        def on_lookup(lookup: Lookup) -> None:
            self._count(_those(lookup, is_asked))

        # which rows count depends on the step here, and with them the loss
        context = StepContext(loss=loss, key_order=lambda *_: permutation, on_lookup=on_lookup)
        batch = ViewPair(queries, keys, ids)
        if self.key_encoder is None or self.queue is None:
            end_to_end_step(EndToEnd(self.encoder, self.encoder, self.optimizer), batch, context)
        else:
            moco = MoCo(self.encoder, self.key_encoder, self.queue, self.optimizer)
            moco_step(moco, batch, context, self.momentum)

    def _count(self, lookup: Lookup) -> None:
        positive = lookup.scores.where(lookup.positive, -torch.inf).amax(dim=1)
        others = lookup.scores.where(lookup.negative, -torch.inf).amax(dim=1)
        self.solved += int((positive > others).sum())
        self.queries += len(lookup)
        self.candidates = 1 + int(lookup.negative[0].sum())


def _those(lookup: Lookup, is_asked: Tensor) -> Lookup:
    """The rows that ask, among the keys of such rows."""
    queries = is_asked[: len(lookup)]
    masks = (mask[queries][:, is_asked] for mask in lookup.masks)
    return Lookup(lookup.queries[queries], lookup.keys[is_asked], DensePairs(*masks), lookup.score)


def _pairs(seed: int, step: int, groups: int, group_size: int) -> tuple[ImageRows, ImageRows]:
    """Noise for queries and keys: the same but for every first row of a group."""
    rows = groups * group_size
    asks = (torch.arange(rows) % group_size == 0)[:, None, None, None]
    first, second = (_noise((seed, step, side), rows) for side in (0, 1))
    drawn = _noise((seed, step, 3), rows)
    brightness, contrast = drawn[:, :, :1, :1], drawn[:, :, 1:2, :1]
    context = brightness + first * (CONTRAST * contrast).exp()
    return torch.where(asks, first, context), torch.where(asks, second, context)


def _order(key: tuple[int, ...], groups: int, group_size: int) -> Tensor:
    """How the keys of a step are shuffled."""
    return spread_order(groups * group_size, groups=groups, generator=_generator(key))


def _noise(key: tuple[int, ...], rows: int) -> Tensor:
    """Gaussian noise images, seeded by the key [rows, 3, 8, 8]."""
    return torch.randn(rows, CHANNELS, SIDE, SIDE, generator=_generator(key))


def _generator(key: tuple[int, ...]) -> torch.Generator:
    return torch.Generator().manual_seed(int(keyed_bits(key, np.zeros(1, np.int64), 1)[0, 0]) >> 1)


def _interval(solved: int, queries: int) -> tuple[float, float]:
    """The exact 95% interval of a fraction."""
    low = float(beta.ppf(0.025, solved, queries - solved + 1)) if solved else 0.0
    high = float(beta.ppf(0.975, solved + 1, queries - solved)) if solved < queries else 1.0
    return low, high
