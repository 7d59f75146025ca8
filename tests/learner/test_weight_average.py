"""The moving average of the weights: against a loop in float64, what sees it, and what does not."""

import pytest
import torch
from torch import Tensor

from learner.weight_average import FIRST_UPDATES
from tests.learner.small_run import BATCH, batch, pictures, run, same_bits, small_config, small_learner

DECAY = 0.8
PLAIN = small_config()
AVERAGED = small_config(optim={"average_decay": DECAY})


def averaged_by_hand(updates: int) -> dict[str, Tensor]:
    """Weights of the encoder and prototypes, averaged over the updates of a run without an average."""
    learner = small_learner(PLAIN, precision="float64")
    mean: dict[str, Tensor] = {}
    for update in range(-1, updates):
        if update >= 0:
            run(learner, update, update + 1)
        shot = learner.snapshot()
        now = shot.encoder | {"prototypes": shot.tensors["prototypes"]}
        decay = min(DECAY, (1 + update) / (FIRST_UPDATES + update)) if update >= 0 else 0.0
        for name, value in now.items():
            whole = not value.is_floating_point()
            mean[name] = value if whole or update < 0 else decay * mean[name] + (1 - decay) * value
        mean["prototypes"] = torch.nn.functional.normalize(mean["prototypes"], dim=1)
    return mean


def test_a_snapshot_holds_the_average_that_a_plain_loop_gives() -> None:
    learner = small_learner(AVERAGED, precision="float64")
    run(learner, 0, 6)
    shot, expected = learner.snapshot(), averaged_by_hand(6)
    for name, value in expected.items():
        found = shot.tensors[name] if name == "prototypes" else shot.encoder[name]
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12, msg=name)


def test_the_updates_do_not_see_it() -> None:
    plain, learner = small_learner(PLAIN), small_learner(AVERAGED)
    assert [report.loss for report in run(plain, 0, 5)] == [report.loss for report in run(learner, 0, 5)]
    ours, theirs = learner.state_dict()["tensors"], plain.state_dict()["tensors"]
    assert same_bits(theirs, {name: value for name, value in ours.items() if not name.startswith("average.")})


def test_images_are_looked_at_with_the_average() -> None:
    learner, published = small_learner(AVERAGED), small_learner(PLAIN)
    run(learner, 0, 5)
    shot = learner.snapshot()
    published.load_weights(shot.encoder, shot.tensors)
    images = pictures(torch.Generator().manual_seed(0), 1, 16)[0]
    assert torch.equal(learner.features(images), published.features(images))
    assert torch.equal(learner.scores(images), published.scores(images))
    learner.estimate_statistics([images])
    assert not torch.equal(learner.features(images), published.features(images))


def test_a_run_that_turns_it_on_begins_from_its_weights() -> None:
    before = small_learner(PLAIN)
    run(before, 0, 4)
    state = before.state_dict()
    learner = small_learner(AVERAGED)
    learner.load_state_dict(state)
    assert same_bits(learner.snapshot().encoder, before.snapshot().encoder)
    back = small_learner(PLAIN)
    run(learner, 4, 5)
    back.load_state_dict(learner.state_dict())
    run(before, 4, 5)
    assert same_bits(back.snapshot().encoder, before.snapshot().encoder)


def test_a_prototype_that_is_moved_is_not_averaged_with_what_it_was() -> None:
    learner = small_learner(
        small_config(
            optim={"average_decay": 0.99},
            swav={"prototypes": (40,)},
            reseed={"after_samples": 2 * BATCH, "interval_samples": BATCH, "share": 0.2},
        )
    )
    for step in range(10):
        if learner.step(batch(step)).reseeded:
            break
    moved = learner.snapshot().tensors["generation"] > 0
    assert moved.any()
    live = learner.state_dict()["tensors"]["model.prototypes.0"]
    assert torch.equal(learner.snapshot().tensors["prototypes"][moved], live[moved])


def test_a_decay_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim.average_decay must be in \[0, 1\)"):
        small_config(optim={"average_decay": 1.0})
