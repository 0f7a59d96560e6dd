"""Measured choices such as dtype and memory layout, and a cache of those that change the bits of a result."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from querykey.errors import OutputError
from querykey.io.atomic import write_atomically
from querykey.io.paths import expand_user

__all__ = ["CLEARLY_FASTER", "cache_folder", "is_clearly_faster", "processor", "recall", "remember"]

FILE = "measured.json"
CLEARLY_FASTER = 0.85
"""A choice changes bits, so it must take at most this fraction of the default's time; a smaller gain is
within the noise of a loaded machine."""
TIMED_CALLS = 5


def is_clearly_faster(
    new: Callable[[], object], default: Callable[[], object], *, fraction: float = CLEARLY_FASTER
) -> bool:
    """Whether a computation takes less than a fraction of the default's time.

    The shortest of some calls are compared, after one call each that loads the kernels.

    Args:
        new: The computation; on an accelerator it must wait for the result.
        default: The computation that is used otherwise.
        fraction: Above 0.
    """
    seconds = []
    for call in (new, default):
        taken = []
        for _ in range(TIMED_CALLS + 1):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        seconds.append(min(taken[1:]))
    return seconds[0] < fraction * seconds[1]


def cache_folder() -> Path:
    """The cache folder of querykey.

    Returns:
        The folder in the variable QUERYKEY_CACHE, or `querykey` in XDG_CACHE_HOME or in ~/.cache.
    """
    named = os.environ.get("QUERYKEY_CACHE")
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_user(named or Path(parent, "querykey"))


def processor() -> str:
    """The instruction set of the processor: its flags on Linux, otherwise its name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):  # on x86, on ARM
                return " ".join(sorted(line.partition(":")[2].split()))
    return f"{platform.machine()} {platform.processor()}".strip()


def recall(conditions: Mapping[str, Any]) -> Any:
    """Read a measured choice.

    A measurement depends on the load of the machine. If it changes bits, two runs with the same seed would
    differ; so the second uses the measurement of the first.

    Args:
        conditions: JSON values: everything that the choice depends on, including the processor.

    Returns:
        The choice; None if there is none or the cache cannot be read.
    """
    stored = _read(cache_folder() / FILE).get(_key(conditions))
    return stored.get("answer") if isinstance(stored, dict) else None


def remember(conditions: Mapping[str, Any], choice: Any) -> None:
    """Store a choice for `recall`; if the cache cannot be written, it is measured again.

    Args:
        conditions: As for `recall`.
        choice: A JSON value.
    """
    path = cache_folder() / FILE
    entries = _read(path) | {_key(conditions): {"question": dict(conditions), "answer": choice}}
    with suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [json.dumps(entries, indent=1).encode()])


def _key(conditions: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}
