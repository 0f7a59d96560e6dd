"""Losses are functions of a `Lookup`: one value per query, unreduced."""

from querykey.errors import require_train

require_train(__name__)

from querykey.losses.decoupled import decoupled
from querykey.losses.hard_negative import debiased, hard_negative
from querykey.losses.info_nce import info_nce, nca, nt_xent
from querykey.losses.logistic import nt_logistic
from querykey.losses.margin import contrastive, triplet
from querykey.losses.nce import nce, nce_normaliser
from querykey.losses.preserving import rank_loss, score_difference, score_distillation
from querykey.losses.streaming import is_chunked
from querykey.losses.temperature import LearnedTemperature
from querykey.losses.weighting import circle, multi_similarity

__all__ = [
    "LearnedTemperature",
    "circle",
    "contrastive",
    "debiased",
    "decoupled",
    "hard_negative",
    "info_nce",
    "is_chunked",
    "multi_similarity",
    "nca",
    "nce",
    "nce_normaliser",
    "nt_logistic",
    "nt_xent",
    "rank_loss",
    "score_difference",
    "score_distillation",
    "triplet",
]
