"""Run files of an adapter: the settings of the fit, and what it learns from.

    labels = "species"
    dim = 128
    loss = { kind = "multi_similarity", base = 0.6 }
    memory = { kind = "cross_batch", capacity = 20000 }

What is left out is the fit's own to choose; RUN/run.json holds what it chose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from querykey.adapter.settings import AdapterSettings, MemorySettings
from querykey.config.old_names import ADAPTER
from querykey.config.parsing import read_raw
from querykey.config.settings import check, current, describe_keys, make
from querykey.errors import ConfigError
from querykey.losses.by_name import loss_names, takes_target

__all__ = ["AdaptRun", "describe_settings", "parse_run", "read_run"]

_AUTO = ("loss", "loss.kind", "fc.start")
"""Settings for which a file may say "auto": what a fit chooses where they are left out."""


@dataclass(frozen=True, kw_only=True)
class AdaptRun(AdapterSettings):
    """What a run file may say.

    Args:
        labels: Name of the label column; None without labels.
        pairs: Whether to fit on the (query, document) pairs of the features.
    """

    labels: str | None = None
    pairs: bool = False

    @property
    def task(self) -> Literal["unlabelled", "labels", "pairs"]:
        """What the fit learns from."""
        if self.pairs:
            return "pairs"
        return "unlabelled" if self.labels is None else "labels"


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
    raw = read_raw(AdaptRun, path, settings, **options)
    return parse_run(raw, name="the settings" if path is None else str(path))


def parse_run(raw: Mapping[str, Any], *, name: str = "the settings", warn: bool = True) -> AdaptRun:
    """Check a run.

    Args:
        raw: Nested tables or dotted keys; what is None is left out.
        name: What to call them in a message.
        warn: Whether names of version 0.1 warn; a run.json is read without.

    Returns:
        The checked run.

    Raises:
        ConfigError: Naming every fault with its dotted key.

    Example:
        >>> parse_run({"dim": 64, "loss": {"kind": "nca", "temperature": 0.1}, "labels": "class"}).loss
        AdapterLoss(kind='nca', options={'temperature': 0.1})
    """
    given = current(raw, ADAPTER, warn=warn)
    said = {
        key: value
        for key, value in given.items()
        if value is not None and not (value == "auto" and key in _AUTO)
    }
    run = make(AdaptRun, check(AdaptRun, said, name=name))
    usual = vars(MemorySettings())
    unused = [key for key, value in vars(run.memory).items() if key != "kind" and value != usual[key]]
    if run.memory.kind == "in_batch" and unused:
        raise ConfigError(f"{name}: cannot be run\n  memory.{unused[0]}: belongs to memory.kind cross_batch")
    if run.pairs and run.labels is not None:
        raise ConfigError(
            f"{name}: cannot be run\n  pairs: cannot be fitted together with labels; choose one"
        )
    if run.task == "unlabelled" and run.loss.kind is not None and not takes_target(run.loss.kind):
        label_free = ", ".join(one for one in loss_names() if takes_target(one))
        raise ConfigError(
            f"{name}: cannot be run\n  loss.kind: {run.loss.kind} needs labels or pairs; without them use "
            f"one of {label_free}"
        )
    return run


def describe_settings() -> str:
    """Every key of a run and what it may be.

    Returns:
        A line a key, of at most 80 characters; what is longer goes on below.
    """
    return describe_keys(AdaptRun)
