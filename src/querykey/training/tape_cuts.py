"""Where on a tape tensors are kept while a forward goes on, so that the least memory is needed."""

from collections.abc import Sequence
from itertools import combinations, pairwise

from querykey.errors import ConfigError
from querykey.training.tape import Tape

__all__ = ["choose_cuts", "require_separate", "unkept"]

_HALVINGS = 40


def choose_cuts(tape: Tape) -> list[int]:
    r"""The calls before which everything alive is kept during the forward.

    The tape is cut into segments. On the way back, one segment at a time is run again from its cut,
    and what is alive at its batch norms is kept until the gradient has passed. So while the gradient
    goes from the end of norm :math:`n` of segment :math:`j` to its start, memory holds the cuts so far,
    the norms of the segment so far and the gradient,

    .. math:: \sum_{i \le j} \text{alive}(\text{cut}_i)
              + \Big|\bigcup_{m \in j,\ m \le n} \text{alive}(m)\Big| + \text{alive}(n + 1),

    where :math:`n + 1` is the next norm or cut and the first norm of all does not count (see `unkept`).
    The cuts are those for which the largest of these sums is smallest. Between two batch norms a
    cut is considered where the least is alive.

    Args:
        tape: Of one chunk; all chunks are cut alike.

    Returns:
        Cuts in order, 0 first; never empty.
    """
    candidates = _candidates(tape)
    alive = {place: tape.alive(place) - {0} for place in {*candidates, *tape.norms}}
    own = [_bytes(tape, alive[place]) for place in candidates]
    inside = {
        (start, stop): _inside(tape, alive, candidates[start], candidates[stop])
        for start, stop in combinations(range(len(candidates)), 2)
    }
    low, high = 0.0, float(sum(tape.sizes) * 2 + 1)
    best = _cuts_within(high, own, inside)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        cuts = _cuts_within(middle, own, inside)
        low, high = (low, middle) if cuts is not None else (middle, high)
        best = best if cuts is None else cuts
    assert best is not None
    return [candidates[place] for place in best]


def unkept(tape: Tape, cuts: Sequence[int]) -> int | None:
    """The first norm: what is alive there is large, and soon computed again from the images.

    Args:
        tape: Of one chunk.
        cuts: In order, 0 first.

    Returns:
        Its place; None if a cut is there or before it, or there is none.
    """
    first = next(iter(tape.norms), 0)
    return first if first > 0 and (len(cuts) == 1 or first < cuts[1]) else None


def require_separate(tape: Tape, places: Sequence[int]) -> None:
    """Refuse a tape on which two kept tensors share memory that is changed later.

    Args:
        tape: Of one chunk.
        places: Before which tensors are kept.

    Raises:
        ConfigError: If there is such a pair.
    """
    for place in places:
        written = tape.written(place, len(tape.calls))
        storages = [tape.storages[slot] for slot in tape.alive(place) & written]
        if len(storages) != len(set(storages)):
            raise ConfigError(
                "the encoder holds two views of one tensor across a batch norm and changes one in place, "
                "which cannot be followed in chunks; make the change out of place, or use the whole batch"
            )


def _candidates(tape: Tape) -> list[int]:
    """The start, the place of least memory after each norm and not after the next, and the end."""
    ends = [*tape.norms[1:], len(tape.calls)] if tape.norms else []
    places = [0]
    for norm, end in zip(tape.norms, ends, strict=True):
        inner = range(norm + 1, end + 1 if end < len(tape.calls) else end)
        if inner:
            # of equals the last: what is changed in place has been changed by then
            places.append(min(reversed(inner), key=lambda place: _bytes(tape, tape.alive(place) - {0})))
    return [*places, len(tape.calls)]


def _bytes(tape: Tape, slots: frozenset[int]) -> int:
    """Of tensors; a view costs nothing beside what it is a view of."""
    largest = dict[int, int]()
    for slot in slots:
        storage = tape.storages[slot]
        largest[storage] = max(largest.get(storage, 0), tape.sizes[slot])
    return sum(largest.values())


def _inside(tape: Tape, alive: dict[int, frozenset[int]], start: int, stop: int) -> int:
    """Bytes that a segment needs while the gradient is in it, without the cuts up to its own."""
    places = [start, *(norm for norm in tape.norms if start < norm < stop), stop]
    kept, most = frozenset[int](), 0
    fleeting = tape.norms[:1] if start == 0 else []
    for place, after in pairwise(places):
        if place not in fleeting:
            kept |= alive[place] - alive[start]
        most = max(most, _bytes(tape, kept) + _bytes(tape, alive[after]))
    return most


def _cuts_within(most: float, own: list[int], inside: dict[tuple[int, int], int]) -> list[int] | None:
    """The cuts that keep least and hold each segment within `most` bytes; None if there are none."""
    end = len(own) - 1
    kept: list[float] = [0.0] + [float("inf")] * end
    before = [0] * len(own)
    for stop in range(1, end + 1):
        for start in range(stop):
            total = kept[start] + own[stop] * (stop < end)
            if kept[start] + inside[start, stop] <= most and total < kept[stop]:
                kept[stop], before[stop] = total, start
    if kept[end] == float("inf"):
        return None
    cuts = [before[end]]
    while cuts[-1] > 0:
        cuts.append(before[cuts[-1]])
    assert all(late > early for late, early in pairwise(cuts))
    return cuts[::-1]
