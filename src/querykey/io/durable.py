"""Files that are whole or not there, whatever happens while they are written."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from querykey.errors import OutputError, SourceError, StoreError
from querykey.io.atomic import is_full_disk, sync

__all__ = [
    "file_lock",
    "make_folder",
    "raises_store_error",
    "remove_temp_files",
    "replace_dir",
    "sync_file",
    "to_output_error",
    "write_aside",
]

_ASIDE = re.compile(r"\..+\.\d+")


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
    tmp_path = path.with_name(f".{path.name}.{os.getpid()}")
    digest, size = hashlib.sha256(), 0
    try:
        with tmp_path.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        tmp_path.replace(path)
        sync(path.parent)
    except OSError as error:
        raise to_output_error(error, path) from error
    finally:
        tmp_path.unlink(missing_ok=True)
    return {"bytes": size, "sha256": digest.hexdigest()}


def sync_file(path: Path) -> None:
    """Force what was written to a file to the disk; nothing where there is none.

    Raises:
        OutputError: If the disk does not take it.
    """
    try:
        sync(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise to_output_error(error, path) from error


def remove_temp_files(folder: Path) -> None:
    """Remove what killed processes had begun to write into a folder.

    Args:
        folder: In which nobody writes now; it need not be there.
    """
    for path in folder.glob(".*"):
        if _ASIDE.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Keep a folder for this process, until the context or the process ends in whatever way.

    Args:
        file: In that folder, an empty one that stays there. Systems without POSIX's locks keep nothing.

    Yields:
        Nothing.

    Raises:
        OutputError: If another process keeps it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    make_folder(file.parent)
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise to_output_error(error, file) from error
    try:
        # lockf, not flock: forked decoding workers would inherit a flock and hold it after their parent died,
        # so that a killed run could not be resumed until the last of them is gone
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise OutputError(
            f"{file.parent}: another process is writing here; wait until it has ended, or stop it"
        ) from error
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def raises_store_error(what: str, remedy: str) -> Iterator[None]:
    """Read a file that may be a stranger's: whatever goes wrong inside is one StoreError.

    Args:
        what: The file or folder.
        remedy: What to do then.

    Yields:
        Nothing.

    Raises:
        StoreError: In the place of all that is no StoreError or SourceError.
    """
    try:
        yield
    except (StoreError, SourceError):
        raise
    except Exception as error:
        raise StoreError(f"{what} is damaged ({type(error).__name__}: {error}); {remedy}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OutputError: If it may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise to_output_error(error, folder) from error


def to_output_error(error: OSError, path: Path) -> OutputError:
    """What the system says of a write, as one message."""
    if is_full_disk(error):
        reason, remedy = "the disk is full", "free some space"
    else:
        reason, remedy = error.strerror or str(error), "allow writing there or give another output"
    said = OutputError(
        f"{path} cannot be written: {reason}; {remedy} and run it again: what was finished is kept"
    )
    said.errno = error.errno
    return said


def replace_dir(new: Path, out: Path) -> None:
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
        sync(out.parent)
    except OSError as error:
        raise to_output_error(error, out) from error
    shutil.rmtree(old, ignore_errors=True)
