"""What is computed here does not depend on the state of PyTorch that the caller has set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import torch

__all__ = ["default_torch_state", "in_default_torch_state"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@contextmanager
def default_torch_state() -> Iterator[None]:
    """Gradients on, float32 and the CPU as defaults, no autocast; restores the caller's state.

    Yields:
        Nothing.
    """
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


def in_default_torch_state(function: _Function) -> _Function:
    """Run a function in `default_torch_state`."""

    @wraps(function)
    def wrapped(*args: Any, **given: Any) -> Any:
        with default_torch_state():
            return function(*args, **given)

    return cast("_Function", wrapped)
