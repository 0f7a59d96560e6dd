"""Weights from a file into a network that has no classifier, whether or not the file has one."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from querykey.errors import MissingPathError, SourceError, first_line

__all__ = ["load_weights"]

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")


def load_weights(
    network: nn.Module, path: Path, *, name: str, classifier: Sequence[str] = (), hint: str = ""
) -> None:
    """Load a file into a network, in place; nothing of it is changed unless all of it fits.

    The weights may lie under `state_dict` or `model`, an average of them under `state_dict_ema`
    or `model_ema` (which goes first), and keys may have the prefixes that DataParallel and
    torch.compile add.

    Args:
        network: Every one of its weights and buffers must be in the file.
        path: A .safetensors file, or a .pth, .pt or .bin file that holds tensors alone.
        name: Of the network, for messages.
        classifier: Modules that the file may have beyond the network.
        hint: What a message adds where a shape differs.

    Raises:
        MissingPathError: If there is no such file.
        SourceError: If the file is damaged, of another kind or of another network.
    """
    if not path.is_file():
        raise MissingPathError(f"{path}: there is no such file; give a file with weights of {name}")
    if path.suffix not in _SUFFIXES:
        raise SourceError(f"{path}: weights are read from {', '.join(_SUFFIXES)}")
    own_format: Any = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        weights = _read(path)
        if own_format is not None:
            weights = dict(own_format(weights, network))
    except Exception as error:  # torch, timm and safetensors each raise their own
        first = first_line(error)
        raise SourceError(
            f"{path} cannot be loaded into {name}: it is damaged, of another model, or holds Python "
            f"objects beside its weights, which are never loaded ({first}); save the state_dict "
            "alone, best as .safetensors"
        ) from error

    state = network.state_dict()
    missing = [key for key in state if key not in weights]
    heads = tuple(f"{head}." for head in classifier if head)
    strange = [key for key in weights if key not in state and not key.startswith(heads)]
    if missing or strange:
        raise SourceError(
            f"{path} does not fit {name}: {len(missing)} weights are missing and "
            f"{len(strange)} are not the model's (first: {(missing + strange)[0]})"
        )
    for key, value in state.items():
        if value.shape != weights[key].shape:
            raise SourceError(
                f"{path} does not fit {name}: {key} is {list(weights[key].shape)} in the file and "
                f"{list(value.shape)} in the network{hint}"
            )
    network.load_state_dict({key: weights[key] for key in state})


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return _unwrapped(load_file(path))
    return _unwrapped(torch.load(path, map_location="cpu", weights_only=True))


def _unwrapped(content: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = next((content[key] for key in _WRAPPINGS if content.get(key) is not None), content)
    weights = dict[str, Tensor]()
    for full, value in inner.items():
        key = full
        for prefix in _PREFIXES:
            key = key.removeprefix(prefix)
        if not isinstance(value, Tensor):
            raise TypeError(f"{full} is a {type(value).__name__}, not a tensor")
        weights[key] = value
    return weights
