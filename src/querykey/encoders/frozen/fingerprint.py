"""What makes two frozen models the same: a sha256 over everything their features depend on."""

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
        module: Any module; nothing of it is changed and no copy of all of it is made.

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
        if not isinstance(value, Tensor):  # what a module gives as extra state
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
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def source_digest(*parts: Any) -> str:
    """The sha256 of the Python files in which functions and classes are written.

    Two models may hold the same weights and use them differently; what tells them apart is code.

    Args:
        parts: Functions, classes, or values whose class is meant. What is written in no file
            (built in, or typed at a prompt) adds its description alone.

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
    """The repr of a value without memory addresses, so that it is the same in the next process.

    Example:
        >>> describe(describe)
        '<function describe>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def combined_digest(parts: Mapping[str, Any]) -> str:
    """The sha256 of named parts, each of which JSON can hold.

    Example:
        >>> combined_digest({"a": 1, "b": 2}) == combined_digest({"b": 2, "a": 1})
        True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def preprocessing_digest(prepare: Callable[..., Any]) -> str:
    """The sha256 of a preprocessing's description and, for a user's own, of its code."""
    own_code = not type(prepare).__module__.startswith(("torchvision.", "timm.", "querykey."))
    return combined_digest({"says": describe(prepare), "code": source_digest(prepare) if own_code else ""})
