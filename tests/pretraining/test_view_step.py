"""What the steps have in common: the loss is in float32 whatever the encoder runs in."""

import pytest
import torch

from querykey.errors import CollapseError
from querykey.lookup import PairRule, look_up
from querykey.pretraining.methods.step import StepContext, projections


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, images):
        h = images.flatten(1)
        return h, self.layer(h)


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_loss_is_float32_where_the_encoder_is_bfloat16(chunks):
    seen = {}

    def loss(lookup):
        seen["z"], seen["scores"] = lookup.queries.dtype, (lookup.queries @ lookup.keys.T).dtype
        return (lookup.queries @ lookup.keys.T).square().mean(dim=1)

    encoder = Toy()
    context = StepContext(loss=loss, precision=torch.bfloat16, chunks=chunks)
    encoded = context.encode(encoder, torch.randn(4, 1, 2, 2))
    ids, rule = torch.arange(4), PairRule(positive="id")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as a caller may have it
        lookup = look_up(encoded.rows, encoded.rows, query_ids=ids, key_ids=ids, rule=rule)
        cost = context.mean_loss(lookup)
    context.backward(cost, encoded)
    assert seen == {"z": torch.float32, "scores": torch.float32}
    assert encoder.layer.weight.grad.dtype == torch.float32


def test_a_loss_that_is_not_finite_changes_no_weight():
    encoder = Toy()
    context = StepContext(loss=len)
    encoded = context.encode(encoder, torch.ones(2, 1, 2, 2))
    with pytest.raises(CollapseError, match="the loss is nan; lower the learning rate"):
        context.backward((encoded.rows * torch.nan).sum(), encoded)
    assert encoder.layer.weight.grad is None


def test_what_is_looked_up_is_of_length_one_if_asked():
    z = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert projections(z, normalised=True).tolist() == [[0.6, 0.8]]
    assert projections(z, normalised=False) is z
