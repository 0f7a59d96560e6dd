"""Apply a saved adapter with NumPy alone: no PyTorch, no scikit-learn.

    load(folder)            reads what `Adapter.save` or `querykey adapt --out` wrote
    LoadedAdapter           transform, transform_documents, quantize
    search_codes            the codes nearest to float queries

Example:
    >>> import tempfile
    >>> from sklearn.datasets import load_digits
    >>> from querykey import Adapter
    >>> X = load_digits().data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Adapter(dim=8, steps=0).fit(X).save(f"{folder}/adapter")
    ...     load(f"{folder}/adapter").transform(X[:2]).shape
    (2, 8)
"""

from querykey.runtime.codes import Code, search_codes
from querykey.runtime.folder import load
from querykey.runtime.forward import LoadedAdapter

__all__ = ["Code", "LoadedAdapter", "load", "search_codes"]
