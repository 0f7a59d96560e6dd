"""Selection of the keys of a look-up for the FC layer and the loss: indices, not losses."""

from collections.abc import Iterator
from typing import Literal, assert_never, get_args

import torch
from torch import Tensor

from querykey.distributed.process_group import ProcessGroup
from querykey.errors import RangeError, require_choice
from querykey.lookup.best_columns import best_of_blocks
from querykey.lookup.lookup import Block, Lookup
from querykey.lookup.nearest import (
    SLACK,
    TIE,
    best_first,
    exact_scores,
    rows_not_finite,
    settle,
    without,
)
from querykey.types import Neighbours, PairMask, TopScores

__all__ = ["Mode", "top_k"]

Mode = Literal["similar", "hard_negative", "hard_positive", "semi_hard"]

_AnyMode = Literal[Mode, "nearest_positive"]

QUERY_BLOCK = 1024
KEY_BLOCK = 4096


@torch.no_grad()
def top_k(lookup: Lookup, k: int, mode: Mode) -> Neighbours:
    """The k most important keys of each query, exactly, computed in blocks.

    Args:
        lookup: Frozen scores with their pairs. Where its keys are sharded, each process finds the best of
            its shard, and the lists are merged.
        k: Keys wanted per query, at least 1.
        mode: "similar": the highest scores among positives and negatives.
            "hard_negative": the highest scores among negatives.
            "hard_positive": the lowest scores among positives.
            "semi_hard": the highest scores among those negatives that score below the query's
            nearest positive; a query without positives has none.

    Returns:
        Indices among all keys [queries, k], most important first, ties to the lower index; -1 where
        fewer than k keys are eligible. A key that holds NaN or infinity is never found, and a query that
        does finds nothing. No gradient.

    Raises:
        RangeError: If k is not positive.
        ConfigError: If there is no such mode.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.1]])
        >>> positive = torch.tensor([[False, True, False]])
        >>> found = Lookup.from_scores(scores, positive, ~positive)
        >>> top_k(found, 1, "hard_negative").tolist(), top_k(found, 1, "semi_hard").tolist()
        ([[0]], [[2]])

    Source:
        Hard and semi-hard: Schroff et al. 2015, arXiv:1503.03832, sec. 3.2, here per query.
    """
    if k < 1:
        raise RangeError(f"k must be at least 1, got {k}")
    require_choice("mode", mode, get_args(Mode))
    if len(lookup) == 0:
        return torch.full((0, k), -1)
    parts = [lookup.rows(i, i + QUERY_BLOCK) for i in range(0, len(lookup), QUERY_BLOCK)]
    return torch.cat([_of_all(*_top_k(part, k, mode), lookup.shard_group) for part in parts])


def _of_all(scores: TopScores, index: Neighbours, processes: ProcessGroup) -> Neighbours:
    """The best of all shards, from the best of each."""
    if processes.world_size == 1:
        return index
    numbers = torch.where(index < 0, index, index * processes.world_size + processes.rank)
    every_score, every_number = (
        processes.all_gather_with_grad(one[None], processes.world_size).movedim(0, 1).flatten(1)
        for one in (scores, numbers)
    )
    return best_first(every_score, every_number, index.shape[1])[1]


def _top_k(lookup: Lookup, k: int, mode: _AnyMode) -> tuple[TopScores, Neighbours]:
    """(sort keys, indices); -inf and -1 if there are fewer."""
    sign = -1.0 if mode == "hard_positive" else 1.0
    ceiling = torch.full((len(lookup),), torch.inf, device=lookup.queries.device)
    if mode == "semi_hard":
        ceiling = _nearest_positive(lookup)
    if len(lookup.keys) == 0:
        return torch.full((len(lookup), k), -torch.inf), torch.full((len(lookup), k), -1)

    def eligible(some: Lookup, below: Tensor) -> Iterator[Tensor]:
        unusable = rows_not_finite(some.queries)
        for block in some.blocks(KEY_BLOCK):
            is_out = ~_wanted(block, mode, below) | unusable[:, None]
            scores = (sign * block.scores).masked_fill(is_out, -torch.inf)
            yield without(scores, rows_not_finite(some.keys[block.start : block.start + scores.shape[1]]))

    def exact(rows: Tensor, candidates: Tensor) -> Tensor:
        found = sign * exact_scores(lookup.queries[rows].float(), lookup.keys, candidates, lookup.score)
        return found.masked_fill(found.float() >= ceiling[rows, None], -torch.inf)

    def scan(row: int) -> Tensor:
        below = ceiling[row : row + 1]
        return torch.cat(list(eligible(lookup.rows(row, row + 1), below)), dim=1)[0].float()

    scores, index = best_of_blocks(eligible(lookup, ceiling), k + SLACK)
    error = TIE * scores.nan_to_num(neginf=0.0).abs().max().clamp(min=1.0).expand(len(scores))
    return settle((scores, index), k, scores[:, -1], error, exact, scan)


def _wanted(block: Block, mode: _AnyMode, below: Tensor) -> PairMask:
    """The pairs of a block that may be selected."""
    match mode:
        case "similar":
            return block.positive | block.negative
        case "hard_negative":
            return block.negative
        case "hard_positive" | "nearest_positive":
            return block.positive
        case "semi_hard":
            # wider by the rounding error: exact scores decide
            reach = TIE * below.nan_to_num(neginf=0.0).abs().clamp(min=1.0)
            return block.negative & (block.scores < (below + reach)[:, None])
        case never:
            assert_never(never)


def _nearest_positive(lookup: Lookup) -> Tensor:
    """The highest score among each query's positives [queries], exact; -inf where there are none."""
    best = _top_k(lookup, 1, "nearest_positive")[0][:, 0]
    if lookup.shard_group.world_size == 1:
        return best
    return lookup.shard_group.all_gather_with_grad(best[None], lookup.shard_group.world_size).amax(dim=0)
