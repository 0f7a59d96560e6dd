"""Files that are whole or not there, whatever happens while they are written."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from querykey.errors import OutputError
from querykey.outputs import is_full_disk

__all__ = ["in_words", "make_folder", "put_in_place", "write_aside"]


def write_aside(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Write a file under another name, force it to the disk, then give it its own.

    After a crash at any moment the file is whole or is not there.

    Args:
        path: The file; one that is there is replaced.
        chunks: Its bytes.

    Returns:
        {"bytes": its size, "sha256": of its bytes}.

    Raises:
        OutputError: If the disk is full or may not be written; nothing is left of the file.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    digest, size = hashlib.sha256(), 0
    try:
        with aside.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as fault:
        raise in_words(fault, path) from fault
    finally:
        aside.unlink(missing_ok=True)
    return {"bytes": size, "sha256": digest.hexdigest()}


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: If it may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise in_words(fault, folder) from fault


def in_words(fault: OSError, path: Path) -> OutputError:
    """What the system says of a write, as one message."""
    if is_full_disk(fault):
        reason, remedy = "the disk is full", "free some space"
    else:
        reason, remedy = fault.strerror or str(fault), "allow writing there or give another output"
    said = OutputError(
        f"{path} cannot be written: {reason}; {remedy} and run it again: what was finished is kept"
    )
    said.errno = fault.errno
    return said


def put_in_place(new: Path, out: Path) -> None:
    """Give a finished folder its name; one that has the name goes only when it is replaced.

    Args:
        new: The finished folder, on the same disk.
        out: Its name from now on.

    Raises:
        OutputError: If it cannot be renamed.
    """
    old = out.with_name(f"{out.name}.replaced")
    try:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.replace(old)
        new.replace(out)
        _sync_folder(out.parent)
    except OSError as fault:
        raise in_words(fault, out) from fault
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last; systems whose folders cannot be opened do it by themselves."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
