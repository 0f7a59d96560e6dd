"""Files that mean harm: bombs, pickles, paths that lead elsewhere, types nobody expects, enormous numbers."""

import hashlib
import io
import json
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pretraining_toys import TINY

from querykey import Adapter, pretrain
from querykey.data.pixels.pixels import read_pixels
from querykey.data.readers.open import read_source
from querykey.encoders.backbones import load_backbone_weights, make_backbone
from querykey.errors import ConfigError, DamagedItemError, QuerykeyError, SourceError, StoreError
from querykey.features.features import features_from_array, read_features
from querykey.io.images import decode_image
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings
from querykey.runs.pretrain_folder import RunFolder
from querykey.runs.pretrain_settings import parse_pretrain_run, read_pretrain_run

SIDE = 30_000
MEGABYTES = 2**20


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# images


def png_of(side):
    """A PNG whose header says so many pixels a side, with the pixels of none."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def of_side(kind, side):
    """A small image of another kind, in whose header the size is made larger."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, kind)
    content, small = bytearray(stream.getvalue()), 16
    match kind:
        case "BMP":
            content[18:26] = struct.pack("<ii", side, side)
        case "GIF":
            content[6:10] = struct.pack("<HH", side, side)
        case "JPEG":
            place = content.index(b"\xff\xc0") + 5
            content[place : place + 4] = struct.pack(">HH", side, side)
        case "PPM":
            content = bytearray(bytes(content).replace(b"16 16", f"{side} {side}".encode()))
        case "TIFF":
            tag = struct.pack("<HHI", 256, 4, 1), struct.pack("<HHI", 257, 4, 1)
            for start in tag:
                found = bytes(content).find(start)
                place = found if found >= 0 else bytes(content).find(start.replace(b"\4\0\1", b"\3\0\1"))
                content[place : place + 12] = start + struct.pack("<I", side)
    assert small
    return bytes(content)


BOMBS = {"png": png_of(SIDE)} | {
    kind.lower(): of_side(kind, SIDE) for kind in ("BMP", "GIF", "JPEG", "PPM", "TIFF")
}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_header_of_30_000_pixels_a_side_takes_no_such_memory(kind):
    """They would be 2.7 GB: with half a gigabyte to spare there is a message, and no MemoryError."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 512 * MEGABYTES, former[1]))
    try:
        with pytest.raises(
            DamagedItemError, match=rf"bomb\.{kind} cannot be decoded: DecompressionBombError"
        ):
            decode_image(BOMBS[kind], what=f"bomb.{kind}")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


def test_a_bomb_among_images_is_left_out_with_its_name(tmp_path):
    for number in range(20):
        Image.fromarray(np.full((12, 12), number, np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "bomb.png").write_bytes(BOMBS["png"])
    said = []
    pixels = read_pixels(read_source(tmp_path), size=12, notify=said.append)
    assert len(pixels) == 20
    assert "bomb.png cannot be decoded: DecompressionBombError" in said[0]


# archives: .npz files alone, of which nothing is ever unpacked onto the disk


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..\\evil", "a/../../evil"])
@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_a_path_inside_an_archive_leads_nowhere(tmp_path, name, pack):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    file = tmp_path / "deep" / "er" / "X.npz"
    pack(file, **{name: np.eye(4, 3, dtype=np.float32)})
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist()
    before = sorted(tmp_path.rglob("*"))
    assert read_features(file).vectors.shape == (4, 3)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/evil").exists()


# pickles


def test_a_pickle_in_an_adapter_is_not_loaded(tmp_path):
    trap, run = tmp_path / "sprung", tmp_path / "run"
    rows = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    Adapter(dim=3, steps=1, batch_size=16).fit(rows).save(run)
    content = pickle.dumps(Trap(trap))
    (run / "adapter.safetensors").write_bytes(content)
    said = json.loads((run / "adapter.json").read_text())
    said["sha256"] = hashlib.sha256(content).hexdigest()
    (run / "adapter.json").write_text(json.dumps(said))
    with pytest.raises(StoreError, match=r"the adapter is damaged .SafetensorError"):
        Adapter.load(run)
    assert not trap.exists()


def test_an_adapter_that_says_it_is_wider_than_its_weights_takes_no_such_memory(tmp_path):
    run = tmp_path / "run"
    rows = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    Adapter(dim=3, steps=1, batch_size=16).fit(rows).save(run)
    said = json.loads((run / "adapter.json").read_text())
    (run / "adapter.json").write_text(json.dumps(said | {"width": 10**6, "dim": 10**5}))
    with pytest.raises(StoreError, match="does not hold the weights of 1000000 x 100000"):
        Adapter.load(run)


def test_a_pickle_among_weights_to_start_from_is_not_loaded(tmp_path):
    trap = tmp_path / "sprung"
    torch.save({"weight": torch.ones(1), "trap": Trap(trap)}, tmp_path / "weights.pth")
    backbone = make_backbone("small_cnn:4", channels=1, image_size=12, seed=0)
    with pytest.raises(SourceError, match="holds Python objects beside its weights, which are never loaded"):
        load_backbone_weights(backbone, tmp_path / "weights.pth")
    assert not trap.exists()


def test_pickled_arrays_are_not_loaded(tmp_path):
    trap = tmp_path / "sprung"
    array = np.empty(2, dtype=object)
    array[:] = [Trap(trap), 1]
    np.save(tmp_path / "X.npy", array, allow_pickle=True)
    np.savez(tmp_path / "X.npz", X=array)
    for name in ("X.npy", "X.npz"):
        with pytest.raises(SourceError, match="pickled Python objects, which are never loaded"):
            read_features(tmp_path / name)
    assert not trap.exists()


# tables


def columns():
    """Columns of types that no reader was written for."""
    yield "decimal", pa.array([1, 2], pa.decimal128(9, 2))
    yield "timestamp", pa.array([1, 2], pa.timestamp("us", "UTC"))
    yield "duration", pa.array([1, 2], pa.duration("s"))
    yield "date", pa.array([1, 2], pa.date32())
    yield "null", pa.nulls(2)
    yield "nulls of text", pa.nulls(2, pa.string())
    yield "bool", pa.array([True, False])
    yield "map", pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64()))
    yield "struct", pa.array([{"a": 1, "b": {"c": [1]}}, None])
    yield "lists of lists", pa.array([[[1.0], [2.0]], [[3.0], []]])
    yield "ragged", pa.array([[1.0, 2.0], [1.0]])
    yield "lists with nulls", pa.array([[1.0, None], [1.0, 2.0]])
    yield "fixed lists", pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0]), 2)
    yield "large lists", pa.array([[1.0, 2.0], [3.0, 4.0]], pa.large_list(pa.float64()))
    yield "binary", pa.array([b"\x00\xff", b""])
    yield "large binary", pa.array([b"\x00\xff", b""], pa.large_binary())
    yield "dictionary", pa.array(["a", "b"]).dictionary_encode()
    yield "image without bytes", pa.array([{"bytes": None, "path": None}, {"bytes": b"x", "path": "y"}])
    yield "image of other types", pa.array([{"bytes": 3, "path": 4.0}, {"bytes": 5, "path": 6.0}])
    yield "half floats", pa.array(np.array([1, 2], np.float16))
    yield "huge numbers", pa.array([2**63 - 1, -(2**63)])
    yield "unsigned", pa.array([2**64 - 1, 0], pa.uint64())


@pytest.mark.parametrize(("column"), [pytest.param(column, id=name) for name, column in columns()])
@pytest.mark.parametrize("name", ["image", "text", "label", "x"])
def test_parquet_of_any_type_is_read_or_refused(column, name, tmp_path):
    pq.write_table(pa.table({name: column, "other": ["a", "b"]}), tmp_path / "train.parquet")
    for options in ({}, {"column": name}, {"column": "other", "label_column": name}):
        try:
            source = read_source(tmp_path / "train.parquet", **options)
            for row in range(len(source)):
                source.items[row]
            read_pixels(source, size=8)
        except QuerykeyError as error:
            assert str(error)  # noqa: PT017 -- or it was read


# run files


ENORMOUS = [
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "1e308",
    "-1e308",
    "[" * 9999,
    "0x" + "f" * 99,
]


def numbers():
    from querykey.config.settings import rows
    from querykey.runs.pretrain_settings import PretrainFile

    yield from dict.fromkeys(key for key, _ in rows(PretrainFile))


@pytest.mark.parametrize("key", numbers())
def test_an_enormous_number_is_one_message(key, tmp_path):
    """Or it is none at all, where it is meant to have no bound; it is never a traceback."""
    for number in ENORMOUS:
        (tmp_path / "run.toml").write_text(f"{key} = {number}\n")
        for path, settings in ((tmp_path / "run.toml", []), (None, [f"{key}={number}"])):
            try:
                run = read_pretrain_run(path, settings)
                for other in ("data", "save_every", "keep"):
                    run.pop(other, None)
                asked = given_settings(**run)
                resolve_settings(asked, images=5000, channels=3, side=32)
            except QuerykeyError as error:
                assert len(str(error)) < 20_000  # noqa: PT017


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"batch_size": 10**30}, "batch_size: must be at most 2147483647, got 1000000000"),
        ({"seed": 10**30}, "seed: must be at most 2147483647"),
        ({"minutes": float("nan")}, "minutes: must be a finite number"),
        ({"epochs": float("inf")}, "epochs: must be a finite number"),
        ({"dictionary": {"capacity": -1}}, "dictionary.capacity: must be greater than 0, got -1"),
        ({"image_size": 10**6}, "image_size: must be at most 4096"),
    ],
)
def test_the_message_for_a_wrong_number(table, said):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        parse_pretrain_run(table)


def test_the_same_numbers_from_python():
    for given in (
        {"seed": 10**30},
        {"steps": 10**30},
        {"epochs": 1e300},
        {"minutes": 1e300},
        {"head.dim": 2**40},
    ):
        with pytest.raises(QuerykeyError, match=r"must be (at most|a finite)"):
            resolve_settings(given_settings(None, **given), images=5000, channels=3, side=32)
    with pytest.raises(QuerykeyError, match="capacity: must be at most"):
        resolve_settings(
            given_settings("moco", **{"dictionary.capacity": 10**30}), images=5000, channels=3, side=32
        )
    assert features_from_array(np.eye(2, dtype=np.float32)).dim == 2


@pytest.mark.parametrize("at", [{}, {"spec": "photos"}, [1], "photos", True])
def test_a_run_that_does_not_say_where_its_images_were_is_damaged(at, tmp_path):
    pretrain("sklearn:digits", out=tmp_path / "run", stop=lambda: True, **TINY | {"steps": 2})
    file = tmp_path / "run" / "run.json"
    described = json.loads(file.read_text())
    assert RunFolder.read(tmp_path / "run").at["spec"] == "sklearn:digits"
    described["data"]["at"] = at
    file.write_text(json.dumps(described))
    with pytest.raises(StoreError, match="is damaged"):
        RunFolder.read(tmp_path / "run")
