"""Paths as users write them."""

from contextlib import suppress
from pathlib import Path

__all__ = ["expand_user"]


def expand_user(path: str | Path) -> Path:
    """Replace a leading ~ by the home folder.

    Args:
        path: As the user wrote it.

    Returns:
        The path; unchanged if the user it names is unknown or, as in some containers, has no home folder.

    Example:
        >>> expand_user("~nobody-is-called-this/t.csv").as_posix()
        '~nobody-is-called-this/t.csv'
    """
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)
