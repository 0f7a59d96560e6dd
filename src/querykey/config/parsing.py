"""Run files and `--set`: from text to nested tables."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querykey.config.settings import tables_of
from querykey.errors import ConfigError, MissingPathError

__all__ = ["parse_setting", "read_raw"]


def read_raw(
    cls: type, path: str | Path | None, settings: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """Settings from a TOML file, options and `--set` settings; the later ones win.

    Args:
        cls: The class of the settings.
        path: A run file, or None.
        settings: Each "a.b=value".
        **options: Settings with an option of their own on the command line; None means not given.

    Returns:
        Nested tables, not validated.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is not TOML, or a setting is not KEY=VALUE.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        if not path.is_file():
            raise MissingPathError(f"{path}: no such run file")
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, OSError) as error:  # ValueError: a number of thousands of digits
            raise ConfigError(f"{path}: is no TOML: {error}") from error
    raw |= {name: value for name, value in options.items() if value is not None}
    for setting in settings:
        key, value = parse_setting(setting)
        raw = tables_of(cls, {**raw, key: value})
    return raw


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split "a.b=value" into its dotted key and its value.

    Args:
        setting: The value is a TOML literal; anything else is taken as a string.

    Returns:
        (dotted key, value).

    Raises:
        ConfigError: If there is no "=" or no key.

    Example:
        >>> parse_setting("memory.capacity=5000"), parse_setting("fc.start=pca")
        (('memory.capacity', 5000), ('fc.start', 'pca'))
    """
    key, equals, text = setting.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{setting}: must be KEY=VALUE, such as loss.temperature=0.1")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return key, text
    return key, parsed["value"] if len(parsed) == 1 else text
