"""Every figure on constructed cases: collapsed, half collapsed, twins, long tail, sorted, even."""

import ast
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner import health
from learner.sinkhorn import assign, marginal_error

K = 200
EVEN = torch.full((K,), 50)
ONE = torch.zeros(K, dtype=torch.int64).index_fill_(0, torch.tensor([7]), 10_000)
HALF = torch.cat([torch.full((K // 2,), 100), torch.zeros(K // 2, dtype=torch.int64)])
TAIL = (10_000 / torch.arange(1, K + 1)).long()


def sphere(samples: int, dim: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(samples, dim, generator=generator), dim=1)


def collapsed(samples: int, spread: float = 0.001) -> Tensor:
    return torch.nn.functional.normalize(sphere(1) + spread * sphere(samples, seed=1), dim=1)


@pytest.mark.parametrize(("counts", "expected"), [(EVEN, K), (ONE, 1), (HALF, K / 2)])
def test_perplexity_counts_the_prototypes_in_use(counts: Tensor, expected: float) -> None:
    assert health.perplexity(counts) == pytest.approx(expected)
    assert health.corrected_perplexity(counts) == pytest.approx(expected, rel=0.02)


def test_perplexity_of_nothing_is_one() -> None:
    nothing = torch.zeros(K, dtype=torch.int64)
    assert health.perplexity(nothing) == 1
    assert health.corrected_perplexity(nothing) == 1


def test_the_correction_takes_out_the_bias_of_a_short_window() -> None:
    drawn = torch.randint(0, 3000, (10_000,), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=3000)
    assert health.perplexity(counts) == pytest.approx(2542, rel=0.01)
    assert health.corrected_perplexity(counts) == pytest.approx(3000, rel=0.03)


def test_divergence_from_the_prior_is_zero_when_usage_is_as_wanted() -> None:
    prior = TAIL / TAIL.sum()
    assert health.divergence_from_prior(EVEN) == pytest.approx(0, abs=1e-12)
    assert health.divergence_from_prior(TAIL, prior) == pytest.approx(0, abs=1e-7)
    assert health.divergence_from_prior(ONE) == pytest.approx(math.log(K))
    assert health.divergence_from_prior(TAIL) > 0.5


def test_gini_runs_from_even_to_one_takes_all() -> None:
    assert health.gini(EVEN) == pytest.approx(0, abs=1e-12)
    assert health.gini(ONE) == pytest.approx(1 - 1 / K)
    assert health.gini(EVEN) < health.gini(HALF) < health.gini(TAIL) < health.gini(ONE)


def test_dead_prototypes_are_those_below_a_twentieth_of_the_even_share() -> None:
    assert [health.dead_prototypes(counts) for counts in (EVEN, HALF, ONE)] == [0, K // 2, K - 1]


def test_a_window_of_one_sample_a_prototype_leaves_a_third_unused_by_chance() -> None:
    assert health.unused_by_chance(3000, 3000) / 3000 == pytest.approx(0.368, abs=0.001)
    assert health.unused_by_chance(3000, 30_000) < 0.2


def test_the_histogram_of_usage_accounts_for_every_prototype() -> None:
    histogram = health.usage_histogram(torch.tensor([0, 1, 100, 299]))
    assert sum(histogram) == 4
    assert len(histogram) == len(health.USAGE_EDGES) + 1
    assert histogram[0] == 1
    cell = health.USAGE_EDGES.index(1.0)
    assert histogram[cell] == 1  # 100 of 400 is the even share


def test_groups_are_fixed_and_their_shares_sum_to_one() -> None:
    shares = health.group_shares(torch.arange(10), 3)
    torch.testing.assert_close(shares, torch.tensor([18, 12, 15], dtype=torch.float64) / 45)


def test_drift_of_the_same_distribution_is_at_its_null_and_of_another_far_above() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.bincount(torch.randint(0, 64, (10_000,), generator=generator), minlength=64) for _ in range(2)
    )
    null = 63 * (1 / 10_000 + 1 / 10_000)
    assert health.drift(first, second) == pytest.approx(null, rel=0.5)
    assert health.drift(first, second.flip(0).index_fill(0, torch.arange(16), 10)) > 0.25


def test_twins_are_found_and_random_prototypes_have_none() -> None:
    prototypes = sphere(300)
    nearest = health.nearest_cosines(prototypes)
    assert health.twins(nearest, 0.95, len(nearest)) == 0
    prototypes[10] = prototypes[200] * 3
    assert health.twins(health.nearest_cosines(prototypes), 0.95, len(prototypes)) == 2
    direct = (sphere(300) @ sphere(300).T).fill_diagonal_(-1).amax(1)
    torch.testing.assert_close(nearest, direct)


def test_nearest_cosines_of_very_many_prototypes_are_taken_from_evenly_spaced_ones() -> None:
    assert health.nearest_cosines(sphere(9000, dim=2)).shape == (health.NEIGHBOUR_ROWS,)


def test_twins_among_very_many_prototypes_are_counted_for_all_of_them() -> None:
    prototypes = sphere(16_000, dim=8)
    prototypes[1:3000:2] = prototypes[:3000:2]
    nearest = health.nearest_cosines(prototypes)
    assert len(nearest) == health.NEIGHBOUR_ROWS
    assert health.twins(nearest, 0.99999, len(prototypes)) == pytest.approx(3000, rel=0.02)


def test_feature_deviation_tells_a_sphere_from_a_point() -> None:
    for z, expected in ((sphere(4000).double(), 1.0), (collapsed(4000).double(), 0.0)):
        found = health.feature_std(z.sum(0), z.square().sum(0), len(z))
        assert found == pytest.approx(expected, abs=0.02)
        direct = float(z.std(0, correction=0).mean()) * math.sqrt(z.shape[1])
        assert found == pytest.approx(direct, abs=1e-6)


def test_effective_rank_counts_directions() -> None:
    flat = torch.zeros(500, 64)
    flat[:, :5] = sphere(500, dim=5)
    assert health.effective_rank(sphere(4000)) == pytest.approx(64, rel=0.02)
    assert health.effective_rank(flat) == pytest.approx(5, rel=0.05)
    assert health.effective_rank(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)


def test_the_slope_of_the_spectrum_is_found() -> None:
    scale = torch.arange(1, 65).double().pow(-0.75)  # eigenvalues fall with exponent 1.5
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20_000, 64, generator=generator, dtype=torch.float64) * scale
    assert health.alpha_req(z) == pytest.approx(1.5, abs=0.1)
    assert health.alpha_req(sphere(20, dim=64)) is None
    assert health.alpha_req(sphere(100, dim=16)) is None


def test_lidar_rank_counts_the_directions_that_tell_images_apart() -> None:
    images = sphere(300, dim=16, seed=1)
    views = torch.stack([images + 0.05 * sphere(300, dim=16, seed=s) for s in (2, 3)])
    few = images.clone()
    few[:, 4:] = 0
    good = health.lidar_rank(views)
    four = health.lidar_rank(torch.stack([few + 0.02 * sphere(300, dim=16, seed=s) for s in (2, 3)]))
    one_direction = torch.zeros(300, 16)
    one_direction[:, 0] = torch.linspace(-1, 1, 300)
    one = health.lidar_rank(torch.stack([one_direction + 1e-3 * sphere(300, dim=16, seed=s) for s in (2, 3)]))
    assert good == pytest.approx(16, rel=0.05)
    assert four == pytest.approx(4, rel=0.1)
    assert one == pytest.approx(1, rel=0.05)
    assert health.lidar_rank(views[:1]) is None


def test_lidar_rank_of_noise_alone_is_as_high_as_it_can_be() -> None:
    point = torch.nn.functional.normalize(torch.ones(1024, 128), dim=1)
    views = torch.stack([point + 0.1 * sphere(1024, dim=128, seed=s) for s in (2, 3)])
    assert health.lidar_rank(views) == pytest.approx(128, rel=0.1)


def test_uniformity_and_alignment_know_their_ends() -> None:
    spread, point = health.uniformity(sphere(1000)), health.uniformity(torch.ones(50, 1))
    assert spread == pytest.approx(-3.9, abs=0.1)
    assert point == pytest.approx(0, abs=1e-6)
    assert health.uniformity(sphere(1)) is None
    assert health.alignment(sphere(500), sphere(500)) == 0
    assert health.alignment(sphere(2000), sphere(2000, seed=5)) == pytest.approx(2, abs=0.05)


def test_entropy_of_codes_that_say_nothing_is_ln_k() -> None:
    even = torch.full((3, 50), 1 / 50)
    assert float(health.summed_entropy(even)) == pytest.approx(3 * math.log(50))
    assert float(health.summed_entropy(even, even.log())) == pytest.approx(3 * math.log(50))
    assert float(health.summed_entropy(torch.eye(5))) == 0


def test_agreement_of_views_is_corrected_for_chance() -> None:
    assert health.corrected_agreement(1.0, ONE / ONE.sum()) == 0
    assert health.corrected_agreement(1 / K, EVEN / EVEN.sum()) == pytest.approx(0, abs=1e-9)
    assert health.corrected_agreement(1.0, EVEN / EVEN.sum()) == pytest.approx(1)


def test_a_sorted_stream_shows_in_its_autocorrelation_and_a_mixed_one_does_not() -> None:
    centres = sphere(8, seed=1)
    labels = torch.arange(8).repeat_interleave(64)
    z = torch.nn.functional.normalize(centres[labels] + 0.3 * sphere(512, seed=2), dim=1)
    lanes = torch.arange(16).repeat_interleave(32)
    mixed = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    in_order, shuffled = health.autocorrelation(z, lanes), health.autocorrelation(z[mixed], lanes)
    assert in_order is not None
    assert shuffled is not None
    assert in_order > 0.5
    assert abs(shuffled) < 0.05
    assert health.autocorrelation(z, torch.arange(512)) is None


def test_novelty_is_the_share_below_the_low_quantile_of_the_reference() -> None:
    reference = torch.tensor([2, 98, 900, 0])
    low = torch.tensor([30, 10, 30, 30])
    assert health.novelty(reference, reference, 0.01) == pytest.approx(0.002)
    assert health.novelty(torch.tensor([0, 0, 5, 5]), reference, 0.01) == 0
    assert health.novelty(low, reference, 0.01) == pytest.approx(0.3)
    assert health.novelty(low, reference, 0.2) == pytest.approx(0.4)


def test_a_prototype_that_has_not_moved_has_no_shift() -> None:
    before = sphere(10)
    now = before.clone()
    now[3] = -now[3]
    shift = health.prototype_shift(before, now)
    torch.testing.assert_close(
        shift, torch.zeros(10).index_fill(0, torch.tensor([3]), 2.0), rtol=0, atol=1e-6
    )


def test_quantiles_lie_between_sorted_values() -> None:
    assert health.quantiles(torch.tensor([3.0, 1.0, 2.0]), (0, 0.25, 1)) == [1.0, 1.5, 3.0]


def test_codes_look_balanced_under_full_collapse_while_raw_usage_sees_it() -> None:
    prototypes = sphere(128, seed=3)
    scores = collapsed(1024) @ prototypes.T
    result = assign(scores[None], epsilon=0.05, iterations=3)
    assert float(marginal_error(result.mass_AK)) < 0.01
    active_codes = len(set(result.codes_ABK.argmax(-1).flatten().tolist()))
    usage = torch.bincount(scores.argmax(1), minlength=128)
    assert active_codes > 50
    assert health.corrected_perplexity(usage) < 2
    entropy = float(health.summed_entropy(result.codes_ABK)) / result.codes_ABK[..., 0].numel()
    assert entropy / math.log(128) > 0.999


def test_drift_less_that_of_chance_is_about_nothing_for_any_number_of_groups() -> None:
    for groups, samples in ((8, 500), (32, 4096), (64, 10_000)):
        generator = torch.Generator().manual_seed(groups)
        now, then = (
            torch.bincount(torch.randint(0, groups, (samples,), generator=generator), minlength=groups)
            for _ in range(2)
        )
        assert health.corrected_drift(now, then) < 0.02
        moved = now.clone()
        moved[: groups // 4] = 1
        assert health.corrected_drift(moved, then) > 0.25


def test_batches_of_one_kind_each_are_alike_and_mixed_or_collapsed_ones_are_not() -> None:
    centres = sphere(8, seed=1)
    z = torch.nn.functional.normalize(centres.repeat_interleave(64, 0) + 0.3 * sphere(512, seed=2), dim=1)
    past = z.mean(0)
    one_kind = health.batch_similarity(z[:64].sum(0), 64, past)
    mixed = z[torch.randperm(512, generator=torch.Generator().manual_seed(0))][:64]
    assert one_kind is not None
    assert one_kind > 0.5
    assert health.autocorrelation(z[:64], torch.arange(8).repeat_interleave(8)) == pytest.approx(0, abs=0.02)
    assert health.batch_similarity(mixed.sum(0), 64, past) == pytest.approx(0, abs=0.05)
    point = collapsed(64)
    assert health.batch_similarity(point.sum(0), 64, point.mean(0)) == pytest.approx(0, abs=1e-3)
    assert health.batch_similarity(z[0], 1, past) is None


def test_every_formula_has_a_caller_in_the_product() -> None:
    named = {name for name, value in vars(health).items() if inspect.isfunction(value) and name[0] != "_"}
    root = Path(health.__file__).parents[1]
    used: set[str] = set()
    for path in (*root.glob("learner/**/*.py"), *root.glob("ops/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
    assert named - used == set()
