"""What a frozen encoder promises, whatever model is inside."""

import copy

import pytest
import torch
from frozen_toys import (
    CPU,
    WORDS,
    LetterModel,
    ShakyModel,
    SomeDamaged,
    image_encoder,
    images,
    text_encoder,
)
from torch import nn

from querykey.encoders.frozen import batch_size as batch_size_module
from querykey.encoders.frozen.batch_size import BatchPlan, measure_plan
from querykey.encoders.frozen.encoder import FrozenEncoder
from querykey.encoders.frozen.fingerprint import state_digest
from querykey.encoders.frozen.model import TorchModel, usable_device
from querykey.errors import (
    ConfigError,
    DamagedItemError,
    RangeError,
    ShapeError,
    SourceError,
    is_out_of_memory,
)


def test_trap_5_10_frozen_is_eval_mode_even_after_train():
    """Batch norm and dropout stay still although someone else calls .train() in between."""
    module = ShakyModel()
    encoder = image_encoder(module)
    items = images(6)
    before = copy.deepcopy(module.state_dict())
    first = encoder.encode(items)
    module.train()
    second = encoder.encode(items)
    module.train()
    alone = torch.cat([encoder.encode([item]) for item in items])
    assert torch.equal(first, second)
    assert torch.allclose(first, alone, atol=1e-6)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_features_can_be_learned_from():
    """A tensor made in inference mode could not be saved for backward."""
    features = text_encoder().encode(WORDS)
    layer = nn.Linear(features.shape[1], 2)
    layer(features).sum().backward()
    assert layer.weight.grad is not None
    assert not features.is_inference()
    assert not features.requires_grad


def test_texts_are_encoded_longest_first_and_come_back_in_order():
    module = LetterModel()
    encoder = text_encoder(module)
    encoder.plan = BatchPlan(batch_size=4)
    features = encoder.encode(WORDS)
    assert [len(text) for text in module.seen] == sorted((len(text) for text in WORDS), reverse=True)
    assert [len(batch) for batch in module.batches] == [4, 4, 1]
    with torch.no_grad():
        assert torch.allclose(features, module(WORDS), atol=1e-6)


def test_nothing_to_encode_gives_no_rows():
    assert text_encoder().encode([]).shape == (0, 6)


def test_a_damaged_item_has_no_row_and_the_others_keep_their_order():
    encoder = image_encoder()
    encoder.plan = BatchPlan(batch_size=3)
    whole = images(8)
    noted, done = [], []
    features = encoder.encode(
        SomeDamaged(whole, [0, 4]),
        on_damaged=lambda place, error: noted.append((place, str(error))),
        on_progress=done.append,
    )
    assert noted == [(0, "0.png is empty (0 bytes)"), (4, "4.png is empty (0 bytes)")]
    assert done == [3, 3, 2]
    kept = [whole[place] for place in (1, 2, 3, 5, 6, 7)]
    assert torch.allclose(features, encoder.encode(kept), atol=1e-6)


def test_a_damaged_item_is_an_error_without_a_handler():
    with pytest.raises(DamagedItemError, match=r"1\.png is empty"):
        image_encoder().encode(SomeDamaged(images(3), [1]))


class _SmallMemory(LetterModel):
    """Runs out of memory above three texts."""

    def forward(self, texts):
        if len(texts) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(texts)


def test_a_batch_that_does_not_fit_memory_is_halved():
    module = _SmallMemory()
    encoder = text_encoder(module)
    encoder.plan = BatchPlan(batch_size=8)
    features = encoder.encode(WORDS * 3)
    assert encoder.plan.batch_size <= 3
    assert sorted(module.seen) == sorted(WORDS * 3)
    assert torch.equal(features, text_encoder().encode(WORDS * 3))


def test_memory_that_does_not_hold_one_item_is_an_error():
    class NoMemory(LetterModel):
        def forward(self, texts):
            if "dog dog" in texts:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(texts)

    with pytest.raises(torch.OutOfMemoryError):
        text_encoder(NoMemory()).encode(WORDS)


def test_out_of_memory_on_the_cpu_is_recognised_by_its_message():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60)
    assert is_out_of_memory(found.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_key_changes_with_weights_and_dtype_and_with_nothing_else():
    module = LetterModel()
    key = text_encoder(module).key
    assert text_encoder(copy.deepcopy(module)).key == key
    assert text_encoder(module, dtype="bfloat16").key != key
    with torch.no_grad():
        module.linear.bias[0] += 1e-3
    assert text_encoder(module).key != key


def test_state_digest_covers_names_shapes_and_every_dtype():
    plain = nn.Linear(4, 2)
    turned = nn.Linear(2, 4)
    turned.weight.data = plain.weight.data.reshape(4, 2)
    turned.bias = plain.bias
    halves = copy.deepcopy(plain).to(torch.bfloat16)
    assert len({state_digest(module) for module in (plain, turned, halves, nn.BatchNorm1d(3))}) == 4


def test_bfloat16_moves_features_a_little():
    plain, rounded = text_encoder().encode(WORDS), text_encoder(dtype="bfloat16").encode(WORDS)
    assert rounded.dtype == torch.float32
    assert not torch.equal(plain, rounded)
    assert torch.allclose(plain, rounded, rtol=0.05, atol=0.05)


def test_a_dtype_is_measured_only_for_auto():
    assert text_encoder().dtype == "float32"
    assert text_encoder(dtype="auto").dtype in ("float32", "bfloat16")
    with pytest.raises(ConfigError, match="dtype 'float64' is not known"):
        text_encoder(dtype="float64")


class _Counting:
    """A model whose time a batch is known: 10 ms, and 1 ms an item above 32."""

    kind, identity, fixed_dtype, has_layouts = "text", "", False, False

    def __init__(self):
        self.sizes = []

    def blank(self):
        return ""

    def prepare(self, item):
        return item

    def forward(self, batch, *, dtype, channels_last):
        import time

        self.sizes.append(len(batch))
        time.sleep(0.01 + 0.001 * max(0, len(batch) - 32))
        return torch.zeros(len(batch), 2)


def test_the_batch_grows_while_the_rate_does():
    model = _Counting()
    plan = measure_plan(model, ["a", "b"], dtype=torch.float32)
    assert model.sizes[:3] == [8, 16, 32]
    assert plan.batch_size in (32, 64)
    assert measure_plan(model, ["a"], dtype=torch.float32, batch_size=7).batch_size == 7


def planned(monkeypatch, seconds, **given):
    """The batch size where a batch of each size takes so long."""
    monkeypatch.setattr(batch_size_module, "_seconds", lambda _model, items, _dtype, **_: seconds[len(items)])
    return measure_plan(_Counting(), ["a"], dtype=torch.float32, **given).batch_size


def test_one_slow_batch_does_not_end_the_measurement(monkeypatch):
    assert planned(monkeypatch, {8: 0.08, 16: 0.20, 32: 0.16, 64: 0.32, 128: 0.64}) == 32


def test_the_smallest_batch_within_a_twentieth_of_the_best_is_taken(monkeypatch):
    assert planned(monkeypatch, {8: 0.104, 16: 0.20, 32: 0.38, 64: 0.74, 128: 1.5, 256: 3.0}) == 32


def test_the_padding_of_larger_batches_counts(monkeypatch):
    """Of 64 texts 8 are long: a larger batch with all of them is as long as they are."""
    seconds = {8: 0.08, 16: 0.12, 32: 0.20, 64: 0.36, 128: 0.68, 256: 1.3}
    assert planned(monkeypatch, seconds) > 8
    assert planned(monkeypatch, seconds, lengths=[1000] * 8 + [10] * 56) == 8


def test_texts_are_measured_by_one_of_middle_length():
    seen, model = [], _Counting()
    model.forward = lambda batch, **_: (seen.extend(batch), torch.zeros(len(batch), 2))[1]
    FrozenEncoder(model, spec="").measure(["a" * 90, "bb", "ccc", "dddd", ""])
    assert {one for one in seen if one} == {"ccc"}


def test_the_layout_is_measured_on_images_and_changes_nothing_but_rounding():
    encoder = image_encoder()
    items = images(40)
    plain = encoder.encode(items)
    plan = encoder.measure(SomeDamaged(items, [0, 1]))
    assert plan == encoder.plan
    for layout in (True, False):
        encoder.plan = BatchPlan(batch_size=5, channels_last=layout)
        assert torch.allclose(plain, encoder.encode(items), atol=1e-5)
    with pytest.raises(RangeError, match="batch_size must be >= 1, got 0"):
        encoder.measure(items, batch_size=0)


def _encoder_of(module):
    model = TorchModel(
        module, kind="text", prepare=lambda text: text, blank=lambda: "", identity="", device=CPU
    )
    return FrozenEncoder(model, spec="toy:wrong")


class _Gives(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, texts):
        return self.give(len(texts))


def test_a_model_that_gives_no_rows_is_refused():
    with pytest.raises(ShapeError, match=r"returned shape \[1, 8, 7, 7\] for 1 items; one row of features"):
        _encoder_of(_Gives(lambda n: torch.zeros(n, 8, 7, 7)))
    with pytest.raises(ShapeError, match="returned tuple for 1 items"):
        _encoder_of(_Gives(lambda n: (torch.zeros(n, 8),)))
    with pytest.raises(ShapeError, match="features of width 3 after 1"):
        _encoder_of(_Gives(lambda n: torch.zeros(n, n))).encode(["a", "b", "c"])


def test_a_model_that_raises_on_a_blank_item_is_one_message():
    with pytest.raises(
        SourceError, match=r"toy:wrong cannot encode a blank item \(RuntimeError: .*does not fit"
    ):
        _encoder_of(_Gives(lambda n: torch.zeros(n, 2) @ torch.zeros(3, 2)))


def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match=r"device 'gpu' cannot be used here \(.*\); cpu always can"):
        usable_device("gpu")
