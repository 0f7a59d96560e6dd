"""What every dictionary hands out."""

from typing import NamedTuple

from querykey.types import Ids, Labels, Rows

__all__ = ["Held"]


class Held(NamedTuple):
    """Rows of a dictionary, each with its item id and its label (-1: unlabelled)."""

    vectors: Rows
    ids: Ids
    labels: Labels
