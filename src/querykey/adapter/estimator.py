"""Adapter: the scikit-learn estimator on top of the adapter step."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from querykey.adapter.checkpoint import SavedAdapter, read_saved, write_saved
from querykey.adapter.fit import Begin, Fitted, Record, Report, fit_adapter
from querykey.adapter.ladder import prefix
from querykey.adapter.relevance import unit_rows
from querykey.adapter.rows import check_rows, labels_of, rows_with_direction, unchanged_by_errors
from querykey.adapter.settings import PARAMETERS, AdapterSettings, Ladder, Target
from querykey.adapter.split import distinct_pairs, numbered_pairs
from querykey.adapter.validation import ValidationQueries, in_blocks
from querykey.data.readers.arrays import require_finite_rows
from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.heads import FCKind, Start
from querykey.errors import ConfigError, DataError, ModelMismatchError
from querykey.evaluation.geometry import neighbour_overlap
from querykey.features.features import Features
from querykey.lookup.nearest import nearest
from querykey.losses.by_name import LossName
from querykey.runtime.codes import Code, Packed
from querykey.runtime.forward import check_size
from querykey.runtime.frontier import marked

__all__ = ["Adapter"]

OVERLAP = 10
DEPRECATED = "deprecated"
"""scikit-learn's mark of a deprecated parameter; a string, so that `clone` copies it."""
NAMES = tuple(name for name in PARAMETERS if name != "seed")
"""Settings that are parameters of `Adapter`; the seed is `random_state`."""
RENAMED = {"seed": "random_state", "held_out": "validation_fraction", "patience": "n_iter_no_change"}

Vectors = ArrayLike | Tensor | Features
"""Rows in any accepted container."""


class Adapter(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Adapt the embeddings of a frozen model: reduce their dimension or specialise them.

    A scikit-learn transformer. Rows are scaled to length 1 before and after. Closed forms (PCA, soft
    whitening, discriminant scaling, ridge) are evaluated first; training starts from the best of them.
    One half of the held-out queries chooses the candidate that is returned, the other half evaluates it.

    Args:
        dim: Width of the adapted rows; None: 64, or the width if that is less.
        dims: Sizes to fit at once, each a prefix of the largest; None: `dim` alone.
        bits: Precisions of codes beside float rows, 8 and 1 bit per number; None: no codes.
        ladder: How sizes are trained: "joint", "rotation", "sequential" or "selection"; None is chosen, see
            `AdapterSettings`.
        size_weights: Loss weights of sizes that are trained jointly: "equal", or "inverse" to the size.
        rotation: Rotation of 1-bit codes: "itq" (learned) or "random".
        classes: "known" if it is used on the classes it is fitted on, "new" for other classes. None: chosen
            by known classes, and never worse on new ones.
        target: Rows whose scores a fit without labels preserves: "frozen", "centred" or "soft_whitened";
            None: the last, or the one that the queries prefer.
        candidates: "all", "closed_form", or names of candidates or of their families.
        loss: None: "score_distillation" without labels, "info_nce" for pairs; for labels "nca" or
            "info_nce", chosen by validation. Others: "multi_similarity", "triplet", "contrastive",
            "circle", "score_difference".
        loss_options: The loss's own keyword arguments, such as {"temperature": 0.1}.
        fc: "linear", "residual" (dim = width) or "two_layer"; None: residual for labels and pairs at full
            width, linear otherwise.
        start: "pca", "pca_centred", "identity" or "orthogonal"; None: the best of the closed forms.
        memory: "cross_batch", or "in_batch" for none.
        capacity: Capacity of the memory in rows.
        holds: Content of the memory: "features" of the frozen model, or "projections", which become stale.
        sharded: Whether each of several processes stores and scores a shard of the memory.
        prefill: Whether the memory is filled before the first step.
        sampled: Rows drawn at random from the memory each step, for all queries. None, here and in the next
            two: validation chooses between two training presets.
        negatives: Hardest negatives per query; without labels the most similar rows.
        positives: Farthest positives per query (labels).
        neighbours: Most similar rows per query ("score_difference").
        both_sides: Whether the gradient goes through the keys too.
        side: "query": only queries are transformed; documents stay as they are in their index.
        steps: Optimiser steps per run; None: chosen by the size of the data, at most 2,000 in all runs of a
            fit. 0: no training.
        batch_size: Items per step, clipped to the data.
        learning_rate: AdamW's peak rate; cosine to 0. None: 1e-3, or 3e-4 for few rows.
        weight_decay: Decay towards the closed form that training starts from.
        validation_fraction: Fraction of the rows that is held out; few rows are held out in five folds
            instead. 0: nothing is held out.
        n_iter_no_change: Evaluations (25 per run) without improvement before training stops.
        precision: Precision of the matrix products in training: "float32", "bfloat16", or "auto": bfloat16 if
            this machine is 15% faster with it, measured once and stored.
        random_state: An int, None or a RandomState; the same state, data and threads give the same bits.
        verbose: Whether to print one line per candidate.
        seed: Deprecated, `random_state`. Likewise held_out, `validation_fraction`, and patience,
            `n_iter_no_change`.

    Attributes:
        fc_: The `FCLayer`; settings_: `AdapterSettings` as resolved for the data.
        report_: The verdict ("better", "no evidence", "start kept", "not validated"), the difference to the
            reference with its interval, and the candidate that was returned.
        candidates_: Each candidate with its validation score, difference to the reference and seconds.
        history_: A record per evaluation during training.
        model_key_: Key of the model whose features it was fitted on; "" if unknown.
        frontier_: Each size at each precision: dim, bits (32 for float), bytes (per vector), metric, quality
            with its interval (low, high), and recommended: true for the point of fewest bytes that keeps 98%
            of the quality of the largest float rows. Empty for one size without codes.
        n_features_in_: Width of the frozen rows; feature_names_in_: their names, if they have any.

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
        dims: Sequence[int] | ArrayLike | None = None,
        bits: Sequence[int] | ArrayLike | None = None,
        ladder: Ladder | None = None,
        size_weights: Literal["equal", "inverse"] = "equal",
        rotation: Literal["itq", "random"] = "itq",
        classes: Literal["known", "new"] | None = None,
        target: Target | None = None,
        candidates: str | Sequence[str] = "all",
        loss: LossName | None = None,
        loss_options: Mapping[str, Any] | None = None,
        fc: FCKind | None = None,
        start: Start | None = None,
        memory: Literal["cross_batch", "in_batch"] = "cross_batch",
        capacity: int = 50_000,
        holds: Literal["features", "projections"] = "features",
        sharded: bool = False,
        prefill: bool = True,
        sampled: int | None = None,
        negatives: int | None = None,
        positives: int | None = None,
        neighbours: int = 10,
        both_sides: bool = True,
        side: Literal["both", "query"] = "both",
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float | None = None,
        weight_decay: float = 1e-2,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 8,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool | int = False,
        seed: Any = DEPRECATED,
        held_out: Any = DEPRECATED,
        patience: Any = DEPRECATED,
    ) -> None:
        self.dim, self.dims, self.bits, self.ladder = dim, dims, bits, ladder
        self.size_weights, self.rotation = size_weights, rotation
        self.classes, self.target, self.candidates = classes, target, candidates
        self.loss, self.loss_options = loss, loss_options
        self.fc = fc
        self.start = start
        self.memory = memory
        self.capacity, self.holds, self.sharded, self.prefill = capacity, holds, sharded, prefill
        self.sampled, self.negatives, self.positives = sampled, negatives, positives
        self.neighbours = neighbours
        self.both_sides = both_sides
        self.side = side
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation_fraction, self.n_iter_no_change = validation_fraction, n_iter_no_change
        self.precision, self.random_state, self.verbose = precision, random_state, verbose
        self.seed, self.held_out, self.patience = seed, held_out, patience

    @in_default_torch_state
    def fit(
        self,
        X: Vectors,
        y: ArrayLike | None = None,
        *,
        queries: Vectors | ValidationQueries | None = None,
        pairs: ArrayLike | None = None,
        record: Record | None = None,
        begin: Begin | None = None,
    ) -> "Adapter":
        """Fit without labels (preserve neighbourhoods) or with labels (separate classes).

        Without labels, real queries improve the fit: they enter the moments and the early stopping. If it is
        known which row answers a query, they also choose the candidate and evaluate it.

        Args:
            X: Rows of a frozen model [items, width]: array, tensor or `Features`.
            y: A class for each row, of any type; -1 or None if unknown.
            queries: Rows of real queries [queries, width], for a fit without labels, or `ValidationQueries`.
            pairs: (row of queries, row of X that answers it) [pairs, 2], if known.
            record: Called with each record of the history as it is made.
            begin: Called with a line on the memory that the fit needs, and with one line per candidate.

        Returns:
            Itself.

        Raises:
            DataError: If there is nothing to learn from.
            RangeError: If a setting is outside its range.
        """
        with unchanged_by_errors(self):
            vectors = check_rows(self, X, reset=True)
            labels = None if y is None else labels_of(y, len(vectors))
            validation = self._validation_queries(queries, pairs, len(vectors), has_labels=y is not None)
            vectors, labels, validation = rows_with_direction(vectors, labels, validation)
            fitted = fit_adapter(
                vectors,
                self._settings(),
                labels=labels,
                validation=validation,
                record=record,
                begin=self._with_output(begin),
            )
            return self._keep(fitted, X)

    @in_default_torch_state
    def fit_pairs(
        self,
        Q: Vectors,
        D: Vectors,
        *,
        pairs: ArrayLike | None = None,
        record: Record | None = None,
        begin: Begin | None = None,
    ) -> "Adapter":
        """Fit on pairs of queries and documents.

        Equal and near-equal rows are merged, so that the answer of a query is never among its negatives; a
        note in `report_` gives their number.

        Args:
            Q: Frozen rows of queries [queries, width].
            D: Frozen rows of documents [documents, width].
            pairs: (row of Q, row of D) of each pair [pairs, 2]; row i with row i where not given.
            record: Called with each record of the history as it is made.
            begin: Called with a line on the memory that the fit needs, and with one line per candidate.

        Returns:
            Itself.

        Raises:
            ShapeError: If the widths differ, or the rows where no pairs are given.
        """
        with unchanged_by_errors(self):
            documents, queries = check_rows(self, D, reset=True), check_rows(self, Q, reset=False)
            for name, given in (("Q", queries), ("D", documents)):
                require_finite_rows(given, what=name)
            documents, training, note = distinct_pairs(queries, documents, pairs)
            fitted = fit_adapter(
                documents, self._settings(), pairs=training, record=record, begin=self._with_output(begin)
            )
            fitted.report["notes"] = [*fitted.report["notes"], *([note] if note else [])]
            return self._keep(fitted, D)

    @in_default_torch_state
    def transform(
        self, X: Vectors, *, dim: int | None = None, any_model: bool = False
    ) -> NDArray[np.float32] | Tensor:
        """Transform rows of items, of queries, and (unless side="query") of documents.

        Args:
            X: Rows of the same frozen model [rows, width].
            dim: One of `dims`; None: the largest.
            any_model: Take features of another model of the same width.

        Returns:
            Unit rows [rows, dim], float32; a tensor for a tensor, an array otherwise.

        Raises:
            ModelMismatchError: If the features are of another model.
            RangeError: If the adapter was not fitted with this size.
        """
        return self._moved(X, self._adapted, dim=dim, any_model=any_model)

    @in_default_torch_state
    def transform_documents(
        self, X: Vectors, *, dim: int | None = None, any_model: bool = False
    ) -> NDArray[np.float32] | Tensor:
        """Transform documents; with side="query" they are only scaled to length 1."""
        move = self._adapted if self.side == "both" else unit_rows
        return self._moved(X, move, dim=dim, any_model=any_model)

    def quantize(
        self, X: Vectors, *, dim: int | None = None, bits: int = 8, any_model: bool = False
    ) -> Packed:
        """Encode documents, for search with float queries: `code(dim=, bits=).scores(Q, codes)`.

        The code of a row is the same in any batch and in `querykey.runtime`; see `querykey.runtime.codes`.

        Args:
            X: Rows of the same frozen model [rows, width].
            dim: One of `dims`; None: the largest.
            bits: 8 or 1; the adapter must have been fitted with it.
            any_model: Take features of another model of the same width.

        Returns:
            int8 [rows, dim]; or packed bits, uint8 [rows, dim / 8], highest bit first.

        Raises:
            ModelMismatchError: If the features are of another model.
            RangeError: If the adapter was not fitted with this size or these bits.
        """
        self._check_model(X, any_model=any_model)
        rows = check_rows(self, X, reset=False)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        threads = torch.get_num_threads()
        return self.saved().loaded().quantize(rows.numpy(), dim=dim, bits=bits, threads=threads)

    def code(self, *, dim: int | None = None, bits: int = 8) -> Code:
        """The encoder and decoder of rows of one size.

        Args:
            dim: One of `dims`; None: the largest.
            bits: 8 or 1; the adapter must have been fitted with it.

        Returns:
            The `Code`.

        Raises:
            RangeError: If the adapter was not fitted with this size or these bits.
        """
        check_is_fitted(self)
        return self.saved().loaded().code(dim=dim, bits=bits)

    @in_default_torch_state
    def score(self, X: Vectors, y: ArrayLike | None = None) -> float:
        """Recall@1 among these rows with labels; overlap with the frozen top 10 without.

        Args:
            X: Rows that were not used in `fit` [rows, width].
            y: A class for each row, or None.

        Returns:
            From 0 to 1, higher is better.

        Raises:
            DataError: If no row's class is there twice.
        """
        check_is_fitted(self)
        frozen = check_rows(self, X, reset=False)
        rows, ids, k = self._adapted(frozen), torch.arange(len(frozen)), min(OVERLAP, len(frozen) - 1)
        if y is None:
            now, then = (nearest(r, r, k, query_ids=ids, key_ids=ids)[1] for r in (rows, frozen))
            return float(neighbour_overlap(now, then).mean())
        labels = labels_of(y, len(rows))
        classes, counts = torch.unique(labels[labels >= 0], return_counts=True)
        has_match = torch.isin(labels, classes[counts > 1])
        if not has_match.any():
            raise DataError("no class has two of these rows, so no row has another to find")
        found = nearest(rows[has_match], rows, 1, query_ids=ids[has_match], key_ids=ids)[1][:, 0]
        return float((labels[found] == labels[has_match]).float().mean())

    def save(self, folder: str | Path) -> None:
        """Write the adapter as safetensors and JSON into a new folder.

        Raises:
            OutputExistsError: If the folder is there and not empty.
        """
        write_saved(self.saved(), folder)

    def saved(self) -> SavedAdapter:
        """What `save` writes."""
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", None)
        return SavedAdapter(
            self.fc_,
            self.settings_,
            dict(self.report_),
            self.model_key_,
            self.candidates_,
            None if names is None else [str(name) for name in names],
            self.codes_,
            self.frontier_,
        )

    @classmethod
    @in_default_torch_state
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
        given = {name: value for name, value in saved.settings.as_parameters().items() if name in NAMES}
        adapter = cls(**given, random_state=saved.settings.seed)
        adapter.fc_, adapter.settings_, adapter.history_ = saved.fc, saved.settings, []
        adapter.report_, adapter.candidates_ = Report(saved.report), saved.candidates
        adapter.codes_, adapter.frontier_ = saved.codes, saved.frontier
        adapter.model_key_, adapter.n_features_in_ = saved.model_key, saved.fc.width
        if saved.feature_names is not None:
            adapter.feature_names_in_ = np.asarray(saved.feature_names, dtype=object)
        return adapter

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _settings(self) -> AdapterSettings:
        own = vars(self)
        given = {name: own[name] for name in NAMES}
        state = self.random_state
        for old, new in RENAMED.items():
            if own[old] is DEPRECATED or own[old] == DEPRECATED:
                continue
            warnings.warn(
                f"Adapter({old}=...) will go in the next version; use {new}", FutureWarning, stacklevel=4
            )
            if new == "random_state":
                state = own[old]
            else:
                given[new] = own[old]
        seed = state if isinstance(state, int) else int(check_random_state(state).randint(2**31 - 1))
        candidates = self.candidates if isinstance(self.candidates, str) else tuple(self.candidates)
        given |= {"loss_options": dict(self.loss_options or {}), "candidates": candidates, "seed": int(seed)}
        return AdapterSettings.from_parameters(**given)

    def _validation_queries(
        self, queries: Any, pairs: Any, rows: int, *, has_labels: bool
    ) -> ValidationQueries | None:
        if queries is None and pairs is None:
            return None
        if queries is None or has_labels:
            raise ConfigError(
                "fit(X, queries=Q, pairs=P) validates a fit without labels: give queries with the pairs, and "
                "leave out y; to fit on the pairs, call fit_pairs(Q, X, pairs=P)"
            )
        if isinstance(queries, ValidationQueries):
            return queries
        checked = check_rows(self, queries, reset=False)
        numbers = None if pairs is None else numbered_pairs(pairs, len(checked), rows)
        return ValidationQueries(checked, numbers)

    def _with_output(self, begin: Begin | None) -> Begin | None:
        if not self.verbose:
            return begin

        def write(line: str) -> None:
            sys.stdout.write(f"{line}\n")
            if begin is not None:
                begin(line)

        return write

    def _keep(self, fitted: Fitted, X: object) -> "Adapter":
        self.fc_, self.settings_ = fitted.fc, fitted.settings
        self.report_, self.history_, self.candidates_ = fitted.report, fitted.history, fitted.candidates
        self.codes_, self.frontier_ = fitted.codes, marked(fitted.frontier)
        self.model_key_ = X.model_key if isinstance(X, Features) else ""
        return self

    @property
    def _n_features_out(self) -> int:
        return self.fc_.dim

    def _adapted(self, rows: Tensor) -> Tensor:
        return in_blocks(lambda block: self.fc_(unit_rows(block)), rows)

    def _check_model(self, X: object, *, any_model: bool) -> None:
        check_is_fitted(self)
        theirs = X.model_key if isinstance(X, Features) else ""
        if theirs and self.model_key_ and theirs != self.model_key_ and not any_model:
            raise ModelMismatchError(
                f"the adapter was fitted on features of model {self.model_key_[:12]} and these are of "
                f"{theirs[:12]}; embed with the same model, or pass any_model=True"
            )

    def _moved(
        self, X: Vectors, move: Callable[[Tensor], Tensor], *, dim: int | None, any_model: bool
    ) -> NDArray[np.float32] | Tensor:
        self._check_model(X, any_model=any_model)
        if dim is not None:
            move = prefix(move, check_size(dim, self.settings_.sizes))
        rows = move(check_rows(self, X, reset=False))
        return rows if isinstance(X, Tensor) else rows.numpy()
