"""Scratch folders: where an output is written, and which process may write it.

A scratch folder is `.NAME.querykey` beside the output NAME (`NAME.querykey` where it holds work that a
later call resumes). It holds a lock file and `owner.json`, which names the output, the process and the
machine:

- One whose owner is dead, so that its lock is free, is removed or resumed.
- One whose owner lives is refused: two commands never write one output.
- Anything else of that name belongs to the user. It is left alone, and the next free name is taken.
"""

import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from querykey.errors import OutputError

__all__ = ["MARK", "Claim", "claim_output", "remove_abandoned", "resumable_content"]

MARK, LOCK, CONTENT = "owner.json", "lock", "content"
FORMAT = "querykey scratch folder"
_LONGEST_STEM = 200
"""Bytes of the output's name in that of its scratch folder, which a file system limits to 255."""
_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(eq=False)
class Claim:
    """An output that this process alone may write.

    Args:
        target: The output.
        folder: The scratch folder.
        resumable: Whether the folder stays, for a later call to resume from.
    """

    target: Path
    folder: Path
    resumable: bool
    _lock: FileLock = field(repr=False)
    _pid: int = field(default_factory=os.getpid)

    @property
    def content(self) -> Path:
        """Where the output is written."""
        return self.folder / CONTENT

    def joins(self, target: Path) -> bool:
        """Whether this process has claimed that output; a forked child has not."""
        return self._pid == os.getpid() and _resolved(self.target) == _resolved(target)

    def release(self) -> None:
        """Remove the scratch folder, unless it is resumable and holds something, and unlock it."""
        if not (self.resumable and self.content.exists()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release(force=True)


def claim_output(target: Path, *, resumable: bool) -> Claim:
    """Make and lock the scratch folder of an output, or take up one that can be resumed.

    Args:
        target: The output; the folder above it is there.
        resumable: Whether what is in `Claim.content` stays for a later call.

    Returns:
        The claim; the caller releases it.

    Raises:
        OutputError: If another process, or another thread of this one, is writing the output.
        OSError: If nothing can be written there.
    """
    for found, is_resumable in _scratch_of(target):
        try:
            lock = _acquire(found)
        except OSError:  # another user's
            continue
        if lock is None:
            raise _is_being_written(target, found)
        if is_resumable and resumable:
            _write_mark(found, target, resumable=True)
            return Claim(target, found, resumable, lock)
        if not is_resumable:
            shutil.rmtree(found, ignore_errors=True)
        lock.release(force=True)
    # locked under a name of its own first: a folder that can be found is never without its lock and mark
    staged = target.with_name(f"{_base(target, resumable=resumable)}-{uuid.uuid4().hex[:12]}")
    staged.mkdir()
    lock = FileLock(staged / LOCK, mode=0o644)
    try:
        lock.acquire(timeout=0)
        _write_mark(staged, target, resumable=resumable)
        return Claim(target, _named(staged, target, resumable=resumable), resumable, lock)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        lock.release(force=True)
        raise


def _named(staged: Path, target: Path, *, resumable: bool) -> Path:
    """Rename a locked folder to the first name that is free: of two processes only one gets it."""
    number = 0
    while True:
        found = target.with_name(_base(target, resumable=resumable) + (f"-{number}" if number else ""))
        if not os.path.lexists(found):
            try:
                staged.rename(found)
            except OSError as error:
                if error.errno not in _IS_TAKEN:
                    raise
                continue
            return found
        if _mark(found).get("target") == target.name and _is_live(found):  # made since we looked
            raise _is_being_written(target, found)
        number += 1


def _is_being_written(target: Path, folder: Path) -> OutputError:
    mark = _mark(folder)
    return OutputError(
        f"{target}: another process (number {mark.get('process')} on {mark.get('machine')}) is writing it; "
        "wait until it has ended, or give another --out"
    )


def _scratch_of(target: Path) -> list[tuple[Path, bool]]:
    """(folder, whether it can be resumed) of each scratch folder that our mark says is this output's."""
    try:
        names = sorted(
            entry.name
            for entry in os.scandir(target.parent)
            if entry.name.startswith((_base(target, resumable=True), _base(target, resumable=False)))
        )
    except OSError:
        return []
    found = []
    for name in names:
        mark = _mark(target.with_name(name))
        if mark.get("target") == target.name:
            found.append((target.with_name(name), bool(mark.get("resumable"))))
    return found


def _base(target: Path, *, resumable: bool) -> str:
    name = os.fsencode(target.name)
    stem = target.name
    if len(name) > _LONGEST_STEM:
        stem = f"{os.fsdecode(name[:_LONGEST_STEM])}-{hashlib.sha256(name).hexdigest()[:8]}"
    return f"{'' if resumable else '.'}{stem}.querykey"


def _write_mark(folder: Path, target: Path, *, resumable: bool) -> None:
    mark = {
        "format": FORMAT, "target": target.name, "resumable": resumable, "process": os.getpid(),
        "machine": socket.gethostname(),
    }  # fmt: skip
    with (folder / MARK).open("w", encoding="utf-8") as stream:
        json.dump(mark, stream)


def _mark(folder: Path) -> dict[str, Any]:
    """What owner.json of a scratch folder says; {} of any other folder."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    is_ours = isinstance(mark, dict) and mark.get("format") == FORMAT
    return mark if is_ours and not folder.is_symlink() else {}


def _acquire(folder: Path) -> FileLock | None:
    """The lock of a scratch folder whose owner is dead; None if it lives."""
    lock = FileLock(folder / LOCK, mode=0o644)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def resumable_content(path: str | Path) -> Path | None:
    """What an output can be resumed from, even while another process writes it; None if there is nothing.

    Args:
        path: The output.
    """
    found = (folder / CONTENT for folder, is_resumable in _scratch_of(Path(path)) if is_resumable)
    return next((content for content in found if content.exists()), None)


def remove_abandoned(path: str | Path) -> None:
    """Remove the scratch folders of an output whose owners are dead, resumable ones too.

    Args:
        path: The output.
    """
    for found, _ in _scratch_of(Path(path)):
        with suppress(OSError):
            lock = _acquire(found)
            if lock is not None:
                shutil.rmtree(found, ignore_errors=True)
                lock.release(force=True)


def _is_live(folder: Path) -> bool:
    try:
        lock = _acquire(folder)
    except OSError:  # another user's
        return False
    if lock is not None:
        lock.release(force=True)
    return lock is None


def _resolved(path: Path) -> Path:
    absolute = path.absolute()
    return Path(os.path.realpath(absolute.parent)) / absolute.name
