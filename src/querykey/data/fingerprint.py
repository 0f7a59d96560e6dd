"""A sha256 over the bytes of data, so that features made of them are never mistaken."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fingerprint", "fingerprint_files"]

_BLOCK = 1 << 22


class Fingerprint:
    """A sha256 of several parts, each with its length: moving a byte to the next part changes it.

    Example:
        >>> Fingerprint().text("ab").text("c").hex() == Fingerprint().text("a").text("bc").hex()
        False
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def text(self, *words: str | None) -> "Fingerprint":
        """Add texts: a column, a split, the id of an item."""
        for word in words:
            data = b"" if word is None else word.encode("utf-8", "surrogateescape")
            self.data(data, tag=b"n" if word is None else b"t")
        return self

    def data(self, data: bytes, *, tag: bytes = b"b") -> "Fingerprint":
        """Add bytes held in memory."""
        self._digest.update(tag + len(data).to_bytes(8, "little") + data)
        return self

    def file(self, path: Path) -> "Fingerprint":
        """Add a file, a block at a time; one that cannot be read counts as unreadable.

        Whoever reads the item finds the fault; it is not the fingerprint's to raise.
        """
        part = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as stream:
                while block := stream.read(_BLOCK):
                    part.update(block)
        except OSError as error:
            return self.text("unreadable", type(error).__name__)
        return self.data(part.digest(), tag=b"f")

    def array(self, array: NDArray[Any]) -> "Fingerprint":
        """Add an array's shape, dtype and values, a block of rows at a time."""
        self.text(str(array.dtype), str(array.shape))
        rows = max(1, _BLOCK // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            self._digest.update(np.ascontiguousarray(array[start : start + rows]).data)
        return self

    def hex(self) -> str:
        """The sum so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def fingerprint_files(paths: Iterable[Path], *choices: str | None) -> str:
    """The fingerprint of whole files, in order, and of what was chosen of them."""
    digest = Fingerprint().text(*choices)
    for path in paths:
        digest.file(path)
    return digest.hex()
