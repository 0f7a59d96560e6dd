"""The studies of docs/results.md on sizes and codes: every size and every precision from one fit."""

from dataclasses import replace
from typing import Any

from querykey.studies.data_sets import CRANFIELD, DEBIAN, HWU, OMNIGLOT, FrozenDataSet
from querykey.studies.engine.study import Arm, Figure, Question, Rule, Study

__all__ = ["RESULTS_SIZES"]

_SIZES = (256, 128, 64, 32, 16)
_SMALL = (32, 16)
"""Sizes that are claimed to be above PCA; the others are claimed not to be below."""
_BYTES = (16, 32, 48, 64, 128)
_WIDTH, _PCA = 384, 12
"""The full width in bits takes the bytes of so many numbers of a PCA."""
_CELLS = 5
"""Studies whose sizes are compared with PCA together."""
_SHORT = {"steps": 300, "sampled": 512}
"""Fits without labels: on cranfield as good as 600 steps over all rows, in a third of the time."""
_SHORT_LABELS = {"steps": 200}
_NOT_CHOSEN_ON = "not used for any choice, measured by the final code"
_CHOSEN_ON = "defaults were chosen on it"
_LABELS = {
    "frozen": "frozen, full width",
    "pca": "PCA, centred",
    "pca_uncentred": "PCA, not centred",
    "whitened_pca": "PCA, whitened",
    "random_projection": "random projection",
    "truncated": "first coordinates",
}


_CHART = "chart"
"""Arms that the chart shows: more could not be distinguished."""


def _arm(name: str, label: str, group: str = "", **settings: Any) -> Arm:
    return Arm(name=name, label=label, group=group, kind="adapter", settings=settings)


def _baselines(sizes: tuple[int, ...], width: int) -> tuple[Arm, ...]:
    arms = []
    for name, label in _LABELS.items():
        settings = {"method": name, "dims": [width] if name == "frozen" else [*sizes]}
        group = _CHART if name == "pca" else ""
        arms.append(Arm(name=name, label=label, kind="baseline", seeds=1, group=group, settings=settings))
    return tuple(arms)


def _questions(metric: str, *, is_full: bool) -> tuple[Question, ...]:
    def claim(
        ask: str, ours: tuple[str, str], theirs: tuple[str, str], rule: Rule, count: int = 1
    ) -> Question:
        sides = [(arm, f"{metric} at {at}") for arm, at in (ours, theirs)]
        question = Question(ask=ask, ours=sides[0], theirs=sides[1], rule=rule, comparisons=count)
        return replace(question, is_claim=True, min_seeds=1)

    questions, every = [], len(_SIZES) * _CELLS
    for size in _SIZES:
        rule: Rule = "above" if size in _SMALL else "not below"
        count = 1 if size in _SMALL else 3 * _CELLS
        one, pca = ("ladder", f"{size}"), ("pca", f"{size}")
        questions.append(claim(f"Are {size} numbers {rule} PCA?", one, pca, rule, count))
    for size in _SIZES:
        one, alone = ("ladder", f"{size}"), ("alone", f"{size}")
        ask = f"Are {size} numbers not below a fit of that size alone?"
        questions.append(claim(ask, one, alone, "not below", every))
    for size in _SIZES:
        ask, codes, floats = f"Are {size} numbers at 8 bits not below floats?", f"{size}, 8 bits", f"{size}"
        questions.append(claim(ask, ("ladder", codes), ("ladder", floats), "not below", every))
    if is_full:
        full, part = ("full", f"{_WIDTH}, 1 bit"), ("full", f"{_WIDTH}, 95%")
        ask = "Do documents of 1 bit a number keep 95% at full width?"
        questions.append(claim(ask, full, part, "at or above"))
        questions.append(claim("Are they above PCA of the same bytes?", full, ("pca", f"{_PCA}"), "above"))
    return tuple(questions)


def _open(metric: str) -> tuple[Question, ...]:
    """Against a product quantiser at the same bytes."""
    questions = []
    for size, bits in ((128, 8), (64, 8), (32, 8), (256, 1), (128, 1)):
        code = f"{size}, {bits} bit{'s' * (bits > 1)}"
        ask = f"Are {size} numbers, {bits} bit{'s' * (bits > 1)}, above a product quantiser?"
        ours = ("ladder", f"{metric} at {code}")
        theirs = ("product quantisation", f"{metric} at {size * bits // 8} bytes")
        questions.append(Question(ask=ask, ours=ours, theirs=theirs, min_seeds=1))
    return tuple(questions)


def _study(
    data: FrozenDataSet, name: str, title: str, metric: str, *, role: str, width: int = _WIDTH, **fit: Any
) -> tuple[FrozenDataSet, Study]:
    has_labels = fit.pop("labels", False)
    given = {**_SHORT_LABELS, **fit} if has_labels else {"labels": False, **_SHORT, **fit}
    full = {name: value for name, value in given.items() if name not in _SHORT}  # a closed form
    is_full = metric == "NDCG@10"
    name_of_codes, published, dims = "product quantisation", "Matryoshka-Adaptor", [*_SIZES]
    settings = {"method": name_of_codes}
    arms = [
        *_baselines((*_SIZES, _PCA) if is_full else _SIZES, width),
        Arm(
            name=name_of_codes, label=name_of_codes, kind="baseline", seeds=1, group=_CHART, settings=settings
        ),
    ]
    if not has_labels:
        arms.append(_arm(published, published, method=published, dims=dims, labels=False, steps=300))
    arms.append(_arm("alone", "a fit for each size", method="alone", dims=dims, **given))
    arms.append(_arm("ladder", "one fit", _CHART, method="ladder", dims=dims, bits=[8, 1], **given))
    if is_full:
        arms.append(_arm("full", "full width", method="ladder", dims=[width], bits=[8, 1], **full))
    codes = [f"{metric} at {size}, {bits}" for bits in ("8 bits", "1 bit") for size in _SIZES]
    at_full = [f"{metric} at {width}{of}" for of in ("", ", 8 bits", ", 1 bit", ", 1 bit, rescored")]
    measures = (
        *(at_full if is_full else at_full[:1]),
        *(f"{metric} at {size}" for size in _SIZES),
        *([f"{metric} at {_PCA}"] if is_full else []),
        *codes,
        *(f"{metric} at {count} bytes" for count in _BYTES if width % count == 0),
    )
    return data, Study(
        name=f"{data.name}{name} sizes",
        title=f"{data.name}: {title}",
        asks="What is each size at each precision of one fit worth?",
        source="SMEC, arXiv:2510.12474; claims of this library",
        caveat=f"Role of the measured part: {role}.",
        arms=tuple(arms),
        questions=(*_questions(metric, is_full=is_full), *_open(metric)),
        figures=(
            Figure(kind="sizes", title=f"{data.name}{name}: quality by bytes of a stored row",
                   measures=measures, x="bytes", y=metric, log_x=True, group=_CHART),
        ),
        measured=f"{metric}, float queries",
        needs="features",
        references=("pca", "alone"),
        identity="fit",
    )  # fmt: skip


def _pairs(data: FrozenDataSet) -> tuple[FrozenDataSet, Study]:
    """Fits to all (query, document) pairs, beside the adaptor that was published for them."""
    metric = "NDCG@10"
    arms = (
        *_baselines(_SIZES, _WIDTH)[:2],
        _arm("Search-Adaptor", "Search-Adaptor", _CHART, method="Search-Adaptor", dims=[*_SIZES], steps=300),
        _arm("ladder", "one fit", _CHART, method="ladder", dims=[*_SIZES], bits=[8, 1], **_SHORT_LABELS),
    )
    measures = (
        f"{metric} at {_WIDTH}",
        *(f"{metric} at {size}{of}" for of in ("", ", 8 bits", ", 1 bit") for size in _SIZES),
    )
    return data, Study(
        name=f"{data.name} pairs sizes",
        title=f"{data.name}: MiniLM with all pairs",
        asks="What is each size of one fit worth, beside Search-Adaptor?",
        source="Search-Adaptor, arXiv:2310.08750",
        caveat=f"Role of the measured part: {_NOT_CHOSEN_ON}.",
        arms=tuple(replace(arm, pairs=0) for arm in arms),
        questions=tuple(
            Question(
                ask=f"Are {size} numbers above Search-Adaptor?", ours=("ladder", f"{metric} at {size}"),
                theirs=("Search-Adaptor", f"{metric} at {size}"), min_seeds=1,
            )
            for size in _SIZES
        ),
        figures=(
            Figure(kind="sizes", title=f"{data.name}, pairs: quality by bytes of a stored row",
                   measures=measures, x="bytes", y=metric, log_x=True, group=_CHART),
        ),
        measured=f"{metric}, float queries",
        needs="features",
        references=("pca", "Search-Adaptor"),
        identity="fit",
    )  # fmt: skip


RESULTS_SIZES: tuple[tuple[FrozenDataSet, Study], ...] = (
    _study(CRANFIELD, "", "MiniLM without labels", "NDCG@10", role=_CHOSEN_ON),
    _study(DEBIAN, "", "MiniLM without labels", "NDCG@10", role=_NOT_CHOSEN_ON),
    _study(HWU, "", "MiniLM with labels, classes known", "R@1", role=_NOT_CHOSEN_ON, labels=True,
           classes="known"),
    _study(HWU, " neighbours", "MiniLM without labels, the frozen neighbours kept", "overlap@10",
           role=_NOT_CHOSEN_ON, target="frozen"),
    _study(OMNIGLOT, "", "EfficientNet-Lite0 with labels, classes new", "R@1", role=_CHOSEN_ON, width=1280,
           labels=True, classes="new"),
    _pairs(DEBIAN),
)  # fmt: skip
"""In the order of the report, each with its data."""
