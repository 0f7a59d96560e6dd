"""Rows encoded with batch statistics and without gradient; no buffer moves."""

import pytest
import torch

from querykey.losses import nt_logistic
from querykey.pretraining.methods.step import StepContext, encode_preserving_buffers

CONTEXT = StepContext(loss=nt_logistic)


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)

    def forward(self, images):
        h = self.norm(images.flatten(1))
        return h, self.layer(h)


def test_rows_are_those_of_a_step_and_buffers_stay():
    encoder = Toy().train()
    images = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 3
    wanted = torch.nn.functional.normalize(encoder(images)[1], dim=1)
    buffers = {name: value.clone() for name, value in encoder.named_buffers()}
    ((rows, ids, classes),) = encode_preserving_buffers(encoder, [(images, torch.arange(6), None)], CONTEXT)
    torch.testing.assert_close(rows, wanted)
    assert not rows.requires_grad
    assert classes is None
    assert ids.tolist() == [*range(6)]
    assert all(value.equal(buffers[name]) for name, value in encoder.named_buffers())


def test_buffers_are_put_back_where_the_reader_stops_or_breaks():
    encoder = Toy().train()
    batches = [(torch.randn(4, 1, 2, 2), torch.arange(4), None)] * 3
    mean = encoder.norm.running_mean.clone()
    walk = encode_preserving_buffers(encoder, batches, CONTEXT)
    next(walk)
    walk.close()
    assert encoder.norm.running_mean.equal(mean)

    def broken():
        yield batches[0]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(encode_preserving_buffers(encoder, broken(), CONTEXT))
    assert encoder.norm.running_mean.equal(mean)
