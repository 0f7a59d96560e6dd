"""A step on an accelerator is queued without a read from it: each read would wait until the device is idle.

On torch's "meta" device tensors have shapes and no numbers, so whatever needs a number raises an error.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pretraining_toys import METHODS

from querykey.pretraining import autotune
from querykey.pretraining.autotune import accelerator_precision
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods import end_to_end, step
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.methods.step import ViewPair
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings

META = torch.device("meta")
IMAGES, SIDE = 64, 8
BACKWARD = {"moco-v3": 2}
"""Backward passes of a step, where there are more than one."""
VARIANTS = [
    *((method, {}) for method in METHODS),
    ("simclr", {"precision": "bfloat16"}),
    ("simclr", {"loss.learned_temperature": True}),
    ("simclr", {"optimizer": "lars"}),
    ("simclr", {"chunks": 2}),
    ("memory-bank", {"dictionary.contrast": "nce", "dictionary.negatives": 20, "dictionary.proximal": 0.1}),
    ("xbm", {"dictionary.capacity": 40, "dictionary.align": "kalman"}),
]


@pytest.fixture
def reads(monkeypatch):
    """The losses that were read: the one read of a backward pass."""
    found = []

    def require_finite(loss, *_):
        found.append(loss)
        return 0.0

    for module in (step, end_to_end):
        monkeypatch.setattr(module, "require_finite", require_finite)
    # autocast and one function of batch norm in chunks have no entry for the meta device
    statistics = lambda rows, *_: (rows.new_empty(rows.shape[1]), rows.new_empty(rows.shape[1]))  # noqa: E731
    monkeypatch.setattr(torch, "batch_norm_update_stats", statistics)
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        monkeypatch.setattr(torch, name, on_cpu(getattr(torch, name)))
    generator = SimpleNamespace(get_rng_state=lambda _: torch.zeros(1), set_rng_state=lambda *_: None)
    monkeypatch.setattr(torch, "get_device_module", lambda _: generator)
    return found


def on_cpu(call):
    return lambda kind="meta", *given, **options: call("cpu" if kind == "meta" else kind, *given, **options)


def learner_on(device, method, settings):
    given = {"backbone": "small_cnn:4", "batch_size": 16, "head.dim": 16, "precision": "float32", "steps": 8}
    asked = given_settings(method, None, **given | {"layout": "contiguous"} | settings)
    resolved = resolve_settings(asked, images=IMAGES, channels=1, side=SIDE).changed({"epochs": 1.0})
    return Learner(make_encoder(resolved, channels=1), resolved, device, items=IMAGES)


def batch_on(device):
    ids = torch.arange(16, device=device)
    views = [torch.ones(16, 1, SIDE, SIDE, device=device) for _ in range(2)]
    return ViewPair(*views, ids, ids % 4)


@pytest.mark.parametrize(("method", "settings"), VARIANTS, ids=str)
def test_a_step_reads_its_loss_alone(reads, method, settings):
    """The loss, before the backward pass: weights stay as they are where it is not finite."""
    learner, batch = learner_on(META, method, settings), batch_on(META)
    if learner.settings.dictionary.contrast == "nce":
        learner.dictionary._has_normaliser = True  # the first step estimates it
    for number in (4, 5):
        learner.training_step(number, batch)
    assert len(reads) == 2 * BACKWARD.get(method, 1)


@pytest.mark.parametrize(
    "read",
    [
        lambda numbers: numbers.sum().item(),
        lambda numbers: float(numbers.sum()),
        lambda numbers: bool(numbers.any()),
        lambda numbers: numbers.tolist(),
        lambda numbers: numbers.cpu(),
        lambda numbers: numbers.numpy(),
        lambda numbers: numbers.nonzero(),
        lambda numbers: numbers[numbers > 0],
        torch.unique,
    ],
)
def test_whatever_waits_for_the_device_would_be_found(read):
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        read(torch.ones(3, device=META))


def test_a_read_in_a_loss_would_be_found(reads):
    learner = learner_on(META, "simclr", {})
    loss = learner.context.loss
    learner.context = replace(learner.context, loss=lambda found: loss(found) * float(found.queries.sum()))
    with pytest.raises(RuntimeError, match="meta"):
        learner.training_step(4, batch_on(META))
    assert not reads


@pytest.mark.parametrize(("is_supported", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_an_accelerator_computes_in_bfloat16_where_it_can(monkeypatch, is_supported, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: is_supported)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda _: None)
    assert accelerator_precision(torch.device("cuda")) == precision
    found = autotune.calibrate(
        lambda *_: None, precision="auto", layout="contiguous", device=torch.device("cuda")
    )
    assert found.precision == precision
    assert [*found.tried] == [f"{precision} contiguous"]  # not measured beside the other
    said = autotune.calibrate(
        lambda *_: None, precision="float32", layout="contiguous", device=torch.device("cuda")
    )
    assert said.precision == "float32"


def test_a_device_without_bfloat16_computes_in_float32():
    assert accelerator_precision(torch.device("mps")) in ("float32", "bfloat16")
    if not torch.backends.mps.is_available():
        assert accelerator_precision(torch.device("mps")) == "float32"


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is no accelerator on this machine")
@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_an_accelerator_has_the_loss_of_the_processor(method):
    device = torch.accelerator.current_accelerator()
    losses = [
        learner_on(place, method, {}).training_step(4, batch_on(place)).loss
        for place in (torch.device("cpu"), device)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
