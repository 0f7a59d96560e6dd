"""Names of settings in version 0.1, which are read for one more version, from files and from users.

Folders of version 0.1 have these names in run.json, encoder.json and adapter.json; they are read without a
warning.
"""

from collections.abc import Mapping

__all__ = ["ADAPTER", "ADAPTER_FILES", "PRETRAINING", "VALUES"]

Names = Mapping[str, str]

PRETRAINING: Names = {
    "stem": "backbone.stem",
    "init": "backbone.init",
    "head_layers": "head.layers",
    "head_hidden": "head.hidden",
    "head_dim": "head.dim",
    "head_batch_norm": "head.batch_norm",
    "head_last_norm": "head.last_norm",
    "batch_norm_groups": "batch_norm.groups",
    "view_size": "views.size",
    "view_strength": "views.strength",
    "view_options": "views",
    "second_view_options": "second_view",
    "temperature": "loss.temperature",
    "learned_temperature": "loss.learned_temperature",
    "normalised": "loss.normalised",
    "loss_options": "loss",
    "learning_rate": "optimizer.learning_rate",
    "rule": "optimizer.lr_scaling",
    "optimizer.rule": "optimizer.lr_scaling",
    "weight_decay": "optimizer.weight_decay",
    "sgd_momentum": "optimizer.sgd_momentum",
    "warm_up": "optimizer.warm_up",
    "capacity": "dictionary.capacity",
    "start": "dictionary.start",
    "same_id": "dictionary.same_id",
    "contrast": "dictionary.contrast",
    "negatives": "dictionary.negatives",
    "slot_momentum": "dictionary.momentum",
    "proximal": "dictionary.proximal",
    "memory_weight": "dictionary.weight",
    "memory_warm_up": "dictionary.warm_up",
    "prefill": "dictionary.prefill",
    "align": "dictionary.align",
    "items_per_class": "dictionary.items_per_class",
    "sharded": "dictionary.sharded",
    "momentum": "key_encoder.momentum",
    "momentum_schedule": "key_encoder.schedule",
    "symmetric": "key_encoder.symmetric",
    "shuffle": "key_encoder.shuffle",
    "separate": "key_encoder.separate",
    "predictor_hidden": "key_encoder.predictor_hidden",
    "looks": "num_evals",
}
"""Settings of pretraining: flat names in Python, and two names of run files."""

ADAPTER: Names = {
    "held_out": "validation_fraction",
    "patience": "n_iter_no_change",
}
"""Settings of a fit, as written by users."""

ADAPTER_FILES: Names = {
    **ADAPTER,
    "loss_options": "loss",
    "start": "fc.start",
    **{name: f"memory.{name}" for name in ("capacity", "holds", "sharded", "prefill")},
    **{name: f"selection.{name}" for name in ("sampled", "negatives", "positives", "neighbours")},
}
"""Settings of a fit in adapter.json."""

VALUES: Mapping[str, Names] = {
    "loss": {"nt_xent": "info_nce", "margin": "triplet"},
    "loss.kind": {"nt_xent": "info_nce", "margin": "triplet"},
    "loss.form": {"plain": "dense", "streamed": "chunked"},
}
"""Old values of settings, by the current name of the setting."""
