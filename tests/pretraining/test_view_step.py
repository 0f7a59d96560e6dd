"""What the steps have in common: the loss is in float32 whatever the encoder runs in."""

import pytest
import torch

from querykey.errors import CollapseError
from querykey.pretraining.methods.step import Computing, backward, projections


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

    def loss(z):
        seen["z"], seen["scores"] = z.dtype, (z @ z.T).dtype
        return (z @ z.T).square().mean()

    encoder = Toy()
    backward(encoder, torch.randn(4, 1, 2, 2), loss, Computing(precision=torch.bfloat16, chunks=chunks))
    assert seen == {"z": torch.float32, "scores": torch.float32}
    assert encoder.layer.weight.grad.dtype == torch.float32


def test_a_loss_that_is_no_number_reaches_no_weight():
    encoder = Toy()
    with pytest.raises(CollapseError, match="the loss is nan; lower the learning rate"):
        backward(encoder, torch.ones(2, 1, 2, 2), lambda z: (z * torch.nan).sum(), Computing())
    assert encoder.layer.weight.grad is None


def test_what_is_looked_up_is_of_length_one_if_asked():
    z = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert projections(z, normalised=True).tolist() == [[0.6, 0.8]]
    assert projections(z, normalised=False) is z
