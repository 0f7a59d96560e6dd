"""What `querykey doctor --probe-batch-norm` shows: whether batch norm gives pairs away, and what helps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from querykey.encoders.batchnorm import BatchNormKind
    from querykey.training.leakage import Leakage, ProbedMethod

__all__ = ["probe_batch_norm"]

GROUP_SIZE = 4
CASES: tuple[tuple[str, "ProbedMethod", "BatchNormKind", bool], ...] = (
    ("moco, split, in order", "moco", "split", False),
    ("moco, split, shuffled", "moco", "split", True),
    ("moco, whole batch", "moco", "device", False),
    ("moco, layer norm", "moco", "layer", False),
    ("end-to-end, split, in order", "end-to-end", "split", False),
    ("end-to-end, split, shuffled", "end-to-end", "split", True),
)
"""What is probed: words, method, normalisation, and whether keys are shuffled."""
MUCH = 2.0
"""Times chance from which a task is solved by batch norm, and not by what is left of it."""


def probe_batch_norm(*, groups: int, seed: int) -> None:
    """Probe and show, a row a case.

    Args:
        groups: Of split batch norm, at least 2; 4 rows each.
        seed: Of everything random.
    """
    from querykey.cli.show import line, progress, table
    from querykey.training.leakage import probe_leakage

    found: list[Leakage] = []
    with progress("probing batch norm") as shown:
        for _, method, kind, shuffle in CASES:
            # a whole batch leaks less than a group does, and less the larger it is: a small one, for longer
            is_split = kind == "split"
            count, steps = (groups, 150) if is_split else (max(2, groups // 2), 250)
            one = probe_leakage(
                method,
                kind=kind,
                groups=count,
                group_size=GROUP_SIZE,
                shuffle=shuffle,
                steps=steps,
                seed=seed,
            )
            found.append(one)
            if shown is not None:
                shown(len(found), len(CASES))
    rows = [
        (words, f"{one.accuracy:.1%}", f"{one.low:.1%} to {one.high:.1%}", f"{one.chance:.1%}", _word(one))
        for (words, *_), one in zip(CASES, found, strict=True)
    ]
    title = f"pairs of noise without shared content, {groups} groups of {GROUP_SIZE} rows, seed {seed}"
    table(
        ("keys found by batch norm", "found", "95% interval", "chance", ""), rows, title=title, words=(0, 4)
    )
    for sentence in _verdict(found):
        line(sentence)


def _word(one: "Leakage") -> str:
    if not one.is_found:
        return "chance"
    return "leaks" if one.accuracy > MUCH * one.chance else "a rest"


def _verdict(found: list["Leakage"]) -> list[str]:
    """In plain words."""
    split, shuffled, whole, _, end_to_end, end_to_end_shuffled = found
    said = [
        _sentence("Split batch norm in order", "tells which key is a query's own", split, end_to_end),
        _sentence("Shuffled, it", "still tells", shuffled, end_to_end_shuffled),
    ]
    if whole.is_found:
        said.append(
            "Batch norm over the whole batch leaks in MoCo too: a queue's keys come from other batches, with "
            "other statistics. Use split batch norm with shuffling, or layer norm."
        )
    return said


def _sentence(subject: str, verb: str, *found: "Leakage") -> str:
    words = {_word(one) for one in found}
    if "leaks" in words:
        return f"{subject} {verb}: the pretext task is solved without looking at content."
    if "a rest" in words:
        return f"{subject} leaves a rest: more and smaller groups leave less."
    return f"{subject} tells nothing that this probe finds."
