"""Run files of an adapter: the settings of the fit, and its labels or pairs.

    labels = "species"
    dim = 128
    loss = { kind = "multi_similarity", base = 0.6 }
    memory = { kind = "cross_batch", capacity = 20000 }

The fit chooses settings that are not given; RUN/run.json records its choices.
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
"""Settings for which a file may say "auto": the fit chooses, as for settings that are not given."""


@dataclass(frozen=True, kw_only=True)
class AdaptRun(AdapterSettings):
    """The settings of a run file.

    Args:
        labels: Name of the label column; None without labels.
        pairs: Whether to fit on the (query, document) pairs of the features.
    """

    labels: str | None = None
    pairs: bool = False

    @property
    def task(self) -> Literal["unlabelled", "labels", "pairs"]:
        """The supervision of the fit."""
        if self.pairs:
            return "pairs"
        return "unlabelled" if self.labels is None else "labels"


def read_run(path: str | Path | None, settings: Sequence[str] = (), **options: Any) -> AdaptRun:
    """Read a run from a TOML file, options and `--set` settings; the later ones win.

    Args:
        path: A run file; None for the defaults.
        settings: Each "a.b=value".
        **options: Settings with an option of their own on the command line; None means not given.

    Returns:
        The validated run.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is not TOML or a setting is wrong; all errors are listed.
    """
    raw = read_raw(AdaptRun, path, settings, **options)
    return parse_run(raw, name="the settings" if path is None else str(path))


def parse_run(raw: Mapping[str, Any], *, name: str = "the settings", warn: bool = True) -> AdaptRun:
    """Validate a run.

    Args:
        raw: Nested tables or dotted keys; None means not given.
        name: Name of the settings, for messages.
        warn: Whether names of version 0.1 warn; False for a run.json.

    Returns:
        The validated run.

    Raises:
        ConfigError: With the dotted key of every error.

    Example:
        >>> parse_run({"dim": 64, "loss": {"kind": "nca", "temperature": 0.1}, "labels": "class"}).loss
        AdapterLoss(kind='nca', options={'temperature': 0.1})
    """
    given = current(raw, ADAPTER, warn=warn)
    chosen = {
        key: value
        for key, value in given.items()
        if value is not None and not (value == "auto" and key in _AUTO)
    }
    run = make(AdaptRun, check(AdaptRun, chosen, name=name))
    defaults = vars(MemorySettings())
    unused = [key for key, value in vars(run.memory).items() if key != "kind" and value != defaults[key]]
    wrong = None
    if run.memory.kind == "in_batch" and unused:
        wrong = f"memory.{unused[0]}: belongs to memory.kind cross_batch"
    elif run.pairs and run.labels is not None:
        wrong = "pairs: cannot be fitted together with labels; choose one"
    elif run.task == "unlabelled" and run.loss.kind is not None and not takes_target(run.loss.kind):
        label_free = ", ".join(one for one in loss_names() if takes_target(one))
        wrong = f"loss.kind: {run.loss.kind} needs labels or pairs; without them use one of {label_free}"
    if wrong is not None:
        raise ConfigError(f"{name}: cannot be run\n  {wrong}")
    return run


def describe_settings() -> str:
    """Every key of a run and its values.

    Returns:
        One entry per key, wrapped at 80 characters.
    """
    return describe_keys(AdaptRun)
