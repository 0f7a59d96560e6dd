"""Training an encoder on, the supervised baseline, and the learning rate of both."""

import copy
import math

import pytest
import torch
from torch import nn

from querykey.errors import CollapseError, DataError, RangeError, ShapeError
from querykey.pretraining import fine_tune as module
from querykey.pretraining import fine_tune as tune_rate
from querykey.pretraining.fine_tune import FineTuning, LabelledImages, fine_tune, tune_learning_rate

NAMES = torch.tensor([4, 9])


def stripes(count=64, seed=0):
    """Class 4 has horizontal stripes and class 9 vertical ones, at any phase, under noise."""
    draw = torch.Generator().manual_seed(seed)
    phase = torch.randint(0, 4, (count,), generator=draw)
    wave = ((torch.arange(16)[None, :] + phase[:, None]) % 4 < 2).float()
    images = wave[:, None, :, None].repeat(1, 1, 1, 16)
    vertical = torch.arange(count) % 2 == 1
    images[vertical] = images[vertical].transpose(2, 3)
    images = images + 0.3 * torch.randn(images.shape, generator=draw)
    return (images.clamp(0, 1) * 255).to(torch.uint8), NAMES[vertical.long()]


def encoder(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def labelled(count=64, seed=0, **options):
    images, labels = stripes(count, seed)
    return LabelledImages(images_of=lambda ids: images[ids], labels=labels, **options)


def settings(**chosen):
    return FineTuning(**({"epochs": 12, "learning_rate": 2.0, "batch_size": 16, "seed": 0} | chosen))


def test_it_learns_and_leaves_the_encoder_and_the_randomness_as_they_were():
    backbone = encoder().eval()
    before, state = copy.deepcopy(backbone.state_dict()), torch.get_rng_state()
    tuned = fine_tune(backbone, labelled(), settings())
    assert float(tuned.correct(labelled(200, seed=1)).mean()) > 0.95
    assert tuned.losses[-1] < 0.5 * tuned.losses[0]
    assert len(tuned.losses) == 12
    assert tuned.classes.tolist() == [4, 9]
    assert not any(part.training for part in tuned.network.modules())
    assert not any(part.training for part in backbone.modules())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(torch.get_rng_state(), state)


def test_every_part_is_trained_and_batch_norm_follows_the_images():
    backbone = encoder().requires_grad_(False)
    tuned = fine_tune(backbone, labelled(), settings(epochs=1))
    for name, value in tuned.network[0].state_dict().items():
        assert not torch.equal(value, backbone.state_dict()[name]), name
    assert not any(p.requires_grad for p in backbone.parameters())


def test_same_seed_same_bits():
    backbone = nn.Sequential(encoder(), nn.Dropout(0.5))
    one, two, other = (fine_tune(backbone, labelled(), settings(epochs=2, seed=s)) for s in (3, 3, 4))
    assert one.losses == two.losses != other.losses
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unlabelled_images_have_no_part_and_no_score():
    images, labels = stripes()
    partly = labels.masked_fill(torch.arange(64) >= 40, -1)
    asked = []

    def images_of(ids):
        asked.append(ids)
        return images[ids]

    some = LabelledImages(images_of=images_of, labels=partly)
    tuned = fine_tune(encoder(), some, settings(epochs=1))
    right = tuned.correct(some)
    assert int(torch.cat(asked).max()) < 40
    assert right[40:].isnan().all()
    assert not right[:40].isnan().any()
    predicted = tuned.predict(some, torch.arange(40))
    assert torch.equal(right[:40], (predicted == labels[:40]).float())
    nobody = LabelledImages(images_of=images_of, labels=torch.full((5,), -1))
    assert tuned.correct(nobody).isnan().all()


def test_the_view_is_told_which_images_and_which_epoch():
    seen = []

    def view(images, ids, epoch):
        seen.append((ids, epoch))
        return images.float() / 255

    tuned = fine_tune(encoder(), labelled(20, view=view), settings(epochs=3, batch_size=8))
    shown = seen[1:]  # the first look is for the width
    for epoch in range(3):
        ids = torch.cat([ids for ids, when in shown if when == epoch])
        assert torch.equal(ids.sort().values, torch.arange(20))
    assert sorted(len(ids) for ids, when in shown if when == 0) == [6, 7, 7]
    orders = [torch.cat([i for i, when in shown if when == e]).tolist() for e in range(3)]
    assert orders[0] != orders[1]
    count = len(seen)
    tuned.correct(labelled(20, view=view))
    assert len(seen) == count  # scored plain


def test_the_learning_rate_follows_the_batch_and_half_a_cosine(monkeypatch):
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, *args, **kwargs):
            rates.append([group["lr"] for group in self.param_groups])
            assert [group["weight_decay"] for group in self.param_groups] == [0.1, 0.0]
            assert all(group["nesterov"] and group["momentum"] == 0.9 for group in self.param_groups)
            return super().step(*args, **kwargs)

    monkeypatch.setattr(module.torch.optim, "SGD", Watched)
    tuned = fine_tune(encoder(), labelled(64), settings(epochs=2, batch_size=32, weight_decay=0.1))
    peak = 2.0 * 32 / 256
    expected = [peak * 0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert all(one == two for one, two in rates)
    assert tuned.settings["rate_of_steps"] == pytest.approx(peak)
    assert (tuned.settings["images"], tuned.settings["largest_batch"]) == (64, 32)


def test_from_the_first_layer_of_the_head():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8, 5), nn.ReLU())
    before = copy.deepcopy(head.state_dict())
    tuned = fine_tune(encoder(), labelled(), settings(), head_layers=head)
    assert len(tuned.network) == 3
    assert tuned.network[-1].in_features == 5
    assert float(tuned.correct(labelled(100, seed=2)).mean()) > 0.9
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name])
        assert not torch.equal(value, tuned.network[1].state_dict()[name])


def test_a_rate_is_tuned_on_images_that_are_held_out(monkeypatch):
    fitted, scored = [], []
    original = tune_rate.fine_tune

    def watched(backbone, images, chosen, **options):
        fitted.append((images.labels != -1).nonzero()[:, 0])
        tuned = original(backbone, images, chosen, **options)
        correct = type(tuned).correct
        monkeypatch.setattr(
            type(tuned),
            "correct",
            lambda self, held: scored.append((held.labels != -1).nonzero()[:, 0]) or correct(self, held),
        )
        return tuned

    monkeypatch.setattr(tune_rate, "fine_tune", watched)
    tuned = tune_learning_rate(encoder(), labelled(), settings(epochs=6), rates=(1e-6, 1.0, 1e-5))
    assert tuned.learning_rate == 1.0
    assert list(tuned.accuracies) == [1e-6, 1e-5, 1.0]
    assert tuned.accuracies[1.0] > tuned.accuracies[1e-6]
    assert tuned.held_out == 12
    assert len(fitted) == 3
    for kept, held in zip(fitted, scored[:3], strict=True):
        assert not torch.isin(kept, held).any()
        assert len(kept) + len(held) == 64


def test_a_rate_that_blows_up_is_left_out():
    tuned = tune_learning_rate(encoder(), labelled(), settings(epochs=6), rates=(0.5, 1e30))
    assert tuned.learning_rate == 0.5
    assert math.isnan(tuned.accuracies[1e30])
    with pytest.raises(CollapseError, match="with each learning rate of"):
        tune_learning_rate(encoder(), labelled(), settings(epochs=6), rates=(1e29, 1e30))


def test_bad_input_is_one_message():
    with pytest.raises(DataError, match="two classes, got 1"):
        fine_tune(encoder(), labelled(1), settings())
    with pytest.raises(ShapeError, match=r"gives \(2, 8, 4, 4\) for 2 images"):
        fine_tune(encoder()[:5], labelled(), settings())
    with pytest.raises(CollapseError, match="the loss is nan"):
        fine_tune(encoder(), labelled(), settings(learning_rate=1e30))
    for bad in ({"epochs": 0}, {"batch_size": 1}):
        with pytest.raises(RangeError, match="epochs must be at least 1 and batch_size at least 2"):
            settings(**bad)
    for bad in ({"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(RangeError, match="learning_rate must be above 0"):
            settings(**bad)
    for bad in ({"momentum": 1.0}, {"warm_up": 12}):
        with pytest.raises(RangeError, match="momentum must be from 0"):
            settings(**bad)
    with pytest.raises(RangeError, match="at least two learning rates"):
        tune_learning_rate(encoder(), labelled(), settings(), rates=(0.1, 0.1))
    with pytest.raises(DataError, match="no class has two labelled images"):
        tune_learning_rate(encoder(), labelled(2), settings())
