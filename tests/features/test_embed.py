"""From a source to a store: once, resumable, and made again only when something changed."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_toys import (
    WORDS,
    LetterModel,
    SomeDamaged,
    image_encoder,
    image_source,
    images,
    text_encoder,
    text_source,
)

from querykey.data.items import Source
from querykey.encoders.frozen.batch_size import BatchPlan
from querykey.errors import (
    ConfigError,
    DataError,
    OutputError,
    OutputExistsError,
    RangeError,
    SourceError,
)
from querykey.features.embed import embed, features_key
from querykey.features.features import read_features


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def said():
    return []


def test_rows_ids_labels_and_previews_are_kept(tmp_path, said):
    labels = [0, 1, -1, 0, 1, 0, 1, 0, 1]
    long = ["line one\n line two " + "x" * 500, *WORDS[1:]]
    module = LetterModel()
    done = []
    features = embed(
        text_source(long, labels), text_encoder(module), tmp_path / "f", shard_size=4,
        progress=lambda *of: done.append(of), notify=said.append,
    )  # fmt: skip
    with torch.no_grad():
        assert torch.allclose(features.vectors, module(long), atol=1e-6)
    assert list(features.ids) == [f"t{row}" for row in range(9)]
    assert features.labels.tolist() == labels
    assert features.label_names == ("a", "b")
    assert features.previews[0].startswith("line one line two xxx")
    assert len(features.previews[0]) == 100
    assert features.previews[1] == ""
    assert features.meta["source"] == {
        "name": "texts.csv", "kind": "text", "fingerprint": features.meta["source"]["fingerprint"], "rows": 9,
    }  # fmt: skip
    assert features.meta["model"]["spec"] == "toy:letters"
    assert features.meta["model"]["plan"] == {"batch_size": 32, "channels_last": False}
    assert done[-1] == (9, 9)
    assert [count for count, _ in done] == sorted(count for count, _ in done)
    assert said == []
    assert names_in(tmp_path) == ["f"]


def test_trap_5_9_the_model_does_not_run_when_nothing_changed(tmp_path, said):
    module = LetterModel()
    source = text_source(WORDS)
    first = embed(source, text_encoder(module), tmp_path / "f")
    encoder = text_encoder(module)
    again = embed(source, encoder, tmp_path / "f", notify=said.append, shard_size=3, batch_size=2)
    assert module.batches == []
    assert torch.equal(first.vectors, again.vectors)
    assert said == []


@pytest.mark.parametrize("change", ["weights", "dtype", "data", "labels", "stored dtype", "queries", "pairs"])
def test_trap_5_9_cache_key_covers(change, tmp_path, said):
    """Change any one and it embeds again, saying so."""
    queries = text_source(["cat", "dog"], name="queries")
    pairs = np.array([[0, 3, 1], [1, 4, 1]])
    labels = [0] * 9
    source = text_source(WORDS, labels, queries=queries, pairs=pairs)
    embed(source, text_encoder(), tmp_path / "f")
    module, dtype, stored = LetterModel(seed=int(change == "weights")), "float32", "float32"
    match change:
        case "dtype":
            dtype = "bfloat16"
        case "stored dtype":
            stored = "float16"
        case "data":
            source = text_source([*WORDS[:-1], "yaks"], labels, queries=queries, pairs=pairs)
        case "labels":
            source = text_source(WORDS, [1] * 9, queries=queries, pairs=pairs)
        case "queries":
            source = replace(source, queries=text_source(["cat", "dogs"], name="queries"))
        case "pairs":
            source = replace(source, pairs=pairs[::-1])
    encoder = text_encoder(module, dtype=dtype)
    features = embed(source, encoder, tmp_path / "f", dtype=stored, notify=said.append)
    assert [re.sub(".*/", "", line) for line in said] == [
        "f was made of other data or by another model; embedding again"
    ]
    assert len(module.seen) == 11
    assert features.meta["key"] == features_key(source, encoder, dtype=stored)
    assert names_in(tmp_path) == ["f"]
    read_features(tmp_path / "f", verify=True)


def test_queries_are_embedded_beside_their_documents(tmp_path):
    module = LetterModel()
    queries = text_source(["cat", "ox"], name="queries")
    source = text_source(WORDS, queries=queries, pairs=np.array([[0, 3, 2], [1, 5, 1]]))
    done = []
    features = embed(source, text_encoder(module), tmp_path / "f", progress=lambda *of: done.append(of))
    with torch.no_grad():
        assert torch.allclose(features.queries.vectors, module(["cat", "ox"]), atol=1e-6)
    assert features.pairs.tolist() == [[0, 3, 2], [1, 5, 1]]
    assert features.queries.meta["source"]["name"] == "queries"
    assert done[-1] == (11, 11)


def test_damaged_images_are_skipped_counted_and_listed(tmp_path, said):
    whole = images(60)
    source = image_source(SomeDamaged(whole, [5, 40]), labels=[0, 1] * 30)
    encoder = image_encoder()
    done = []
    features = embed(
        source,
        encoder,
        tmp_path / "f",
        shard_size=16,
        notify=said.append,
        progress=lambda *of: done.append(of),
    )
    kept = [row for row in range(60) if row not in (5, 40)]
    assert torch.allclose(features.vectors, encoder.encode([whole[row] for row in kept]), atol=1e-5)
    assert list(features.ids) == [f"{row}.png" for row in kept]
    assert features.labels.tolist() == [row % 2 for row in kept]
    assert list(features.previews) == list(features.ids)
    assert features.meta["skipped"] == [
        {"row": 5, "id": "5.png", "reason": "5.png is empty (0 bytes)"},
        {"row": 40, "id": "40.png", "reason": "40.png is empty (0 bytes)"},
    ]
    assert said == [
        (
            "photos: skipped 2 of 60 items that cannot be read: 5.png is empty (0 bytes); "
            "40.png is empty (0 bytes)"
        )
    ]
    assert done[-1] == (60, 60)


def test_pairs_of_skipped_items_go_and_the_others_are_renumbered(tmp_path):
    queries = image_source(SomeDamaged(images(21, seed=1), [0]))
    pairs = np.array([[0, 1, 1], [1, 5, 1], [2, 4, 1], [20, 6, 3]])
    source = replace(image_source(SomeDamaged(images(40), [5])), queries=queries, pairs=pairs)
    features = embed(source, image_encoder(), tmp_path / "f")
    assert features.pairs.tolist() == [[1, 4, 1], [19, 5, 3]]
    for query, item, _ in features.pairs.tolist():
        assert int(features.queries.ids[query][:-4]) in (2, 20)
        assert int(features.ids[item][:-4]) in (4, 6)


def test_more_than_a_twentieth_damaged_is_an_error(tmp_path):
    source = image_source(SomeDamaged(images(40), [1, 3, 7]))
    with pytest.raises(
        DataError,
        match=r"photos: 3 of the first 40 items \(of 40\) cannot be read, more than 5% of all: "
        r"1\.png is empty \(0 bytes\); 3\.png",
    ):
        embed(source, image_encoder(), tmp_path / "f")
    assert names_in(tmp_path) == []
    embed(image_source(SomeDamaged(images(40), [1, 3])), image_encoder(), tmp_path / "f")


class _Broken(LetterModel):
    def forward(self, texts):
        out = super().forward(texts)
        return torch.where(torch.tensor([["o" in text] for text in texts]), torch.nan, out)


def test_features_that_are_not_finite_are_an_error_and_named(tmp_path):
    with pytest.raises(
        DataError, match=r"toy:letters returned NaN or infinity .* for 4 items of texts.csv \(t2, t4, t5"
    ):
        embed(text_source(WORDS), text_encoder(_Broken()), tmp_path / "f")
    assert names_in(tmp_path) == []


def test_float16_that_overflows_is_an_error(tmp_path):
    module = LetterModel()
    with torch.no_grad():
        module.linear.bias += 1e6
    with pytest.raises(DataError, match=r"in torch.float16 for 9 items"):
        embed(text_source(WORDS), text_encoder(module), tmp_path / "f", dtype="float16")
    assert embed(text_source(WORDS), text_encoder(module), tmp_path / "f").vectors.isfinite().all()


def test_a_model_of_another_kind(tmp_path):
    with pytest.raises(
        SourceError, match=r"texts.csv contains texts and toy:shaky takes images; choose another"
    ):
        embed(text_source(WORDS), image_encoder(), tmp_path / "f")
    vectors = Source("x.npy", "vector", np.ones((2, 2)), ["a", "b"], None, (), "0")
    with pytest.raises(SourceError, match=r"x.npy contains vectors .*; these are features already"):
        embed(vectors, text_encoder(), tmp_path / "f")
    with pytest.raises(DataError, match=r"texts.csv contains no items"):
        embed(text_source([]), text_encoder(), tmp_path / "f")


def test_settings_out_of_range(tmp_path):
    for wrong in ({"batch_size": 0}, {"shard_size": 0}):
        with pytest.raises(RangeError, match="must be >= 1, got 0"):
            embed(text_source(WORDS), text_encoder(), tmp_path / "f", **wrong)
    with pytest.raises(ConfigError, match="the dtype of a store is float32 or float16, not int8"):
        embed(text_source(WORDS), text_encoder(), tmp_path / "f", dtype="int8")


def test_a_folder_that_is_no_store_is_not_changed(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "thesis.txt").write_text("mine")
    module = LetterModel()
    with pytest.raises(OutputExistsError, match="exists and is no feature store; give another path"):
        embed(text_source(WORDS), text_encoder(module), tmp_path / "f")
    assert (tmp_path / "f" / "thesis.txt").read_text() == "mine"
    assert module.batches == []


def test_a_damaged_store_is_made_again(tmp_path, said):
    embed(text_source(WORDS), text_encoder(), tmp_path / "f")
    (tmp_path / "f" / "vectors.npy").write_bytes(b"")
    features = embed(text_source(WORDS), text_encoder(), tmp_path / "f", notify=said.append)
    assert len(features) == 9
    assert said[0].endswith("make it again with querykey embed: embedding again")


class _Stops(LetterModel):
    """Raises at its n-th batch, as Ctrl-C or a crash does."""

    def __init__(self, at, error):
        super().__init__()
        self.at = at
        self.error = error

    def forward(self, texts):
        if len(self.batches) == self.at:
            raise self.error
        return super().forward(texts)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the machine is tired")])
def test_an_interrupted_embedding_is_resumed(tmp_path, said, error):
    source = text_source(WORDS)
    with pytest.raises(type(error)):
        embed(source, text_encoder(_Stops(2, error)), tmp_path / "f", shard_size=2, batch_size=2)
    assert names_in(tmp_path) == ["f.querykey"]
    module = LetterModel()
    done = []
    features = embed(
        source, text_encoder(module), tmp_path / "f", notify=said.append, progress=lambda *of: done.append(of)
    )
    assert sorted(module.seen) == sorted(WORDS[4:])  # two shards of two were there
    assert module.batches[0] == sorted(WORDS[4:6], key=len, reverse=True)  # in shards of the first run
    assert features.meta["model"]["plan"]["batch_size"] == 2
    assert len(said) == 1
    assert said[0].startswith("resuming from ")
    assert done[-1] == (9, 9)
    assert torch.equal(
        features.vectors, embed(source, text_encoder(), tmp_path / "g", shard_size=2, batch_size=2).vectors
    )
    assert names_in(tmp_path) == ["f", "g"]


def test_shards_of_another_source_are_not_resumed(tmp_path, said):
    with pytest.raises(KeyboardInterrupt):
        embed(text_source(WORDS), text_encoder(_Stops(2, KeyboardInterrupt())), tmp_path / "f", shard_size=2)
    module = LetterModel(seed=1)
    embed(text_source(WORDS), text_encoder(module), tmp_path / "f", notify=said.append)
    assert said[0].endswith("is of other data or another model; starting again")
    assert sorted(module.seen) == sorted(WORDS)


def test_an_old_store_stays_until_the_new_one_is_whole(tmp_path):
    old = embed(text_source(WORDS), text_encoder(), tmp_path / "f").vectors.clone()
    with pytest.raises(KeyboardInterrupt):
        embed(
            text_source(WORDS * 2), text_encoder(_Stops(1, KeyboardInterrupt())), tmp_path / "f", shard_size=9
        )
    assert torch.equal(read_features(tmp_path / "f", verify=True).vectors, old)
    assert len(embed(text_source(WORDS * 2), text_encoder(), tmp_path / "f")) == 18


def test_a_shard_that_the_disk_lost_is_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed(text_source(WORDS), text_encoder(_Stops(3, KeyboardInterrupt())), tmp_path / "f", shard_size=2)
    shard = tmp_path / "f.querykey" / "content" / "items" / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])
    module = LetterModel()
    features = embed(text_source(WORDS), text_encoder(module), tmp_path / "f")
    assert sorted(module.seen) == sorted(WORDS[2:4] + WORDS[6:])
    with torch.no_grad():
        assert torch.allclose(features.vectors, module(WORDS), atol=1e-6)


@pytest.mark.parametrize("at", [0, 1, 3, 8, 14])
def test_a_full_disk_is_one_message_and_loses_nothing(tmp_path, monkeypatch, at):
    """ENOSPC at the n-th forcing of a file to the disk: the manifest, a shard, the last files."""
    calls = []
    real = os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OutputError, match=r"cannot be written: the disk is full; free some space and run it again"
    ):
        embed(text_source(WORDS), text_encoder(), tmp_path / "f", shard_size=3)
    monkeypatch.setattr(os, "fsync", real)
    assert not (tmp_path / "f").exists()
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    module = LetterModel()
    features = embed(text_source(WORDS), text_encoder(module), tmp_path / "f")
    with torch.no_grad():
        want = module(WORDS)
    assert torch.allclose(features.vectors, want, atol=1e-6)
    assert names_in(tmp_path) == ["f"]


def test_an_output_that_may_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written: .* is not a folder; give another path"):
        embed(text_source(WORDS), text_encoder(), tmp_path / "file" / "f")


def test_large_sources_are_measured_once_and_the_plan_is_kept(tmp_path, monkeypatch):
    source = text_source([f"text {row}" for row in range(300)])
    encoder = text_encoder(_Stops(-1, None))
    plans = []
    monkeypatch.setattr(encoder, "measure", lambda items, batch_size: plans.append(batch_size))
    encoder.plan = BatchPlan(batch_size=5)
    features = embed(source, encoder, tmp_path / "f", batch_size=5)
    assert plans == [5]
    assert features.meta["model"]["plan"]["batch_size"] == 5


KILLED = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from frozen_toys import LetterModel, text_encoder, text_source
    from querykey.features.embed import embed

    class Slow(LetterModel):
        def forward(self, texts):
            time.sleep(0.02)
            return super().forward(texts)

    texts = [chr(97 + row % 26) * (1 + row % 7) for row in range(200)]
    embed(text_source(texts), text_encoder(Slow()), sys.argv[1], shard_size=4, batch_size=4)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_loses_the_current_shard_at_most(tmp_path):
    texts = [chr(97 + row % 26) * (1 + row % 7) for row in range(200)]
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parents[1]))
    out = tmp_path / "f"
    running = subprocess.Popen([sys.executable, "-c", script, str(out)])
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "f.querykey").glob("content/items/*.safetensors"))) < 4:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        running.kill()  # SIGKILL
        running.wait()
    assert not out.exists()
    finished = len(list((tmp_path / "f.querykey").glob("content/items/*.safetensors")))
    module = LetterModel()
    features = embed(text_source(texts), text_encoder(module), out)
    assert len(module.seen) == 200 - 4 * finished
    with torch.no_grad():
        assert torch.allclose(features.vectors, module(texts), atol=1e-6)
    assert torch.equal(
        features.vectors,
        embed(text_source(texts), text_encoder(), tmp_path / "h", shard_size=4, batch_size=4).vectors,
    )
    read_features(out, verify=True)
