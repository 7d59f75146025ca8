"""Prototypes that nobody comes to begin anew."""

import pytest
import torch
from torch import Tensor

from learner.collective import Alone
from learner.config import LearnerConfig, ReseedConfig
from learner.learner import Learner
from learner.model import cosines, on_the_sphere
from learner.network import Laps
from learner.optim import Lars
from learner.reseed import Reseeder
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
        group=Alone(),
    )


class Scene:
    """A batch, prototypes with momentum, and what becomes of them."""

    def __init__(self, samples: int = 16) -> None:
        draw = torch.Generator().manual_seed(3)
        self.z_BD = on_the_sphere(torch.randn(samples, 5, generator=draw))
        self.prototypes = torch.nn.Parameter(on_the_sphere(torch.randn(6, 5, generator=draw)))
        self.generation = torch.zeros(6, dtype=torch.int64)
        self.optimizer = Lars(
            [self.prototypes], learning_rate=0.1, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001
        )
        self.optimizer.state[self.prototypes]["momentum"] = torch.ones(6, 5)
        self.before = self.prototypes.detach().clone()

    def scores(self) -> Tensor:
        return cosines(self.z_BD, self.prototypes.detach())

    def reseed(self, reseeder: Reseeder, samples: int, lanes: Tensor | None = None) -> int:
        return reseeder.reseed(
            self.z_BD,
            torch.arange(len(self.z_BD)) if lanes is None else lanes,
            [self.scores()],
            [self.prototypes],
            [self.generation],
            self.optimizer,
            samples=samples,
            counts=(len(self.z_BD),),
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


def test_a_new_prototype_is_a_sample_that_the_old_ones_explain_badly() -> None:
    scene, some = Scene(), reseeder()
    best = scene.scores().max(1).values
    worst = set(best.argsort()[:4].tolist())
    scene.reseed(some, AFTER)
    nearest = (scene.prototypes.detach() @ scene.z_BD.T).max(1)
    torch.testing.assert_close(nearest.values[:4], torch.ones(4))
    assert set(nearest.indices[:4].tolist()) <= worst
    torch.testing.assert_close(scene.prototypes.detach().norm(dim=1), torch.ones(6))


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


def test_no_two_new_prototypes_are_twins() -> None:
    scene, some = Scene(), reseeder()
    scene.z_BD = scene.z_BD[:1].repeat(16, 1)  # a burst of one image
    assert scene.reseed(some, AFTER) == 1
    assert scene.generation.sum() == 1


def test_while_prototypes_are_frozen_nobody_is_dead_and_afterwards_the_count_begins() -> None:
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
            z_BD = learner._network.embed(views, torch.arange(80), Laps(lambda: 0.0))[0]
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


def test_switched_on_within_a_run_everybody_counts_as_used_just_then() -> None:
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
