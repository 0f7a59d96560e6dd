"""What every kind of frozen model offers to `FrozenEncoder`, and the kind made of an nn.Module."""

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
    """A model that is used for features alone.

    kind: what an item is.
    identity: sha256 over weights, preprocessing, pooling and prompt; not the dtype.
    fixed_dtype: whether the model computes in its own dtype, whatever is requested.
    has_layouts: whether the model can be tried in the channels-last memory layout.
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
        """An item of the right kind, to ask how wide a feature is."""
        ...

    def prepare(self, item: Any) -> Any:
        """What the model takes for one item; called from several threads at once."""
        ...

    def forward(self, batch: Sequence[Any], *, dtype: torch.dtype, channels_last: bool) -> Tensor:
        """Features [len(batch), dim] of prepared items; inference mode is on already."""
        ...


class TorchModel:
    """An nn.Module as a frozen model: no gradient, and eval mode at every forward.

    Args:
        module: Moved to the device, its parameters frozen.
        kind: "image": prepared items are tensors, stacked. "text": strings, as a list.
        prepare: One item to what the module takes.
        blank: An item of the right kind.
        identity: What makes its features.
        device: Where it runs.
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
        # Whoever holds the module may have called .train() since the last batch.
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
    """Take gradients away, set eval mode, move to the device; the module itself is returned."""
    return module.requires_grad_(requires_grad=False).eval().to(device)


def require_rows(features: Any, rows: int, what: str) -> Tensor:
    """The features, if they are one row an item.

    Raises:
        ShapeError: If they are anything else.
    """
    if isinstance(features, Tensor) and features.ndim == 2 and len(features) == rows and features.shape[1]:
        return features
    given = f"shape {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
    raise ShapeError(
        f"{what} gave {given} for {rows} items; one row of features for each is needed "
        "([items, dim]): pool and flatten inside the model"
    )


def usable_device(name: str) -> torch.device:
    """The device, if this machine has it.

    Raises:
        ConfigError: If torch does not know it or cannot reach it.

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
    """The factory that a spec names, and the module it makes.

    Args:
        spec: `package.module:callable`, looked for in the working folder first; the callable
            takes nothing.

    Returns:
        (the callable, the nn.Module that it returned).

    Raises:
        SourceError: If there is no such module or callable, or what it returns is no nn.Module.
    """
    place, _, name = spec.partition(":")
    with _working_folder_first():
        try:
            factory: Any = importlib.import_module(place)
        except Exception as error:  # whatever the user's own file raises
            raise SourceError(
                f"{spec}: {place} cannot be imported ({type(error).__name__}: {error}); "
                "it is looked for in the working folder and among the installed packages"
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
