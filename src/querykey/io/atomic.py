"""Atomic output: complete or absent, with one rule for scratch names.

An output is written into a scratch folder next to it (`querykey.io.scratch`) and renamed: a rename is atomic
only within one file system, which excludes a folder in /tmp. Files inside a folder that querykey owns are
replaced one at a time with `write_atomically`.
"""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout

from querykey.errors import OutputError, OutputExistsError, SourceError, StoreError
from querykey.io.scratch import MARK, Claim, claim_output

__all__ = [
    "check_new",
    "file_lock",
    "is_full_disk",
    "make_folder",
    "new_file",
    "new_folder",
    "raises_store_error",
    "remove_temp_files",
    "replace_dir",
    "reserve",
    "sync",
    "sync_file",
    "to_output_error",
    "write_atomically",
]

_LONGEST_NAME = 255
_TEMP_FILE = re.compile(r"\..+\.querykey-\d+-[0-9a-f]{8}")

_CLAIMS: ContextVar[tuple[Claim, ...]] = ContextVar("claims", default=())


@contextmanager
def reserve(path: str | Path, *, overwrite: bool = False, resumable: bool = False) -> Iterator[Claim]:
    """Check an output and lock it, before the work that makes it.

    `new_folder` and `new_file` within this context write to the claim.

    Args:
        path: The path of the output.
        overwrite: Whether the output may exist.
        resumable: Keep `Claim.content` for a later call, and resume from that of an earlier one.

    Yields:
        The claim.

    Raises:
        OutputExistsError: If the output exists.
        OutputError: If it cannot be written, or another process is writing it.
    """
    target = Path(path)
    if overwrite:
        _check_place(target)
    else:
        check_new(target)
    joined = next((claim for claim in _CLAIMS.get() if claim.joins(target)), None)
    if joined is not None:
        yield joined
        return
    made = _make_parents(target)
    claim: Claim | None = None
    try:
        claim = _claimed(target, resumable=resumable)
        token = _CLAIMS.set((*_CLAIMS.get(), claim))
        try:
            yield claim
        finally:
            _CLAIMS.reset(token)
    finally:
        if claim is not None:
            claim.release()
        for folder in reversed(made):  # removed if the output was not written
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that is renamed at the end of the context.

    Args:
        path: The folder to make.

    Yields:
        An empty folder on the same disk.

    Raises:
        OutputExistsError: If the output exists.
        OutputError: If it cannot be written, or another process is writing it; no partial output remains.
    """
    path = Path(path)
    with reserve(path) as claim, _one_message(path):
        tmp_path = claim.content / path.name
        try:
            tmp_path.mkdir(parents=True)
            yield tmp_path
            # The order matters: the contents must be on disk before the name, or a crash could leave the name
            # with empty files; the parent is synced last, or a crash could lose the name.
            _finish(claim, tmp_path)
            _make_room(path)
            tmp_path.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(claim.content, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary file that is renamed at the end of the context.

    Args:
        path: The file to make.
        overwrite: Whether it may replace an older one.

    Yields:
        The path of a file on the same disk, with the same name.

    Raises:
        OutputExistsError: If the output exists and may not be overwritten.
        OutputError: If it cannot be written, or another process is writing it; no partial output remains.
    """
    path = Path(path)
    with reserve(path, overwrite=overwrite) as claim, _one_message(path):
        tmp_path = claim.content / path.name
        try:
            claim.content.mkdir()
            yield tmp_path
            _finish(claim, tmp_path)
            if not overwrite:
                _make_room(path)
            tmp_path.replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(claim.content, ignore_errors=True)


def check_new(path: str | Path) -> Path:
    """Check before long work that an output can be written and does not exist.

    Args:
        path: The path of the output.

    Returns:
        The path. An empty folder may exist.

    Raises:
        OutputExistsError: If the output exists.
        OutputError: If it cannot be written.
    """
    path = Path(path)
    _check_place(path)
    if os.path.lexists(path) and not _is_empty_folder(path):
        raise OutputExistsError(f"{path} exists already; give another path or remove it first")
    return path


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that the disk or the quota is full.

    Args:
        error: Any error. Writers in other languages keep only the text of the system's error.

    Returns:
        True if it does.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return getattr(error, "errno", None) in numbers or any(
        f"os error {number})" in text for number in numbers
    )


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk.

    Args:
        path: An existing file or folder.

    Raises:
        OSError: As the system raises it.
    """
    if path.is_dir() and os.name != "posix":  # other systems cannot open folders, and need not
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Write a file of a folder that querykey owns under a temporary name, then rename it.

    After a crash at any moment the file is complete or absent.

    Args:
        path: The file; an older one is replaced.
        chunks: Its bytes.

    Returns:
        {"bytes": its size, "sha256": of its bytes}.

    Raises:
        OutputError: If the disk is full or may not be written; no partial file remains.
    """
    tmp_path = path.with_name(f".{path.name}.querykey-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    digest, size = hashlib.sha256(), 0
    try:
        with tmp_path.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            # flush the buffers of Python and of the system first, or the file could be empty after a crash
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
    """Flush a file to disk, if it exists.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        sync(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise to_output_error(error, path) from error


def remove_temp_files(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder, and no other files.

    Args:
        folder: Locked by this process, so that no other process writes to it; it need not exist.
    """
    for path in folder.glob(".*"):
        if _TEMP_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Lock a folder for this process until the context or the process ends.

    Args:
        file: The lock file in that folder, which is not removed.

    Yields:
        Nothing.

    Raises:
        OutputError: If another process has locked it.
    """
    make_folder(file.parent)
    lock = FileLock(file, mode=0o644)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"{file.parent}: another process is writing here; wait until it has ended, or stop it"
        ) from error
    except OSError as error:
        raise to_output_error(error, file) from error
    try:
        yield
    finally:
        lock.release(force=True)


@contextmanager
def raises_store_error(what: str, remedy: str) -> Iterator[None]:
    """Turn errors of reading an untrusted file into a StoreError.

    Args:
        what: The file or folder.
        remedy: What the user should do.

    Yields:
        Nothing.

    Raises:
        StoreError: In place of every error that is not a StoreError or SourceError.
    """
    try:
        yield
    except (StoreError, SourceError):
        raise
    except Exception as error:
        raise StoreError(f"{what} is damaged ({type(error).__name__}: {error}); {remedy}") from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

    Raises:
        OutputError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise to_output_error(error, folder) from error


def to_output_error(error: OSError, path: Path) -> OutputError:
    """An OSError of a write as an OutputError with one message."""
    if is_full_disk(error):
        reason, remedy = "the disk is full", "free some space"
    else:
        reason, remedy = error.strerror or str(error), "allow writing there or give another output"
    made = OutputError(
        f"{path} cannot be written: {reason}; {remedy} and run it again: what was finished is kept"
    )
    made.errno = error.errno
    return made


def replace_dir(claim: Claim, new: Path) -> None:
    """Rename a finished folder to the output; an older output is removed only after it is replaced.

    Args:
        claim: The claim of the output.
        new: The finished folder, inside the claim.

    Raises:
        OutputError: If it cannot be renamed; an older output stays.
    """
    old = claim.folder / "replaced"
    try:
        _finish(claim, new)
        # No system call replaces a folder that has files: for a moment there is no output. The old one is in
        # the scratch folder then, and is renamed back if the second rename fails.
        if os.path.lexists(claim.target):
            claim.target.rename(old)
        try:
            new.rename(claim.target)
        except OSError:
            if old.exists():
                old.rename(claim.target)
            raise
        sync(claim.target.parent)
    except OSError as error:
        raise to_output_error(error, claim.target) from error
    shutil.rmtree(old, ignore_errors=True)


def _claimed(target: Path, *, resumable: bool) -> Claim:
    try:
        return claim_output(target, resumable=resumable)
    except OutputError:
        raise
    except OSError as error:
        if is_full_disk(error):
            raise OutputError(f"{target}: the disk is full; free some space and run it again") from error
        raise OutputError(f"{target} cannot be written: {error.strerror}; give another path") from error


def _check_place(path: Path) -> None:
    """Check that a path can be written.

    Raises:
        OutputError: With the reason.
    """
    remedy = "give another path"
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} cannot be written: it contains a null character; {remedy}")
    for part in path.parts:
        size = len(os.fsencode(part))
        if size > _LONGEST_NAME:
            raise OutputError(
                f"{path} cannot be written: the name {part[:20]}... has {size} bytes, and at most "
                f"{_LONGEST_NAME} are allowed; {remedy}, with a shorter name"
            )
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}; {remedy}") from error
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise OutputError(f"{path} cannot be written: {above} is not a folder; {remedy}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {above}; {remedy}")
    # os.access allows root everything, but /proc and read-only disks cannot be written. The file has no name
    # where the system can make such: a process that is killed here leaves nothing.
    try:
        with TemporaryFile(dir=above, prefix=".querykey-"):
            pass
    except OSError as error:
        if is_full_disk(error):
            raise OutputError(f"{path}: the disk is full; free some space and run it again") from error
        raise OutputError(
            f"{path} cannot be written: nothing can be made in {above} ({error.strerror}); {remedy}"
        ) from error


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _make_room(path: Path) -> None:
    """Check that the output has not appeared meanwhile; remove an empty folder."""
    if _is_empty_folder(path):
        path.rmdir()
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{path} appeared while it was being made; remove it, or give another path, and run it again"
        )


def _make_parents(target: Path) -> list[Path]:
    """Make the parent folders of an output; returns the new ones, from the top down."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()][::-1]
    make_folder(target.absolute().parent)
    return missing


def _finish(claim: Claim, tmp_path: Path) -> None:
    """Give an output the permissions of the umask, and flush it to disk before it is renamed.

    Some writers make files that only their owner may read. The mark and its folder were made with the umask,
    or the access list of the parent folder.
    """
    modes = {False: (claim.folder / MARK).stat().st_mode, True: claim.folder.stat().st_mode}
    inside = [Path(where) / name for where, folders, files in os.walk(tmp_path) for name in folders + files]
    for path in [*inside, tmp_path]:
        if path.is_symlink():
            continue
        mode = modes[path.is_dir()]
        if path.stat().st_mode & 0o777 != mode & 0o777:
            path.chmod(mode & 0o777)
        sync(path)


@contextmanager
def _one_message(path: Path) -> Iterator[None]:
    """Turn an OSError of a write into one message."""
    try:
        yield
    except (OutputError, OutputExistsError):
        raise
    except Exception as error:
        if is_full_disk(error):
            raise OutputError(f"{path}: the disk is full; free some space and run it again") from error
        if isinstance(error, PermissionError):
            raise OutputError(f"{path}: no permission to write {error.filename or 'here'}") from error
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise OutputError(f"{path}: the disk is read-only; give another path") from error
        raise
