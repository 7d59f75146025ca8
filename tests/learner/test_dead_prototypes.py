"""Prototypes that get no samples are re-seeded."""

import pytest
import torch
from torch import Tensor

from learner.collective import SingleProcess
from learner.config import LearnerConfig, ReseedConfig
from learner.dead_prototypes import Reseeder
from learner.learner import Learner
from learner.model import cosines, on_the_sphere
from learner.network import PhaseTimer
from learner.optim import Lars
from learner.step_stats import StepTensors
from tests.learner.small_run import BATCH, batch, coloured, run, same_bits, small_config, small_learner

AFTER = 100


def reseeder(
    share: float = 1.0, freeze_samples: int = 0, twin_cosine: float = 0.95, seed: int = 0
) -> Reseeder:
    return Reseeder(
        ReseedConfig(after_samples=AFTER, interval_samples=10, share=share),
        prototypes=(6,),
        seed=seed,
        freeze_samples=freeze_samples,
        twin_cosine=twin_cosine,
        group=SingleProcess(),
    )


class Scene:
    """A batch, prototypes with momentum, and what becomes of them."""

    def __init__(self, samples: int = 16) -> None:
        draw = torch.Generator().manual_seed(3)
        self.z_BD = on_the_sphere(torch.randn(samples, 5, generator=draw))
        self.prototypes = torch.nn.Parameter(on_the_sphere(torch.randn(6, 5, generator=draw)))
        self.generation = torch.zeros(6, dtype=torch.int64)
        self.usage = torch.bincount(cosines(self.z_BD, self.prototypes.detach()).argmax(1), minlength=6)
        self.optimizer = Lars(
            [self.prototypes], learning_rate=0.1, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001
        )
        self.optimizer.state[self.prototypes]["momentum"] = torch.ones(6, 5)
        self.before = self.prototypes.detach().clone()

    def scores(self) -> Tensor:
        return cosines(self.z_BD, self.prototypes.detach())

    def reseed(self, reseeder: Reseeder, samples: int, lanes: Tensor | None = None) -> int:
        lane_B = torch.arange(len(self.z_BD)) if lanes is None else lanes
        return reseeder.reseed(
            StepTensors(
                loss_H=torch.zeros(1),
                z_ABD=self.z_BD[None],
                lane_B=lane_B,
                prototypes_H=[self.prototypes],
                scores_H=[self.scores()[None]],
                codes_H=[],
                priors_H=[None],
                counts=(len(self.z_BD),),
            ),
            [self.prototypes],
            [self.usage],
            [self.generation],
            self.optimizer,
            samples=samples,
        )


def test_only_those_without_a_sample_for_so_long_are_moved() -> None:
    scene, some = Scene(), reseeder()
    some.note([torch.tensor([0, 1, 2])], samples=40)
    some.note([torch.tensor([0, 1])], samples=99)
    assert scene.reseed(some, AFTER - 1) == 0
    assert scene.reseed(some, AFTER) == 3
    assert scene.generation.tolist() == [0, 0, 0, 1, 1, 1]
    unchanged = (scene.prototypes.detach() == scene.before).all(1)
    assert unchanged.tolist() == [True, True, True, False, False, False]
    assert some.total == 3


def test_who_was_moved_has_as_long_again_to_find_samples() -> None:
    scene, some = Scene(), reseeder()
    some.note([torch.tensor([0, 1, 2, 3, 4])], samples=AFTER)
    assert scene.reseed(some, AFTER) == 1
    some.note([torch.tensor([0, 1, 2, 3, 4])], samples=2 * AFTER)
    assert scene.reseed(some, 2 * AFTER - 1) == 0
    assert scene.reseed(some, 2 * AFTER) == 1
    assert scene.generation.tolist() == [0, 0, 0, 0, 0, 2]


def test_a_new_prototype_is_half_of_the_busiest_one_and_takes_samples_from_it() -> None:
    scene, some = Scene(64), reseeder()
    busiest = int(scene.usage.argmax())
    some.note([torch.tensor([number for number in range(6) if number != 5])], samples=AFTER)
    assert busiest != 5
    assert scene.reseed(some, AFTER) == 1
    after = scene.prototypes.detach()
    assert float(after[5] @ after[busiest]) == pytest.approx(0.9, abs=1e-5)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(6))
    taken = scene.scores().argmax(1) == 5
    assert 0 < int(taken.sum()) < scene.usage[busiest]


def test_where_all_features_lie_in_a_cone_a_new_prototype_does_not_take_nearly_all_of_them() -> None:
    scene, some = Scene(64), reseeder()
    middle = on_the_sphere(torch.ones(5))
    scene.z_BD = on_the_sphere(middle + 0.2 * scene.z_BD)  # mean cosine of two about 0.96
    scene.usage = torch.bincount(scene.scores().argmax(1), minlength=6)
    busiest = int(scene.usage.argmax())
    some.note([torch.tensor([number for number in range(6) if number != (busiest + 1) % 6])], samples=AFTER)
    assert scene.reseed(some, AFTER) == 1
    new = (scene.scores().argmax(1) == (busiest + 1) % 6).sum()
    assert int(new) <= scene.usage[busiest] / 2


def test_momentum_of_a_moved_row_is_gone_and_that_of_others_is_not() -> None:
    scene, some = Scene(), reseeder()
    some.note([torch.tensor([0, 1, 2, 3])], samples=AFTER)
    scene.reseed(some, AFTER)
    assert scene.optimizer.state[scene.prototypes]["momentum"].sum(1).tolist() == [5, 5, 5, 5, 0, 0]


def test_no_more_than_their_share_are_moved_at_once_the_longest_unused_first() -> None:
    scene, some = Scene(), reseeder(share=0.34)
    some.note([torch.tensor([0, 1, 2])], samples=50)
    assert scene.reseed(some, 2 * AFTER) == 2
    assert scene.generation.tolist() == [0, 0, 0, 1, 1, 0]
    assert scene.reseed(some, 2 * AFTER) == 2
    assert scene.generation.tolist() == [1, 0, 0, 1, 1, 1]
    assert len(reseeder(share=0.001).dead(0, samples=AFTER)) == 1


def test_a_burst_of_one_image_is_not_split_and_no_prototype_is_split_twice_at_once() -> None:
    scene, some = Scene(), reseeder()
    scene.z_BD = scene.z_BD[:1].repeat(16, 1)
    scene.usage = torch.bincount(scene.scores().argmax(1), minlength=6)
    assert scene.reseed(some, AFTER) == 0
    scene = Scene()
    splittable = int((scene.usage >= 2).sum())
    assert splittable < 6
    assert scene.reseed(some, AFTER) == splittable


def test_while_prototypes_are_frozen_none_is_dead_and_afterwards_the_count_begins() -> None:
    some = reseeder(freeze_samples=500)
    assert not some.due(samples=500, batch=10)
    assert some.due(samples=510, batch=10)
    assert len(some.dead(0, samples=599)) == 0
    assert len(some.dead(0, samples=600)) == 6


def test_the_order_in_which_ranks_bring_their_samples_does_not_matter() -> None:
    one, other = Scene(), Scene()
    lanes = torch.arange(16).repeat_interleave(1)
    one.reseed(reseeder(), AFTER, lanes)
    mixed = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])
    other.z_BD = other.z_BD[mixed]
    other.reseed(reseeder(), AFTER, lanes[mixed])
    assert torch.equal(one.prototypes, other.prototypes)


def test_another_seed_or_place_draws_others() -> None:
    found = []
    for seed, samples in ((0, AFTER), (0, AFTER), (1, AFTER), (0, AFTER + 10)):
        scene = Scene(64)
        scene.reseed(reseeder(seed=seed), samples)
        found.append(scene.prototypes.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


ON: dict[str, object] = {"after_samples": 2 * BATCH, "interval_samples": BATCH, "share": 1.0}


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
def test_a_learner_brings_dead_prototypes_back_and_says_how_many(optimizer: str) -> None:
    plain = small_config(swav={"prototypes": (60,)}, optim={"optimizer": optimizer, "learning_rate": 1e-3})
    learner = small_learner(with_reseed(plain))
    reports = run(learner, 0, 12)
    moved = sum(report.reseeded for report in reports)
    assert moved > 20
    snapshot = learner.snapshot()
    assert int(snapshot.tensors["generation"].sum()) == moved
    torch.testing.assert_close(snapshot.tensors["prototypes"].norm(dim=1), torch.ones(60))
    assert [report.reseeded for report in reports[:3]] == [0, 0, 0]  # two steps frozen, and two to live in


def test_prototypes_that_lie_where_no_feature_is_come_into_use() -> None:
    plain = small_config(
        swav={"prototypes": (20,), "freeze_samples": 0, "queue_samples": 0},
        optim={"optimizer": "sgd", "learning_rate": 1e-4, "warmup_samples": 0},
        health={"usage_window_samples": 400},
    )
    used = []
    for config in (plain, with_reseed(plain)):
        learner = small_learner(config)
        views, _ = coloured(0)
        with torch.no_grad():
            z_BD = learner._network.embed(views, torch.arange(80), PhaseTimer(lambda: 0.0))[0]
            learner._model.prototypes[0][5:] = -on_the_sphere(z_BD.mean(0))
        for step in range(1, 8):
            report = learner.step(coloured(step)[0])
        used.append(report.usage_perplexity)
    assert used[0] < 5.5
    assert used[1] > 1.5 * used[0]


def with_reseed(config: LearnerConfig) -> LearnerConfig:
    return LearnerConfig(
        model=config.model,
        swav=config.swav,
        optim=config.optim,
        augment=config.augment,
        health=config.health,
        reseed=ReseedConfig(**ON),  # type: ignore[arg-type]
    )


def test_off_by_default_it_changes_no_bit() -> None:
    assert LearnerConfig().reseed.after_samples == 0
    learner = small_learner(small_config(swav={"prototypes": (60,)}))
    reports = run(learner, 0, 8)
    assert sum(report.reseeded for report in reports) == 0
    assert not any(name.startswith("reseed") for name in learner.state_dict()["tensors"])


def test_switched_on_within_a_run_all_prototypes_count_as_used_just_then() -> None:
    plain = small_config(swav={"prototypes": (60,)})
    before: Learner = small_learner(plain)
    run(before, 0, 6)
    learner = small_learner(with_reseed(plain))
    learner.load_state_dict(before.state_dict())
    assert [report.reseeded > 0 for report in run(learner, 6, 8)] == [False, True]


def test_replays_neither_use_nor_move_prototypes() -> None:
    learner = small_learner(with_reseed(small_config(swav={"prototypes": (60,), "freeze_samples": 0})))
    learner.step(batch(0))
    before = learner.state_dict()["tensors"]["reseed.0"]
    for step in range(1, 6):
        assert learner.step(batch(step), fresh=False).reseeded == 0
    assert same_bits({"": before}, {"": learner.state_dict()["tensors"]["reseed.0"]})


def test_ages_of_another_number_of_prototypes_are_refused() -> None:
    state = {"tensors": {"0": torch.zeros(5, dtype=torch.int64)}, "values": {}}
    with pytest.raises(ValueError, match="saved ages are of 5 prototypes, this head has 6"):
        reseeder().load_state_dict(state, samples=0)
