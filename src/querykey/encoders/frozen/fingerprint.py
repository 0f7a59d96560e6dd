"""Digests that identify a frozen model: sha256 of everything that its features depend on."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "combined_digest",
    "describe",
    "file_digest",
    "preprocessing_digest",
    "source_digest",
    "state_digest",
]

_BLOCK = 1 << 22


def state_digest(module: nn.Module) -> str:
    """The sha256 of a module's parameters and buffers: names, shapes, dtypes and bytes.

    Args:
        module: Any module; not changed and not copied.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> state_digest(one) == state_digest(other)
        False
        >>> _ = other.load_state_dict(one.state_dict())
        >>> state_digest(one) == state_digest(other)
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # extra state of a module
            digest.update(f"{name} {describe(value)}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(raw.data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 of a file, read a block at a time.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_digest(*parts: Any) -> str:
    """The sha256 of the Python files that define functions and classes.

    Two models may have the same weights and differ in their code.

    Args:
        parts: Functions, classes, or instances, for their class. Those without a file (built in, or
            interactive) only add their name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        owner = part if inspect.isroutine(part) or inspect.isclass(part) else type(part)
        digest.update(f"{owner.__module__}.{owner.__qualname__}\n".encode())
        try:
            path = inspect.getsourcefile(inspect.unwrap(owner))
        except TypeError:
            path = None
        if path is not None and Path(path).is_file():
            digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def describe(value: object) -> str:
    """The repr of a value without memory addresses, so that it is the same in every process.

    Example:
        >>> describe(describe)
        '<function describe>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def combined_digest(parts: Mapping[str, Any]) -> str:
    """The sha256 of values by name, as JSON.

    Example:
        >>> combined_digest({"a": 1, "b": 2}) == combined_digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def preprocessing_digest(prepare: Callable[..., Any]) -> str:
    """The sha256 of the repr of a preprocessing and, if it is user-defined, of its code."""
    is_user_code = not type(prepare).__module__.startswith(("torchvision.", "timm.", "querykey."))
    return combined_digest(
        {"says": describe(prepare), "code": source_digest(prepare) if is_user_code else ""}
    )
