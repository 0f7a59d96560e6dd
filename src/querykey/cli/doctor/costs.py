"""Times of the commands that `querykey doctor` suggests, measured in short trials of the same code."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from querykey.data.items import Source
    from querykey.features.features import Features

__all__ = ["duration", "embed_cost", "fit_cost", "pretrain_cost"]

EPOCHS = (1.0, 100.0)
SAMPLE, SAMPLE_SECONDS = 512, 5.0
"""Items that are embedded in a trial, a shard of a store, and for how long at most."""


def duration(seconds: float) -> str:
    """A time in words, to a tenth of a minute or an hour.

    Example:
        >>> duration(43.7), duration(312.0), duration(9000.0)
        ('44 s', '5.2 minutes', '2.5 hours')
    """
    if seconds < 100:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def fit_cost(
    features: "Features", task: Literal["pairs", "labels", "unlabelled"], *, dim: int, label_column: str
) -> str:
    """What `querykey adapt` takes on features.

    Args:
        features: Without broken rows.
        task: What it learns from.
        dim: Width of the adapted rows.
        label_column: Name of the labels.

    Returns:
        Words.
    """
    from querykey.cli.console import progress
    from querykey.errors import QuerykeyError
    from querykey.runs.adapt import estimate_adapt
    from querykey.runs.adapter_settings import read_run
    from querykey.runs.pseudo_queries import pseudo_queries

    start_up = time.process_time()  # of this command, whose imports are those of the other
    learns_from = {"labels": label_column if task == "labels" else None, "pairs": task == "pairs" or None}
    run = read_run(None, [], dim=dim, **learns_from)
    try:
        with progress("trying a fit"):
            cost = estimate_adapt(run, features, make_validation=pseudo_queries)
    except QuerykeyError as error:
        return f"adapt will stop, because {error}"
    steps = f" of {cost.steps:,} steps" if cost.steps else ""
    training = f"{duration(cost.training + cost.end)} of it training{steps}"
    return f"about {duration(start_up + cost.seconds)}, {training}"


def embed_cost(source: "Source", model: str, *, device: str, seed: int) -> str:
    """What `querykey embed` takes: some items, drawn at random, through the model.

    Args:
        source: Images or texts, with their queries.
        model: Name of a frozen model.
        device: Of the model.
        seed: Of the draw.

    Returns:
        Words.
    """
    import numpy as np

    from querykey.data.items import Chosen
    from querykey.runs.load_encoder import load_encoder

    encoder = load_encoder(model, device=device)
    encoder.measure(source.items)
    # of this command, which has read the data and loaded the model as `embed` does
    seconds = time.process_time()
    sides = [source] if source.queries is None else [source, source.queries]
    draw = np.random.default_rng(seed)
    for side in sides:
        items: Any = side.items
        rows = draw.permutation(len(side))[:SAMPLE]
        encoded, taken, size = 0, 0.0, max(1, min(SAMPLE, 2 * encoder.plan.batch_size))
        while encoded < len(rows) and taken < SAMPLE_SECONDS:
            part, began = rows[encoded : encoded + size], time.perf_counter()
            encoder.encode(Chosen(items, part), on_damaged=lambda *_: None)
            taken, encoded = taken + time.perf_counter() - began, encoded + len(part)
        seconds += taken * len(side) / max(1, encoded)
    count = sum(map(len, sides))
    return f"about {duration(seconds)} for {count:,} items (batches of {encoder.plan.batch_size})"


def pretrain_cost(source: "Source", *, device: str) -> str:
    """What `querykey pretrain` with the defaults takes, and how far its default time goes.

    Args:
        source: Images.
        device: Of the training.

    Returns:
        Words.
    """
    from tempfile import TemporaryDirectory

    from querykey.cli.console import progress
    from querykey.errors import QuerykeyError
    from querykey.runs.pretrain_cost import estimate_pretrain

    start_up = time.process_time()
    try:
        with progress("trying steps"), TemporaryDirectory() as scratch:
            cost = estimate_pretrain(source, device=device, scratch=Path(scratch))
    except QuerykeyError as error:
        return f"pretrain will stop, because {error}"
    minutes = cost.settings.minutes or 10.0
    epochs = cost.epochs(60 * minutes - start_up)
    there = " and ".join(f"--epochs {one:g}: {duration(start_up + cost.seconds(one))}" for one in EPOCHS)
    return f"about {there}; --minutes {minutes:g}: {epochs:.1f} epochs"
