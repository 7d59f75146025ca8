"""Seeds, state and snapshots of the learner."""

import pytest
import torch

from tests.learner.small_run import (
    BATCH,
    KINDS,
    batch,
    run,
    same_bits,
    small_config,
    small_learner,
    trace,
    weights_of,
)

STEPS = 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_restored_at_any_step_has_the_same_tail_bit_for_bit(kind: str) -> None:
    config = KINDS[kind]
    straight = small_learner(config)
    states = []
    reports = []
    for step in range(STEPS):
        states.append(straight.state_dict())
        reports.append(straight.step(batch(step)))
    end = straight.state_dict()
    for step, state in enumerate(states):
        restored = small_learner(config, seed=99)
        restored.load_state_dict(state)
        tail = run(restored, step, STEPS)
        assert trace(tail)[1:] == trace(reports[step:])[1:], step
        assert tail[0].loss == reports[step].loss
        again = restored.state_dict()
        assert same_bits(again["tensors"], end["tensors"])
        assert again["values"] == end["values"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_weights() -> None:
    one, other, third = (small_learner(KINDS["adamw"], seed=seed) for seed in (3, 3, 4))
    assert trace(run(one, 0, 4)) == trace(run(other, 0, 4))
    assert same_bits(weights_of(one), weights_of(other))
    run(third, 0, 4)
    assert not same_bits(weights_of(one), weights_of(third))


def test_the_generators_of_the_process_are_neither_used_nor_moved() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(small_learner(small_config()), 0, 2)
    assert torch.equal(torch.rand(3), expected)


def test_prototypes_have_unit_norm_after_every_step_and_in_state_and_snapshot() -> None:
    learner = small_learner(small_config(optim={"learning_rate": 5.0}))
    for step in range(5):
        learner.step(batch(step))
        for tensors in (
            weights_of(learner),
            {"model.prototypes.0": learner.snapshot().tensors["prototypes"]},
        ):
            norms = tensors["model.prototypes.0"].norm(dim=1)
            torch.testing.assert_close(norms, torch.ones(10), rtol=0, atol=1e-6)


def test_a_snapshot_holds_copies_with_the_names_that_others_rely_on() -> None:
    learner = small_learner(small_config(swav={"prototypes": (10, 6)}))
    learner.step(batch(0))
    snapshot = learner.snapshot()
    assert snapshot.tensors["prototypes"].shape == (10, 12)
    assert snapshot.tensors["prototypes.1"].shape == (6, 12)
    assert {"head.0.weight", "head.1.running_mean", "head.3.bias"} <= snapshot.tensors.keys()
    assert snapshot.tensors["usage"].sum() == pytest.approx(1)
    assert snapshot.tensors["generation"].tolist() == [0] * 10
    assert {"conv1.weight", "bn1.running_var", "layer3.0.conv2.weight"} <= snapshot.encoder.keys()
    assert snapshot.health["verdict"] in {"healthy", "warming", "unhealthy"}
    kept = snapshot.encoder["conv1.weight"].clone()
    run(learner, 1, 4)
    assert torch.equal(snapshot.encoder["conv1.weight"], kept)


def test_equal_weights_have_an_equal_digest_and_a_step_changes_it() -> None:
    one, other = small_learner(small_config()), small_learner(small_config())
    run(one, 0, 3)
    other.load_state_dict(one.state_dict())
    first = one.snapshot()
    assert (first.digest, first.encoder_digest) == (other.snapshot().digest, other.snapshot().encoder_digest)
    run(one, 3, 4)
    second = one.snapshot()
    assert first.digest != second.digest
    assert first.encoder_digest != second.encoder_digest


def test_usage_and_health_are_not_part_of_the_digest() -> None:
    learner = small_learner(small_config())
    run(learner, 0, 2)
    other = small_learner(small_config())
    snapshot = learner.snapshot()
    other.load_weights(snapshot.encoder, snapshot.tensors)
    assert other.snapshot().digest == snapshot.digest
    assert other.snapshot().health == {}
    assert other.samples == 0


def test_health_is_remembered_over_a_restart() -> None:
    learner = small_learner(small_config())
    assert learner.health() is None
    run(learner, 0, 3)  # to the step that brings a report
    restored = small_learner(small_config())
    restored.load_state_dict(learner.state_dict())
    assert restored.health() == learner.health()
    assert restored.snapshot().health == learner.snapshot().health


def test_a_snapshot_is_judged_by_what_the_learner_has_become_since_the_last_report() -> None:
    config = small_config(health={"interval_samples": 10**9})
    learner, untouched = small_learner(config), small_learner(config)
    for one in (learner, untouched):
        run(one, 0, 1)
        last = one._model.head[-1]
        assert isinstance(last, torch.nn.Linear)
        with torch.no_grad():
            last.weight.zero_()
            last.bias.fill_(1.0)
        run(one, 1, 6)
    health = learner.snapshot().health
    assert health["verdict"] == "unhealthy"
    assert not health["limits"]["feature_std_ratio"]["passed"]
    assert (health["figures"]["samples"], health["looked_samples"]) == (6 * BATCH, BATCH)
    report = learner.health()
    assert report is not None
    assert (report.samples, report.feature_std_ratio > 0.2) == (BATCH, True)
    assert learner.state_dict()["values"] == untouched.state_dict()["values"]
    same = weights_of(untouched)
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights_of(learner).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swav": {"prototypes": (11,)}}, "prototypes.0 has shape"),
        ({"model": {"projection_dim": 13}}, "has shape"),
        ({"model": {"backbone": "resnet8-w32"}}, "has shape"),
        ({"optim": {"optimizer": "adamw"}}, "optim.optimizer cannot change within a run"),
    ],
)
def test_a_state_of_another_shape_is_refused(change: dict[str, dict[str, object]], message: str) -> None:
    learner = small_learner(small_config())
    run(learner, 0, 1)
    with pytest.raises(ValueError, match=message):
        small_learner(small_config(**change)).load_state_dict(learner.state_dict())


def test_a_state_of_another_version_is_refused() -> None:
    state = small_learner(small_config()).state_dict() | {"version": 99}
    with pytest.raises(ValueError, match="learner state has version 99; this program reads 2"):
        small_learner(small_config()).load_state_dict(state)


def test_a_state_is_a_copy_that_later_steps_do_not_change() -> None:
    learner = small_learner(small_config())
    run(learner, 0, 4)
    state = learner.state_dict()
    kept = {name: tensor.clone() for name, tensor in state["tensors"].items()}
    run(learner, 4, 6)
    assert same_bits(state["tensors"], kept)


def test_a_state_that_is_only_sent_copies_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = small_learner(KINDS["adamw"])
    run(learner, 0, 2)

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError(tuple(tensor.shape))

    monkeypatch.setattr("learner.checkpoint_state.copied", refuse)
    assert learner.state_dict(send_only=True) == {}
    with pytest.raises(AssertionError):
        learner.state_dict()
