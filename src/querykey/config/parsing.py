"""Run files and `--set`: from text to nested tables, and from tables to a checked run."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from querykey.config.errors import Grammar
from querykey.errors import ConfigError, MissingPathError

__all__ = ["check", "parse_setting", "read_raw"]

Model = TypeVar("Model", bound=BaseModel)
NO_FIRSTS: Mapping[str, str] = {}


def read_raw(
    path: str | Path | None,
    settings: Sequence[str] = (),
    *,
    firsts: Mapping[str, str] = NO_FIRSTS,
    **options: Any,
) -> dict[str, Any]:
    """Settings from a TOML file, options and `--set` settings; the later win.

    Args:
        path: A run file, or None for none.
        settings: Each "a.b=value".
        firsts: Table to the key that a bare word in its place stands for, where that is not "kind".
        **options: Settings that have their own option on the command line; None is not given.

    Returns:
        Nested tables, not checked yet.

    Raises:
        MissingPathError: If there is no such file.
        ConfigError: If it is no TOML, or a setting is no KEY=VALUE.
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
        _put(raw, *parse_setting(setting), firsts)
    return raw


def check(model: type[Model], raw: Mapping[str, Any], *, grammar: Grammar, name: str) -> Model:
    """Check nested tables against a model.

    Args:
        model: Of a whole run.
        raw: The tables.
        grammar: Words for its faults.
        name: What to call them in a message.

    Returns:
        The run.

    Raises:
        ConfigError: Naming every fault with its dotted key.
    """
    try:
        return model.model_validate(dict(raw))
    except ValidationError as faults:
        lines = "\n".join(f"  {grammar.describe(error)}" for error in faults.errors(include_url=False))
        raise ConfigError(f"{name}: cannot be run\n{lines}") from None


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
        raise ConfigError(f"--set {setting}: must be KEY=VALUE, such as --set loss.temperature=0.1")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return key, text
    return key, parsed["value"] if len(parsed) == 1 else text


def _put(raw: dict[str, Any], key: str, value: Any, firsts: Mapping[str, str]) -> None:
    """Set a dotted key in nested tables."""
    *tables, last = key.split(".")
    for table in tables:
        inner = raw.get(table, {})
        if isinstance(inner, str):  # loss = "triplet" is a table with that kind
            inner = {firsts.get(table, "kind"): inner}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {table} is {inner!r}, so it has no {last}")
        raw[table] = dict(inner)
        raw = raw[table]
    raw[last] = value
