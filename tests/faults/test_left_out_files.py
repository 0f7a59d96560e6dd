"""Files that are left out are counted and named, always; what a plug-in of Pillow reads is read."""

import pytest
from PIL import Image, features
from typer.testing import CliRunner

from querykey.cli.main import app
from querykey.data.readers import images as images_module
from querykey.data.readers.open import read_source
from querykey.errors import DataWarning, SourceError


def put(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path, kind)


@pytest.fixture
def no_plugins(monkeypatch):
    """As if no plug-in of Pillow were installed."""
    monkeypatch.setattr(images_module, "_PLUGINS", ())
    images_module.readable_suffixes.cache_clear()
    yield
    images_module.readable_suffixes.cache_clear()


def test_images_that_cannot_be_read_are_named_with_the_class_they_take_along(tmp_path, no_plugins):
    put(tmp_path / "cat" / "1.png")
    put(tmp_path / "dog" / "1.png")
    for number in range(3):
        path = tmp_path / "owl" / f"IMG_{number}.HEIC"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(DataWarning) as said:
        source = read_source(tmp_path)
    message = str(said[0].message)
    assert "left out 3 files that are not images (3 .heic; first: owl/IMG_0.HEIC)" in message
    assert "install pillow-heif for .heic" in message
    assert "no image is left of the classes owl" in message
    assert source.label_names == ("cat", "dog")
    assert list(source.left_out) == [f"owl/IMG_{number}.HEIC" for number in range(3)]


def test_a_file_of_another_kind_and_an_image_that_is_hidden_are_counted(tmp_path):
    for name in ("a/1.png", "a/.2.png", "a/._1.png"):
        put(tmp_path / name)
    (tmp_path / "a" / "README").write_text("")
    (tmp_path / "a" / ".DS_Store").write_text("")
    with pytest.warns(DataWarning, match=r"left out 2 files that are not images \(1 .png, 1 no ending; fir"):
        source = read_source(tmp_path)
    assert list(source.ids) == ["a/1.png"]
    assert sorted(source.left_out) == ["a/.2.png", "a/README"]


def test_files_beside_the_folder_of_a_split_are_counted_as_those_in_it(tmp_path):
    for name in ("train/1.png", ".2.png", "._2.png"):
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    with pytest.warns(DataWarning, match=r"left out 2 files that are not images \(1 .png, 1 .txt"):
        source = read_source(tmp_path)
    assert list(source.ids) == ["1.png"]
    assert sorted(source.left_out) == [".2.png", "notes.txt"]


def test_a_folder_without_an_image_that_can_be_read_says_what_it_holds(tmp_path, no_plugins):
    (tmp_path / "1.svg").write_text("<svg/>")
    with pytest.raises(
        SourceError, match=r"holds no images; .*it holds 1 file that is not an image \(1 .svg"
    ):
        read_source(tmp_path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_what_pillow_reads_beyond_the_common_endings_is_read(tmp_path):
    put(tmp_path / "a" / "1.avif", "AVIF")
    put(tmp_path / "b" / "1.TGA", "TGA")
    source = read_source(tmp_path)
    assert source.label_names == ("a", "b")
    assert source.items[0].size == (6, 4)


def test_a_plug_in_that_is_installed_is_used(tmp_path, monkeypatch):
    """As pillow-heif does: it registers an opener when it is asked to."""
    plugin = tmp_path / "a_plugin_of_pillow.py"
    plugin.write_text(
        "from PIL import Image, PngImagePlugin\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', PngImagePlugin.PngImageFile)\n"
        "    Image.register_extension('HEIF', '.heic')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(images_module, "_PLUGINS", ("a_plugin_of_pillow",))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    images_module.readable_suffixes.cache_clear()
    put(tmp_path / "images" / "a" / "1.heic", "PNG")
    assert list(read_source(tmp_path / "images").ids) == ["a/1.heic"]
    images_module.readable_suffixes.cache_clear()


def test_the_command_prints_a_note(tmp_path):
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "notes.txt").write_text("")
    done = CliRunner().invoke(
        app, ["embed", str(tmp_path), "--model", "cli.models:letters", "--out", str(tmp_path.parent / "out")]
    )
    assert "note: " in done.stderr
    assert "left out 1 file that is not an image (1 .txt; first: a/notes.txt)\n" in done.stderr
    assert "DataWarning" not in done.stderr
