"""Two sources, an encoder each: the upper half of a digit is the query, and the lower half its document."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from querykey.lookup import Lookup
from querykey.losses import LearnedTemperature, info_nce
from querykey.pretraining.methods.end_to_end import EndToEnd, end_to_end_step
from querykey.pretraining.methods.step import StepContext, ViewPair

torch.manual_seed(0)
torch.set_num_threads(1)
pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
queries, documents = pixels[:, :32], pixels[:, 24:]  # 32 and 40 numbers wide; one row of pixels is in both
documents = documents + 0.1 * torch.randn(documents.shape)
test = torch.arange(len(pixels)) % 4 == 0
train = (~test).nonzero()[:, 0]


def encoder(width: int) -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 64))


query_encoder, document_encoder = encoder(queries.shape[1]), encoder(documents.shape[1])
temperature = LearnedTemperature(0.07)
parts = (query_encoder, document_encoder, temperature)
optimizer = torch.optim.AdamW([weight for part in parts for weight in part.parameters()], lr=1e-3)


def recall(k: int) -> float:
    """The fraction of test queries whose own document is among the k nearest."""
    with torch.no_grad():
        query_rows = nn.functional.normalize(query_encoder(queries[test]), dim=1)
        document_rows = nn.functional.normalize(document_encoder(documents[test]), dim=1)
    scores = query_rows @ document_rows.T
    return float((scores > scores.diagonal()[:, None]).sum(dim=1).lt(k).float().mean())


def symmetric_info_nce(lookup: Lookup) -> torch.Tensor:
    """As in CLIP, with a learned temperature."""
    return info_nce(lookup, temperature=temperature())


modules = EndToEnd(query_encoder, document_encoder, optimizer, symmetric=True)
context = StepContext(loss=symmetric_info_nce)
before = {k: recall(k) for k in (1, 10)}
for _ in range(250):
    ids = train[torch.randperm(len(train))[:256]]
    end_to_end_step(modules, ViewPair(queries[ids], documents[ids], ids), context)
for k, untrained in before.items():
    chance = k / int(test.sum())
    print(f"recall@{k:<2} {recall(k):.3f}, untrained {untrained:.3f}, chance {chance:.3f}")
print(f"temperature {float(temperature().detach()):.3f}, at first 0.070")
