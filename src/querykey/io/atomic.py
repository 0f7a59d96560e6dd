"""Outputs are whole or not there: one way to write, and one rule for scratch names.

An output is written into a scratch folder beside it (`querykey.io.scratch`) and renamed into place: a rename
is atomic only within one file system, so a folder in /tmp would not do. Files
inside a folder that querykey owns are replaced one at a time with `write_aside`.
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
    "write_aside",
]

_LONGEST_NAME = 255
_TEMP_FILE = re.compile(r"\..+\.querykey-\d+-[0-9a-f]{8}")

_CLAIMS: ContextVar[tuple[Claim, ...]] = ContextVar("claims", default=())


@contextmanager
def reserve(path: str | Path, *, overwrite: bool = False, resumable: bool = False) -> Iterator[Claim]:
    """Check an output and lock it, before the work that makes it.

    `new_folder` and `new_file` within this context write to the claim.

    Args:
        path: Where the output goes.
        overwrite: Whether something may be there already.
        resumable: Keep what is in `Claim.content` for a later call, and take up what an earlier one left.

    Yields:
        The claim.

    Raises:
        OutputExistsError: If something is there already.
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
        for folder in reversed(made):  # of an output that was not written nothing is left
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its real name when all is written.

    Args:
        path: The folder to make.

    Yields:
        An empty folder on the same disk.

    Raises:
        OutputExistsError: If something is there already.
        OutputError: If it cannot be written, or another process is writing it; nothing is left behind.
    """
    path = Path(path)
    with reserve(path) as claim, _one_message(path):
        tmp_path = claim.content / path.name
        try:
            tmp_path.mkdir(parents=True)
            yield tmp_path
            # The order matters: contents reach the disk before the name does, or a crash could leave the name
            # with empty files; the parent is synced last, or a crash could lose the name again.
            _finish(claim, tmp_path)
            _make_room(path)
            tmp_path.rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(claim.content, ignore_errors=True)


@contextmanager
def new_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A file to write that takes its real name when all is written.

    Args:
        path: The file to make.
        overwrite: Whether it may replace an older one.

    Yields:
        The path of a file on the same disk, with the same name.

    Raises:
        OutputExistsError: If something is there already and may not be overwritten.
        OutputError: If it cannot be written, or another process is writing it; nothing is left behind.
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
    """Check, before long work, that an output can be written and that nothing is there yet.

    Args:
        path: Where an output is to go.

    Returns:
        The path. An empty folder counts as nothing.

    Raises:
        OutputExistsError: If something is there already.
        OutputError: If nothing can be made there.
    """
    path = Path(path)
    _check_place(path)
    if os.path.lexists(path) and not _is_empty_folder(path):
        raise OutputExistsError(f"{path} exists already; give another --out or remove it first")
    return path


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that the disk, or the quota on it, is full.

    Args:
        error: What was raised. Writers in other languages keep only the text of the system's error.

    Returns:
        True if it does.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return getattr(error, "errno", None) in numbers or any(
        f"os error {number})" in text for number in numbers
    )


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk.

    Args:
        path: Of what is there.

    Raises:
        OSError: As the system raises it.
    """
    if path.is_dir() and os.name != "posix":  # systems whose folders cannot be opened do it by themselves
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_aside(path: Path, chunks: Iterable[bytes]) -> dict[str, Any]:
    """Write a file of a folder that querykey owns under a temporary name, then rename it.

    After a crash at any moment the file is whole or is not there.

    Args:
        path: The file; an older one is replaced.
        chunks: Its bytes.

    Returns:
        {"bytes": its size, "sha256": of its bytes}.

    Raises:
        OutputError: If the disk is full or may not be written; nothing is left of the file.
    """
    tmp_path = path.with_name(f".{path.name}.querykey-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    digest, size = hashlib.sha256(), 0
    try:
        with tmp_path.open("wb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            # Python's buffer, then the system's: renamed before that, the file could be empty after a crash
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
    """Remove the temporary files that killed processes left in a folder; other files stay.

    Args:
        folder: Locked by this process, so that no other process writes to it; it need not exist.
    """
    for path in folder.glob(".*"):
        if _TEMP_FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


@contextmanager
def file_lock(file: Path) -> Iterator[None]:
    """Lock a folder for this process, until the context or the process ends in whatever way.

    Args:
        file: In that folder, an empty one that stays there.

    Yields:
        Nothing.

    Raises:
        OutputError: If another process holds it.
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
    """Read a file that may be a stranger's: whatever is raised inside becomes one StoreError.

    Args:
        what: The file or folder.
        remedy: What to do then.

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
    """Make a folder and those above it.

    Raises:
        OutputError: If it may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise to_output_error(error, folder) from error


def to_output_error(error: OSError, path: Path) -> OutputError:
    """The system's error of a write, as one message."""
    if is_full_disk(error):
        reason, remedy = "the disk is full", "free some space"
    else:
        reason, remedy = error.strerror or str(error), "allow writing there or give another output"
    said = OutputError(
        f"{path} cannot be written: {reason}; {remedy} and run it again: what was finished is kept"
    )
    said.errno = error.errno
    return said


def replace_dir(claim: Claim, new: Path) -> None:
    """Give a finished folder the name of the output; an older output goes only when it is replaced.

    Args:
        claim: Of the output.
        new: The finished folder, inside the claim.

    Raises:
        OutputError: If it cannot be renamed; an older output stays.
    """
    old = claim.folder / "replaced"
    try:
        _finish(claim, new)
        # No system call replaces a folder that has files: for a moment the output has neither name. The old
        # one lies in the scratch folder then, and comes back if the second rename fails.
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
        raise OutputError(f"{target} cannot be written: {error.strerror}; give another --out") from error


def _check_place(path: Path) -> None:
    """Refuse what can never be written.

    Raises:
        OutputError: Says why.
    """
    remedy = "give another --out"
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} cannot be written: it holds a null character; {remedy}")
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
    # the administrator may write everywhere by the rules, and cannot in /proc or on a read-only disk
    probe = above / f".querykey-{uuid.uuid4().hex[:12]}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        if is_full_disk(error):
            raise OutputError(f"{path}: the disk is full; free some space and run it again") from error
        raise OutputError(
            f"{path} cannot be written: nothing can be made in {above} ({error.strerror}); {remedy}"
        ) from error


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _make_room(path: Path) -> None:
    """See that nothing has appeared at the output meanwhile; an empty folder goes."""
    if _is_empty_folder(path):
        path.rmdir()
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{path} appeared while it was being made; remove it, or give another --out, and run it again"
        )


def _make_parents(target: Path) -> list[Path]:
    """Make the folders above an output; returns those that were not there, from the top down."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()][::-1]
    make_folder(target.absolute().parent)
    return missing


def _finish(claim: Claim, tmp_path: Path) -> None:
    """Give an output the permissions of the umask, and force it to the disk before it has its name.

    Some writers make files that their owner alone may read. The mark and its folder were made with the
    umask, or the access list of the folder above.
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
    """Turn the system's error of a write into one message."""
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
            raise OutputError(f"{path}: the disk is read-only; give another --out") from error
        raise
