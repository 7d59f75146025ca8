"""One step and many: what the learner promises about them."""

import math

import pytest
import torch
from torch import Tensor

from learner.augment import photometric
from learner.collective import Deal, SingleProcess
from learner.config import AugmentConfig, LearnerConfig
from learner.network import Network, PhaseTimer
from learner.objectives.swav import swapped_loss
from learner.report import NonFinite
from learner.sinkhorn import assign, marginal_error
from learner.step_stats import measure
from tests.learner.small_run import (
    BATCH,
    KINDS,
    batch,
    coloured,
    run,
    same_bits,
    small_config,
    small_learner,
    spoiled,
    trace,
    weights_of,
)
from tests.oracles.finite_difference import slope

CPU = torch.device("cpu")


def timer() -> PhaseTimer:
    return PhaseTimer(lambda: 0.0)


def small_network(config: LearnerConfig, *, precision: str = "float32") -> Network:
    """The network that a small learner starts with."""
    return Network(config, seed=0, device=CPU, precision=precision, deal=Deal(SingleProcess()))


@pytest.mark.parametrize("kind", ["adamw", "groups of batch norm"])
@pytest.mark.parametrize("ready", [1, 5])
def test_a_batch_that_is_not_finite_stops_before_anything_has_changed(kind: str, ready: int) -> None:
    learner, straight = small_learner(KINDS[kind]), small_learner(KINDS[kind])
    run(learner, 0, ready)
    run(straight, 0, ready)
    before = learner.state_dict()
    with pytest.raises(NonFinite, match=f"loss of update {ready + 1} is nan; nothing was changed"):
        learner.step(spoiled(batch(ready)))
    after = learner.state_dict()
    assert same_bits(after["tensors"], before["tensors"])
    assert after["values"] == before["values"]
    assert trace(run(learner, ready, ready + 2)) == trace(run(straight, ready, ready + 2))


def test_a_gradient_that_is_not_finite_stops_as_well() -> None:
    learner = small_learner(small_config(swav={"temperature": 1e-30}))
    before = weights_of(learner)
    with pytest.raises(NonFinite) as caught:
        learner.step(batch(0))
    assert (caught.value.what, caught.value.value, caught.value.updates) == ("gradient", math.inf, 0)
    assert same_bits(weights_of(learner), before)


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_frozen_prototypes_do_not_move_and_gather_no_momentum_until_their_sample(optimizer: str) -> None:
    learner = small_learner(small_config(optim={"optimizer": optimizer, "learning_rate": 1e-2}))
    start = weights_of(learner)["model.prototypes.0"]
    for step in range(4):
        assert torch.equal(weights_of(learner)["model.prototypes.0"], start) == (step <= 2)
        kept = [name for name in weights_of(learner) if name.startswith("optim.prototypes")]
        assert bool(kept) == (step > 2)
        learner.step(batch(step))


def test_parts_of_a_batch_give_the_step_of_the_whole_batch() -> None:
    config = small_config(model={"bn_groups": 4})
    ends = []
    for accumulate in (1, 2, 4):
        learner = small_learner(config, precision="float64")
        losses = [learner.step(batch(step), accumulate=accumulate).loss for step in range(6)]
        ends.append((losses, weights_of(learner)))
    for losses, weights in ends[1:]:
        assert losses == pytest.approx(ends[0][0], rel=1e-10)
        for name, expected in ends[0][1].items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-9, atol=1e-9)


def test_codes_of_a_batch_in_parts_are_not_those_of_each_part_alone() -> None:
    config = small_config(model={"bn_groups": 2}, swav={"queue_samples": 0})
    whole = small_learner(config).step(batch(0), accumulate=2)
    first = small_learner(config).step(batch(0).part(torch.arange(0, BATCH, 2)))
    assert whole.code_entropy_nats != pytest.approx(first.code_entropy_nats, rel=1e-3)


def test_parts_that_cut_a_group_of_batch_norm_are_refused() -> None:
    learner = small_learner(small_config(model={"bn_groups": 4}))
    with pytest.raises(
        ValueError, match=r"accumulate = 3 on 1 ranks needs model.bn_groups to be a multiple of 3"
    ):
        learner.step(batch(0), accumulate=3)
    with pytest.raises(ValueError, match="multiple of 2, got 1"):
        small_learner(small_config()).step(batch(0), accumulate=2)


def test_more_parts_than_groups_with_samples_are_refused() -> None:
    learner = small_learner(small_config(model={"bn_groups": 16}))
    with pytest.raises(ValueError, match="leaves a part without samples"):
        learner.step(batch(0), accumulate=16)


def test_one_step_follows_the_gradient_of_the_loss_under_fixed_codes() -> None:
    config = small_config(
        optim={
            "optimizer": "sgd",
            "learning_rate": 1e-3,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "warmup_samples": 0,
        },
        swav={"freeze_samples": 0, "queue_samples": 0},
    )
    learner = small_learner(config, precision="float64")
    start = weights_of(learner)
    views = batch(0)
    learner.step(views)
    moved = weights_of(learner)["model.head.3.weight"] - start["model.head.3.weight"]

    def loss_at(weight: Tensor) -> Tensor:
        network = small_network(config, precision="float64")
        prototypes = network.model.prototypes[0]
        z = network.embed(views, torch.arange(BATCH), timer()).detach()
        codes = assign(z[:2] @ prototypes.T, epsilon=0.05, iterations=3).codes_ABK
        with torch.no_grad():
            network.model.head.get_parameter("3.weight").copy_(weight)
        scores = network.embed(views, torch.arange(BATCH), timer()) @ prototypes.T
        return swapped_loss(scores, codes, temperature=0.1).mean()

    direction = torch.randn(moved.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = -1e-3 * slope(loss_at, start["model.head.3.weight"], direction)
    assert float((moved * direction).sum()) == pytest.approx(expected, rel=1e-5)


def test_it_learns_to_tell_colours_apart_and_uses_its_prototypes() -> None:
    config = small_config(
        model={"projection_dim": 64},
        optim={"optimizer": "adamw", "learning_rate": 3e-3, "warmup_samples": 0},
        swav={"prototypes": (20,), "queue_samples": 0, "freeze_samples": 0},
        augment={"jitter": 0.1, "grayscale_probability": 0.0, "blur_probability": 0.0},
    )
    learner = small_learner(config)
    reports = [learner.step(coloured(step)[0]) for step in range(25)]
    assert reports[0].loss_over_ln_k > 0.95
    assert reports[-1].loss_over_ln_k < 0.5
    assert reports[-1].usage_perplexity > 8
    assert reports[-1].view_agreement > 0.5
    views, colour_B = coloured(99)
    cluster_B = learner.scores(views.crops[0][0]).argmax(1)
    pure = sum(int(torch.bincount(colour_B[cluster_B == k]).max()) for k in set(cluster_B.tolist()))
    assert pure / len(colour_B) > 0.9


def test_bfloat16_keeps_weights_and_scores_in_float32_and_stays_near_it() -> None:
    exact, half = (small_learner(small_config(), precision=p) for p in ("float32", "bfloat16"))
    for step in range(4):
        one, other = exact.step(batch(step)), half.step(batch(step))
        assert other.loss == pytest.approx(one.loss, rel=0.02)
    assert {tensor.dtype for name, tensor in weights_of(half).items() if tensor.is_floating_point()} == {
        torch.float32
    }
    assert half.scores(batch(0).crops[0][0]).dtype == torch.float32


def test_samples_seen_before_count_as_an_update_but_not_as_arrivals() -> None:
    learner = small_learner(small_config())
    report = learner.step(batch(0))
    assert (report.samples, report.updates) == (BATCH, 1)
    report = learner.step(batch(0), fresh=False)
    assert (report.samples, report.updates) == (BATCH, 2)


class Counting(SingleProcess):
    """One rank that counts its collectives."""

    def __init__(self) -> None:
        self.calls = 0

    def sum(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        self.calls += 1
        return tensor


@pytest.mark.parametrize(("iterations", "calls"), [(1, 3), (3, 5), (10, 12)])
def test_a_step_costs_a_small_collective_an_iteration_and_two_more(iterations: int, calls: int) -> None:
    group = Counting()
    config = small_config(swav={"sinkhorn_iterations": iterations}, health={"interval_samples": 10**6})
    learner = small_learner(config, group=group)
    learner.step(batch(0))
    group.calls = 0
    learner.step(batch(1))
    assert group.calls == calls  # of the prototypes' largest scores, each iteration, and the figures


def test_what_is_read_back_in_one_piece_is_what_each_value_was() -> None:
    learner = small_learner(small_config(swav={"prototypes": (10, 6), "prior": "powerlaw"}))
    views = batch(0)
    lane_B = views.lanes(Deal(SingleProcess()))
    usage_H = [torch.zeros(10), torch.zeros(6)]
    outcome = learner._gradient.of(
        views, lane_B, [torch.arange(BATCH)], counts=(BATCH,), samples=0, usage_H=usage_H, timer=timer()
    )
    measured = measure(outcome, torch.tensor(2.5), learner.config.swav, SingleProcess())
    assert measured.gradient_norm == 2.5
    for scores_ABK, assigned_N in zip(outcome.scores_H, measured.assigned_HN, strict=True):
        assert torch.equal(assigned_N, scores_ABK[0].argmax(-1))
    best = outcome.scores_H[0][0].max(-1)
    assert torch.equal(measured.assigned_B, best.indices)
    assert torch.equal(measured.score_B, best.values)
    assert measured.sinkhorn_residual == pytest.approx(
        max(
            float(marginal_error(codes.mass_AK, prior_K).max())
            for codes, prior_K in zip(outcome.codes_H, outcome.priors_H, strict=True)
        ),
        rel=1e-6,
    )


def test_the_learning_rate_follows_samples() -> None:
    learner = small_learner(small_config())
    rates = [report.learning_rate for report in run(learner, 0, 5)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


def test_the_report_of_a_step_is_consistent_with_itself() -> None:
    learner = small_learner(small_config())
    for step, report in enumerate(run(learner, 0, 7)):
        assert report.loss_over_ln_k == pytest.approx(report.loss / math.log(10))
        assert report.queue_fill == min(1, (step + 1) / 2)
        assert report.assigned_B.shape == report.score_B.shape == (BATCH,)
        assert report.assigned_B.dtype == torch.int64
        assert bool((report.score_B.abs() <= 1 + 1e-6).all())
        assert 0 <= report.code_entropy_nats <= math.log(10) + 1e-6
        assert 0 <= report.prediction_entropy_nats <= math.log(10) + 1e-6
        assert 0 <= report.sinkhorn_residual <= 2
        assert report.usage_window_fill == min(4, step + 1) / 4
        assert set(report.seconds) == {"augment", "forward", "sinkhorn", "backward", "optim", "health"}
        assert (report.health is not None) == (step == 0 or (step + 1) % 3 == 0)
    counts = torch.bincount(torch.cat([r.assigned_B for r in run(learner, 7, 11)]), minlength=10)
    torch.testing.assert_close(learner.usage(), counts / counts.sum())


def test_the_queue_first_takes_part_in_the_step_after_it_is_full() -> None:
    with_queue, without = (small_learner(small_config(swav={"queue_samples": n})) for n in (2 * BATCH, 0))
    for step in range(3):
        one, other = with_queue.step(batch(step)), without.step(batch(step))
        assert (one.code_entropy_nats == other.code_entropy_nats) == (step < 2)


def test_assigned_numbers_are_the_arg_max_of_raw_scores_and_not_of_codes() -> None:
    config = small_config(swav={"prior": "powerlaw"})
    network = small_network(config)
    z = network.embed(batch(0), torch.arange(BATCH), timer()).detach()
    scores = z[0] @ network.model.prototypes[0].detach().T
    report = small_learner(config).step(batch(0))
    assert torch.equal(report.assigned_B, scores.argmax(1))
    torch.testing.assert_close(report.score_B, scores.amax(1))


def test_features_are_the_pooled_encoder_output_and_do_not_depend_on_the_batch() -> None:
    learner = small_learner(small_config())
    run(learner, 0, 3)
    images = batch(9).crops[0][0]
    before = weights_of(learner)
    features = learner.features(images)
    assert features.shape == (BATCH, 64)
    torch.testing.assert_close(learner.features(list(images[3:5])), features[3:5], rtol=1e-4, atol=1e-5)
    assert same_bits(weights_of(learner), before)
    scores = learner.scores(images)
    assert scores.shape == (BATCH, 10)
    assert bool((scores.abs() <= 1 + 1e-6).all())


def test_many_images_go_through_in_pieces() -> None:
    learner = small_learner(small_config())
    images = torch.randint(0, 256, (300, 3, 8, 8), dtype=torch.uint8)
    assert learner.features(images).shape == (300, 64)


def test_images_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 3, H, W\], got torch.float32"):
        small_learner(small_config()).features(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("groups", [0, 4])
def test_statistics_of_an_untrained_net_are_estimated_from_images(groups: int) -> None:
    learner = small_learner(small_config(model={"bn_groups": groups}))
    images = batch(0).crops[0].flatten(0, 1)
    learner.estimate_statistics([images])
    mean = weights_of(learner)["model.encoder.bn1.running_mean"]
    encoder = small_network(small_config()).model.encoder
    shown = photometric(
        images[None], torch.ones(1, 2 * BATCH, 16), AugmentConfig(), device=CPU, dtype=torch.float32
    )
    expected = encoder.get_submodule("conv1")(shown).mean((0, 2, 3))
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-4, atol=1e-5)
    learner.step(batch(0))


@pytest.mark.parametrize("images", [1, 257])
def test_statistics_need_no_even_number_of_images(images: int) -> None:
    learner = small_learner(small_config())
    some = torch.randint(0, 256, (images, 3, 8, 8), dtype=torch.uint8)
    learner.estimate_statistics([torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), some])
    assert bool(learner.features(some).isfinite().all())


def test_views_that_do_not_fit_the_settings_are_refused() -> None:
    learner = small_learner(small_config(swav={"assign_views": 3}))
    with pytest.raises(ValueError, match=r"swav.assign_views = 3 needs as many crops of the first kind"):
        learner.step(batch(0))


@pytest.mark.parametrize("precision", ["float16", "double"])
def test_an_unknown_precision_is_refused(precision: str) -> None:
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float64"):
        small_learner(small_config(), precision=precision)
