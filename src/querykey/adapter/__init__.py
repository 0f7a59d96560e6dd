"""Adapt a frozen model: closed forms, training, validation, and the estimator on top of them."""

from typing import Any

from querykey.errors import require_train

require_train(__name__)

__all__ = ["Adapter"]


def __getattr__(name: str) -> Any:
    if name != "Adapter":
        raise AttributeError(f"module 'querykey.adapter' has no attribute {name!r}")
    from querykey.adapter.estimator import Adapter

    return Adapter
