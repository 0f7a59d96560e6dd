"""A toy dictionary: each item once, with the row that came last; nothing is ever dropped."""

import torch

from querykey.dictionaries.static import InBatch


class LatestOfEach(InBatch):
    """`InBatch` has what the protocol asks for; only what `enqueue` keeps is new."""

    def enqueue(self, vectors, ids, labels=None):
        labels = torch.full_like(ids, -1) if labels is None else labels
        if len(self):
            old = self.read()
            kept = ~torch.isin(old.ids, ids)
            vectors = torch.cat([old.vectors[kept], vectors])
            ids, labels = torch.cat([old.ids[kept], ids]), torch.cat([old.labels[kept], labels])
        super().enqueue(vectors, ids, labels)
