"""A pretraining as a whole: the same bits again, stopped and resumed, in chunks, and when it breaks."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from pretraining_toys import DIGITS, TINY, after, metrics, put_stripes
from safetensors.torch import load_file

from querykey import load_encoder, pretrain, read_source, resume
from querykey.errors import (
    CollapseError,
    ConfigError,
    MissingPathError,
    OutputError,
    RangeError,
    StoreError,
)
from querykey.io.records import read
from querykey.pretraining import autotune
from querykey.pretraining.checkpoint import latest_checkpoint


@pytest.fixture(autouse=True)
def _measured_at_once(monkeypatch):
    monkeypatch.setattr(autotune, "TRIALS", 1)
    monkeypatch.setattr(autotune, "STEADY_TRIALS", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotune, "TRIALS", 1)
        patch.setattr(autotune, "STEADY_TRIALS", 1)
        torch.set_num_threads(1)
        return pretrain(DIGITS, out=folder, steps=4, **TINY)


def weights(run):
    return {name: value.clone() for name, value in run.encoder.encoder.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_same_seed_gives_the_same_bits_and_another_others(finished):
    settings = TINY | {"steps": 4}
    state = torch.get_rng_state()
    again, other = pretrain(DIGITS, **settings), pretrain(DIGITS, seed=1, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(finished), weights(again))
    assert not equal(weights(again), weights(other))
    assert finished.report["end"]["loss"] == again.report["end"]["loss"]


WAYS = {
    "sgd": {"optimizer": "sgd"},
    "channels_last": {"optimizer": "sgd", "layout": "channels_last"},
    "adamw": {"optimizer": "adamw"},
    "lars": {"optimizer": "lars"},
    "learned": {"loss.learned_temperature": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_ends_with_the_bits_of_one_that_never_stopped(way, tmp_path):
    settings = TINY | {"steps": 5} | WAYS[way]
    whole, split_data = tmp_path / "whole", tmp_path / "parted"
    done = pretrain(DIGITS, out=whole, **settings)
    half = pretrain(DIGITS, out=split_data, stop=after(2), **settings)
    assert (done.is_finished, half.is_finished) == (True, False)
    assert half.report["steps_taken"] == 2
    shown = []
    ended = resume(split_data, on_step_end=shown.append)
    assert [one.step for one in shown] == [3, 4, 5]
    assert ended.is_finished
    assert ended.report["steps_taken"] == 5
    assert equal(weights(done), weights(ended))
    assert (whole / "encoder.safetensors").read_bytes() == (split_data / "encoder.safetensors").read_bytes()
    one, other = (latest_checkpoint(folder / "checkpoints") for folder in (whole, split_data))
    assert one.step == other.step == 5
    assert equal(one.tensors, other.tensors)
    assert any(name.startswith("optimizer.") for name in one.tensors)
    assert ("model.temperature.log_inverse" in one.tensors) == (way == "learned")
    assert metrics(whole) == metrics(split_data)
    assert [r["step"] for r in metrics(whole) if r["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in metrics(whole) if r["kind"] == "look"] == [0, 3, 5]
    assert (
        json.loads((whole / "run.json").read_text())["settings"]
        == json.loads((split_data / "run.json").read_text())["settings"]
    )


def test_a_run_that_was_killed_repeats_no_record(tmp_path):
    """What stands in the records after the last checkpoint is taken again, and stands there once."""
    settings = TINY | {"steps": 4}

    class Killed(BaseException):
        pass

    def kill(shown):
        if shown.step == 3:
            raise Killed

    with pytest.raises(Killed):
        pretrain(DIGITS, out=tmp_path / "killed", on_step_end=kill, **settings)
    assert [r["step"] for r in metrics(tmp_path / "killed") if r["kind"] == "step"] == [1, 2, 3]
    assert latest_checkpoint(tmp_path / "killed" / "checkpoints").step == 0
    resume(tmp_path / "killed")
    pretrain(DIGITS, out=tmp_path / "whole", **settings)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_the_last_evaluation_is_shown_until_the_next(tmp_path):
    pretrain(DIGITS, out=tmp_path / "run", stop=after(3), **TINY, steps=6)
    last = [r for r in read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "look"][-1]
    shown = []
    stopped = resume(tmp_path / "run", on_step_end=shown.append, stop=after(1))
    assert last["step"] == 3
    assert shown[0].knn == last["knn"]
    assert stopped.report["end"]["effective_rank_h"] == last["effective_rank_h"]
    assert stopped.report["start"]["effective_rank_h"] != last["effective_rank_h"]


def test_a_learned_temperature_moves_and_the_loss_uses_it(tmp_path):
    settings = TINY | {
        "steps": 3,
        "loss.learned_temperature": True,
        "optimizer.learning_rate": 1.0,
        "optimizer.warm_up": 0.0,
    }
    pretrain(DIGITS, out=tmp_path / "run", **settings)
    log_inverse = latest_checkpoint(tmp_path / "run" / "checkpoints").tensors["model.temperature.log_inverse"]
    assert float(log_inverse) != pytest.approx(-torch.tensor(0.2).log().item(), abs=1e-5)


def test_more_epochs_extend_a_finished_run_and_the_schedule_is_reported(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    with pytest.raises(ConfigError, match=r"is finished after .* epochs; to train on, give more epochs"):
        resume(folder)
    epochs = finished.settings.epochs
    with pytest.raises(RangeError, match=r"is not beyond the .* epochs that are trained already"):
        resume(folder, epochs=epochs)
    said = []
    longer = resume(folder, epochs=2 * epochs, notify=said.append)
    assert "the learning rate continues where a run of" in said[0]
    assert "after 4 of 8 steps" in said[0]
    assert longer.is_finished
    assert longer.report["steps_taken"] == 8
    assert json.loads((folder / "run.json").read_text())["settings"]["steps"] == 8
    rates = [r["learning_rate"] for r in read(folder / "metrics.jsonl") if r["kind"] == "step"]
    assert len(rates) == 8
    fresh = pretrain(DIGITS, out=tmp_path / "fresh", **TINY, steps=8)
    expected = [r["learning_rate"] for r in read(fresh.folder / "metrics.jsonl") if r["kind"] == "step"]
    assert rates[4:] == expected[4:]


@pytest.mark.parametrize("epochs", [0.0, -1.0, float("nan"), float("inf")])
def test_epochs_of_a_resumed_run_are_a_number(finished, epochs):
    with pytest.raises(RangeError, match="is not beyond"):
        resume(finished.folder, epochs=epochs)


def test_changed_images_are_refused(tmp_path):
    images = put_stripes(tmp_path / "images")
    settings = TINY | {"steps": 3, "batch_size": 8, "views.size": None, "views": "auto"}
    pretrain(images, out=tmp_path / "run", stop=after(1), **settings)
    shutil.copy(images / "down" / "0.png", images / "down" / "new.png")
    with pytest.raises(ConfigError, match="is not what the run was trained on"):
        resume(tmp_path / "run")
    (images / "down" / "new.png").unlink()
    assert resume(tmp_path / "run").is_finished
    shutil.rmtree(images)
    with pytest.raises(MissingPathError):
        resume(tmp_path / "run", epochs=99.0)


def test_images_of_an_object_cannot_be_read_again(tmp_path):
    pretrain(read_source(DIGITS), out=tmp_path / "run", stop=after(1), **TINY, steps=3)
    with pytest.raises(StoreError, match="were given as an object, not by a path or name"):
        resume(tmp_path / "run")


def test_a_resumed_run_decodes_what_it_decoded_before(tmp_path):
    """Images of several sizes are shrunk alike, though the size they are shown at is known by now."""
    put_stripes(tmp_path / "images" / "a", side=150, count=8)
    put_stripes(tmp_path / "images" / "b", side=160, count=8)
    settings = TINY | {"steps": 3, "batch_size": 8, "views.size": 16, "num_evals": 0}
    whole = pretrain(tmp_path / "images", **settings)
    assert whole.settings.image_size == 64
    pretrain(tmp_path / "images", out=tmp_path / "run", stop=after(1), **settings)
    assert equal(weights(resume(tmp_path / "run")), weights(whole))


def test_a_folder_that_is_no_run_or_a_damaged_one(finished, tmp_path):
    with pytest.raises(MissingPathError, match="no run here; make one with querykey pretrain"):
        resume(tmp_path)
    described = json.loads((finished.folder / "run.json").read_text())
    damaged = [
        "[]", "{", '{"format": "querykey run"}', json.dumps(described | {"version": 99}),
        json.dumps(described | {"settings": []}), json.dumps(described | {"data": 3}),
        json.dumps(described | {"settings": described["settings"] | {"steps": None}}),
        json.dumps({name: part for name, part in described.items() if name != "device"}),
    ]  # fmt: skip
    for text in damaged:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(StoreError):
            resume(tmp_path)


def test_settings_that_were_changed_are_refused_one_by_one(tmp_path):
    run = tmp_path / "run"
    settings = TINY | {"steps": 3, "loss": "debiased", "loss.tau_plus": 0.1}
    pretrain(DIGITS, out=run, stop=after(1), **settings)
    file = run / "run.json"
    described = json.loads(file.read_text())
    changed = json.loads(file.read_text())
    changed["settings"] |= {"backbone": "small_cnn:5", "steps": 9, "loss.tau_plus": 0.2}
    changed["asked"]["image_size"] = 16
    changed["device"] = "cuda"
    file.write_text(json.dumps(changed))
    with pytest.raises(ConfigError) as caught:
        resume(run)
    assert str(caught.value).splitlines() == [
        f"{file} was changed since the last checkpoint; put it back, or start a new run:",
        "  asked.image_size: None in the checkpoint, 16 now",
        "  device: 'cpu' in the checkpoint, 'cuda' now",
        "  settings.backbone.name: 'small_cnn:4' in the checkpoint, 'small_cnn:5' now",
        "  settings.loss.tau_plus: 0.1 in the checkpoint, 0.2 now",
        "  settings.steps: 3 in the checkpoint, 9 now",
    ]
    file.write_text(json.dumps(described))
    assert resume(run).is_finished


def test_a_longer_run_that_is_killed_before_its_next_checkpoint_goes_on(finished, tmp_path):
    """The run itself has changed its length; that is written before the first checkpoint of that length."""
    folder, epochs = tmp_path / "run", finished.settings.epochs
    shutil.copytree(finished.folder, folder)

    class Killed(BaseException):
        pass

    def kill(_):
        raise Killed

    with pytest.raises(Killed):
        resume(folder, epochs=2 * epochs, on_step_end=kill)
    described = json.loads((folder / "run.json").read_text())
    assert described["changes"] == [{"step": 4, "settings.epochs": 2 * epochs, "settings.steps": 8}]
    ended = resume(folder)
    assert ended.report["steps_taken"] == 8
    described["settings"]["steps"] = 7
    (folder / "run.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"settings\.steps: 8 in the checkpoint, 7 now"):
        resume(folder)


def test_a_run_is_trained_by_one_process_at_a_time(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from querykey.io.atomic import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    file = tmp_path / "run" / "checkpoints" / "lock"
    other = subprocess.Popen(
        [sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline()
    try:
        with pytest.raises(OutputError, match=r"checkpoints: another process is writing here; wait until"):
            resume(tmp_path / "run", epochs=99.0)
    finally:
        other.kill()  # the lock goes with the process
        other.communicate()
    assert resume(tmp_path / "run", epochs=2 * finished.settings.epochs).is_finished


def test_what_may_change_the_last_bits_is_said(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    described = json.loads(file.read_text())
    described["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(described))
    said = []
    resume(tmp_path / "run", epochs=2 * finished.settings.epochs, notify=said.append)
    assert said[0].startswith("torch was 1.0 and is ")
    assert "numbers may differ in their last bits from here on" in said[0]


def test_how_often_the_state_is_saved_changes_no_number(finished, tmp_path, monkeypatch):
    kept = []

    def kept_now(shown):
        kept.append(latest_checkpoint(tmp_path / "run" / "checkpoints").step)

    run = pretrain(
        DIGITS, out=tmp_path / "run", save_every=0.0, keep=3, on_step_end=kept_now, **TINY, steps=4
    )
    assert kept == [0, 1, 2, 3]
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.json"))
    assert found == [f"step-{step:09d}.json" for step in (2, 3, 4)]
    assert equal(weights(run), weights(finished))
    assert metrics(tmp_path / "run") == metrics(finished.folder)


def test_how_often_is_kept_for_those_that_go_on(tmp_path):
    pretrain(DIGITS, out=tmp_path / "run", save_every=0.0, keep=4, stop=after(1), **TINY, steps=4)
    resume(tmp_path / "run", stop=after(2))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.glob("*.json")) == [
        f"step-{step:09d}.json" for step in (0, 1, 2, 3)
    ]
    resume(tmp_path / "run", save_every=9.0)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["saving"] == {"seconds": 9.0, "keep": 4}
    with pytest.raises(RangeError, match="save_every must be at least 0 seconds and finite, got -1"):
        pretrain(DIGITS, out=tmp_path / "other", save_every=-1.0, **TINY, steps=1)


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000000004.safetensors").write_bytes(b"")
    said = []
    again = resume(tmp_path / "run", notify=said.append)
    assert "a newer checkpoint is damaged and left out: step-000000004" in said[0]
    assert equal(weights(again), weights(finished))


def test_something_at_the_output_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(FileExistsError, match="run"):
        pretrain(DIGITS, out=tmp_path / "run", **TINY, steps=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_chunks_and_checkpointing_take_the_steps_of_the_whole_batch():
    settings = TINY | {"steps": 3, "batch_size": 33, "num_evals": 1}
    whole = pretrain(DIGITS, **settings)
    for way in ({"chunks": 4}, {"checkpointing": True}):
        other = pretrain(DIGITS, **settings, **way)
        assert other.report["end"]["loss"] == pytest.approx(whole.report["end"]["loss"], abs=1e-5)
        for name, value in weights(whole).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=2e-5, msg=f"{way} {name}")
    with pytest.raises(ConfigError, match="chunks drop activations by themselves"):
        pretrain(DIGITS, **settings, chunks=3, checkpointing=True)


@pytest.mark.parametrize(
    ("head", "said"), [({}, "step [0-9]+: "), ({"head": "none", "batch_norm": "layer"}, "step [0-9]+: ")]
)
def test_a_rate_that_is_far_too_high_stops_the_run_and_keeps_the_last_good_state(head, said, tmp_path):
    settings = TINY | {"steps": 6, "num_evals": 6, "optimizer.warm_up": 0.0} | head
    with pytest.raises(CollapseError, match=said) as caught:
        pretrain(DIGITS, out=tmp_path / "run", **{"optimizer.learning_rate": 1e12}, **settings)
    assert f"the state after step 0 is kept in {tmp_path / 'run'}" in str(caught.value)
    kept = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert all(bool(value.isfinite().all()) for value in kept.tensors.values())
    assert not (tmp_path / "run" / "encoder.json").exists()


def test_weights_that_break_in_the_last_step_are_not_kept(tmp_path, monkeypatch):
    """The loss of the step that breaks them is fine; none comes after it that would show it."""
    step = torch.optim.SGD.step

    def broken(self, *given):
        step(self, *given)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))

    with pytest.raises(CollapseError, match=r"step 1: model.encoder.backbone.* is not finite any more"):
        pretrain(
            DIGITS, out=tmp_path / "run", **TINY | {"num_evals": 0}, steps=1,
            on_fit_start=lambda _: monkeypatch.setattr(torch.optim.SGD, "step", broken),
        )  # fmt: skip
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").step == 0


def test_an_evaluation_that_finds_a_collapse_stops_the_run(tmp_path, monkeypatch):
    seen = {"loss": 1.0, "mean_cosine": 0.99999, "effective_rank_z": 1.0, "width_z": 16.0}
    monkeypatch.setattr("querykey.pretraining.run.monitor", lambda *_, **__: seen)
    with pytest.raises(CollapseError, match=r"step 2: the projections have collapsed.*after step 0 is kept"):
        pretrain(DIGITS, out=tmp_path / "run", **TINY, steps=4)
    looks = [r for r in read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "look"]
    assert [look["step"] for look in looks] == [0, 2]  # what was seen is on record


def test_fewer_images_than_a_batch_are_all_of_them_and_said(tmp_path):
    images, said = put_stripes(tmp_path / "images", count=10), []
    settings = TINY | {"batch_size": 64, "held_out": 0, "views.size": None, "num_evals": 0}
    run = pretrain(images, notify=said.append, steps=2, **settings)
    assert run.settings.batch_size == 20
    assert said == ["20 images to train on: lowered batch_size 64 to all of them"]
    again = pretrain(images, steps=2, **settings | {"held_out": 2})
    assert again.settings.batch_size == 18


def test_held_out_images_are_never_trained_on_and_labels_never_used(tmp_path):
    begun = []
    labelled = pretrain(DIGITS, on_fit_start=begun.append, **TINY, steps=2)
    split_data, images = begun[0].split_data, begun[0].images
    held = split_data.sample[split_data.queries]
    assert len(held) == 40
    assert not torch.isin(held, split_data.train).any()
    assert len(split_data.train) == 1797 - 40
    trained = {int(row) for pair in images.walk(0, 60) for row in images.rows[pair.ids]}
    assert trained <= set(split_data.train.tolist())
    assert labelled.report["end"]["knn_queries"] == 40
    assert labelled.report["start"]["knn_bank"] == len(split_data.sample) - 40


def test_images_without_labels_have_no_knn_and_nothing_held_out(tmp_path):
    images = put_stripes(tmp_path / "images")
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    begun = []
    settings = TINY | {"batch_size": 8, "views.size": None}
    run = pretrain(flat, on_fit_start=begun.append, steps=2, **settings)
    assert len(begun[0].split_data.train) == 24
    assert "knn" not in run.report["end"]
    assert run.report["end"]["pretext"] <= 1


def test_the_untrained_baseline_is_the_network_after_its_start(finished):
    """Only small_cnn starts from the images; what evaluation calls untrained has had that too."""
    begun = []
    pretrain(DIGITS, on_fit_start=lambda course: begun.append(weights_of(course)), **TINY, steps=1)
    untrained = load_file(finished.folder / "untrained.safetensors")
    assert equal(untrained, begun[0])


def weights_of(course):
    return {name: value.clone() for name, value in course.learner.encoder.state_dict().items()}


def test_a_folder_of_a_run_that_is_not_finished_is_no_model_yet(tmp_path):
    half = pretrain(DIGITS, out=tmp_path / "run", stop=after(1), **TINY, steps=3)
    assert half.folder == tmp_path / "run"
    with pytest.raises(ValueError, match=r"not finished; resume it with querykey resume"):
        load_encoder(tmp_path / "run")


def test_metrics_have_steps_and_evaluations(finished):
    records = read(finished.folder / "metrics.jsonl")
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "seconds", "view_seconds"} <= set(steps[0])
    looks = [r for r in records if r["kind"] == "look"]
    assert [r["step"] for r in looks] == [0, 2, 4]
    assert {"knn", "effective_rank_h", "effective_rank_z", "alignment", "uniformity", "pretext"} <= set(
        looks[0]
    )


def test_tensorboard_shows_every_step_once_also_of_a_stopped_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TINY | {"steps": 4}
    pretrain(DIGITS, out=tmp_path / "run", stop=after(2), **settings)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("step/loss")] == [1, 2]
    resume(tmp_path / "run")
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("step/loss")] == [1, 2, 3, 4]
    assert [event.step for event in shown.Scalars("look/knn")] == [0, 2, 4]
    losses = [r["loss"] for r in read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "step"]
    assert [event.value for event in shown.Scalars("step/loss")] == pytest.approx(losses)


def test_without_tensorboard_there_are_records_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("querykey.runs.pretrain_callbacks.find_spec", lambda _: None)
    pretrain(DIGITS, out=tmp_path / "run", **TINY, steps=1)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "metrics.jsonl").exists()
