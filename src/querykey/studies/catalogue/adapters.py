"""Adapters of a frozen model: how narrow, which loss, how much memory, what it holds."""

from typing import Any

from querykey.studies.measuring_adapters import SCORE
from querykey.studies.study import Arm, Asked, Figure, Published, Study

__all__ = ["ADAPTER"]

_DIMS = (16, 32, 64, 128, 256)
_DIM = 64
_LINES = {"adapter": "adapter", "pca": "PCA", "random_projection": "random projection"}


def _at(kind: str, dim: int) -> Arm:
    is_adapter = kind == "adapter"
    return Arm(
        name=f"{_LINES[kind]}, {dim}", label=f"{_LINES[kind]}, {dim} dimensions", x=float(dim),
        line=_LINES[kind], kind="adapter" if is_adapter else "baseline",
        settings={"dim": dim} if is_adapter else {"projection": kind, "dim": dim},
    )  # fmt: skip


def _differs(name: str, *, seeds: int = 3, **settings: Any) -> Arm:
    return Arm(name=name, label=name, kind="adapter", seeds=seeds, settings={"dim": _DIM, **settings})


ADAPTER = Study(
    name="adapter",
    title="An adapter of frozen features: width, memory, selection, loss, start",
    asks="Is an adapter better than a projection of the same width, and what of it counts?",
    needs="features",
    source="S-XBM (SMEC), arXiv:2510.12474",
    published=Published(
        what="the paper's own models and collections",
        rows=(("a memory of frozen features", "better than the batch alone"),
              ("top-k selection", "better than chance")),
    ),
    caveat="One frozen model and one data set at a time: what holds for few broad classes need not hold for "
    "many fine ones, or for documents without labels. Adapters end no worse than their start on rows "
    "they hold out.",
    arms=(
        Arm(name="frozen", label="frozen, full width", kind="baseline", settings={"projection": "frozen"}),
        *(_at(kind, dim) for kind in _LINES for dim in _DIMS),
        _differs("the batch alone", memory="in_batch"),
        _differs("memory of 512 rows", capacity=512),
        _differs("orthogonal start", start="orthogonal"),
        _differs("gradient through the queries alone", both_sides=False, seeds=1),
    ),
    asked=(
        Asked(ask="Is an adapter better than PCA, at 64 dimensions?", ours=("adapter, 64", SCORE),
              theirs=("PCA, 64", SCORE), published="yes, other data"),
        Asked(ask="Is an adapter better than PCA, at 16 dimensions?", ours=("adapter, 16", SCORE),
              theirs=("PCA, 16", SCORE), published="yes, other data"),
        Asked(ask="Is an adapter of 64 dimensions better than the frozen rows?", ours=("adapter, 64", SCORE),
              theirs=("frozen", SCORE), published="not asked"),
        Asked(ask="Is a memory better than the batch alone?", ours=("adapter, 64", SCORE),
              theirs=("the batch alone", SCORE), published="yes, other data"),
        Asked(ask="Is the whole data set in the memory better than 512 rows?", ours=("adapter, 64", SCORE),
              theirs=("memory of 512 rows", SCORE), published="not asked"),
        Asked(ask="Is a start from PCA better than an orthogonal one?", ours=("adapter, 64", SCORE),
              theirs=("orthogonal start", SCORE), published="not asked"),
    ),
    figures=(
        Figure(kind="lines", title="Retrieval against the width", measures=(SCORE,),
               x="dimensions", y="R@1, or NDCG@10 of documents", log_x=True),
        Figure(kind="bars", title="What differs from the default at 64 dimensions", measures=(SCORE,),
               y="R@1, or NDCG@10 of documents"),
    ),
    measured="R@1 of test rows with labels, NDCG@10 of queries among documents",
)  # fmt: skip
