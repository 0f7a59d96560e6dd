"""Run files of a pretraining: the settings, and the other arguments of `pretrain`.

    data = "photos"
    method = "simclr"
    minutes = 10
    backbone = { name = "torchvision:resnet18", stem = "small" }
    loss = { kind = "decoupled", temperature = 0.1 }
    optimizer = { kind = "lars", lr_scaling = "square_root" }

Settings that are not given are chosen for the images or measured; RUN/run.json records the choices.
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
    """The settings of a run file.

    Args:
        data: The images, see `querykey help sources`.
        preset: Name of a published set of settings, including the method.
        save_every: Seconds between two checkpoints.
        keep: Number of checkpoints to keep.
    """

    data: str | None = None
    preset: Literal["moco-cifar"] | None = None
    save_every: NonNegative | None = None
    keep: PositiveInt | None = None


def read_pretrain_run(
    path: str | Path | None, settings: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """Read a run from a TOML file, options and `--set` settings; the later ones win.

    Args:
        path: A run file; None for the defaults.
        settings: Each "a.b=value".
        **options: Settings with an option of their own on the command line; None means not given.

    Returns:
        The given settings: "data", and keyword arguments of `pretrain`.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is not TOML or a setting is wrong; all errors are listed.
    """
    raw = read_raw(PretrainFile, path, settings, **options)
    return parse_pretrain_run(raw, name="the settings" if path is None else str(path))


def parse_pretrain_run(raw: Mapping[str, Any], *, name: str = "the settings") -> dict[str, Any]:
    """Validate the settings of a run file.

    Args:
        raw: Nested tables or dotted keys.
        name: Name of the settings, for messages.

    Returns:
        The given settings, with dotted keys.

    Raises:
        ConfigError: With the dotted key of every error.

    Example:
        >>> parse_pretrain_run({"minutes": 2, "loss": "decoupled"})
        {'minutes': 2.0, 'loss.kind': 'decoupled'}
    """
    return flat(check(PretrainFile, current(raw, PRETRAINING), name=name))


def describe_pretrain_settings() -> str:
    """Every key of a run file and its values.

    Returns:
        One entry per key, wrapped at 80 characters.
    """
    return describe_keys(PretrainFile)
