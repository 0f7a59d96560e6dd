"""Queries, keys, and the rule that defines positive and negative pairs."""

from querykey.errors import require_train

require_train(__name__)

from querykey.lookup.lookup import DensePairs, Lookup, PairRule, look_up

__all__ = ["DensePairs", "Lookup", "PairRule", "look_up"]
