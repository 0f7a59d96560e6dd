"""What the fit of an adapter takes of the memory, before its first step."""

from querykey.losses.streaming import Form, is_streamed, loss_bytes
from querykey.training.settings import DEFAULTS, AdapterSettings, Situation

__all__ = ["describe_fit_memory"]


def describe_fit_memory(settings: AdapterSettings, *, situation: Situation, items: int, width: int) -> str:
    """What loss and memory take beside the features.

    Args:
        settings: As given; None is what `resolve` makes of it.
        situation: What the fit learns from.
        items: Rows trained on.
        width: Of the frozen rows.

    Returns:
        A line of at most 78 characters.

    Example:
        >>> describe_fit_memory(AdapterSettings(), situation="unlabelled", items=50_000, width=384)
        'memory: loss about 43 MiB (streamed, 128 x 50,000 scores), features 73 MiB'
    """
    default = DEFAULTS[situation]
    queries = min(settings.batch_size, items)
    held = 0 if settings.memory == "in_batch" else min(settings.capacity, items)
    loss = settings.loss or default.loss
    if loss == "score_distillation":
        keys = max(queries, held)
    else:
        own = (
            settings.neighbours if loss == "score_difference" else _or(settings.negatives, default.negatives)
        )
        own += _or(settings.positives, default.positives)
        keys = queries + min(held, queries * own + _or(settings.sampled, default.sampled))
    given: Form = settings.loss_options.get("form", "auto")
    form: Form = "plain"
    if loss in ("info_nce", "score_distillation"):
        form = given if given != "auto" else "streamed" if is_streamed(queries, keys) else "plain"
    size = loss_bytes(queries, keys, settings.dim or min(64, width), form)
    return (
        f"memory: loss about {max(1, size >> 20):,} MiB ({form}, {queries:,} x {keys:,} scores), "
        f"features {max(1, 4 * held * width >> 20):,} MiB"
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
