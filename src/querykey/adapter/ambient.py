"""A fit and a transform compute the same, whatever state of PyTorch they are called in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch

__all__ = ["in_own_state", "own_state"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@contextmanager
def own_state() -> Iterator[None]:
    """Gradients on, float32 and the CPU as defaults, no autocast; restores the caller's state."""
    dtype = torch.get_default_dtype()
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    was = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        for kind in kinds:
            torch.set_autocast_enabled(kind, False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            for kind, autocast in was:
                torch.set_autocast_enabled(kind, True)
                torch.set_autocast_dtype(kind, autocast)


def in_own_state(method: _Function) -> _Function:
    """Run a function in `own_state`."""

    @wraps(method)
    def wrapped(*args: Any, **given: Any) -> Any:
        with own_state():
            return method(*args, **given)

    return cast("_Function", wrapped)
