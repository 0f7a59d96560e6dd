"""Pretraining on the command line: settings, what is said, going on, evaluation, embedding and export."""

import io
import json
import re
import shutil
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from pretraining_toys import put_stripes
from safetensors.torch import load_file

from querykey.cli import console
from querykey.cli.pretrain import display
from querykey.config.settings import flat, rows
from querykey.errors import ConfigError, MissingPathError
from querykey.pretraining import autotune
from querykey.pretraining.trainer import Progress
from querykey.runs.pretrain_settings import PretrainFile, parse_pretrain_run, read_pretrain_run

SMALL = (
    "--set", "backbone=small_cnn:4", "--set", "batch_size=16", "--set", "head.dim=16", "--set",
    "precision=float32", "--set", "layout=contiguous", "--set", "held_out=4", "--set", "num_evals=1",
    "--set", "views.size=12", "--threads", 1,
)  # fmt: skip
STEPS = ("--set", "steps=3")


@pytest.fixture(scope="module", autouse=True)
def _measured_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    put_stripes(folder / "train", count=16)
    put_stripes(folder / "test", count=10, seed=1)
    return folder


@pytest.fixture(scope="module")
def pretrained(querykey, images):
    said = querykey("pretrain", "--data", images / "train", "--out", images / "run", *SMALL, *STEPS)
    assert said.code == 0, said.err
    return images / "run", said


def test_pretrain_says_what_it_chose_before_and_found_after(pretrained):
    run, said = pretrained
    assert said.err == ""
    assert max(map(len, said.out.splitlines()[:-1])) <= 80  # the last is a command to copy
    for words in (
        "simclr: 29 images of 1 channels, 3 validation images for the online kNN",
        "backbone small_cnn:4: 0.01 M weights, h 32, 16 px; head mlp, z 16",
        "3 steps of 16 images", "float32, contiguous",
        "sgd: learning rate 0.0125 (linear scaling, batch 16), weight decay 0.0005, rises in the first 10%",
        "loss info_nce: temperature 0.2", "dictionary: the batch, 31 candidates a query",
        "memory: loss about 1 MiB (dense, 32 x 32 scores)",
        "views grayscale:", "a step takes 0.",
        f"{run}: 3 steps, 48 images seen", "kNN of h on 3 validation images:", "pretext task solved",
        "decoding and views took",
    ):  # fmt: skip
        assert words in said.flat
    assert said.out.splitlines()[-1] == f"next: querykey evaluate {run} --on SOURCE"


def test_a_run_without_evaluations_prints_no_scores_at_the_end(querykey, images, tmp_path):
    said = querykey(
        "pretrain",
        "--data",
        images / "train",
        "--out",
        tmp_path / "run",
        *SMALL,
        *STEPS,
        "--set",
        "num_evals=0",
    )
    assert said.code == 0, said.err
    assert "3 steps, 48 images seen" in said.flat
    assert "held out:" not in said.flat
    assert "pretext task solved" not in said.flat


def test_doctor_says_what_a_pretraining_takes(querykey, images, monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)
    said = querykey("doctor", images / "train")
    assert "pretrain, 256 images per step: memory: loss about 6 MiB (dense, 512 x 512 scores)" in said.flat
    assert re.search(
        r"pretrain: about --epochs 1: .+ and --epochs 100: .+; --minutes 10: [\d.]+ epochs", said.flat
    )


def test_a_run_with_a_queue_says_what_it_is_and_how_it_was(querykey, images, tmp_path):
    queue = ("--method", "moco", "--set", "batch_norm.groups=2", "--set", "dictionary.capacity=32")
    said = querykey("pretrain", "--data", images / "train", "--out", tmp_path / "run", *SMALL, *STEPS, *queue)
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines()[:-1])) <= 80
    for words in (
        "moco: 29 images", "loss info_nce: temperature 0.1",
        "dictionary: a queue of 32 keys (2 steps), starts empty",
        "key encoder: momentum 0.99, half-life 69 steps of 3",
        "keys: shuffled over 2 groups of split batch norm",
        " candidates a query, gap ", "; false negatives 0.0% by id, ",
        "dictionary 100% full, oldest row 1 steps, drift in 2 steps 0.0",
    ):  # fmt: skip
        assert words in said.flat
    assert "a queue of 32 keys" in said.err  # larger than the images less a batch
    assert "momentum 0.99 has a half-life of 69 steps, and the run has 3" in said.err


def test_the_folder_of_a_run_holds_everything(pretrained):
    run, _ = pretrained
    there = {path.name for path in run.iterdir()} - {"tensorboard"}
    assert there == {
        "run.json", "metrics.jsonl", "checkpoints", "untrained.safetensors", "encoder.safetensors",
        "encoder.json",
    }  # fmt: skip
    described = json.loads((run / "run.json").read_text())
    assert described["format"] == "querykey pretraining"
    assert described["threads"] == 1
    assert described["settings"]["optimizer"]["learning_rate"] == pytest.approx(0.2 * 16 / 256)
    assert None not in {described["settings"][name] for name in ("image_size", "steps", "epochs")}
    assert described["settings"]["views"]["size"] == 12
    assert [one["size"] for one in described["views"]] == [12, 12]
    assert {"python", "torch", "querykey", "numpy"} <= set(described["versions"])


def test_a_run_file_says_the_same_as_options(querykey, pretrained, images, tmp_path):
    run, _ = pretrained
    (tmp_path / "run.toml").write_text(
        f'data = "{images / "train"}"\nbatch_size = 16\nsteps = 99\nprecision = "float32"\n'
        'layout = "contiguous"\nheld_out = 4\nnum_evals = 1\nhead = { dim = 16 }\n'
        '[backbone]\nname = "small_cnn:4"\n[views]\nsize = 12\n'
    )
    said = querykey("pretrain", tmp_path / "run.toml", "--out", tmp_path / "run", "--threads", 1, *STEPS)
    assert said.code == 0, said.err
    weights = [(folder / "encoder.safetensors").read_bytes() for folder in (tmp_path / "run", run)]
    assert weights[0] == weights[1]


def test_init_starts_from_weights(querykey, pretrained, images, tmp_path):
    run, _ = pretrained
    assert querykey("export", run, "--to", "safetensors", "--out", tmp_path / "out").code == 0
    weights = tmp_path / "out" / "backbone.safetensors"
    said = querykey(
        "pretrain", "--data", images / "train", "--out", tmp_path / "run", "--init", weights, *SMALL, *STEPS
    )
    assert said.code == 0, said.err
    untrained = load_file(tmp_path / "run" / "untrained.safetensors")
    for name, value in load_file(weights).items():
        assert untrained[f"backbone.network.{name}"].equal(value)
    said = querykey(
        "pretrain", "--data", images / "train", "--out", tmp_path / "x", "--init", tmp_path / "none.pth",
        *SMALL, *STEPS,
    )  # fmt: skip
    assert said.code == 2
    assert "none.pth" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there are no images: name them with --data SOURCE"),
        (("--data", "nowhere/at/all"), "there is nothing at nowhere/at/all"),
        (("none.toml",), "none.toml: no such run file"),
        (("--data", "x", "--set", "batchsize=3"), "batchsize: no such key; did you mean batch_size?"),
        (("--data", "x", "--set", "loss.temprature=1"), "did you mean temperature?"),
        (("--data", "x", "--set", "loss=nt_xnt"), "loss.kind: no such kind 'nt_xnt'; there are info_nce"),
        (("--data", "x", "--set", "loss.temperature=0"), "loss.temperature: must be greater than 0"),
        (("--data", "x", "--set", "steps"), "must be KEY=VALUE"),
        (("--data", "x", "--method", "mocha"), "method: must be 'simclr'"),
        (("--data", "x", "--method", "simclr", "--preset", "moco-cifar"), "is for moco"),
        (
            ("--data", "x", "--set", "dictionary.capacity=9"),
            "simclr has no dictionary.capacity",
        ),
        (("--data", "x", "--method", "moco", "--set", "key_encoder.momentum=2"), "key_encoder.momentum"),
        (("--data", "x", "--minutes", "0"), "minutes: must be greater than 0"),
        (("--data", "sklearn:digits", "--minutes", "1", "--epochs", "2"), "each say how long to train"),
        (("--data", "sklearn:digits", "--set", "batch_size=1"), "batch_size: must be at least 2, got 1"),
        (
            ("--data", "sklearn:digits", "--set", "loss.sigma=1"),
            "set loss.kind to decoupled",
        ),
        (("--data", "sklearn:digits", "--set", "backbone=timm:resnet181"), "timm has no network 'resnet181'"),
        (("--data", "sklearn:digits", "--set", "views=simclr"), "images of one channel do not have"),
        (("--data", "sklearn:digits", "--device", "nowhere"), "device 'nowhere' cannot be used here"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(querykey, arguments, said, tmp_path):
    found = querykey("pretrain", *arguments, "--out", tmp_path / "run")
    assert found.code == 2
    assert found.err.startswith("error: ")
    assert said in found.err
    assert found.out == ""
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_that_is_far_too_high_is_reported_with_its_step(querykey, images, tmp_path):
    said = querykey(
        "pretrain", "--data", images / "train", "--out", tmp_path / "run", *SMALL, *STEPS, "--set",
        "optimizer.learning_rate=1e12", "--set", "optimizer.warm_up=0",
    )  # fmt: skip
    assert said.code == 2
    assert said.err.startswith("error: step ")
    assert f"the state after step 0 is kept in {tmp_path / 'run'}" in said.err
    assert list((tmp_path / "run" / "checkpoints").glob("step-000000000.json"))


def test_resume_trains_on_and_says_so(querykey, pretrained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained[0], run)
    said = querykey("resume", run)
    assert said.code == 2
    assert "to train on, give more epochs" in said.err
    said = querykey("resume", run, "--epochs", "6")
    assert said.code == 0, said.err
    assert said.err.startswith("note: 3 epochs become 6: the learning rate continues where")
    assert f"{run}: 6 steps, 96 images seen" in said.flat
    said = querykey("resume", tmp_path / "none")
    assert said.code == 2
    assert "no run here; make one with querykey pretrain" in said.err


def test_resume_takes_the_images_where_they_are_now_and_a_device(querykey, images, tmp_path):
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    shutil.copytree(images / "train", here)
    said = querykey("pretrain", "--data", here, "--out", run, *SMALL, *STEPS)
    assert said.code == 0, said.err
    here.rename(there)
    said = querykey("resume", run, "--epochs", "6")
    assert said.code == 2
    assert f"querykey resume {run} --data SOURCE" in said.err
    said = querykey("resume", run, "--epochs", "6", "--data", there, "--device", "cpu")
    assert said.code == 0, said.err
    said = querykey("resume", run, "--epochs", "9", "--device", "cuda:77")
    assert said.code == 2
    assert said.err.startswith("error: device 'cuda:77' cannot be used here")


def test_help_lists_every_key_of_a_pretraining(querykey):
    said = querykey("help", "pretraining")
    assert said.code == 0
    keys = {line.split()[0] for line in said.out.splitlines() if line}
    assert {key for key, _ in rows(PretrainFile)} <= keys
    assert max(map(len, said.out.splitlines())) <= 80
    assert "pretraining" in querykey("help").out


def test_evaluate_stands_beside_untrained_and_pixels(querykey, pretrained, images, tmp_path):
    run, _ = pretrained
    said = querykey("evaluate", run, "--on", images / "test", "--out", tmp_path / "report.json")
    assert said.code == 0, said.err
    for method in ("pixels", "untrained h", "z = g(h)", "h"):
        assert f"\n{method} " in said.out
    assert "20 test images, 32 labelled training images" in said.flat
    assert "kNN: 20 neighbours, temperature 0.1; linear: protocol lbfgs" in said.flat
    assert max(map(len, said.out.splitlines())) <= 80
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["methods"]) == {"pixels", "untrained h", "z = g(h)", "h"}
    said = querykey("evaluate", run, "--on", images / "test", "--protocol", "knn")
    assert said.code == 2
    assert "--protocol knn: there are lbfgs, moco, simclr" in said.err
    said = querykey("evaluate", run, "--on", images / "test", "--out", tmp_path / "report.json")
    assert said.code == 2


def test_options_of_a_pretraining_are_refused_of_an_adapter(querykey, labelled_run, data):
    said = querykey("evaluate", labelled_run, "--on", data / "test.npz", "--labels-fraction", 0.1)
    assert said.code == 2
    assert "are for a pretraining" in said.err


def test_embed_makes_features_of_it_and_sees_that_it_changed(querykey, pretrained, images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained[0], run)
    arguments = ("embed", images / "test", "--model", run, "--out", tmp_path / "features")
    said = querykey(*arguments)
    assert said.code == 0, said.err
    assert "20 rows of 32 numbers" in said.flat
    first = np.load(tmp_path / "features" / "vectors.npy").copy()
    assert querykey(*arguments).err == ""
    assert querykey("resume", run, "--epochs", "6").code == 0
    said = querykey(*arguments)
    assert "embedding again" in said.err
    assert not np.array_equal(np.load(tmp_path / "features" / "vectors.npy"), first)


def test_export_writes_the_backbone(querykey, pretrained, tmp_path):
    run, _ = pretrained
    said = querykey("export", run, "--to", "safetensors", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert f"{tmp_path / 'out'}: README.md, backbone.json, backbone.safetensors" in said.flat
    trained = load_file(run / "encoder.safetensors")
    for name, value in load_file(tmp_path / "out" / "backbone.safetensors").items():
        assert trained[f"backbone.network.{name}"].equal(value)
    for arguments, words in (
        (("--to", "sentence-transformers", "--out", tmp_path / "x"), "goes to onnx or safetensors"),
        (("--to", "pickle", "--out", tmp_path / "x"), "goes to onnx or safetensors"),
        (("--to", "onnx", "--model", "st:x", "--out", tmp_path / "x"), "a backbone takes none"),
        (("--to", "safetensors", "--out", tmp_path / "out"), "out"),
    ):
        said = querykey("export", run, *arguments)
        assert said.code == 2
        assert words in said.err
        assert not (tmp_path / "x").exists()


# the display


def test_a_terminal_sees_how_far_it_is_and_a_pipe_a_line_now_and_then(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    before = signal.getsignal(signal.SIGINT)
    plain = Progress(
        step=1, steps=8, loss=2.5, learning_rate=0.1, seconds=1.0, view_seconds=0.0, images_per_second=1234.0,
        knn=None, is_recorded=False,
    )  # fmt: skip
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.01)
    with display() as hooks:
        hooks["on_step_end"](replace(plain, step=2, knn=0.625))
        time.sleep(0.05)
        assert not hooks["stop"]()
    assert "pretraining: step 2 of 8, loss 2.500, kNN 0.625\n" in capsys.readouterr().err
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with display() as hooks:
        hooks["on_step_end"](plain)
        hooks["on_step_end"](replace(plain, step=2, knn=0.625))
    seen = screen.getvalue()
    for words in ("2/8", "1,234 images/s", "loss 2.500", "kNN 0.625"):
        assert words in seen
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_interrupt_stops_after_the_step_and_the_second_at_once(capsys):
    with display() as hooks:
        stop = hooks["stop"]
        assert not stop()  # from here on there are steps to lose
        signal.raise_signal(signal.SIGINT)
        assert stop()
        assert "stopping after this step; once more stops at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with display(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


# the grammar itself


def test_later_settings_win_and_bare_words_are_kinds(tmp_path):
    (tmp_path / "run.toml").write_text('loss = "decoupled"\nminutes = 3\n[views]\nflip = 0.2\n')
    run = read_pretrain_run(
        tmp_path / "run.toml",
        ["loss.temperature=0.5", "views.flip=0", "optimizer=lars"],
        minutes=4.0,
        seed=None,
    )
    assert run == {
        "minutes": 4.0, "loss.kind": "decoupled", "loss.temperature": 0.5,
        "views.flip": 0.0, "optimizer.kind": "lars",
    }  # fmt: skip
    with pytest.raises(MissingPathError):
        read_pretrain_run(tmp_path / "none.toml")


def test_a_bare_word_and_a_key_of_its_table_go_together():
    for table, word, key, value in (
        ("backbone", "timm:resnet18", "stem", "small"), ("views", "simclr", "size", 24),
        ("loss", "nt_logistic", "temperature", 0.5), ("optimizer", "lars", "lr_scaling", "square_root"),
        ("head", "mlp", "dim", 64), ("batch_norm", "split", "groups", 4),
    ):  # fmt: skip
        said = read_pretrain_run(None, [f"{table}={word}", f"{table}.{key}={value}"])
        assert word in said.values()
        assert value in said.values()


def test_every_key_reaches_its_setting():
    """What the run file can say, `PretrainSettings` or the views or a loss knows."""
    from querykey.pretraining.settings.settings import PretrainSettings

    said = parse_pretrain_run(
        {
            "backbone": {"name": "a", "stem": "small", "init": "w"},
            "head": {"kind": "mlp", "layers": 3, "hidden": 7, "dim": 8, "batch_norm": False},
            "batch_norm": {"kind": "split", "groups": 4}, "checkpointing": True, "chunks": 2,
            "views": {"preset": "simclr", "size": 9, "strength": 0.5, "blur": 0.1},
            "loss": {"kind": "debiased", "tau_plus": 0.1, "normalised": False, "learned_temperature": True},
            "optimizer": {"kind": "lars", "lr_scaling": "linear", "weight_decay": 0, "warm_up": 0},
        }
    )  # fmt: skip
    made = PretrainSettings.from_dict(said)
    assert flat(made.as_dict()).items() >= said.items()
    assert (made.head.kind, made.head.layers, made.head.hidden, made.head.dim) == ("mlp", 3, 7, 8)
    assert (made.head.batch_norm, made.batch_norm.kind, made.batch_norm.groups) == (False, "split", 4)
    assert (made.views.preset, made.views.size, made.views.strength) == ("simclr", 9, 0.5)
    assert (made.views.options, made.loss.options) == ({"blur": 0.1}, {"tau_plus": 0.1})


def test_all_errors_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_pretrain_run({"minutes": -1, "seed": -1, "views": {"flip": 2}, "head": 3}, name="run.toml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "run.toml: cannot be run"
    assert {line.split(":")[0].strip() for line in lines[1:]} == {"minutes", "seed", "views.flip", "head"}
