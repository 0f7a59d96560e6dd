"""What the fit of an adapter takes of the memory, before its first step."""

from querykey.adapter.settings import AdapterSettings
from querykey.losses.streaming import Form, chosen_form, loss_bytes

__all__ = ["describe_fit_memory"]


def describe_fit_memory(settings: AdapterSettings, *, items: int, width: int, processes: int = 1) -> str:
    """What loss and memory take beside the features.

    Args:
        settings: Resolved.
        items: Rows trained on.
        width: Of the frozen rows.
        processes: Over which a sharded memory is split.

    Returns:
        A line of at most 78 characters.

    Example:
        >>> from querykey.adapter.settings import resolve
        >>> settings = resolve(AdapterSettings(), task="unlabelled", items=50_000, width=384)
        >>> describe_fit_memory(settings, items=50_000, width=384)
        'memory: loss about 43 MiB (chunked, 128 x 50,000 scores), features 73 MiB'
    """
    queries = settings.batch_size
    stored = 0 if settings.memory.kind == "in_batch" else min(settings.memory.capacity, items)
    is_dealt = settings.memory.sharded and processes > 1
    share = -(-stored // processes) if is_dealt else stored
    if settings.loss.kind == "score_distillation":
        keys = max(queries, share)
    else:
        own = (
            settings.selection.neighbours
            if settings.loss.kind == "score_difference"
            else settings.selection.negatives or 0
        )
        keys = queries + min(
            stored, queries * (own + (settings.selection.positives or 0)) + (settings.selection.sampled or 0)
        )
    given: Form = "dense" if is_dealt else settings.loss.options.get("form", "auto")
    can_stream = settings.loss.kind in ("info_nce", "score_distillation")
    form = chosen_form(given, queries, keys) if can_stream else "dense"
    size = loss_bytes(queries, keys, settings.dim or width, form)
    return (
        f"memory: loss about {max(1, size >> 20):,} MiB ({form}, {queries:,} x {keys:,} scores), "
        f"features {max(1, 4 * share * width >> 20):,} MiB"
    )
