"""Drift, novelty and the age of queued features, seen with a frozen copy of the network."""

import pytest
import torch
from torch import Tensor

from learner.augment import Views
from learner.collective import Deal, SingleProcess
from learner.drift import REPORTS, TRAIL_LEAST, DriftMonitor, DriftReport, FeatureTrail
from learner.network import Network
from tests.learner.small_run import small_config

B = 64


def network(seed: int = 0) -> Network:
    return Network(
        small_config(), seed=seed, device=torch.device("cpu"), precision="float32", deal=Deal(SingleProcess())
    )


def batch(step: int, *, dark: bool = False) -> Views:
    """Pictures of a random colour each; dark ones are all of one colour."""
    generator = torch.Generator().manual_seed(step)
    colour = torch.rand(1, B, 3, 1, 1, generator=generator) * 200
    if dark:
        colour = torch.tensor([0.0, 0.0, 150.0]).view(1, 1, 3, 1, 1).expand_as(colour)
    noise = torch.rand(2, B, 3, 16, 16, generator=generator) * 55
    return Views(
        crops=((colour + noise).to(torch.uint8),), uniforms=torch.rand(2, B, 16, generator=generator)
    )


class Looking:
    """A watch that is shown one batch after the other."""

    def __init__(self, *, every: int = 10**9) -> None:
        self.network = network()
        self.watch = DriftMonitor(self.network, Deal(SingleProcess()), 10)
        self.every, self.samples = every, 0

    def look(self, steps: range, *, dark: bool = False, queue_age: int | None = None) -> DriftReport:
        found = DriftReport()
        for step in steps:
            self.samples += B
            found = self.watch.observe(
                batch(step, dark=dark),
                (B,),
                samples=self.samples,
                queue_age=queue_age,
                prototypes_KD=self.prototypes(),
            )
            self.watch.refresh_reference(self.samples, every=self.every)
        return found

    def prototypes(self) -> Tensor:
        prototypes_KD: Tensor = self.network.model.prototypes[0].detach()
        return prototypes_KD


def test_nothing_is_told_before_there_is_a_reference_and_enough_to_compare() -> None:
    looking = Looking(every=0)
    assert looking.look(range(3)) == DriftReport()
    looking = Looking()
    assert looking.look(range(REPORTS)).drift_psi is None
    assert looking.look(range(100, 100 + REPORTS)).drift_psi is not None


def test_the_same_stream_does_not_drift_and_another_one_does() -> None:
    looking = Looking()
    same = looking.look(range(3 * REPORTS))
    assert same.reference_samples == B
    assert same.drift_psi is not None
    assert same.novelty_ratio is not None
    assert same.drift_psi < 0.05
    assert same.novelty_ratio < 0.05
    assert same.batch_similarity == pytest.approx(0, abs=0.05)
    other = looking.look(range(200, 200 + REPORTS), dark=True)
    assert other.drift_psi is not None
    assert other.drift_psi > 0.25


def test_training_itself_is_no_drift_of_the_stream_but_moves_the_prototypes() -> None:
    looking = Looking()
    before = looking.look(range(2 * REPORTS))
    with torch.no_grad():
        for parameter in looking.network.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    looking.network.model.normalise_prototypes()
    after = looking.look(range(2 * REPORTS, 3 * REPORTS))
    assert after.drift_psi is not None
    assert after.drift_psi < 0.05
    assert before.prototype_shift_p99 == pytest.approx(0, abs=1e-6)
    assert after.prototype_shift_p50 is not None
    assert after.prototype_shift_p50 > 0.05


def test_a_reference_that_is_old_enough_is_replaced() -> None:
    looking = Looking(every=40 * B)
    assert looking.look(range(40)).reference_samples == B
    assert looking.look(range(40, 44)).reference_samples == 41 * B


def test_features_of_a_network_that_stands_still_do_not_grow_old() -> None:
    looking = Looking(every=0)
    still = looking.look(range(4), queue_age=2 * B).queue_staleness_cosine
    assert still == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        last = looking.network.model.head[-1]
        assert isinstance(last, torch.nn.Linear)
        last.weight.neg_()
        last.bias.neg_()
    moved = looking.look(range(4, 6), queue_age=2 * B).queue_staleness_cosine
    assert moved == pytest.approx(-1, abs=1e-5)


def test_a_restored_watch_says_what_the_first_one_does() -> None:
    straight, restored = Looking(), Looking()
    for step in range(0, 3 * REPORTS, 5):
        straight.look(range(step, step + 5), queue_age=3 * B)
        restored = Looking()
        restored.samples = straight.samples
        restored.watch.load_state_dict(straight.watch.state_dict())
        one = straight.watch.state_dict()
        other = restored.watch.state_dict()
        assert one["values"] == other["values"]
        assert one["tensors"].keys() == other["tensors"].keys()
    assert straight.look(range(90, 93), queue_age=3 * B) == restored.look(range(90, 93), queue_age=3 * B)


def test_a_trail_needs_some_reports_and_survives_a_restart() -> None:
    trail = FeatureTrail()
    z = torch.nn.functional.normalize(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert [trail.similarity(z.sum(0), 16) for _ in range(TRAIL_LEAST)] == [None] * TRAIL_LEAST
    again = FeatureTrail()
    again.load(trail.state())
    assert trail.similarity(z.sum(0), 16) == again.similarity(z.sum(0), 16) is not None
