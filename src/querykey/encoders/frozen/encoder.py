"""A frozen model: encodes items as features, and has a key that identifies the features."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.frozen.batch_size import BatchPlan, faster_dtype, measure_plan
from querykey.encoders.frozen.fingerprint import combined_digest
from querykey.encoders.frozen.model import FrozenModel, Kind, usable_device
from querykey.errors import (
    ConfigError,
    DamagedItemError,
    QuerykeyError,
    RangeError,
    ShapeError,
    SourceError,
    is_out_of_memory,
)
from querykey.io.images import as_image
from querykey.types import Rows

__all__ = ["FrozenEncoder", "load_frozen_encoder"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_WORKERS = 4
_MEASURED_ON = 16
_BATCHED = 512
"""Texts whose lengths tell about padding: those of a shard, within which `embed` batches by length."""

_Prepared = tuple[int, Any]


class FrozenEncoder:
    """A model without training: no gradient, and eval mode and inference mode in every forward pass.

    Batch norm and dropout do not change its features, even if `.train()` is called on the module.

    Args:
        model: The model; see `load_frozen_encoder`.
        spec: Its name, as given by the user.
        dtype: "float32"; "bfloat16" uses autocast, which changes features in the third digit; "auto" uses
            bfloat16 if it is measured to be faster. The dtype is part of the key.
        prompt: The text before every item, for the records.

    Raises:
        ConfigError: If the dtype does not exist, or differs from the fixed one of the model.
        ShapeError: If the model does not return one row per item.
        SourceError: If it raises an error for a blank item.
    """

    @in_default_torch_state
    def __init__(
        self, model: FrozenModel, *, spec: str, dtype: str = "float32", prompt: str | None = None
    ) -> None:
        if dtype not in (*_DTYPES, "auto"):
            raise ConfigError(f"dtype {dtype!r} is not known; it is float32, bfloat16 or auto")
        if model.fixed_dtype and dtype == "bfloat16":
            raise ConfigError(f"{spec} computes in the dtype it was exported with; use dtype float32")
        self.spec = spec
        self.kind: Kind = model.kind
        self.prompt = prompt
        self.plan = BatchPlan()
        self._model = model
        try:
            self._dtype = faster_dtype(model) if dtype == "auto" else _DTYPES[dtype]
            self.dim = int(self._forward([model.prepare(model.blank())]).shape[1])
        except QuerykeyError:
            raise
        except Exception as error:  # a user-defined model can raise any error
            raise SourceError(
                f"{spec} cannot encode a blank item ({type(error).__name__}: {error}); "
                "its preprocessing does not fit its input"
            ) from error

    @property
    def dtype(self) -> str:
        """The dtype of the computation: "float32" or "bfloat16"."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def key(self) -> str:
        """sha256 of weights, preprocessing, pooling, prompt and dtype."""
        return combined_digest({"model": self._model.identity, "dtype": self.dtype})

    @in_default_torch_state
    def measure(self, items: Sequence[Any] | NDArray[Any], *, batch_size: int | None = None) -> BatchPlan:
        """Measure the batch size and layout on some items, and use them from now on.

        Args:
            items: To be encoded; the first few that can be read are used. Of texts, which are batched by
                length, it is one of middle length, and the padding of the first 512 counts.
            batch_size: >= 1; None: measured.

        Returns:
            The plan, which `encode` uses; unchanged without a readable item.

        Raises:
            RangeError: If batch_size is not positive.
        """
        if batch_size is not None and batch_size < 1:
            raise RangeError(f"batch_size must be >= 1, got {batch_size}")
        texts: list[str] = []
        if self.kind == "text":
            texts = [items[place] for place in range(min(len(items), _BATCHED))]
            texts.sort(key=len, reverse=True)
            some = [self._model.prepare(one) for one in texts[len(texts) // 2 :][:1]]
        else:
            some = self._first(items)
        if some:
            lengths = [len(one) for one in texts]
            self.plan = measure_plan(
                self._model, some, dtype=self._dtype, batch_size=batch_size, lengths=lengths
            )
        return self.plan

    @in_default_torch_state
    def encode(
        self,
        items: Sequence[Any] | NDArray[Any],
        *,
        on_damaged: Callable[[int, DamagedItemError], None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Rows:
        """Features of items, in their order.

        Images are read and prepared by a few threads, one batch ahead of the model. Texts are sorted by
        length, so that a batch has little padding. If a batch does not fit into memory, the batch size is
        halved from then on.

        Args:
            items: Images, texts or vectors, as `kind` says; `items[i]` may be lazy. An image is a
                PIL image, a path, bytes, an array or a tensor, decoded like the files of a source.
            on_damaged: Called with the index of an item that cannot be read, which then has no row; None: the
                error is raised.
            on_progress: Called after each batch with its number of items, including damaged ones.

        Returns:
            float32 [items that could be read, dim], on the CPU.

        Raises:
            DamagedItemError: If an item cannot be read and `on_damaged` is not given.
            ShapeError: If the width of the features changes.
        """
        features = torch.empty(len(items), self.dim)
        is_read = torch.ones(len(items), dtype=torch.bool)
        for batch, damaged in self._batches(items):
            for place, error in damaged:
                if on_damaged is None:
                    raise error
                on_damaged(place, error)
                is_read[place] = False
            if batch:
                rows = self._forward([prepared for _, prepared in batch])
                if rows.shape[1] != self.dim:
                    raise ShapeError(f"{self.spec} gave features of width {rows.shape[1]} after {self.dim}")
                features[[place for place, _ in batch]] = rows
            if on_progress is not None:
                on_progress(len(batch) + len(damaged))
        return features if bool(is_read.all()) else features[is_read]

    def _first(self, items: Sequence[Any] | NDArray[Any]) -> list[Any]:
        """A few prepared items, those that can be read."""
        some: list[Any] = []
        for place in range(min(len(items), 2 * _MEASURED_ON)):
            try:
                some.append(self._model.prepare(self._item(items[place], place)))
            except DamagedItemError:
                continue
            if len(some) == _MEASURED_ON:
                break
        return some

    def _item(self, item: Any, place: int) -> Any:
        """Images converted to PIL; texts and vectors unchanged."""
        return as_image(item, what=f"image {place}") if self.kind == "image" else item

    def _forward(self, batch: list[Any]) -> Tensor:
        try:
            with torch.inference_mode():
                features = self._model.forward(
                    batch, dtype=self._dtype, channels_last=self.plan.channels_last
                )
                return features.float().cpu()
        except RuntimeError as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
        half = len(batch) // 2
        self.plan = BatchPlan(batch_size=half, channels_last=self.plan.channels_last)
        return torch.cat([self._forward(batch[:half]), self._forward(batch[half:])])

    def _batches(
        self, items: Sequence[Any] | NDArray[Any]
    ) -> Iterator[tuple[list[_Prepared], list[tuple[int, DamagedItemError]]]]:
        """(prepared items with their indices, damaged indices) of each batch, one batch ahead."""
        places = list(range(len(items)))
        if self.kind == "text":
            items = list(items)
            places.sort(key=lambda place: -len(items[place]))

        def read(place: int) -> Any:
            return self._model.prepare(self._item(items[place], place))

        start = 0
        if self.kind != "image":  # nothing is decoded: a thread would cost more than the work
            while start < len(places):
                coming = places[start : start + self.plan.batch_size]
                start += len(coming)
                yield _gathered([(place, partial(read, place)) for place in coming])
            return
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="prepare")
        try:
            ahead = list[tuple[int, Future[Any]]]()
            while start < len(places) or ahead:
                now = ahead
                coming = places[start : start + self.plan.batch_size]
                start += len(coming)
                ahead = [(place, pool.submit(read, place)) for place in coming]
                if now:
                    yield _gathered([(place, future.result) for place, future in now])
        finally:
            pool.shutdown(cancel_futures=True)


def _gathered(
    items: list[tuple[int, Callable[[], Any]]],
) -> tuple[list[_Prepared], list[tuple[int, DamagedItemError]]]:
    prepared, damaged = list[_Prepared](), list[tuple[int, DamagedItemError]]()
    for place, prepare in items:
        try:
            prepared.append((place, prepare()))
        except DamagedItemError as error:
            damaged.append((place, error))
    return prepared, damaged


@in_default_torch_state
def load_frozen_encoder(
    spec: str, *, device: str = "cpu", prompt: str | None = None, dtype: str = "float32"
) -> FrozenEncoder:
    """Load a frozen model by name, without downloading.

    Args:
        spec: `timm:NAME[@weights.safetensors|.pth|random]`, `st:NAME-OR-FOLDER`,
            `module:factory`, or `FILE.onnx`.
        device: Of the model.
        prompt: For `st:` models: one of the model's prompts by name, or the text itself.
        dtype: "float32", "bfloat16", or "auto": bfloat16 if it is measured to be faster. It is part of
            the key, so with "auto" another machine may embed again.

    Returns:
        The frozen encoder.

    Raises:
        SourceError: If the model does not exist or cannot be loaded.
        MissingExtraError: If a package it needs is not installed.
        ConfigError: If a setting does not fit the model.

    Example:
        >>> load_frozen_encoder("resnet50")
        Traceback (most recent call last):
        querykey.errors.SourceError: 'resnet50' is not a model; a model is timm:NAME[@weights], ...
    """
    place = usable_device(device)
    model: FrozenModel
    if spec.startswith("st:"):
        from querykey.encoders.frozen.text import load_sentence_transformer

        sentences = load_sentence_transformer(spec.removeprefix("st:"), device=place, prompt=prompt)
        return FrozenEncoder(sentences, spec=spec, dtype=dtype, prompt=sentences.prompt)
    if prompt is not None:
        raise ConfigError(f"{spec} has no prompt; only st: models have one, leave it out")
    if spec.startswith("timm:"):
        from querykey.encoders.frozen.image import load_timm

        model = load_timm(spec.removeprefix("timm:"), device=place)
    elif spec.endswith(".onnx"):
        from querykey.encoders.frozen.onnx import load_onnx

        model = load_onnx(Path(spec), device=place)
    elif (Path(spec) / "adapter.json").is_file():
        raise SourceError(f"{spec} is a run, not a frozen model; load it with querykey.runs.adapt")
    elif _FACTORY.fullmatch(spec):
        from querykey.encoders.frozen.image import load_factory

        model = load_factory(spec, device=place)
    else:
        raise SourceError(
            f"{spec!r} is not a model; a model is timm:NAME[@weights], st:NAME-OR-FOLDER, "
            "module:factory or FILE.onnx"
        )
    return FrozenEncoder(model, spec=spec, dtype=dtype)
