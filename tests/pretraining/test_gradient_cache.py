"""A batch in chunks has the loss, the gradients and the running statistics of the whole batch."""

import copy
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from querykey.encoders.backbones import make_backbone
from querykey.encoders.norm.split import SplitBatchNorm2d
from querykey.encoders.projection import ProjectionHead, ViewEncoder
from querykey.errors import ConfigError, ShapeError
from querykey.pretraining.chunked.gradient_cache import cached_backward, checkpointed_blocks
from querykey.pretraining.chunked.recorder import record
from querykey.pretraining.chunked.tape import choose_cuts


def loss_of(z):
    """Compares all rows with each other."""
    unit = F.normalize(z.float() if z.dtype == torch.bfloat16 else z, dim=1)
    return (unit @ unit.T / 0.3).logsumexp(dim=1).mean() + (unit[:, 0] ** 3).sum()


def images(count=11, channels=3, size=8, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=draw, dtype=torch.float64).to(dtype)


class Residual(nn.Module):
    def __init__(self, width, *, shortcut=True, **options):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.one, self.two, self.three = (nn.BatchNorm2d(width, **options) for _ in range(3))
        if not shortcut:
            self.three = nn.Identity()

    def forward(self, maps):
        out = F.relu(self.one(self.first(maps)), inplace=True)
        out = self.two(self.second(out))
        out += self.three(maps)
        return F.relu_(out)


def residual(**options):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), Residual(4, **options), Residual(4, **options), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6, **options), nn.ReLU(inplace=True), nn.Linear(6, 5),
    )  # fmt: skip


class Twice(nn.Module):
    """One batch norm for two places, rows that two norms take, a sum that a later norm changes in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm, self.other, self.plain = (
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(8, affine=False),
        )
        self.linear = nn.Linear(8, 4)

    def forward(self, maps):
        maps = self.conv(maps)
        total = maps * 2
        parts = [self.norm(maps), self.other(maps)]
        total.add_(parts[0])
        total[:, :2] -= parts[1][:, 2:]
        out = self.plain(torch.cat([self.norm(total), total], dim=1))
        with torch.no_grad():
            still = out.mean(dim=(2, 3), keepdim=True)
        return "h", self.linear((out - still * out).amax(dim=(2, 3)))


def simclr():
    backbone = make_backbone("small_cnn:2", channels=3, image_size=8, seed=0)
    return ViewEncoder(backbone, ProjectionHead(backbone.dim, layers=3, dim=4, seed=0))


def half_frozen():
    module = residual()
    for parameter in [*module[0].parameters(), *module[1].parameters(), module[6].weight]:
        parameter.requires_grad_(requires_grad=False)
    module[1].two.eval()
    return module


def one_pixel():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def no_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(192, 4), nn.BatchNorm1d(4)

    def forward(self, maps):
        return self.linear(maps.flatten(1))


ENCODERS = {
    "norm that is not called": Unused,
    "residual blocks": residual,
    "cumulative statistics": lambda: residual(momentum=None),
    "no statistics": lambda: residual(track_running_stats=False),
    "no scale": lambda: residual(affine=False),
    "partly frozen": half_frozen,
    "twice": Twice,
    "backbone and head": simclr,
    "eval mode": lambda: residual().eval(),
    "one value a row": one_pixel,
    "no norm": no_norm,
}

each = pytest.mark.parametrize("name", ENCODERS)


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def both_ways(module, batch, sizes, steps=1):
    """The encoder after some steps on the whole batch, and after the same in chunks; the losses."""
    other, losses = copy.deepcopy(module), []
    for step in range(steps):
        now = batch * (step + 1)
        outcome = module(now)
        whole = loss_of(outcome[-1] if isinstance(outcome, tuple) else outcome)
        whole.backward()
        losses.append((whole.detach(), cached_backward(other, now.split(sizes), loss_of)))
    return module, other, losses


@each
def test_loss_gradients_and_statistics_are_the_whole_batchs(name):
    sizes = [2, 6, 3]
    whole, chunked, losses = both_ways(
        ENCODERS[name]().double(), images(), sizes, steps=1 + ("cumul" in name)
    )
    for expected, loss in losses:
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        assert not loss.requires_grad
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        dict(chunked.named_buffers()), dict(whole.named_buffers()), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("sizes", [1, 11])
def test_one_image_a_chunk_and_one_chunk(sizes):
    whole, chunked, losses = both_ways(residual().double(), images(), sizes)
    torch.testing.assert_close(losses[0][1], losses[0][0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        dict(chunked.named_buffers()), dict(whole.named_buffers()), rtol=1e-9, atol=1e-12
    )


@each
def test_in_float32_but_for_rounding(name):
    exact = ENCODERS[name]().double()
    whole, chunked, losses = both_ways(copy.deepcopy(exact).float(), images(dtype=torch.float32), 3)
    torch.testing.assert_close(losses[0][1], losses[0][0], rtol=1e-5, atol=1e-6)
    flat = [
        torch.cat([grad.flatten() for grad in gradients(module).values() if grad is not None])
        for module in (whole, chunked)
    ]
    assert (flat[0] - flat[1]).norm() <= 1e-5 * flat[0].norm()
    torch.testing.assert_close(
        dict(chunked.named_buffers()), dict(whole.named_buffers()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("spec", ["timm:test_resnet", "timm:test_efficientnet"])
def test_networks_of_libraries(spec):
    backbone = make_backbone(spec, channels=3, image_size=32, seed=0).double()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    whole, chunked, losses = both_ways(backbone, images(7, size=32), 3)
    torch.testing.assert_close(losses[0][1], losses[0][0], rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        dict(chunked.named_buffers()), dict(whole.named_buffers()), rtol=1e-9, atol=1e-9
    )


def test_what_else_the_loss_depends_on_has_its_gradient():
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    cached_backward(simclr().double(), images().split(4), lambda z: loss_of(z) / temperature)
    assert temperature.grad is not None


class DropByChunk(nn.Module):
    """What dropout draws if the rows come in chunks."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, rows):
        return torch.cat([F.dropout(part, 0.5) for part in rows.split(self.size)])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(5), nn.Identity()], ids=["batch norm", "none"])
def test_dropout_draws_the_same_both_times(norm):
    torch.manual_seed(0)
    before, after = nn.Linear(192, 5), nn.Linear(5, 4)
    chunked = nn.Sequential(nn.Flatten(), before, norm, nn.Dropout(0.5), after).double()
    whole = copy.deepcopy(chunked)
    whole[3] = DropByChunk(4)
    batch = images()
    torch.manual_seed(7)
    loss_of(whole(batch)).backward()
    end = torch.get_rng_state()
    torch.manual_seed(7)
    cached_backward(chunked, batch.split(4), loss_of)
    assert torch.equal(torch.get_rng_state(), end)
    torch.testing.assert_close(gradients(chunked), gradients(whole), rtol=1e-9, atol=1e-12)


def test_the_same_bits_every_time():
    runs = []
    for _ in range(2):
        module = residual()
        cached_backward(module, images(dtype=torch.float32).split(3), loss_of)
        runs.append(gradients(module))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_bfloat16():
    whole, chunked = simclr(), simclr()
    batch = images(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = loss_of(whole(batch)[1])
        loss = cached_backward(chunked, batch.split(4), loss_of)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0.02, atol=0.02)
    flat = [torch.cat([grad.flatten() for grad in gradients(module).values()]) for module in (whole, chunked)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99
    assert torch.is_autocast_cache_enabled()


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were made inside and alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outcome = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outcome):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return outcome

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key, size):
        self.seen.discard(key)
        self.now -= size


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *(Residual(4, shortcut=False) for _ in range(8)), nn.Flatten(), nn.Linear(256, 4)
    )


def test_memory_is_at_most_two_fifths_at_eight_chunks():
    batch = images(16, size=10, dtype=torch.float32)
    with LiveBytes() as whole:
        loss_of(deep()(batch)).backward()
    with LiveBytes() as chunked:
        cached_backward(deep(), batch.split(2), loss_of)
    assert chunked.most <= 0.4 * whole.most


def largest_sum(tape, cuts):
    """Cuts so far, norms of a segment so far and the gradient after them, in bytes; see `choose_cuts`."""

    def size(slots):
        return sum(tape.sizes[slot] for slot in slots)

    kept, worst = 0, 0
    for start, stop in itertools.pairwise([*cuts, len(tape.calls)]):
        kept += size(tape.live_set(start) - {0})
        places = [start, *[norm for norm in tape.norms if start < norm < stop], stop]
        for count in range(1, len(places)):
            norms = [tape.live_set(place) for place in places[:count] if place != tape.norms[0]]
            held = frozenset().union(*norms) - tape.live_set(start)
            worst = max(worst, kept + size(held - {0}) + size(tape.live_set(places[count]) - {0}))
    return worst


def test_cuts_are_the_best_of_all():
    tape = record(residual(), images(2, dtype=torch.float32))
    chosen = choose_cuts(tape)
    norms = [*tape.norms, len(tape.calls)]
    between = [range(early + 1, late + 1) for early, late in itertools.pairwise(norms[:-1])]
    least = [
        min(places, key=lambda place: sum(tape.sizes[s] for s in tape.live_set(place))) for places in between
    ]
    all_ways = [
        [0, *some] for count in range(len(least) + 1) for some in itertools.combinations(least, count)
    ]
    assert largest_sum(tape, chosen) == min(largest_sum(tape, cuts) for cuts in all_ways)
    assert len(chosen) > 1


@pytest.mark.parametrize("make", [deep, no_norm], ids=["batch norm", "none"])
def test_checkpointed_blocks_are_the_same_step_with_less_memory(make):
    whole, blocks = make(), make()
    batch = images(8, size=10 if make is deep else 8, dtype=torch.float32)
    with LiveBytes() as plain:
        loss_of(whole(batch)).backward()
    with LiveBytes() as saved, checkpointed_blocks(blocks):
        loss_of(blocks(batch)).backward()
    torch.testing.assert_close(gradients(blocks), gradients(whole), rtol=0, atol=0)
    torch.testing.assert_close(dict(blocks.named_buffers()), dict(whole.named_buffers()), rtol=0, atol=0)
    assert all("forward" not in vars(module) for module in blocks.modules())
    if make is deep:
        assert saved.most < 0.7 * plain.most


def test_checkpointed_blocks_in_chunks():
    torch.manual_seed(0)
    chunked = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(192, 5), nn.Dropout(0.5), nn.ReLU()), nn.Linear(5, 4)
    )
    plain = copy.deepcopy(chunked)
    for module, checkpoint_blocks in ((chunked, True), (plain, False)):
        torch.manual_seed(3)
        cached_backward(
            module, images(dtype=torch.float32).split(4), loss_of, checkpoint_blocks=checkpoint_blocks
        )
    torch.testing.assert_close(gradients(chunked), gradients(plain), rtol=0, atol=0)


def with_norm(change):
    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.register_buffer("kept", torch.zeros(3))

        def forward(self, maps):
            return change(self, maps).flatten(1)

    return Changed()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, rows):
        return rows * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 2


def keep(module, maps):
    module.kept.copy_(maps.mean(dim=(0, 2, 3)))
    return module.norm(maps)


def change_a_view(module, maps):
    maps = maps * 1
    part = maps[:, :1]
    out = module.norm(maps)
    part.add_(1)
    return out + maps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module, maps: Doubled.apply(module.norm(maps)) + 1, "by other means than torch's functions"),
        (lambda module, maps: Doubled.apply(module.norm(maps)), "by other means than torch's functions"),
        (
            lambda module, maps: module.norm(maps) * maps.max().item(),
            r"reads the values of its activations \(item",
        ),
        (keep, "keeps something of its activations"),
        (change_a_view, "two views of one tensor across a batch norm"),
        (
            lambda module, maps: module.norm(maps) if len(maps) > 2 else module.norm(maps) * 1,
            "makes other calls",
        ),
        (
            lambda module, maps: F.batch_norm(maps, None, None, module.norm.weight * 2, training=True),
            "whose scale and shift are computed",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        cached_backward(with_norm(change), images(5, dtype=torch.float32).split(3), loss_of)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"chunks of \[\] images were given"):
        cached_backward(simclr(), [], loss_of)
    with pytest.raises(ShapeError, match=r"chunks of \[0\] images were given"):
        cached_backward(simclr(), [images(0, dtype=torch.float32)], loss_of)
    with pytest.raises(ShapeError, match="needs more than one value a channel"):
        cached_backward(one_pixel(), [images(1, dtype=torch.float32)], loss_of)
    with pytest.raises(ConfigError, match="split batch norm has statistics for each sub-batch"):
        cached_backward(nn.Sequential(SplitBatchNorm2d(3, groups=2)), [images()], loss_of)
    with pytest.raises(ConfigError, match="checkpoint_blocks is for encoders without batch norm"):
        cached_backward(simclr(), [images(dtype=torch.float32)], loss_of, checkpoint_blocks=True)


def test_a_loss_that_fails_leaves_everything_usable():
    module = simclr().double()

    def fails(z):
        raise ArithmeticError(len(z))

    with pytest.raises(ArithmeticError):
        cached_backward(module, images().split(4), fails)
    assert all(grad is None for grad in gradients(module).values())
    assert torch.is_autocast_cache_enabled()
    cached_backward(module, images().split(4), loss_of)
