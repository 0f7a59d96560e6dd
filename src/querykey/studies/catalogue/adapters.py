"""Adapters of a frozen model: width, loss, selection of candidates, memory, initialisation."""

from typing import Any, Literal

from querykey.studies.engine.study import SCORE, Arm, Figure, Published, Study, exceeds

__all__ = ["ADAPTER"]

_DIMS = (16, 32, 64, 128, 256)
_DIM = 64
_CLAIMED = (16, _DIM)
"""Widths in the questions: they have three seeds, the others one."""
_PAPERS = "the paper's L1"
_LINES = {"adapter": "adapter", "pca": "PCA", "random_projection": "random projection"}
_BASELINES = {
    "truncated": "first coordinates", "pca_uncentred": "PCA, not centred", "whitened_pca": "PCA, whitened",
    "lda": "LDA",
}  # fmt: skip
_LOSSES = ("info_nce", "nca", "contrastive", "triplet", "multi_similarity", "circle")
_AT_DIM = "at one width"
Needs = Literal["labels", "documents"]


def _on_line(line: str, dim: int, settings: dict[str, Any], **fields: Any) -> Arm:
    """An arm of the line chart; those of one width are in the table of that width too."""
    name, group = f"{line}, {dim}", _AT_DIM if dim == _DIM else ""
    settings = {"dim": dim, **settings}
    return Arm(
        name=name,
        label=f"{name} dimensions",
        x=float(dim),
        line=line,
        group=group,
        settings=settings,
        **fields,
    )


def _at(kind: str, dim: int) -> Arm:
    seeds = 3 if dim in _CLAIMED else 1
    if kind == "adapter":
        return _on_line(_LINES[kind], dim, {}, kind="adapter", seeds=seeds)
    return _on_line(_LINES[kind], dim, {"projection": kind}, kind="baseline", seeds=seeds)


def _of_papers(dim: int) -> Arm:
    return _on_line(_PAPERS, dim, {"loss": "score_difference"}, kind="adapter", needs="documents")


def _projected(name: str) -> Arm:
    label, settings = _BASELINES[name], {"projection": name, "dim": _DIM}
    needs: Needs | None = "labels" if name == "lda" else None
    return Arm(name=label, label=label, kind="baseline", group=_AT_DIM, needs=needs, settings=settings)


def _differs(name: str, *, seeds: int = 3, needs: Needs | None = None, **settings: Any) -> Arm:
    settings = {"dim": _DIM, **settings}
    return Arm(
        name=name, label=name, kind="adapter", group=_AT_DIM, seeds=seeds, needs=needs, settings=settings
    )


_DEFAULT = f"adapter, {_DIM}"

ADAPTER = Study(
    name="adapter",
    title="An adapter of frozen features: width, loss, selection, memory, initialisation",
    asks="Is an adapter better than a projection of the same width, and which of its parts matter?",
    needs="features",
    source="S-XBM (SMEC), arXiv:2510.12474",
    published=Published(
        what="NDCG@10 on BEIR, text embeddings of 3,072, read off a chart, %",
        rows=(("SMEC, at 128, 256, 512", "56.7 59.4 60.4"), ("Matryoshka-Adaptor", "54.6 58.4 59.7"),
              ("Search-Adaptor", "51.6 57.1 59.3"), ("first coordinates", "49.2 53.9 55.5"),
              ("all 3,072, nothing adapted", "57.0")),
    ),
    caveat="One frozen model and one data set: results on a few coarse classes may not hold for many fine "
    "ones, or for documents without labels. On its validation rows an adapter is never worse than "
    "its initialisation.",
    arms=(
        Arm(name="frozen", label="frozen, full width", kind="baseline", group=_AT_DIM,
            settings={"projection": "frozen"}),
        *(_at(kind, dim) for kind in _LINES for dim in _DIMS),
        *(_of_papers(dim) for dim in _DIMS),
        *(_projected(name) for name in _BASELINES),
        _differs("the batch alone", memory="in_batch"),
        _differs("memory of 512 rows", capacity=512),
        _differs("memory of 2,048 rows", capacity=2048, seeds=1),
        _differs("memory of projections", needs="labels", holds="projections"),
        _differs("orthogonal start", start="orthogonal"),
        _differs("gradient through the queries alone", both_sides=False, seeds=1),
        _differs("no hardest rows", needs="labels", negatives=0, positives=0),
        *(_differs(f"{k} hardest negatives", needs="labels", negatives=k, seeds=1) for k in (8, 32)),
        _differs("32 hardest negatives, none drawn", needs="labels", negatives=32, sampled=0),
        *(_differs(f"loss {name}", needs="labels", loss=name, seeds=1) for name in _LOSSES),
        _differs(f"{_PAPERS}, 32 neighbours", needs="documents", loss="score_difference", neighbours=32),
    ),
    questions=(
        exceeds("Is an adapter better than PCA, at 64 dimensions?", _DEFAULT, "PCA, 64", SCORE),
        exceeds("Is an adapter better than PCA, at 16 dimensions?", "adapter, 16", "PCA, 16", SCORE),
        exceeds("Is an adapter better than the first coordinates, at 64 dimensions?", _DEFAULT,
                _BASELINES["truncated"], SCORE, "yes, by 5 points at 128 to 512 dimensions"),
        exceeds("Is an adapter of 64 dimensions better than the frozen rows?", _DEFAULT, "frozen", SCORE,
                "yes, at a sixth of the width, by 3 points"),
        exceeds("Is a memory better than the batch alone?", _DEFAULT, "the batch alone", SCORE,
                "yes, on other data (S-XBM)"),
        exceeds("Is the whole data set in the memory better than 512 rows?", _DEFAULT, "memory of 512 rows",
                SCORE),
        exceeds("Is a memory of features better than one of projections?", _DEFAULT, "memory of projections",
                SCORE, "yes: projections halve R@1 (another study)"),
        exceeds("Are the hardest rows alone better than random rows?", "32 hardest negatives, none drawn",
                "no hardest rows", SCORE, "yes, on other data (S-XBM)"),
        exceeds("Is initialisation by PCA better than orthogonal initialisation?", _DEFAULT,
                "orthogonal start", SCORE),
        exceeds("Is distillation better than the paper's L1, at 64 dimensions?", _DEFAULT,
                f"{_PAPERS}, {_DIM}", SCORE),
        exceeds("Is the paper's L1 better than PCA, at 64 dimensions?", f"{_PAPERS}, {_DIM}", "PCA, 64",
                SCORE),
    ),
    figures=(
        Figure(kind="lines", title="Retrieval against the width", measures=(SCORE,),
               x="dimensions", y="R@1, or NDCG@10 of documents", log_x=True),
        Figure(kind="bars", title="Variants of the default at 64 dimensions", measures=(SCORE,),
               y="R@1, or NDCG@10 of documents", group=_AT_DIM),
    ),
    measured="R@1 of test rows with labels, NDCG@10 of queries among documents",
)  # fmt: skip
