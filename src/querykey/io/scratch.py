"""Scratch folders: where an output is written, and which process may write it.

A scratch folder is `.NAME.querykey` next to the output NAME (`NAME.querykey` if a later call can resume from
it). It contains a lock file and `owner.json`, which names the output, the process and the machine:

- If its owner is dead, so that its lock is free, it is removed or resumed.
- If its owner is alive, the output is refused: two commands never write one output.
- Any other folder of that name belongs to the user. It is not touched, and the next free name is used.

Before it is locked and marked, and while it is removed, a scratch folder has a unique name that ends with 12
hex digits. If a process is killed then, the next one removes the folder, which has at most a lock and a mark.
"""

import errno
import hashlib
import json
import os
import re
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
"""Bytes of the output's name in the name of its scratch folder, which file systems limit to 255."""
_IS_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(eq=False)
class Claim:
    """An output that only this process may write.

    Args:
        target: The output.
        folder: The scratch folder.
        resumable: Whether the folder is kept, for a later call to resume from.
    """

    target: Path
    folder: Path
    resumable: bool
    _lock: FileLock = field(repr=False)
    _pid: int = field(default_factory=os.getpid)

    @property
    def content(self) -> Path:
        """The folder in which the output is written."""
        return self.folder / CONTENT

    def joins(self, target: Path) -> bool:
        """Whether this process has claimed that output; a forked child has not."""
        return self._pid == os.getpid() and _resolved(self.target) == _resolved(target)

    def release(self) -> None:
        """Remove the scratch folder, unless it is resumable and not empty, and unlock it."""
        if not (self.resumable and self.content.exists()):
            _remove(self.folder)
        self._lock.release(force=True)


def claim_output(target: Path, *, resumable: bool) -> Claim:
    """Make and lock the scratch folder of an output, or lock one that can be resumed.

    Args:
        target: The output; its parent folder exists.
        resumable: Whether `Claim.content` is kept for a later call.

    Returns:
        The claim; the caller releases it.

    Raises:
        OutputError: If another process, or another thread of this one, is writing the output.
        OSError: If the folder cannot be written.
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
            _remove(found)
        lock.release(force=True)
    _remove_staged(target)
    staged, lock = _staged(target, resumable=resumable)
    try:
        _write_mark(staged, target, resumable=resumable)
        return Claim(target, _named(staged, target, resumable=resumable), resumable, lock)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        lock.release(force=True)
        raise


def _staged(target: Path, *, resumable: bool) -> tuple[Path, FileLock]:
    """Make and lock a folder of a unique name: one of the final name always has its lock and mark."""
    while True:
        staged = target.with_name(f"{_base(target, resumable=resumable)}-{uuid.uuid4().hex[:12]}")
        staged.mkdir()
        lock = FileLock(staged / LOCK, mode=0o644)
        with suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            if (staged / LOCK).exists():
                return staged, lock
            lock.release(force=True)
        # between the two calls another process took the folder for that of a dead one and removed it


def _remove(folder: Path) -> None:
    """Remove a locked scratch folder; if the process is killed meanwhile, `_remove_staged` continues."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in (LOCK, MARK):
                path.unlink()
        folder = folder.rename(folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:12]}"))
    shutil.rmtree(folder, ignore_errors=True)


def _remove_staged(target: Path) -> None:
    """Remove folders of unique names whose process was killed before it named or removed them."""
    bases = "|".join(re.escape(_base(target, resumable=resumable)) for resumable in (True, False))
    pattern = re.compile(rf"({bases})(-\d+)?-[0-9a-f]{{12}}")
    for folder in list(target.parent.iterdir()) if target.parent.is_dir() else []:
        if pattern.fullmatch(folder.name) and not folder.is_symlink():
            with suppress(OSError):
                if {path.name for path in folder.iterdir()} <= {LOCK, MARK}:
                    _remove_unlocked(folder)


def _remove_unlocked(folder: Path) -> None:
    """Remove a scratch folder if its owner is dead."""
    lock = _acquire(folder)
    if lock is not None:
        _remove(folder)
        lock.release(force=True)


def _named(staged: Path, target: Path, *, resumable: bool) -> Path:
    """Rename a locked folder to the first free name: of two processes only one succeeds."""
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
        if _mark(found).get("target") == target.name and _is_live(found):  # made in the meantime
            raise _is_being_written(target, found)
        number += 1


def _is_being_written(target: Path, folder: Path) -> OutputError:
    mark = _mark(folder)
    return OutputError(
        f"{target}: another process (number {mark.get('process')} on {mark.get('machine')}) is writing it; "
        "wait until it has ended, or give another path"
    )


def _scratch_of(target: Path) -> list[tuple[Path, bool]]:
    """(folder, whether it can be resumed) of each scratch folder whose mark names this output."""
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
    owner = {"process": os.getpid(), "machine": socket.gethostname()}
    mark = {"format": FORMAT, "target": target.name, "resumable": resumable, **owner}
    with (folder / MARK).open("w", encoding="utf-8") as stream:
        json.dump(mark, stream)


def _mark(folder: Path) -> dict[str, Any]:
    """Content of owner.json of a scratch folder; {} for any other folder."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    is_ours = isinstance(mark, dict) and mark.get("format") == FORMAT
    return mark if is_ours and not folder.is_symlink() else {}


def _acquire(folder: Path) -> FileLock | None:
    """The lock of a scratch folder whose owner is dead; None if it is alive."""
    lock = FileLock(folder / LOCK, mode=0o644)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def resumable_content(path: str | Path) -> Path | None:
    """The content that an output can be resumed from, even while another process writes it; None without.

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
            _remove_unlocked(found)
    _remove_staged(Path(path))


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
