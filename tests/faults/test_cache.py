"""The cache of measured choices: a fit needs no home folder, no right to write, and nothing whole in it."""

import json
import os

import pytest

from querykey.data.readers.open import read_source
from querykey.errors import MissingPathError
from querykey.io import measured
from querykey.io.measured import cache_folder, recall, remember

QUESTION = {"choice": "a test", "shape": [1, 2]}
CONTENTS = {
    "nothing": None, "nested": "[" * 100_000, "a list": "[]", "half": '{"a":', "no text": b"\xff\xfe",
    "null": "\0", "other entries": '{"a": 1, "b": [2]}',
}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("content", CONTENTS)
def test_a_cache_with_any_content_is_read_and_written(content, cache):
    data = CONTENTS[content]
    if data is not None:
        cache.mkdir()
        (cache / measured.FILE).write_bytes(data if isinstance(data, bytes) else data.encode())
    assert recall(QUESTION) is None
    remember(QUESTION, "bfloat16")
    assert recall(QUESTION) == "bfloat16"
    remember(QUESTION | {"shape": [3]}, "float32")
    assert recall(QUESTION) == "bfloat16"  # the first stays
    entries = json.loads((cache / measured.FILE).read_text())
    assert len(entries) == (4 if content == "other entries" else 2)


@pytest.mark.parametrize("place", ["/dev/null", "/proc/querykey", "n" * 300, "n/" * 3000, "a file"])
def test_where_nothing_can_be_written_it_is_measured_each_time(place, tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("QUERYKEY_CACHE", os.path.join(tmp_path, place))  # noqa: PTH118
    remember(QUESTION, "bfloat16")
    assert recall(QUESTION) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_a_folder_in_the_place_of_the_file_stays(cache):
    (cache / measured.FILE).mkdir(parents=True)
    remember(QUESTION, "bfloat16")
    assert recall(QUESTION) is None
    assert [path.name for path in cache.iterdir()] == [measured.FILE]


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QUERYKEY_CACHE", "~/of querykey")
    assert cache_folder() == tmp_path / "of querykey"
    monkeypatch.delenv("QUERYKEY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert cache_folder() == tmp_path / "caches" / "querykey"


def test_a_process_without_a_home_folder_measures_and_reads(tmp_path, monkeypatch):
    """As in a container whose user has no entry in /etc/passwd."""
    for name in ("HOME", "QUERYKEY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    remember(QUESTION, "bfloat16")
    with pytest.raises(MissingPathError, match="there is nothing at ~/images"):
        read_source("~/images")
    with pytest.raises(MissingPathError, match="there is nothing at ~nobody-is-called-this"):
        read_source("~nobody-is-called-this/t.csv")
