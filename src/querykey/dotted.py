"""Settings in tables, as one table of dotted names."""

from collections.abc import Mapping
from typing import Any

__all__ = ["dotted"]


def dotted(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Lay tables in tables flat.

    Args:
        settings: Name to a value or to a table; an empty table is a value.
        above: What every name begins with.

    Returns:
        Dotted name to value, in their order.

    Example:
        >>> dotted({"dim": 8, "loss": {"kind": "nca"}, "options": {}})
        {'dim': 8, 'loss.kind': 'nca', 'options': {}}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_table = isinstance(value, Mapping) and len(value) > 0
        flat |= dotted(value, f"{above}{name}.") if is_table else {f"{above}{name}": value}
    return flat
