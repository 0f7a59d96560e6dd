"""The interface of frozen models, and its implementation for an nn.Module."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from querykey.errors import ConfigError, ShapeError, SourceError

__all__ = ["FrozenModel", "Kind", "TorchModel", "freeze", "made_by", "usable_device"]

Kind = Literal["image", "text", "vector"]


@runtime_checkable
class FrozenModel(Protocol):
    """A model that computes features.

    kind: Of an item.
    identity: sha256 of weights, preprocessing, pooling and prompt; not of the dtype.
    fixed_dtype: Whether the dtype of the computation cannot be chosen.
    has_layouts: Whether the model supports the channels-last memory format.
    """

    @property
    def kind(self) -> Kind: ...
    @property
    def identity(self) -> str: ...
    @property
    def fixed_dtype(self) -> bool: ...
    @property
    def has_layouts(self) -> bool: ...

    def blank(self) -> Any:
        """An item of the kind, to determine the width of the features."""
        ...

    def prepare(self, item: Any) -> Any:
        """Preprocess an item; called from several threads at once."""
        ...

    def forward(self, batch: Sequence[Any], *, dtype: torch.dtype, channels_last: bool) -> Tensor:
        """Features [len(batch), dim] of prepared items; called in inference mode."""
        ...


class TorchModel:
    """An nn.Module as a frozen model: no gradient, and eval mode in every forward pass.

    Args:
        module: Moved to the device, its parameters frozen.
        kind: "image": prepared items are tensors, stacked. "text": strings, as a list.
        prepare: Preprocesses an item.
        blank: Makes an item of the kind.
        identity: See `FrozenModel`.
        device: Of the model.
    """

    fixed_dtype = False

    def __init__(
        self,
        module: nn.Module,
        *,
        kind: Kind,
        prepare: Callable[[Any], Any],
        blank: Callable[[], Any],
        identity: str,
        device: torch.device,
    ) -> None:
        self.module = freeze(module, device)
        self.kind = kind
        self.prepare = prepare
        self.blank = blank
        self.identity = identity
        self.device = device
        self.has_layouts = kind == "image"
        self._layout = torch.contiguous_format

    def forward(self, batch: Sequence[Any], *, dtype: torch.dtype, channels_last: bool) -> Tensor:
        # other code may have called .train() since the last batch
        self.module.eval()
        inputs: Any = list(batch)
        if self.kind != "text":
            inputs = torch.stack(inputs).to(self.device)
        if self.has_layouts:
            inputs = inputs.to(memory_format=self._use_layout(channels_last=channels_last))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = self.module(inputs)
        return require_rows(features, len(batch), type(self.module).__name__)

    def _use_layout(self, *, channels_last: bool) -> torch.memory_format:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if layout != self._layout:
            self.module.to(memory_format=layout)
            self._layout = layout
        return layout


def freeze(module: nn.Module, device: torch.device) -> nn.Module:
    """Disable gradients, set eval mode and move to the device; returns the module."""
    return module.requires_grad_(requires_grad=False).eval().to(device)


def require_rows(features: Any, rows: int, what: str) -> Tensor:
    """Check that features have one row per item, and return them.

    Raises:
        ShapeError: If they do not.
    """
    if isinstance(features, Tensor) and features.ndim == 2 and len(features) == rows and features.shape[1]:
        return features
    given = f"shape {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
    raise ShapeError(
        f"{what} returned {given} for {rows} items; one row of features for each is needed "
        "([items, dim]): pool and flatten inside the model"
    )


def usable_device(name: str) -> torch.device:
    """The device, if it can be used on this machine.

    Raises:
        ConfigError: If it cannot be used.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"device {name!r} cannot be used here ({first}); cpu always can") from error
    return device


def made_by(spec: str) -> tuple[Callable[[], Any], nn.Module]:
    """Import the factory of a spec, and call it.

    Args:
        spec: `package.module:callable`, searched in the working directory first; the callable has
            no arguments.

    Returns:
        (the callable, the nn.Module that it returned).

    Raises:
        SourceError: If the module or callable does not exist, or it does not return an nn.Module.
    """
    place, _, name = spec.partition(":")
    with _working_folder_first():
        try:
            factory: Any = importlib.import_module(place)
        except Exception as error:  # user code can raise any error
            raise SourceError(
                f"{spec}: {place} cannot be imported ({type(error).__name__}: {error}); "
                "it is searched in the working directory and among the installed packages"
            ) from error
        for part in name.split("."):
            factory = getattr(factory, part, None)
        if not callable(factory):
            raise SourceError(f"{spec}: {place} has no callable {name!r}; give MODULE:FACTORY")
        try:
            module = factory()
        except Exception as error:
            raise SourceError(
                f"{spec} raised {type(error).__name__}: {error}; it is called without arguments"
            ) from error
    if not isinstance(module, nn.Module):
        raise SourceError(f"{spec} returned a {type(module).__name__}; an nn.Module is needed")
    return factory, module


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """As `python -m` has it, for as long as the import takes."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):  # the import may have changed the list itself
            sys.path.remove(here)
