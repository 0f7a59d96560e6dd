"""querykey: contrastive learning as dictionary look-up.

    pretrain, resume        an encoder from images alone: SimCLR
    Adapter                 adapt the rows of a frozen model; a scikit-learn transformer
    read_source, embed      what the user has -> features of a frozen model
    read_features           a feature store, or vectors in a file
    querykey.lookup.lookup         Lookup, look_up, PairRule: queries, keys and which pairs count
    querykey.losses         losses over a look-up, as functions
    querykey.dictionaries   where keys come from: cross-batch memory, in batch
    querykey.evaluation     metrics, intervals and baselines
    querykey.runtime        apply a saved adapter with NumPy alone

All but the last needs `pip install 'querykey[train]'`.

Public names load when they are first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from querykey.adapter.estimator import Adapter
    from querykey.data.readers.open import Source, read_source
    from querykey.features.embed import embed
    from querykey.features.features import Features, read_features
    from querykey.runs.compare import compare_runs
    from querykey.runs.load_encoder import load_encoder
    from querykey.runs.pretrain import pretrain, resume

__version__ = "0.2.0"

_HOMES = {
    "Adapter": "querykey.adapter.estimator",
    "Features": "querykey.features.features",
    "Source": "querykey.data.readers.open",
    "compare_runs": "querykey.runs.compare",
    "embed": "querykey.features.embed",
    "load_encoder": "querykey.runs.load_encoder",
    "pretrain": "querykey.runs.pretrain",
    "read_features": "querykey.features.features",
    "read_source": "querykey.data.readers.open",
    "resume": "querykey.runs.pretrain",
}

__all__ = [
    "Adapter",
    "Features",
    "Source",
    "__version__",
    "compare_runs",
    "embed",
    "load_encoder",
    "pretrain",
    "read_features",
    "read_source",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'querykey' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from querykey.errors import missing_extra

        if (said := missing_extra(error, f"querykey.{name}")) is None:
            raise
        raise said from error


def __dir__() -> list[str]:
    return sorted(__all__)
