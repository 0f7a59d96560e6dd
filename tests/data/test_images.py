"""Folders of images, IDX files, and what the decoder makes of odd and damaged images."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from querykey.data.readers.open import read_source
from querykey.errors import DamagedItemError, DataError, SourceError
from querykey.io.images import decode_image

pytestmark = pytest.mark.filterwarnings("ignore::querykey.errors.DataWarning")


def write_png(path, value=0, size=(4, 3), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_idx(path, array, packed=False):
    data = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if packed else data)


@pytest.fixture
def photos(tmp_path):
    for name, value in (("dog/b.png", 1), ("ant/deep/er/a.PNG", 2), ("ant/z.png", 3), ("loose.png", 4)):
        write_png(tmp_path / name, value)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / "._b.png").write_text("left by another system")
    (tmp_path / ".hidden").mkdir()
    write_png(tmp_path / ".hidden" / "x.png")
    return tmp_path


def test_folders_at_the_top_are_classes_and_loose_images_unlabelled(photos):
    source = read_source(photos)
    assert source.kind == "image"
    assert list(source.ids) == ["ant/deep/er/a.PNG", "ant/z.png", "dog/b.png", "loose.png"]
    assert source.label_names == ("ant", "dog")
    assert source.labels.tolist() == [0, 0, 1, -1]
    assert source.labels.dtype == np.int64
    assert [image.getpixel((0, 0)) for image in source.items] == [2, 3, 1, 4]


def test_a_flat_folder_has_no_labels(tmp_path):
    write_png(tmp_path / "b.png")
    write_png(tmp_path / "a.png")
    source = read_source(str(tmp_path))
    assert list(source.ids) == ["a.png", "b.png"]
    assert source.labels is None
    assert source.label_names == ()
    assert source.name == str(tmp_path)


def test_folders_called_train_and_val_are_splits(tmp_path):
    for name in ("train/ant/1.png", "train/dog/2.png", "val/dog/3.png"):
        write_png(tmp_path / name)
    assert list(read_source(tmp_path).ids) == ["ant/1.png", "dog/2.png"]
    assert list(read_source(tmp_path, split="val").ids) == ["dog/3.png"]
    assert read_source(tmp_path, split="validation").label_names == ("dog",)
    with pytest.raises(
        SourceError, match=r"has no split 'tran' \(nearest: 'train'\); its splits: train, validation"
    ):
        read_source(tmp_path, split="tran")


def test_a_class_called_train_beside_others_is_a_class(tmp_path):
    for name in ("train/1.png", "bus/2.png"):
        write_png(tmp_path / name)
    assert read_source(tmp_path).label_names == ("bus", "train")
    with pytest.raises(SourceError, match="has no splits, and split is 'test'; leave split out"):
        read_source(tmp_path, split="test")


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    write_png(tmp_path / "elsewhere" / "1.png")
    root = tmp_path / "root"
    (root / "ant").mkdir(parents=True)
    (root / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "ant" / "circle").symlink_to(root)
    assert list(read_source(root).ids) == ["ant/more/1.png"]


def test_a_folder_without_images_is_one_message(tmp_path):
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(SourceError, match=r"holds no images; images end in .png"):
        read_source(tmp_path)


def test_an_option_that_images_do_not_have_is_refused(photos):
    with pytest.raises(SourceError, match="a folder of images, has nothing to choose with column = label"):
        read_source(photos, column="label")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("zero", lambda data: b""),
        ("cut", lambda data: data[: len(data) // 2]),
        ("garbage", lambda data: b"this is no image"),
        ("flipped", lambda data: data[:45] + bytes([data[45] ^ 255]) + data[46:]),
    ],
)
def test_a_damaged_image_is_known_by_name_and_the_others_are_read(tmp_path, name, damage):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)))
    (tmp_path / f"{name}.png").write_bytes(damage(data))
    write_png(tmp_path / "whole.png")
    items = read_source(tmp_path).items
    damaged = 0 if name < "whole" else 1
    error = r"is empty \(0 bytes\)" if name == "zero" else "cannot be decoded: "
    with pytest.raises(DamagedItemError, match=rf"^{name}.png {error}"):
        items[damaged]
    assert items[1 - damaged].size == (4, 3)
    assert issubclass(DamagedItemError, DataError)


def test_an_image_that_vanished_is_damaged_not_a_traceback(photos):
    items = read_source(photos).items
    (photos / "loose.png").unlink()
    with pytest.raises(DamagedItemError, match=r"loose.png cannot be read: .*No such file"):
        items[3]


def test_a_decompression_bomb_is_a_damaged_item(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(DamagedItemError, match="DecompressionBomb"):
        decode_image(encoded(Image.new("L", (10, 10))), what="bomb.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_the_mode_stays(mode):
    assert decode_image(encoded(Image.new(mode, (4, 3))), what="x").mode == mode


@pytest.mark.parametrize(
    ("kind", "byte_order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2")]
)
def test_sixteen_bits_become_eight_by_value_not_by_cutting(kind, byte_order):
    """A plain convert("L") of 16 bits clips everything above 255 to white."""
    values = np.array([[0, 257, 257 * 200, 65535]], byte_order)
    image = Image.frombytes("I;16B" if byte_order[0] == ">" else "I;16", (4, 1), values.tobytes())
    decoded = decode_image(encoded(image, kind), what="x")
    assert decoded.mode == "L"
    assert np.asarray(decoded).tolist() == [[0, 1, 200, 255]]


def test_floats_become_eight_bits():
    of_one = encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF")
    of_many = encoded(Image.fromarray(np.array([[-5.0, 100.0, 300.0]], np.float32)), "TIFF")
    assert np.asarray(decode_image(of_one, what="x")).tolist() == [[0, 128, 255]]
    assert np.asarray(decode_image(of_many, what="x")).tolist() == [[0, 100, 255]]
    with pytest.raises(DamagedItemError, match="not finite"):
        decode_image(encoded(Image.fromarray(np.array([[np.nan]], np.float32)), "TIFF"), what="x")


def test_a_photograph_is_turned_as_its_exif_says():
    image = Image.new("RGB", (6, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    decoded = decode_image(encoded(image, "JPEG", exif=exif), what="x")
    assert decoded.size == (2, 6)
    assert decoded.getexif().get(0x0112, 1) == 1


def test_the_first_frame_of_an_animation():
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, what="x").convert("L").getpixel((0, 0)) == 10


def test_the_fingerprint_changes_with_any_byte_and_not_with_the_place(photos, tmp_path_factory):
    before = read_source(photos).fingerprint
    moved = tmp_path_factory.mktemp("elsewhere") / "photos"
    photos.rename(moved)
    assert read_source(moved).fingerprint == before
    data = bytearray((moved / "dog" / "b.png").read_bytes())
    data[-1] ^= 1
    (moved / "dog" / "b.png").write_bytes(bytes(data))
    assert read_source(moved).fingerprint != before


def test_the_fingerprint_changes_when_an_image_changes_its_class(photos):
    before = read_source(photos).fingerprint
    (photos / "dog" / "b.png").rename(photos / "ant" / "zz.png")
    assert read_source(photos).fingerprint != before


def test_slices_are_views_that_read_nothing(photos):
    (photos / "dog" / "b.png").write_bytes(b"")
    part = read_source(photos).items[1:4]
    assert len(part) == 3
    assert part[-1].getpixel((0, 0)) == 4
    with pytest.raises(DamagedItemError):
        part[1]
    with pytest.raises(IndexError):
        part[3]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_of_the_mnist_family(tmp_path, packed):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    end = ".gz" if packed else ""
    write_idx(tmp_path / f"train-images-idx3-ubyte{end}", pixels, packed)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.array([7, 2], np.uint8), packed)
    write_idx(tmp_path / f"t10k-images-idx3-ubyte{end}", pixels[:1] + 100, packed)
    train, test = read_source(tmp_path), read_source(tmp_path, split="test")
    assert np.asarray(train.items[1]).tolist() == pixels[1].tolist()
    assert (train.labels.tolist(), train.label_names) == ([1, 0], ("2", "7"))
    assert (len(test), test.labels) == (1, None)
    assert train.fingerprint != test.fingerprint
    alone = read_source(tmp_path / f"train-images-idx3-ubyte{end}")
    assert alone.fingerprint == train.fingerprint
    assert list(alone.ids) == ["0", "1"]
    write_idx(tmp_path / f"train-labels-idx1-ubyte{end}", np.array([7, 3], np.uint8), packed)
    assert read_source(tmp_path).fingerprint != train.fingerprint
    with pytest.raises(SourceError, match="has no split 'validation'; its splits: test, train"):
        read_source(tmp_path, split="validation")


def test_idx_names_of_emnist_and_with_a_dot(tmp_path):
    pixels = np.zeros((1, 2, 2), np.uint8)
    write_idx(tmp_path / "emnist" / "emnist-letters-train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "emnist" / "emnist-letters-train-labels-idx1-ubyte", np.array([3], np.uint8))
    assert read_source(tmp_path / "emnist", split="train").label_names == ("3",)
    write_idx(tmp_path / "dots" / "t10k-images.idx3-ubyte", pixels)
    write_idx(tmp_path / "dots" / "t10k-labels.idx1-ubyte", np.array([5], np.uint8))
    assert read_source(tmp_path / "dots", split="test").label_names == ("5",)


def test_damaged_idx_files_are_one_message(tmp_path):
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    write_idx(images, np.zeros((2, 2, 2), np.uint8))
    write_idx(labels, np.zeros(3, np.uint8))
    with pytest.raises(SourceError, match="holds 3 labels for the 2 images"):
        read_source(tmp_path)
    labels.unlink()
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"header says \[2, 2, 2\] bytes, and it has 7; copy it again"):
        read_source(tmp_path)
    images.write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"not an IDX file of bytes in 3 dimensions .it starts with nothing"
    ):
        read_source(tmp_path)
    images.unlink()
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(packed, np.zeros((2, 2, 2), np.uint8), packed=True)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(SourceError, match="cannot be unpacked"):
        read_source(tmp_path)
