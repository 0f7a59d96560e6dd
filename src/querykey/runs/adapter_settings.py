"""A fit as data: TOML and `--set` in, frozen and checked settings out, without torch.

    labels = "species"
    dim = 128
    loss = { kind = "multi_similarity", base = 0.6 }
    memory = { kind = "cross_batch", capacity = 20000 }

What is left out is the fit's own to choose; it writes down what it chose.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from querykey.config.errors import Grammar
from querykey.config.parsing import check, read_raw
from querykey.runs.adapter_tables import (
    AtLeastTwo,
    Count,
    FCLayerSettings,
    Loss,
    Memory,
    NonNegative,
    Positive,
    Selection,
    Strict,
)  # fmt: skip

__all__ = ["AdaptRun", "describe_settings", "parse_recorded", "parse_run", "read_run"]

RENAMED = {"held_out": "validation_fraction", "patience": "n_iter_no_change"}
"""Settings of version 0.1 by their names of today."""
_LABEL_FREE = ("score_distillation", "score_difference")


class AdaptRun(Strict):
    """All settings of one adapter fit; None is the fit's own default.

    Args:
        labels: Name of the label column; None without labels.
        pairs: Whether to fit on the (query, document) pairs of the features.
        side: "query": documents stay as they are in the index and only queries are transformed.
        dim: Width of the adapted vectors, at most that of the features.
        steps: Optimiser steps.
        batch_size: Rows a step, clipped to the data.
        learning_rate: AdamW's peak learning rate.
        weight_decay: AdamW's weight decay.
        classes: Whether the adapter will meet "known" classes or "new" ones.
        target: Whose scores a fit without labels keeps.
        candidates: "all", "closed_form", or names of candidates or of their families.
        validation_fraction: Share of the rows that is held out where they are many.
        n_iter_no_change: Evaluations without a better one before training stops.
        both_sides: Whether the gradient goes through the keys too.
        seed: Random seed.
        loss: The pair loss, by kind.
        memory: Where the keys come from, by kind.
        selection: How many rows of the memory take part.
        fc: The layer that is trained.
    """

    labels: str | None = None
    pairs: bool = False
    side: Literal["both", "query"] = "both"
    dim: Positive | None = None
    steps: Count | None = None
    batch_size: AtLeastTwo | None = None
    learning_rate: NonNegative | None = None
    weight_decay: NonNegative | None = None
    classes: Literal["known", "new"] | None = None
    target: Literal["frozen", "centred", "soft_whitened"] | None = None
    candidates: str | list[str] | None = None
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)] | None = None
    n_iter_no_change: Positive | None = None
    both_sides: bool | None = None
    seed: Count = 0
    loss: Annotated[Loss, Field(discriminator="kind")] | None = None
    memory: Annotated[Memory, Field(discriminator="kind")] | None = None
    selection: Selection = Selection()
    fc: FCLayerSettings = FCLayerSettings()

    @property
    def task(self) -> Literal["unlabelled", "labels", "pairs"]:
        """What the fit learns from."""
        if self.pairs:
            return "pairs"
        return "unlabelled" if self.labels is None else "labels"

    @model_validator(mode="before")
    @classmethod
    def _fill_kinds(cls, run: Any) -> Any:
        """`--set loss.temperature=0.1` is about the loss that the fit chooses."""
        if not isinstance(run, dict):
            return run
        for old, new in RENAMED.items():
            if old in run and new not in run:
                warnings.warn(
                    f"the setting {old} will go in the next version; write {new}", UserWarning, stacklevel=2
                )
                run = {new if name == old else name: value for name, value in run.items()}
        own = {"loss": "auto", "memory": "cross_batch"}
        filled = {name: {"kind": run[name]} for name in (*own, "fc") if isinstance(run.get(name), str)}
        for name, kind in own.items():
            if isinstance(run.get(name), dict):
                filled[name] = {"kind": kind} | run[name]
        return run | filled

    @model_validator(mode="after")
    def _check_task(self) -> "AdaptRun":
        if self.pairs and self.labels is not None:
            raise ValueError("pairs: cannot be fitted together with labels; choose one")
        if (
            self.loss is not None
            and self.task == "unlabelled"
            and self.loss.kind not in ("auto", *_LABEL_FREE)
        ):
            raise ValueError(
                f"loss.kind: {self.loss.kind} needs labels or pairs; without them use one of "
                f"{', '.join(_LABEL_FREE)}"
            )
        return self


_GRAMMAR = Grammar(
    root=AdaptRun,
    unions={
        name: {part.model_fields["kind"].default: part for part in get_args(union)}
        for name, union in (("loss", Loss), ("memory", Memory))
    },
    tables={"selection": Selection, "fc": FCLayerSettings},
)


def read_run(path: str | Path | None, settings: Sequence[str] = (), **options: Any) -> AdaptRun:
    """Read a run from a TOML file, options and `--set` settings; the later win.

    Args:
        path: A run file, or None for a run of defaults.
        settings: Each "a.b=value".
        **options: Settings that have their own option on the command line; None is not given.

    Returns:
        The checked run.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is no TOML, or a setting has a fault; all faults are named.
    """
    raw = read_raw(path, settings, **options)
    return parse_run(raw, name="the settings" if path is None else str(path))


def parse_run(raw: Mapping[str, Any], *, name: str = "the settings") -> AdaptRun:
    """Check a run.

    Args:
        raw: Settings as nested dicts.
        name: What to call them in a message.

    Returns:
        The checked run.

    Raises:
        ConfigError: Naming every fault with its dotted key.

    Example:
        >>> parse_run({"dim": 64, "loss": {"kind": "nca", "temperature": 0.1}, "labels": "class"}).loss
        NCA(kind='nca', temperature=0.1)
    """
    return check(AdaptRun, raw, grammar=_GRAMMAR, name=name)


def parse_recorded(raw: Mapping[str, Any], *, name: str) -> AdaptRun:
    """Check the settings that a run.json holds; the names of version 0.1 are read without a warning.

    Args:
        raw: Settings as they were written.
        name: What to call them in a message.

    Returns:
        The checked run.

    Raises:
        ConfigError: Naming every fault with its dotted key.
    """
    return parse_run({RENAMED.get(key, key): value for key, value in raw.items()}, name=name)


def describe_settings() -> str:
    """Every key of a run and what it may be.

    Returns:
        A line a key.
    """
    return "\n".join(f"{key:<24} {words}" for key, words in _GRAMMAR.rows())
