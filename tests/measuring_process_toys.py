"""Embedding and evaluating, for the tests of what several processes do together."""

import hashlib
import json
from pathlib import Path

import torch
from frozen_toys import WORDS, LetterModel, text_encoder, text_source

from querykey.features.embed import embed
from querykey.runs.data import DataAt
from querykey.runs.evaluate_encoder import evaluate_encoder

TIMED = ("seconds",)


def embedded_and_evaluated(processes, folder, images):
    """Digests of the features that are written, and every number of an evaluation."""
    said, model = [], LetterModel()
    features = embed(
        text_source(WORDS, [0, 1, -1, 0, 1, 0, 1, 0, 1]), text_encoder(model), f"{folder}/features",
        batch_size=2, shard_size=2,
        notify=said.append,
    )  # fmt: skip
    assert said == []
    found = evaluate_encoder(
        f"{images}/run", DataAt(f"{images}/test"), train=DataAt(f"{images}/train"), fine_tuning="h", epochs=1
    )
    files = sorted(path for path in Path(folder, "features").rglob("*") if path.is_file())
    dated = ("meta.json",)
    return {
        "rank": torch.tensor(processes.rank),
        "encoded": torch.tensor(len(model.seen)),
        "vectors": torch.as_tensor(features.vectors[:]),
        "files": _bytes(
            {path.name: path.name in dated or hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        ),
        "left": torch.tensor([path.name != "features" for path in Path(folder).glob("features*")]),
        "table": _bytes(_untimed(found.as_dict())),
    }


def _untimed(value):
    if isinstance(value, dict):
        return {name: _untimed(part) for name, part in value.items() if name not in TIMED}
    return value


def _bytes(value):
    return torch.frombuffer(bytearray(json.dumps(value, sort_keys=True).encode()), dtype=torch.uint8)
