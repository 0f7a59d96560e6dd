"""An output is there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from querykey.errors import OutputError, OutputExistsError
from querykey.io.atomic import check_new, is_full_disk, new_file, new_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_folder(path, error):
    with new_folder(path) as tmp_path:
        (tmp_path / "a").write_text("a")
        raise error


def write_file(path, error):
    with new_file(path) as tmp_path:
        tmp_path.write_text("a")
        raise error


def test_a_folder_takes_its_name_when_all_is_written(tmp_path):
    out = tmp_path / "deep" / "run"
    with new_folder(out) as tmp_path:
        (tmp_path / "a").write_text("a")
        assert not out.exists()
    assert names(out) == ["a"]
    assert names(out.parent) == ["run"]


def test_a_file_takes_its_name_when_all_is_written(tmp_path):
    out = tmp_path / "deep" / "z.npy"
    with new_file(out) as tmp_path:
        assert tmp_path.suffix == ".npy"
        tmp_path.write_text("a")
        assert not out.exists()
    assert names(out.parent) == ["z.npy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a fault of the writer's own")])
@pytest.mark.parametrize("write", [write_folder, write_file])
def test_nothing_is_left_of_a_stopped_output(tmp_path, write, error):
    with pytest.raises(type(error)):
        write(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_nothing_is_written_over(tmp_path):
    precious = tmp_path / "run" / "precious"
    precious.parent.mkdir()
    precious.write_text("a")
    with pytest.raises(OutputExistsError, match="run exists already; give another path or remove it first"):
        new_folder(tmp_path / "run").__enter__()
    with pytest.raises(OutputExistsError):
        new_file(precious).__enter__()
    assert precious.read_text() == "a"
    with new_file(precious, overwrite=True) as tmp_path:
        tmp_path.write_text("b")
    assert precious.read_text() == "b"
    assert names(precious.parent) == ["precious"]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave the name with half of what it names."""
    above, synced, sync = tmp_path, [], os.fsync

    def recorded(handle):
        synced.append(((above / "run").exists(), Path(f"/proc/self/fd/{handle}").readlink().name))
        sync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    with new_folder(tmp_path / "run") as tmp_path:
        (tmp_path / "a").write_text("a")
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "b").write_text("b")
    assert {name for is_there, name in synced if not is_there} == {"a", "b", "deep", "run"}
    assert [name for is_there, name in synced if is_there] == [above.name]


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    with new_folder(tmp_path / "run") as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path / "run") == ["a"]


def test_a_dead_link_is_no_free_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputExistsError):
        check_new(tmp_path / "link")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [write_folder, write_file])
def test_a_full_disk_is_one_message_and_nothing_is_left(tmp_path, write, number):
    with pytest.raises(OutputError, match=r"out: the disk is full; free some space and run it again"):
        write(tmp_path / "out", OSError(number, os.strerror(number)))
    assert names(tmp_path) == []


def test_a_full_disk_is_known_whoever_says_so():
    """Writers in Rust hand on the text of the system's error alone."""
    assert is_full_disk(OSError(errno.ENOSPC, "No space left on device"))
    assert is_full_disk(RuntimeError(f"I/O error: No space left on device (os error {errno.ENOSPC})"))
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_full_disk(RuntimeError("something else"))


def test_no_permission_is_one_message(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "there.npy")
    with pytest.raises(OutputError, match=r"z\.npy: no permission to write there\.npy"):
        write_file(tmp_path / "z.npy", error)
