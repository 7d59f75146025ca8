"""Batch norm by groups of lanes against torch's own layer, group by group."""

import pytest
import torch
from torch import Tensor, nn

from learner.group_batchnorm import GroupBatchNorm, GroupStats, averaging, group_batch_norm, without_tracking
from tests.oracles.finite_difference import slope


def native(channels: int = 3) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    return layer


def rows(count: int = 24, channels: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, 4, 5, generator=generator, dtype=torch.float64) * 3 + 1


def grouped(stats: GroupStats) -> GroupBatchNorm:
    return GroupBatchNorm(native(), stats)


def test_one_group_is_torchs_layer_in_value_gradient_and_running_statistics() -> None:
    stats, theirs = GroupStats(), native()
    ours = grouped(stats)
    ends = []
    for layer in (theirs, ours):
        x = rows().requires_grad_()
        stats.begin(torch.zeros(8, dtype=torch.int64))
        y = layer(x)
        (y * rows(seed=2)).sum().backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        ends.append((y, x.grad, layer.weight.grad, layer.bias.grad))
    stats.apply()
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, expected in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected)


def test_each_group_is_normalised_by_torchs_layer_on_its_own_rows_of_all_views() -> None:
    group_B = torch.tensor([0, 1, 2, 0, 1, 0, 2, 0])
    stats = GroupStats(groups=3)
    layer, x = grouped(stats), rows()
    stats.begin(group_B)
    y = layer(x)
    group_N = group_B.repeat(3)
    for group in range(3):
        expected = native()(x[group_N == group])
        torch.testing.assert_close(y[group_N == group], expected)


def test_running_statistics_move_to_the_average_over_groups() -> None:
    group_B = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0])
    stats = GroupStats(groups=2)
    layer, x = grouped(stats), rows()
    stats.begin(group_B)
    layer(x)
    assert torch.equal(layer.state_dict()["running_mean"], torch.zeros(3, dtype=torch.float64))
    stats.apply()
    apart = []
    for group in range(2):
        theirs = native()
        theirs(x[group_B.repeat(3) == group])
        apart.append(theirs.state_dict())
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(layer.state_dict()[name], (apart[0][name] + apart[1][name]) / 2)


def test_a_group_without_samples_is_left_out_of_the_average() -> None:
    stats = GroupStats(groups=3)
    layer, theirs = grouped(stats), native()
    stats.begin(torch.ones(8, dtype=torch.int64))
    assert bool(torch.isfinite(layer(rows())).all())
    stats.apply()
    theirs(rows())
    torch.testing.assert_close(layer.state_dict(), theirs.state_dict())


def test_two_sizes_of_crop_move_the_running_statistics_one_after_the_other() -> None:
    stats, theirs = GroupStats(), native()
    layer = grouped(stats)
    stats.begin(torch.zeros(8, dtype=torch.int64))
    small = rows(seed=3)[..., :2, :2]
    for x in (rows(), small):
        layer(x)
        theirs(x)
    stats.apply()
    torch.testing.assert_close(layer.state_dict(), theirs.state_dict())


def test_parts_of_whole_groups_leave_the_statistics_of_the_whole_batch() -> None:
    group_B = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    ends = []
    for parts in ([[0, 1, 2, 3]], [[0, 1], [2, 3]]):
        stats = GroupStats(groups=4)
        layer = grouped(stats)
        for some in parts:
            chosen = torch.nonzero(torch.isin(group_B, torch.tensor(some))).squeeze(1)
            stats.begin(group_B[chosen])
            for views in (rows(), rows(seed=3)):
                layer(views.view(3, 8, 3, 4, 5)[:, chosen].flatten(0, 1))
        stats.apply()
        ends.append(layer.state_dict())
    torch.testing.assert_close(ends[0], ends[1])


def test_gradient_through_the_statistics_of_groups_equals_finite_differences() -> None:
    stats = GroupStats(groups=2)
    layer, x, weight = grouped(stats), rows(12), rows(12, seed=2)

    def total(at: Tensor) -> Tensor:
        stats.begin(torch.tensor([0, 1, 1, 0, 1, 0]))
        result: Tensor = (layer(at).tanh() * weight).sum()
        return result

    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(at), at)
    for seed in range(4):
        direction = rows(12, seed=seed + 10)
        expected = slope(total, x, direction)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6)


def test_flat_features_are_normalised_as_by_the_one_dimensional_layer() -> None:
    stats, theirs = GroupStats(), nn.BatchNorm1d(7).double()
    layer = GroupBatchNorm(theirs, stats)
    x = torch.randn(12, 7, dtype=torch.float64)
    stats.begin(torch.zeros(12, dtype=torch.int64))
    torch.testing.assert_close(layer(x), nn.BatchNorm1d(7).double()(x))


def test_a_mean_far_from_zero_does_not_swallow_the_variance_in_float32() -> None:
    x = (torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1000).float()
    stats = GroupStats()
    layer = GroupBatchNorm(nn.BatchNorm2d(3), stats)
    stats.begin(torch.zeros(64, dtype=torch.int64))
    expected = nn.BatchNorm2d(3).double()(x.double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=2e-3)


def test_rows_of_a_group_keep_their_memory_order_and_with_it_the_exact_sums_of_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(32, 4, 64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for dtype in (torch.float64, torch.float32):
        stats = GroupStats(groups=2)
        layer = GroupBatchNorm(nn.BatchNorm2d(4).to(dtype), stats)
        at = x.detach().to(dtype, copy=True).requires_grad_()
        stats.begin(torch.arange(32) % 2)
        layer(at).backward(dy.to(dtype))
        assert at.grad is not None
        found.append(at.grad)
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 3e-7


def test_half_precision_rows_have_float32_statistics() -> None:
    stats = GroupStats()
    layer = GroupBatchNorm(nn.BatchNorm2d(3), stats)
    x = (rows() + 50).bfloat16()
    stats.begin(torch.zeros(8, dtype=torch.int64))
    y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(3)(x.float())
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=2e-2)


def test_evaluation_uses_the_running_statistics() -> None:
    stats, theirs = GroupStats(), native()
    layer = grouped(stats)
    for one in (layer, theirs):
        one.running_mean = torch.tensor([1.0, 2, 3], dtype=torch.float64)
        one.eval()
    stats.begin(torch.zeros(8, dtype=torch.int64))
    assert torch.equal(layer(rows()), theirs(rows()))


@pytest.mark.parametrize("by_groups", [False, True])
def test_a_pass_without_tracking_leaves_no_trace(by_groups: bool) -> None:
    stats = GroupStats()
    model = nn.Sequential(native())
    if by_groups:
        group_batch_norm(model, stats)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stats.begin(torch.zeros(8, dtype=torch.int64))
    with without_tracking(model):
        model(rows())
    stats.apply()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_averaging_replaces_the_statistics_by_the_plain_average_of_the_passes() -> None:
    stats = GroupStats()
    model = nn.Sequential(native())
    group_batch_norm(model, stats)
    with averaging(model):
        for seed in (1, 2):
            model(rows(seed=seed))
    mean = torch.stack([rows(seed=seed).mean((0, 2, 3)) for seed in (1, 2)]).mean(0)
    torch.testing.assert_close(model.state_dict()["0.running_mean"], mean)


def test_every_layer_of_a_model_is_replaced_and_keeps_its_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(native(), nn.ReLU()), nn.BatchNorm1d(4))
    names = list(model.state_dict())
    group_batch_norm(model, GroupStats(groups=2))
    assert list(model.state_dict()) == names
    kinds = [type(module) for module in model.modules() if not list(module.children())]
    assert kinds == [nn.Conv2d, GroupBatchNorm, nn.ReLU, GroupBatchNorm]
