"""Scratch names that can belong to someone else: only what carries our mark is removed."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from frozen_toys import WORDS, LetterModel, text_encoder, text_source
from typer.testing import CliRunner

from querykey import Adapter
from querykey.cli.main import app
from querykey.errors import OutputError
from querykey.features.embed import embed
from querykey.io.atomic import new_file, new_folder, remove_temp_files, replace_dir, reserve, write_atomically
from querykey.io.scratch import MARK, _remove_staged, claim_output, remove_abandoned

WRITE_AND_DIE = """
    import os
    from querykey.io.atomic import new_folder
    with new_folder({out!r}) as folder:
        (folder / "half").write_text("a")
        os.kill(os.getpid(), 9)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def put(folder):
    folder.mkdir(parents=True)
    (folder / "precious").write_text("the only copy")


def is_whole(folder):
    return names(folder) == ["precious"] and (folder / "precious").read_text() == "the only copy"


def fitted():
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    return Adapter(dim=2, steps=0, batch_size=8, validation_fraction=0.0).fit(rows, [0, 1] * 20)


def die_while_writing(out):
    code = textwrap.dedent(WRITE_AND_DIE.format(out=str(out)))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


class Stops(LetterModel):
    def forward(self, texts):
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return super().forward(texts)


def interrupted(out):
    with pytest.raises(KeyboardInterrupt):
        embed(text_source(WORDS), text_encoder(Stops()), out, shard_size=2, batch_size=2)


@pytest.mark.parametrize(
    "name", ["model.partial", ".model.partial", "model.replaced", ".model.querykey", "model.querykey"]
)
def test_a_folder_of_the_user_that_is_called_like_a_scratch_folder_stays(name, tmp_path):
    put(tmp_path / name)
    fitted().save(tmp_path / "model")
    embed(text_source(WORDS), text_encoder(), tmp_path / "store" / "model")
    assert is_whole(tmp_path / name)
    assert names(tmp_path) == sorted([name, "model", "store"])


def test_an_embedding_leaves_a_folder_of_the_user_alone_when_it_resumes_and_replaces(tmp_path):
    for name in ("f.partial", "f.replaced", "f.querykey"):
        put(tmp_path / name)
    interrupted(tmp_path / "f")
    module = LetterModel()
    embed(text_source(WORDS), text_encoder(module), tmp_path / "f", shard_size=2)
    assert sorted(module.seen) == sorted(WORDS[4:])  # resumed, beside the user's folder
    embed(text_source(WORDS[:4]), text_encoder(), tmp_path / "f")
    for name in ("f.partial", "f.replaced", "f.querykey"):
        assert is_whole(tmp_path / name)
    assert names(tmp_path) == ["f", "f.partial", "f.querykey", "f.replaced"]


def test_another_command_keeps_the_shards_of_an_interrupted_embedding(tmp_path):
    """`transform --out X` after an interrupted `embed --out X`."""
    interrupted(tmp_path / "X.npy")
    with new_file(tmp_path / "X.npy") as file:
        np.save(file, np.zeros(2))
    with new_folder(tmp_path / "other"):
        pass
    (tmp_path / "X.npy").unlink()
    module = LetterModel()
    embed(text_source(WORDS), text_encoder(module), tmp_path / "X.npy", shard_size=2)
    assert sorted(module.seen) == sorted(WORDS[4:])
    assert names(tmp_path) == ["X.npy", "other"]


def test_what_a_dead_process_left_is_removed(tmp_path):
    die_while_writing(tmp_path / "run")
    assert names(tmp_path) == [".run.querykey"]
    assert json.loads((tmp_path / ".run.querykey" / MARK).read_text())["target"] == "run"
    with new_folder(tmp_path / "other"):  # another's is not this one's to remove
        pass
    assert names(tmp_path) == [".run.querykey", "other"]
    with new_folder(tmp_path / "run"):
        pass
    assert names(tmp_path) == ["other", "run"]


def test_a_folder_that_was_not_yet_named_is_removed_if_its_owner_is_dead(tmp_path):
    """A process was killed between the calls that make, lock, mark and name its scratch folder."""
    for number, files in enumerate(([], ["lock"], ["lock", MARK])):
        folder = tmp_path / f".run.querykey-{number:012x}"
        folder.mkdir()
        for name in files:
            (folder / name).touch()
    for name in ("0123456789ab", "short"):  # the user's
        put(tmp_path / f".run.querykey-{name}")
    claim_output(tmp_path / "run", resumable=False).release()
    assert names(tmp_path) == [".run.querykey-0123456789ab", ".run.querykey-short"]


def test_a_removal_that_was_interrupted_is_finished(tmp_path, monkeypatch):
    claim = claim_output(tmp_path / "run", resumable=False)
    claim.content.mkdir()
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda folder, **_: rmtree(folder) if folder == claim.content else None
    )
    claim.release()
    monkeypatch.undo()
    (left,) = names(tmp_path)
    assert re.fullmatch(r"\.run\.querykey-[0-9a-f]{12}", left)
    (tmp_path / left / MARK).unlink()
    remove_abandoned(tmp_path / "run")
    assert names(tmp_path) == []


def test_a_claim_survives_the_removal_of_its_unnamed_folder(tmp_path, monkeypatch):
    """Another process takes the folder for that of a dead one before it is locked."""
    made, mkdir = [], Path.mkdir

    def removed_at_once(folder, *given, **options):
        mkdir(folder, *given, **options)
        if not made and ".querykey-" in folder.name:
            made.append(folder)
            _remove_staged(tmp_path / "run")

    monkeypatch.setattr(Path, "mkdir", removed_at_once)
    claim = claim_output(tmp_path / "run", resumable=False)
    assert claim.folder.name == ".run.querykey"
    assert not made[0].exists()
    claim.release()
    assert names(tmp_path) == []


def test_what_a_living_process_writes_is_refused(tmp_path):
    code = f"""
        import sys
        from querykey.io.atomic import reserve
        with reserve({str(tmp_path / "run")!r}):
            print("ready", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match=rf"another process \(number {other.pid} on .*\) is writing it"):
            new_folder(tmp_path / "run").__enter__()
        with pytest.raises(OutputError, match="is writing it; wait until it has ended, or give another"):
            embed(text_source(WORDS), text_encoder(), tmp_path / "run")
        other.stdin.close()
    with new_folder(tmp_path / "run"):
        pass
    assert names(tmp_path) == ["run"]


def test_of_two_claims_at_once_one_is_refused(tmp_path):
    first = claim_output(tmp_path / "run", resumable=False)
    for resumable in (False, True):
        with pytest.raises(OutputError, match="is writing it"):
            claim_output(tmp_path / "run", resumable=resumable)
    first.release()
    claim_output(tmp_path / "run", resumable=True).release()
    assert names(tmp_path) == []


def test_a_claim_is_joined_by_what_writes_to_it_and_left_by_a_mistake_without_a_trace(tmp_path):
    out = tmp_path / "deep" / "run"
    with reserve(out), new_folder(out) as folder:
        (folder / "a").write_text("a")
    assert names(tmp_path / "deep") == ["run"]
    with pytest.raises(ValueError, match="a mistake"), reserve(tmp_path / "more" / "run"):
        raise ValueError("a mistake")
    assert names(tmp_path) == ["deep"]


def test_a_forked_process_has_not_claimed_what_its_parent_has(tmp_path):
    with reserve(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            try:
                with reserve(tmp_path / "run"):
                    os._exit(0)
            except OutputError:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_an_old_store_stays_where_the_new_one_cannot_be_named(tmp_path, monkeypatch):
    put(tmp_path / "f")
    with reserve(tmp_path / "f", overwrite=True, resumable=True) as claim:
        claim.content.mkdir()
        rename = type(tmp_path).rename

        def fails(path, to):
            if path == claim.content:
                raise OSError(5, "Input/output error")
            return rename(path, to)

        monkeypatch.setattr(type(tmp_path), "rename", fails)
        with pytest.raises(OutputError, match="Input/output error"):
            replace_dir(claim, claim.content)
        monkeypatch.undo()
    assert is_whole(tmp_path / "f")


def test_temporary_files_of_others_in_a_run_folder_stay(tmp_path):
    for name in (".notes.2024", ".weights.1.5", ".run.json.querykey-12-0123abcd"):
        (tmp_path / name).write_text("a")
    (tmp_path / ".folder.querykey-12-0123abcd").mkdir()
    remove_temp_files(tmp_path)
    assert names(tmp_path) == [".folder.querykey-12-0123abcd", ".notes.2024", ".weights.1.5"]
    write_atomically(tmp_path / "run.json", [b"{}"])
    assert "run.json" in names(tmp_path)


def test_the_command_leaves_the_users_folder_alone(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    np.savez(tmp_path / "train.npz", X=rows, y=np.arange(60) % 2)
    put(tmp_path / "run.partial")
    fit = ["adapt", tmp_path / "train.npz", "--out", tmp_path / "run", "--labels", "y", "--dim", 2]
    done = CliRunner().invoke(app, [*map(str, fit), "--set", "steps=0", "--set", "batch_size=8"])
    assert done.exit_code == 0, done.output
    export = ["export", tmp_path / "run", "--to", "safetensors", "--out", tmp_path / "exported"]
    assert CliRunner().invoke(app, list(map(str, export))).exit_code == 0
    assert is_whole(tmp_path / "run.partial")
    assert names(tmp_path) == ["exported", "run", "run.partial", "train.npz"]


def test_the_check_of_a_place_leaves_nothing_if_it_is_killed(tmp_path):
    """It made an empty folder, which stayed if the process died before it was removed."""
    code = f"""
        import os, sys
        from querykey.io.atomic import check_new
        sys.addaudithook(lambda event, given: os.kill(os.getpid(), 9) if event == "os.rmdir" else None)
        check_new({str(tmp_path / "run")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert names(tmp_path) == []
