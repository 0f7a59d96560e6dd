"""A pretrained encoder in its folder: read back, as a model of images, evaluated, and exported."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pretraining_toys import TINY, put_stripes
from safetensors.torch import load_file, save_file

from querykey import embed, load_encoder, pretrain, read_source
from querykey.data.pixels.pixels import read_pixels
from querykey.errors import ConfigError, DataError, ExportError, MissingPathError, SourceError, StoreError
from querykey.export import BackboneOrigin, export_backbone_onnx, export_backbone_safetensors
from querykey.pretraining import autotune
from querykey.pretraining.saved_encoder import read_encoder
from querykey.runs.data import DataAt
from querykey.runs.evaluate_encoder import evaluate_encoder, pixel_rows

HERE = TINY | {"batch_size": 16, "views.size": 12, "held_out": 4, "num_evals": 1, "steps": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Training and test images, gray and in colour."""
    folder = tmp_path_factory.mktemp("images")
    for name, channels in (("gray", 1), ("colour", 3)):
        for part, seed, count in (("train", 0, 16), ("test", 1, 10)):
            put_stripes(folder / name / part, channels=channels, seed=seed, count=count)
    return folder


@pytest.fixture(scope="module")
def run(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        torch.set_num_threads(1)
        return pretrain(folders / "gray" / "train", out=folders / "run", **HERE)


def encoded(saved, source):
    pixels = read_pixels(source, size=saved.settings.image_size)
    return saved.encode(pixels, pixels.ids)


def test_it_comes_back_with_its_h_and_its_identity(run, folders):
    back = read_encoder(run.folder)
    source = read_source(folders / "gray" / "test")
    for one, other in zip(encoded(run.encoder, source), encoded(back, source), strict=True):
        assert torch.equal(one, other)
    assert back.identity == run.encoder.identity != ""
    assert back.settings.as_dict() == json.loads(json.dumps(run.settings.as_dict()))
    assert back.report == run.report
    assert not any(module.training for module in back.encoder.modules())
    assert not any(weight.requires_grad for weight in back.encoder.parameters())
    untrained = read_encoder(run.folder, untrained=True)
    assert untrained.identity != back.identity
    assert not torch.equal(encoded(untrained, source)[0], encoded(back, source)[0])


@pytest.fixture
def copied(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    return folder


def describe(folder, **changed):
    file = folder / "encoder.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_changed_weights_are_refused(copied):
    content = bytearray((copied / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "encoder.safetensors").write_bytes(content)
    with pytest.raises(StoreError, match="checksum differs"):
        read_encoder(copied)
    (copied / "encoder.safetensors").unlink()
    with pytest.raises(StoreError, match=r"encoder\.safetensors is missing"):
        read_encoder(copied)
    (copied / "encoder.json").unlink()
    with pytest.raises(MissingPathError, match="no encoder here"):
        read_encoder(copied)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", '{"format": "querykey encoder"}', "[" * 100_000]
)
def test_a_description_that_is_none(copied, text):
    (copied / "encoder.json").write_text(text)
    with pytest.raises(StoreError):
        read_encoder(copied)


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2}, {"channels": 2}, {"channels": "1"}, {"channels": None}, {"settings": []},
        {"settings": {}}, {"report": 3}, {"preparation": {"size": 9}}, {"sha256": "0" * 64},
    ],
)  # fmt: skip
def test_a_description_that_is_nonsense(copied, changed):
    describe(copied, **changed)
    with pytest.raises(StoreError):
        read_encoder(copied)


@pytest.mark.parametrize(
    "changed",
    [
        {"image_size": None}, {"image_size": 10**9}, {"image_size": 16.0}, {"image_size": 0},
        {"head.dim": 8}, {"backbone": "small_cnn:5"}, {"views.mean": [0.1]}, {"head.layers": "2"},
    ],
)  # fmt: skip
def test_settings_that_are_not_those_of_the_weights(copied, changed):
    settings = json.loads((copied / "encoder.json").read_text())["settings"]
    describe(copied, settings=settings | changed)
    with pytest.raises((StoreError, SourceError)):
        read_encoder(copied)


def test_nothing_is_executed_but_a_network_that_can_be_imported(copied, tmp_path, monkeypatch):
    settings = json.loads((copied / "encoder.json").read_text())["settings"]
    describe(
        copied, settings=settings | {"backbone": "no_such_module_here:made", "backbone.init": "/none.pth"}
    )
    with pytest.raises(SourceError, match="no_such_module_here"):
        read_encoder(copied)
    (tmp_path / "weights.pth").write_bytes(b"\x80\x04cos\nsystem\n")
    describe(copied, settings=settings | {"backbone.init": str(tmp_path / "weights.pth")})
    assert read_encoder(copied).settings.backbone.init is not None  # named, and not read


def test_as_a_model_it_gives_its_own_h(run, folders):
    source = read_source(folders / "gray" / "test")
    h, _ = encoded(read_encoder(run.folder), source)
    before = copy.deepcopy(run.encoder.encoder.state_dict())
    for spec in (run.folder, str(run.folder), run):
        model = load_encoder(spec)
        images = [source.items[place] for place in range(len(source))]
        torch.testing.assert_close(model.encode(images), h, rtol=0, atol=1e-5)
        assert model.kind == "image"
        assert model.dim == 32
    assert load_encoder(run).key == load_encoder(run.folder).key
    for name, value in run.encoder.encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module.training for module in run.encoder.encoder.modules())


def test_two_runs_in_memory_are_two_models(folders):
    """Features are kept by the key of their model: it may not be that of another run."""
    keys = {
        load_encoder(pretrain(folders / "gray" / "train", **HERE | {"steps": 1, "seed": seed})).key
        for seed in (0, 1)
    }
    assert len(keys) == 2


def test_colour_into_a_gray_encoder_becomes_gray(run, folders):
    draw = np.random.default_rng(0)
    gray = draw.integers(0, 256, (16, 16), dtype=np.uint8)
    model = load_encoder(run)
    one = model.encode([Image.fromarray(gray)])
    other = model.encode([Image.fromarray(np.stack([gray] * 3, axis=2))])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-2 * float(one.abs().max()))
    mixed = model.encode([Image.fromarray(gray).convert(mode) for mode in ("RGBA", "P", "L", "1")])
    assert mixed.shape == (4, 32)
    assert mixed.isfinite().all()


def test_a_prompt_and_an_unknown_device_are_refused(run):
    with pytest.raises(ConfigError, match="takes no prompt"):
        load_encoder(run.folder, prompt="a photo of")
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used"):
        load_encoder(run.folder, device="nowhere")


def test_its_features_are_refused_after_it_changed(run, folders, copied, tmp_path):
    source = read_source(folders / "gray" / "test")
    features = embed(source, load_encoder(copied), tmp_path / "features")
    assert len(features) == 20
    h, _ = encoded(read_encoder(run.folder), source)
    torch.testing.assert_close(torch.from_numpy(np.array(features.vectors)), h, rtol=0, atol=1e-5)
    again = load_encoder(copied).key
    weights = load_file(copied / "encoder.safetensors")
    name = next(name for name, value in weights.items() if value.is_floating_point())
    weights[name] += 0.5
    save_file(weights, copied / "encoder.safetensors")
    with pytest.raises(StoreError, match="checksum differs"):
        load_encoder(copied)
    assert load_encoder(run.folder).key == again


# evaluation


def test_h_and_z_stand_beside_untrained_and_pixels(run, folders):
    said = []
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    found = evaluate_encoder(run.folder, DataAt(str(folders / "gray" / "test")), notify=said.append)
    assert list(found.cells) == ["pixels", "untrained h", "z = g(h)", "h"]
    assert found.references == ("untrained h", "pixels")
    for row in found.cells.values():
        assert list(row) == ["linear", "kNN"]
        assert all(cell.queries == 20 and 0 <= cell.value.mean <= 1 for cell in row.values())
    dims = {name: figures["dim"] for name, figures in found.figures.items()}
    assert dims == {"pixels": 256, "untrained h": 32, "z = g(h)": 16, "h": 32}
    assert found.protocol["labels"] == 32
    assert found.protocol["asked"] == 20
    assert found.protocol["knn"] == {"k": 20, "temperature": 0.1, "bank": 32}
    assert found.protocol["encoder"] == read_encoder(run.folder).identity
    json.dumps(found.as_dict(), allow_nan=False)
    assert said == []
    assert before == {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}


def test_few_labels_and_the_supervised_network_beside_the_fine_tuned(run, folders):
    on = DataAt(str(folders / "gray" / "test"))
    found = evaluate_encoder(run.folder, on, labels_fraction=0.25, fine_tuning="h", epochs=2)
    assert found.protocol["labels"] == 8
    assert {"supervised", "fine-tuned"} <= set(found.cells)
    assert list(found.cells["supervised"]) == ["linear"]
    first = evaluate_encoder(run.folder, on, labels_fraction=0.25, fine_tuning="first layer", epochs=2)
    same = [one.per_query["supervised"]["linear"].tolist() for one in (found, first)]
    assert same[0] == same[1]
    assert "tuned" in first.protocol["linear"]["fine-tuned"]


def test_test_images_that_were_trained_on_are_reported(run, folders):
    said = []
    evaluate_encoder(run.folder, DataAt(str(folders / "gray" / "train")), notify=said.append)
    assert len(said) == 1
    assert "contains the training images" in said[0]


def test_what_cannot_be_evaluated(run, folders, tmp_path):
    on = DataAt(str(folders / "gray" / "test"))
    (tmp_path / "flat").mkdir()
    for number, file in enumerate(sorted((folders / "gray" / "test").rglob("*.png"))):
        shutil.copy(file, tmp_path / "flat" / f"{number}.png")
    with pytest.raises(DataError, match=r"flat has no labels, so nothing can be scored"):
        evaluate_encoder(run.folder, DataAt(str(tmp_path / "flat")))
    with pytest.raises(MissingPathError, match="no encoder here"):
        evaluate_encoder(tmp_path, on)
    with pytest.raises(ConfigError, match="device 'nowhere'"):
        evaluate_encoder(run.folder, on, device="nowhere")
    with pytest.raises(ValueError, match="fraction"):
        evaluate_encoder(run.folder, on, labels_fraction=0.0)


def test_without_a_head_there_is_no_z_and_no_first_layer(folders, tmp_path):
    bare = pretrain(folders / "gray" / "train", out=tmp_path / "run", **HERE | {"steps": 1, "head": "none"})
    on = DataAt(str(folders / "gray" / "test"))
    found = evaluate_encoder(bare.folder, on)
    assert list(found.cells) == ["pixels", "untrained h", "h"]
    with pytest.raises(ConfigError, match="needs an MLP head; this one is none"):
        evaluate_encoder(bare.folder, on, fine_tuning="first layer")


def test_pixels_are_the_image_itself(folders):
    pixels = read_pixels(read_source(folders / "gray" / "test"), size=16)
    images, _ = pixels.batch(pixels.ids)
    assert torch.equal(pixel_rows(pixels, pixels.ids), images.flatten(1).float() / 255)


# export


def origin_of(saved):
    views = saved.views
    return BackboneOrigin(
        channels=saved.channels, size=saved.settings.image_size, mean=views.mean,
        deviation=views.deviation, method="simclr",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gray", "colour"])
def test_timms_own_network_takes_the_weights_and_gives_the_same_h(kind, folders, tmp_path):
    timm = pytest.importorskip("timm")
    settings = HERE | {
        "backbone": "timm:test_resnet",
        "backbone.stem": "plain",
        "views.size": 16,
        "views": "auto",
    }
    run = pretrain(folders / kind / "train", **settings | {"steps": 1})
    done = export_backbone_safetensors(
        run.encoder.encoder.backbone, tmp_path / "out", origin=origin_of(run.encoder)
    )
    assert done.files == ("README.md", "backbone.json", "backbone.safetensors")
    network = timm.create_model("test_resnet", num_classes=0, in_chans=run.encoder.channels)
    network.load_state_dict(load_file(tmp_path / "out" / "backbone.safetensors"), strict=True)
    source = read_source(folders / kind / "test")
    pixels = read_pixels(source, size=16)
    with torch.no_grad():
        h = network.eval()(run.encoder.prepare(pixels.batch(pixels.ids)[0]))
    torch.testing.assert_close(h, run.encoder.encode(pixels, pixels.ids)[0], rtol=1e-4, atol=1e-5)


def test_onnx_takes_any_number_of_images_as_they_are(run, folders, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    saved = read_encoder(run.folder)
    done = export_backbone_onnx(saved.encoder.backbone, tmp_path / "out", origin=origin_of(saved))
    assert done.difference <= 1e-4
    session = runtime.InferenceSession(str(tmp_path / "out" / "encoder.onnx"))
    pixels = read_pixels(read_source(folders / "gray" / "test"), size=16)
    images = pixels.batch(pixels.ids)[0].float() / 255
    h, _ = saved.encode(pixels, pixels.ids)
    for count in (1, 2, 20):
        (got,) = session.run(["h"], {"images": images[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(got), h[:count], rtol=1e-3, atol=1e-4)


def test_an_export_that_is_there_or_that_differs(run, tmp_path, monkeypatch):
    saved = read_encoder(run.folder)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    with pytest.raises(FileExistsError):
        export_backbone_safetensors(saved.encoder.backbone, tmp_path / "there", origin=origin_of(saved))
    monkeypatch.setattr(
        "querykey.export.backbone.load_file", lambda path: {k: v + 1 for k, v in load_file(path).items()}
    )
    with pytest.raises(ExportError, match="nothing was written"):
        export_backbone_safetensors(saved.encoder.backbone, tmp_path / "out", origin=origin_of(saved))
    assert not (tmp_path / "out").exists()
