"""A toy method: the positive of a query is the queue's row nearest to its other view (after NNCLR)."""

import torch
from torch.nn import functional as F

from querykey.lookup import PairRule, look_up
from querykey.losses import info_nce


def nearest_key_step(encoder, optimizer, queue, views, *, ids, temperature=0.2):
    """One step: encode both views, replace keys by their neighbours, look up, loss, step, enqueue."""
    optimizer.zero_grad()
    queries, keys = (F.normalize(encoder(view)[1], dim=1) for view in views)
    with torch.no_grad():
        fresh, stored = keys.detach(), queue.read().vectors
        nearest = stored[(fresh @ stored.T).argmax(dim=1)] if len(queue) else fresh
    rule = PairRule(positive="id", same_id="positive")
    lookup = look_up(queries, nearest, query_ids=ids, key_ids=ids, rule=rule)
    loss = info_nce(lookup, temperature=temperature).mean()
    loss.backward()
    optimizer.step()
    queue.enqueue(fresh, ids)
    return float(loss.detach())
