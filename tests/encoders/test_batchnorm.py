"""What stands where a network has batch norm."""

import pytest
import torch
from torch import nn

from querykey.encoders.norm.batchnorm import convert_batch_norm
from querykey.encoders.norm.split import SplitBatchNorm1d, SplitBatchNorm2d
from querykey.encoders.norm.sync_batchnorm import GlobalBatchNorm
from querykey.errors import ConfigError, RangeError, ShapeError

MAPS = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 1


def normalised(values, eps=1e-5):
    """Numbers with mean 0 and variance 1; the mean and the unbiased variance."""
    mean = sum(values) / len(values)
    square = sum((value - mean) ** 2 for value in values)
    return (
        [(value - mean) / (square / len(values) + eps) ** 0.5 for value in values],
        mean,
        square / (len(values) - 1),
    )


def in_loops(maps, groups):
    out, means, variances = torch.empty_like(maps), [], []
    size = len(maps) // groups
    for channel in range(maps.shape[1]):
        statistics = []
        for start in range(0, len(maps), size):
            block = maps[start : start + size, channel]
            values, *of_group = normalised(block.flatten().tolist())
            out[start : start + size, channel] = torch.tensor(values, dtype=maps.dtype).view(block.shape)
            statistics.append(of_group)
        means.append(sum(mean for mean, _ in statistics) / groups)
        variances.append(sum(variance for _, variance in statistics) / groups)
    return out, torch.tensor(means).to(maps), torch.tensor(variances).to(maps)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_split_is_the_statistics_of_each_group_of_consecutive_rows(groups):
    norm = SplitBatchNorm2d(3, groups=groups, momentum=0.25).double()
    expected, mean, variance = in_loops(MAPS, groups)
    torch.testing.assert_close(norm(MAPS), expected)
    torch.testing.assert_close(norm.running_mean, 0.25 * mean)
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * variance)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_one_group_is_batch_norm(momentum):
    split, plain = SplitBatchNorm2d(3, groups=1, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
    for maps in (MAPS.float(), 2 * MAPS.float()):
        torch.testing.assert_close(split(maps), plain(maps), rtol=0, atol=0)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(split.state_dict()[key], value)
    split.eval()
    torch.testing.assert_close(split(MAPS.float()[:5]), plain.eval()(MAPS.float()[:5]))


def test_gradients_of_split():
    norm = SplitBatchNorm1d(2, groups=2).double()
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(norm, rows.requires_grad_())


def test_split_without_running_statistics():
    norm = SplitBatchNorm2d(3, groups=2, track_running_stats=False).double()
    torch.testing.assert_close(norm(MAPS), in_loops(MAPS, 2)[0])


def test_a_batch_that_does_not_split():
    with pytest.raises(ShapeError, match="4 groups, and 6 rows do not split into so many of one size"):
        SplitBatchNorm2d(3, groups=4).double()(MAPS)
    SplitBatchNorm2d(3, groups=4).double().eval()(MAPS)
    with pytest.raises(ShapeError, match="one value a channel and group in 6 rows"):
        SplitBatchNorm1d(3, groups=6).double()(MAPS[:, :, 0, 0])
    with pytest.raises(RangeError, match="groups of split batch norm must be >= 1, got 0"):
        SplitBatchNorm2d(3, groups=0)


def network():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1), nn.Flatten(), nn.Linear(24, 2))
    return nn.Sequential(inner, nn.BatchNorm1d(2, affine=False)).double()


def test_split_keeps_keys_values_and_mode():
    plain = network().eval()
    plain[0][1].running_mean.fill_(0.5)
    converted = convert_batch_norm(network().eval(), "split", groups=3)
    assert list(converted.state_dict()) == list(plain.state_dict())
    converted.load_state_dict(plain.state_dict())
    torch.testing.assert_close(converted(MAPS), plain(MAPS))
    assert isinstance(converted[0][1], SplitBatchNorm2d)
    assert isinstance(converted[1], SplitBatchNorm1d)
    assert not converted[1].training
    alone = convert_batch_norm(nn.BatchNorm2d(3), "split", groups=2)
    assert isinstance(alone, SplitBatchNorm2d)


def test_layer_is_over_channels_and_places_of_one_image():
    converted = convert_batch_norm(network(), "layer")
    norm = converted[0][1]
    maps = MAPS[:, [0, 1, 2, 2]]
    for place, image in enumerate(maps):
        values, *_ = normalised(image.flatten().tolist(), eps=0.1)
        torch.testing.assert_close(norm(maps)[place].flatten(), torch.tensor(values).to(maps))
    torch.testing.assert_close(converted(MAPS)[:1], converted(MAPS[:1]))
    assert norm.weight.shape == norm.bias.shape == (4,)
    assert converted[1].weight is None
    assert not list(converted.buffers())


def test_a_shift_that_is_missing_stays_missing():
    norm = nn.BatchNorm1d(3)
    norm.register_parameter("bias", None)
    for kind, options in (("layer", {}), ("split", {"groups": 2})):
        converted = convert_batch_norm(nn.Sequential(norm), kind, **options)
        assert [name for name, _ in converted.named_parameters()] == ["0.weight"]
        assert converted(MAPS[:, :, 0, 0].float()).shape == (6, 3)


def test_global_is_one_process_as_it_is_and_more_by_global_batch_norm():
    module = network()
    assert convert_batch_norm(module, "global") is module
    assert type(module[1]) is nn.BatchNorm1d
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        module = convert_batch_norm(module, "global")
    finally:
        torch.distributed.destroy_process_group()
    assert type(module[1]) is type(module[0][1]) is GlobalBatchNorm
    assert list(module.state_dict()) == list(network().state_dict())


def test_device_is_what_there_is():
    module = network()
    assert convert_batch_norm(module, "device") is module
    assert type(module[1]) is nn.BatchNorm1d


def test_what_is_refused():
    import timm

    with pytest.raises(ConfigError, match="groups belong to split batch norm"):
        convert_batch_norm(network(), "split")
    with pytest.raises(ConfigError, match="groups belong to split batch norm"):
        convert_batch_norm(network(), "layer", groups=2)
    with pytest.raises(ConfigError, match="is a BatchNormAct2d, which does more than batch norm"):
        convert_batch_norm(timm.create_model("test_efficientnet"), "layer")
