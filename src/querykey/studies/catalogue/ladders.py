"""Several sizes of one vector, trained together or one after the other: what each part of SMEC is worth."""

from typing import Any, Literal

from querykey.studies.engine.study import SCORE, Arm, Figure, Published, Study, exceeds

__all__ = ["LADDER"]

_SIZES = (256, 128, 64, 32, 16)
_STEPS = 250
"""Of each fit: 50 a size where sizes are trained one after the other."""
_SEQUENTIAL, _SELECTION, _PAPERS = "sequential", "selection", "top-k losses, sequential"
_CHART = "chart"
Needs = Literal["labels", "documents"]


def _fit(name: str, *, needs: Needs | None = None, seeds: int = 3, **settings: Any) -> Arm:
    given = {"method": "ladder", "dims": [*_SIZES], "steps": _STEPS, "sampled": 512, **settings}
    if needs == "documents" and "loss" in given:
        del given["sampled"]  # the selected rows are the top-k of each query
    group = _CHART if name in ("joint", _SEQUENTIAL, _SELECTION) else ""
    return Arm(name=name, label=name, group=group, kind="adapter", needs=needs, seeds=seeds, settings=given)


def _projected(name: str, method: str) -> Arm:
    return Arm(
        name=name,
        label=name,
        group=_CHART,
        kind="baseline",
        settings={"method": method, "dims": [*_SIZES]},
    )


_FLOATS = tuple(f"{SCORE} at {size}" for size in _SIZES)

LADDER = Study(
    name="ladder",
    title="Several sizes from one fit: joint, sequential, selected; memory, top-k, skip",
    asks="Which parts of SMEC make small sizes better?",
    needs="features",
    source="SMEC, arXiv:2510.12474",
    published=Published(
        what="NDCG@10 on BEIR, text embeddings of 3,072, read off a chart, %",
        rows=(("SMEC, at 128, 256, 512", "56.7 59.4 60.4"), ("Matryoshka-Adaptor", "54.6 58.4 59.7"),
              ("first coordinates", "49.2 53.9 55.5")),
    ),
    caveat="One frozen model and one data set, all fits of the same few steps: 50 a size where sizes "
    "follow one another. A sequential size is a rotation of the frozen larger one, in the place of an FC "
    "layer a size; a selection takes numbers of the frozen larger one. Where training "
    "finds nothing better on its validation rows, the closed form that it began at is returned.",
    arms=(
        _projected("first coordinates", "truncated"),
        _projected("PCA", "pca"),
        _fit("joint"),
        _fit(_SEQUENTIAL, ladder="sequential"),
        _fit(_SELECTION, ladder="selection"),
        _fit("joint, the batch alone", memory="in_batch", sampled=0),
        _fit(f"{_SEQUENTIAL}, the batch alone", memory="in_batch", sampled=0, ladder="sequential"),
        _fit(_PAPERS, needs="documents", loss="score_difference", ladder="sequential"),
        _fit(f"{_PAPERS}, the batch alone", needs="documents", loss="score_difference", ladder="sequential",
             memory="in_batch"),
        _fit("hardest rows", needs="labels", negatives=8, positives=4, loss="info_nce"),
        _fit("no hardest rows", needs="labels", negatives=0, positives=0, loss="info_nce"),
        _fit("joint, not started from a closed form", start="orthogonal"),
    ),
    questions=(
        exceeds("Are sequential sizes better than joint ones?", _SEQUENTIAL, "joint", SCORE,
                "yes: gradients of sizes disturb each other"),
        exceeds("Are they at 16 numbers?", _SEQUENTIAL, "joint", f"{SCORE} at 16",
                "yes: gradients of sizes disturb each other"),
        exceeds("Is a selection better than the first numbers?", _SELECTION, "first coordinates", SCORE,
                "yes, at every size"),
        exceeds("Is a selection better than a rotation?", _SELECTION, _SEQUENTIAL, SCORE),
        exceeds("Is a memory better than the batch alone, joint?", "joint", "joint, the batch alone", SCORE,
                "yes (S-XBM)"),
        exceeds("Is a memory better than the batch alone, sequential?", _SEQUENTIAL,
                f"{_SEQUENTIAL}, the batch alone", SCORE, "yes (S-XBM)"),
        exceeds("Is a memory better than the batch alone, with top-k losses?", _PAPERS,
                f"{_PAPERS}, the batch alone", SCORE, "yes (S-XBM)"),
        exceeds("Are top-k losses better than a distillation over drawn rows?", _PAPERS, _SEQUENTIAL, SCORE),
        exceeds("Are the hardest rows better than drawn ones?", "hardest rows", "no hardest rows", SCORE),
        exceeds("Is a start at a closed form, the skip connection, better than none?", "joint",
                "joint, not started from a closed form", SCORE, "yes (Matryoshka-Adaptor)"),
    ),
    figures=(
        Figure(kind="sizes", title="Retrieval by bytes of a stored row", measures=_FLOATS, x="bytes",
               y="R@1, or NDCG@10 of documents", log_x=True, group=_CHART),
        Figure(kind="bars", title="Mean over the sizes", measures=(SCORE,), y="R@1, or NDCG@10 of documents"),
    ),
    measured="R@1 of test rows with labels, NDCG@10 of queries among documents, mean over five sizes",
)  # fmt: skip
