"""Results are written aside and renamed into place: whole, or not at all, and never over another."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from querykey.errors import OutputError, OutputExistsError

__all__ = ["check_new", "is_full_disk", "new_file", "new_folder", "sync"]


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its real name when all is written.

    Args:
        path: The folder that shall be there in the end.

    Yields:
        An empty folder beside it. What a killed process left there is thrown away.

    Raises:
        OutputExistsError: If something is there already.
        OutputError: If it cannot be written; nothing is left behind.
    """
    path = check_new(path)
    tmp_path = path.with_name(f"{path.name}.partial")
    with _in_words(path):
        try:
            shutil.rmtree(tmp_path, ignore_errors=True)
            tmp_path.mkdir(parents=True)
            yield tmp_path
            _to_disk(tmp_path)
            tmp_path.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(tmp_path, ignore_errors=True)
            raise


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A file to write that takes its real name when all is written.

    Args:
        path: The file that shall be there in the end.
        overwrite: Whether it may take the place of an older one.

    Yields:
        The name of a file beside it.

    Raises:
        OutputExistsError: If something is there already and may not be overwritten.
        OutputError: If it cannot be written; nothing is left behind.
    """
    path = Path(path) if overwrite else check_new(path)
    tmp_path = path.with_name(f".{path.stem}.partial{path.suffix}")
    with _in_words(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield tmp_path
            tmp_path.replace(path)
        finally:
            tmp_path.unlink(missing_ok=True)


def check_new(path: str | Path) -> Path:
    """The path, if nothing is there yet; ask before long work, not after.

    Args:
        path: Where an output shall go.

    Returns:
        The path. An empty folder counts as nothing.

    Raises:
        OutputExistsError: If something is there already.
        OutputError: If nothing can be made there.
    """
    path = Path(path)
    above = next(folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        raise OutputError(f"{path} cannot be written: {above} is no folder; give another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {above}; give another --out")
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if path.exists() or path.is_symlink():
        raise OutputExistsError(f"{path} exists already; give another --out or remove it first")
    return path


def is_full_disk(error: BaseException) -> bool:
    """Whether this is the system's word that the disk, or the quota on it, is full.

    Args:
        error: What was raised. Writers in other languages keep only the text of the system's error.

    Returns:
        True if it is.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return getattr(error, "errno", None) in numbers or any(
        f"os error {number})" in text for number in numbers
    )


def _to_disk(folder: Path) -> None:
    """Force all below a folder to the disk: a name that outlives a power cut must not name half a file."""
    for where, _, files in os.walk(folder):
        for name in files:
            sync(Path(where) / name)
        sync(Path(where))


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk.

    Args:
        path: Of what is there.

    Raises:
        OSError: As the system says it.
    """
    if path.is_dir() and os.name != "posix":  # systems whose folders cannot be opened do it by themselves
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turn what the system says of a write into one message."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        if is_full_disk(error):
            raise OutputError(f"{path}: the disk is full; free some space and run it again") from error
        if isinstance(error, PermissionError):
            raise OutputError(f"{path}: no permission to write {error.filename or 'here'}") from error
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise OutputError(f"{path}: the disk is read-only; give another --out") from error
        raise
