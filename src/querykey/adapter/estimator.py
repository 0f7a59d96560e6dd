"""Adapter: the scikit-learn estimator on top of the adapter step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from querykey.adapter.checkpoint import SavedAdapter, read_saved, write_saved
from querykey.adapter.fit import Begin, Fitted, Record, fit_adapter
from querykey.adapter.rows import labels_of, rows_of, rows_with_direction
from querykey.adapter.settings import AdapterSettings
from querykey.adapter.split import distinct_pairs, unit_rows
from querykey.adapter.validation import in_blocks
from querykey.data.arrays import require_finite_rows
from querykey.data.features import Features
from querykey.encoders.heads import FCKind, Start
from querykey.errors import DataError, ModelMismatchError
from querykey.evaluation.geometry import neighbour_overlap
from querykey.nearest import nearest
from querykey.training.objectives import LossName

__all__ = ["Adapter"]

OVERLAP = 10


class Adapter(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Adapt the rows of a frozen model: compress them, or specialise them, and take the layer away.

    A scikit-learn transformer. Rows are scaled to length 1 before and after. Part of the training data
    is held out; what `fit` returns is never worse there than its start (PCA, or the rows as they are).

    Args:
        dim: Width of the adapted rows; None: 64, or the width where that is less.
        loss: None: "score_distillation" without labels, "nca" for few classes, "info_nce" for many
            classes and for pairs. Others: "multi_similarity", "triplet", "contrastive", "circle",
            "score_difference".
        loss_options: The loss's own keyword arguments, such as {"temperature": 0.1}.
        fc: "linear", "residual" (dim = width) or "two_layer"; None: residual for labels and pairs at full
            width, linear otherwise.
        start: "pca", "pca_centred", "identity" or "orthogonal"; None: the PCA that scores higher.
        memory: "cross_batch", or "in_batch" for none.
        capacity: Rows the memory holds at the most.
        holds: What the memory holds: "features" of the frozen model, or "projections", which grow stale.
        sharded: Whether each of several processes holds and scores a share of the memory.
        sampled: Rows drawn at random from the memory each step, for all queries (labels, pairs). None, here
            and in the next two: what suits the labels (few broad classes, or many fine ones) or pairs.
        negatives: Hardest negatives each query selects (labels, pairs).
        positives: Farthest positives each query selects (labels).
        neighbours: Most similar rows each query selects ("score_difference").
        both_sides: Whether the gradient goes through the keys too.
        side: "query": documents stay as they are in their index, only queries are transformed.
        steps: Optimiser steps; None: 600 without labels, 1,500 with, fewer for small data.
        batch_size: Items a step, clipped to the data.
        learning_rate: AdamW's peak rate; cosine to 0. Also: weight_decay.
        held_out: Share that the guard keeps back; patience: its looks (25 a run) without a better score.
        seed: Same seed, data and threads: same bits.

    Attributes:
        fc_: The trained `FCLayer`; settings_: `AdapterSettings` as resolved for the data.
        report_: Guard scores of start and result, whether training helped, why it stopped; history_: a
            record for each look of the guard.
        model_key_: Of the model whose features it was fitted on; "" where none is known.
        n_features_in_: Width of the frozen rows.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> adapter = Adapter(dim=8, steps=20).fit(X, y)
        >>> adapter.transform(X[:2]).shape
        (2, 8)
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        loss: LossName | None = None,
        loss_options: Mapping[str, Any] | None = None,
        fc: FCKind | None = None,
        start: Start | None = None,
        memory: Literal["cross_batch", "in_batch"] = "cross_batch",
        capacity: int = 50_000,
        holds: Literal["features", "projections"] = "features",
        sharded: bool = False,
        sampled: int | None = None,
        negatives: int | None = None,
        positives: int | None = None,
        neighbours: int = 10,
        both_sides: bool = True,
        side: Literal["both", "query"] = "both",
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        held_out: float = 0.1,
        patience: int = 8,
        seed: int = 0,
    ) -> None:
        self.dim = dim
        self.loss = loss
        self.loss_options = loss_options
        self.fc = fc
        self.start = start
        self.memory = memory
        self.capacity, self.holds, self.sharded = capacity, holds, sharded
        self.sampled, self.negatives, self.positives = sampled, negatives, positives
        self.neighbours = neighbours
        self.both_sides = both_sides
        self.side = side
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.held_out, self.patience, self.seed = held_out, patience, seed

    def fit(
        self, X: ArrayLike | Tensor | Features, y: ArrayLike | None = None, *,
        record: Record | None = None, begin: Begin | None = None,
    ) -> "Adapter":  # fmt: skip
        """Fit without labels (keep the neighbourhoods) or with (specialise).

        Args:
            X: Rows of a frozen model [items, width]: array, tensor or `Features`.
            y: A class for each row, of any type; -1 or None where it is not known.
            record: Called with each record of the history as it is made.
            begin: Called before the first step with what the fit takes of the memory.

        Returns:
            Itself.

        Raises:
            DataError: If there is nothing to learn from.
            RangeError: If a setting is outside its range.
        """
        vectors = rows_of(self, X, reset=True)
        labels = None if y is None else labels_of(y, len(vectors))
        if (kept := rows_with_direction(vectors)) is not None:
            vectors, labels = vectors[kept], None if labels is None else labels[kept]
        return self._keep(
            fit_adapter(vectors, self._settings(), labels=labels, record=record, begin=begin), X
        )

    def fit_pairs(
        self, Q: ArrayLike | Tensor | Features, D: ArrayLike | Tensor | Features, *,
        pairs: ArrayLike | None = None, record: Record | None = None, begin: Begin | None = None,
    ) -> "Adapter":  # fmt: skip
        """Fit on queries and documents that belong together.

        Equal and near-equal rows count as one query or one document, so that no query meets its
        own answer as a negative.

        Args:
            Q: Frozen rows of queries [queries, width].
            D: Frozen rows of documents [documents, width].
            pairs: (row of Q, row of D) of each pair [pairs, 2]; row i with row i where not given.
            record: Called with each record of the history as it is made.
            begin: Called before the first step with what the fit takes of the memory.

        Returns:
            Itself.

        Raises:
            ShapeError: If the widths differ, or the rows where no pairs are given.
        """
        documents, queries = rows_of(self, D, reset=True), rows_of(self, Q, reset=False)
        for name, given in (("Q", queries), ("D", documents)):
            require_finite_rows(given, what=name)
        documents, training = distinct_pairs(queries, documents, pairs)
        fitted = fit_adapter(documents, self._settings(), pairs=training, record=record, begin=begin)
        return self._keep(fitted, D)

    def transform(
        self, X: ArrayLike | Tensor | Features, *, any_model: bool = False
    ) -> NDArray[np.float32] | Tensor:
        """Adapt rows: of items, of queries, and (unless side="query") of documents.

        Args:
            X: Rows of the same frozen model [rows, width].
            any_model: Take features of another model of the same width.

        Returns:
            Unit rows [rows, dim], float32; a tensor for a tensor, an array otherwise.

        Raises:
            ModelMismatchError: If the features are of another model.
        """
        return self._moved(X, self._adapted, any_model=any_model)

    def transform_documents(
        self, X: ArrayLike | Tensor | Features, *, any_model: bool = False
    ) -> NDArray[np.float32] | Tensor:
        """Like `transform`, for documents: with side="query" they are only scaled to length 1."""
        move = self._adapted if self.side == "both" else unit_rows
        return self._moved(X, move, any_model=any_model)

    def score(self, X: ArrayLike | Tensor | Features, y: ArrayLike | None = None) -> float:
        """Recall@1 among these rows with labels; overlap with the frozen top 10 without.

        Args:
            X: Rows that `fit` has not seen [rows, width].
            y: A class for each row, or None.

        Returns:
            From 0 to 1, higher is better.

        Raises:
            DataError: If no row's class is there twice.
        """
        check_is_fitted(self)
        frozen = rows_of(self, X, reset=False)
        rows, ids, k = self._adapted(frozen), torch.arange(len(frozen)), min(OVERLAP, len(frozen) - 1)
        if y is None:
            now, then = (nearest(r, r, k, query_ids=ids, key_ids=ids)[1] for r in (rows, frozen))
            return float(neighbour_overlap(now, then).mean())
        labels = labels_of(y, len(rows))
        classes, counts = torch.unique(labels[labels >= 0], return_counts=True)
        asked = torch.isin(labels, classes[counts > 1])
        if not asked.any():
            raise DataError("no class has two of these rows, so no row has another to find")
        found = nearest(rows[asked], rows, 1, query_ids=ids[asked], key_ids=ids)[1][:, 0]
        return float((labels[found] == labels[asked]).float().mean())

    def save(self, folder: str | Path) -> None:
        """Write the adapter as safetensors and JSON into a new folder.

        Raises:
            OutputExistsError: If the folder is there and not empty.
        """
        write_saved(self.saved(), folder)

    def saved(self) -> SavedAdapter:
        """What `save` writes."""
        check_is_fitted(self)
        return SavedAdapter(self.fc_, self.settings_, self.report_, self.model_key_)

    @classmethod
    def load(cls, folder: str | Path) -> "Adapter":
        """Read an adapter that `save` (or `querykey adapt`) wrote. Nothing in it is executed.

        Args:
            folder: With adapter.json and adapter.safetensors.

        Returns:
            The fitted adapter.

        Raises:
            StoreError: If it is damaged or was changed.
        """
        saved = read_saved(folder)
        names = set(cls().get_params()) & set(AdapterSettings.__dataclass_fields__)
        adapter = cls(**{name: getattr(saved.settings, name) for name in names})
        adapter.fc_, adapter.settings_, adapter.history_ = saved.fc, saved.settings, []
        adapter.report_, adapter.model_key_ = saved.report, saved.model_key
        adapter.n_features_in_ = saved.fc.width
        return adapter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _settings(self) -> AdapterSettings:
        given = {
            name: getattr(self, name) for name in AdapterSettings.__dataclass_fields__ if hasattr(self, name)
        }
        return AdapterSettings(**given | {"loss_options": dict(self.loss_options or {})})

    def _keep(self, fitted: Fitted, X: object) -> "Adapter":
        self.fc_, self.settings_ = fitted.fc, fitted.settings
        self.report_, self.history_ = fitted.report, fitted.history
        self.model_key_ = X.model_key if isinstance(X, Features) else ""
        return self

    @property
    def _n_features_out(self) -> int:
        return self.fc_.dim

    def _adapted(self, rows: Tensor) -> Tensor:
        return in_blocks(lambda block: self.fc_(unit_rows(block)), rows)

    def _moved(
        self, X: ArrayLike | Tensor | Features, move: Callable[[Tensor], Tensor], *, any_model: bool
    ) -> NDArray[np.float32] | Tensor:
        check_is_fitted(self)
        theirs = X.model_key if isinstance(X, Features) else ""
        if theirs and self.model_key_ and theirs != self.model_key_ and not any_model:
            raise ModelMismatchError(
                f"the adapter was fitted on features of model {self.model_key_[:12]} and these are of "
                f"{theirs[:12]}; embed with the same model, or pass any_model=True"
            )
        rows = move(rows_of(self, X, reset=False))
        return rows if isinstance(X, Tensor) else rows.numpy()
