"""Run files of a pretraining: the settings, and what `pretrain` takes besides.

    data = "photos"
    method = "simclr"
    minutes = 10
    backbone = { name = "torchvision:resnet18", stem = "small" }
    loss = { kind = "decoupled", temperature = 0.1 }
    optimizer = { kind = "lars", lr_scaling = "square_root" }

What is left out is chosen for the images or measured; RUN/run.json holds what was chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from querykey.config.old_names import PRETRAINING
from querykey.config.parsing import read_raw
from querykey.config.ranges import NonNegative, PositiveInt
from querykey.config.settings import check, current, describe_keys, flat
from querykey.pretraining.settings.settings import PretrainSettings

__all__ = ["PretrainFile", "describe_pretrain_settings", "parse_pretrain_run", "read_pretrain_run"]


@dataclass(frozen=True, kw_only=True)
class PretrainFile(PretrainSettings):
    """What a run file may say.

    Args:
        data: The images, as `querykey help sources` says.
        preset: A recipe of a paper's authors, which has a method of its own.
        save_every: Seconds between two checkpoints.
        keep: Number of checkpoints that are kept.
    """

    data: str | None = None
    preset: Literal["moco-cifar"] | None = None
    save_every: NonNegative | None = None
    keep: PositiveInt | None = None


def read_pretrain_run(
    path: str | Path | None, settings: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """Read a run from a TOML file, options and `--set` settings; the later win.

    Args:
        path: A run file, or None for a run of defaults.
        settings: Each "a.b=value".
        **options: Settings that have their own option on the command line; None is not given.

    Returns:
        What was given: "data", and keyword arguments of `pretrain`.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is no TOML, or a setting has a fault; all faults are named.
    """
    raw = read_raw(PretrainFile, path, settings, **options)
    return parse_pretrain_run(raw, name="the settings" if path is None else str(path))


def parse_pretrain_run(raw: Mapping[str, Any], *, name: str = "the settings") -> dict[str, Any]:
    """Check what a run file says.

    Args:
        raw: Nested tables or dotted keys.
        name: What to call them in a message.

    Returns:
        What was given, with dotted keys.

    Raises:
        ConfigError: Naming every fault with its dotted key.

    Example:
        >>> parse_pretrain_run({"minutes": 2, "loss": "decoupled"})
        {'minutes': 2.0, 'loss.kind': 'decoupled'}
    """
    return flat(check(PretrainFile, current(raw, PRETRAINING), name=name))


def describe_pretrain_settings() -> str:
    """Every key of a run file and what it may be.

    Returns:
        A line a key, of at most 80 characters; what is longer goes on below.
    """
    return describe_keys(PretrainFile)
