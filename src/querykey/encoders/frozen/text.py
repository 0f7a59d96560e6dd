"""Frozen text models: sentence-transformers, with their own tokenizer, pooling and prompts."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from querykey.encoders.frozen.fingerprint import combined_digest, describe, state_digest
from querykey.encoders.frozen.model import Kind, freeze, require_rows
from querykey.errors import MissingExtraError, SourceError, first_line
from querykey.io.paths import expand_user

__all__ = ["SentenceModel", "load_sentence_transformer"]


class SentenceModel:
    """A SentenceTransformer as a frozen model.

    Args:
        model: Its own tokenizer, pooling and normalisation are used as they are.
        prompt: Put before every text; None for none.
        device: Where it runs.
    """

    kind: Kind = "text"
    fixed_dtype = False
    has_layouts = False

    def __init__(self, model: Any, *, prompt: str | None, device: torch.device) -> None:
        self.model = freeze(model, device)
        self.prompt = prompt
        self.identity = _identity(model, prompt)

    def blank(self) -> str:
        # as long as a paragraph: on a word alone, starting the kernels is all the time there is
        return "text " * 64

    def prepare(self, item: str) -> str:
        return item

    def forward(self, batch: Sequence[str], *, dtype: torch.dtype, channels_last: bool) -> Tensor:
        del channels_last  # texts have no channels
        model: Any = self.model
        model.eval()
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            # an empty prompt, not None: None would bring the model's default prompt back
            features = model.encode(
                list(batch),
                prompt=self.prompt or "",
                batch_size=len(batch),
                convert_to_tensor=True,
                show_progress_bar=False,
            )
        return require_rows(features, len(batch), "the model")


def load_sentence_transformer(name: str, *, device: torch.device, prompt: str | None = None) -> SentenceModel:
    """A sentence-transformers model from this machine; nothing is downloaded.

    Args:
        name: A folder; or an installed package that has the model in its folder `model`; or a
            name whose model is in the local cache already.
        device: Where it runs.
        prompt: One of the model's own prompts by name ("query"), or the text itself ("query: ").
            None: the model's default prompt, where it has one.

    Returns:
        A frozen model of texts.

    Raises:
        MissingExtraError: If sentence-transformers is not installed.
        SourceError: If there is no such model here, or it cannot be loaded.
    """
    try:
        with _quiet():
            from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(
            "sentence-transformers", extra="text", purpose=f"the model st:{name}"
        ) from error
    found = _folder(name)
    if found is None and _is_path(name):
        raise SourceError(f"st:{name}: there is no such folder; give a folder with a model, or its name")
    try:
        with _quiet():
            model = SentenceTransformer(
                str(found or name), device=str(device), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the library raises a dozen kinds for one cause
        first = first_line(error)
        where = "its folder holds no whole model" if found else "it is not on this machine"
        raise SourceError(
            f"st:{name} cannot be loaded: {where} ({first}); give a folder that SentenceTransformer.save "
            "wrote, a package that ships one, or a name that was downloaded before"
        ) from error
    if prompt is None:
        text = model.prompts.get(model.default_prompt_name)
    else:
        text = model.prompts.get(prompt, prompt)
    return SentenceModel(model, prompt=text or None, device=device)


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _folder(name: str) -> Path | None:
    """The folder that a name means, if it means one."""
    path = expand_user(name)
    if path.is_dir():
        return path
    if not name.isidentifier():
        return None
    package = importlib.util.find_spec(name)
    for place in (package.submodule_search_locations or ()) if package else ():
        if (Path(place) / "model").is_dir():
            return Path(place) / "model"
    return None


def _identity(model: Any, prompt: str | None) -> str:
    """Weights, and all the configuration that turns a text into a row."""
    parts: dict[str, Any] = {
        "weights": state_digest(model),
        "network": describe(model),
        "prompt": prompt or "",
    }
    parts["length"] = str(model.max_seq_length)
    parts["truncated to"] = str(model.truncate_dim)
    tokenizer = model.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts["tokenizer"] = describe(tokenizer)
    else:
        rules = json.loads(backend.to_str())
        # a call leaves its own padding and truncation here
        parts["tokenizer"] = {key: rules[key] for key in rules if key not in ("padding", "truncation")}
    for place, module in enumerate(model):
        config: Any = getattr(module, "get_config_dict", dict)()
        parts[f"module {place}"] = describe(sorted(config.items()))
    return combined_digest(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the library: the command line has one already."""
    try:
        from transformers.utils.logging import (
            disable_progress_bar,
            enable_progress_bar,
            is_progress_bar_enabled,
        )
    except ImportError:
        yield
        return
    shown = is_progress_bar_enabled()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()  # type: ignore[no-untyped-call]
