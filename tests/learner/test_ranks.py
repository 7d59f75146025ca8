"""Several ranks are one function: real processes, gloo, float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from learner.collective import SingleProcess
from learner.config import LearnerConfig
from learner.model import on_the_sphere
from learner.report import HealthReport
from tests.learner import rank_jobs
from tests.learner.crew import Crew
from tests.learner.small_run import BATCH, small_config

STEPS = 20


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Four processes for all tests of this file."""
    crew = Crew(tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


def grouped(groups: int) -> LearnerConfig:
    return small_config(model={"bn_groups": groups})


def alone(config: LearnerConfig, **change: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"precision": "float64", "steps": range(STEPS)} | change
    return rank_jobs.train(SingleProcess(), config=config, **arguments)


def assert_same_run(ranks: list[dict[str, Any]], one: dict[str, Any], tolerance: float = 1e-9) -> None:
    """Losses, figures and all of the state agree, and the ranks agree to the bit among themselves."""
    assert len({rank["digest"] for rank in ranks}) == 1
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], one["losses"], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(rank["figures"], one["figures"], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(rank["judged"], one["judged"], rtol=1e-7, atol=1e-7)
        assert rank["state"]["values"]["samples"] == one["state"]["values"]["samples"]
        assert rank["state"]["tensors"].keys() == one["state"]["tensors"].keys()
        for name, expected in one["state"]["tensors"].items():
            if not name.startswith("usage"):  # order within a batch is free there
                np.testing.assert_allclose(
                    rank["state"]["tensors"][name], expected, rtol=tolerance, atol=tolerance, err_msg=name
                )


@pytest.mark.parametrize(
    ("world", "groups", "steps"),
    [(2, 4, STEPS), (4, 4, STEPS), (4, 0, STEPS), (2, 0, 8), (4, 2, 8), (3, 2, 8), (4, 3, 8), (3, 5, 4)],
    ids=[
        "2 ranks, two groups each",
        "4 ranks, a group each",
        "4 ranks, one group over all",
        "2 ranks, one group over both",
        "4 ranks, a group over two",
        "3 ranks of unequal size, groups across them",
        "4 ranks, three groups: two ranks share one with each neighbour",
        "3 ranks, five groups of unequal size",
    ],
)
def test_any_number_of_ranks_is_the_same_run_as_one(crew: Crew, world: int, groups: int, steps: int) -> None:
    config = grouped(groups)
    ranks = crew.run(rank_jobs.train, world, config=config, precision="float64", steps=range(steps))
    assert_same_run(ranks, alone(config, steps=range(steps)))


@pytest.mark.parametrize("world", [2, 3])
def test_the_patch_branch_is_the_same_on_any_number_of_ranks(crew: Crew, world: int) -> None:
    model: dict[str, object] = {"bn_groups": 4, "branch_centres": 6, "branch_width": 4}
    model |= {"branch_patch_width": 3, "branch_scales": 2}
    config = small_config(model=model | {"branch_samples": 2 * BATCH, "branch_pairs": 4 * BATCH})
    one = alone(config, steps=range(9))
    assert np.abs(one["state"]["tensors"]["model.branch.map_FW"]).max() > 0
    ranks = crew.run(rank_jobs.train, world, config=config, precision="float64", steps=range(9))
    assert_same_run(ranks, one)
    # A state saved by one number of ranks goes on with another.
    for at in (1, 5):
        saved = crew.run(rank_jobs.train, world, config=config, precision="float64", steps=range(at))
        state = saved[0]["state"]
        rest = alone(config, steps=range(at, 9), state=state)
        for name, expected in one["state"]["tensors"].items():
            if "branch" in name:
                found = rest["state"]["tensors"][name]
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=name)
    first, *others = crew.run(rank_jobs.saved_by_the_first, world, config=config, steps=range(9))
    assert [other["samples"] for other in others] == [9 * BATCH] * (world - 1)
    for name, expected in one["state"]["tensors"].items():
        if name.startswith("branch_fit"):
            np.testing.assert_allclose(first["tensors"][name], expected, rtol=1e-9, atol=1e-9, err_msg=name)


def test_the_first_step_agrees_in_float32_too(crew: Crew) -> None:
    config = grouped(4)
    ranks = crew.run(rank_jobs.train, 4, config=config, precision="float32", steps=range(1))
    one = alone(config, precision="float32", steps=range(1))
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], one["losses"], rtol=1e-5)


def test_ranks_whose_batches_come_in_parts_are_the_same_run(crew: Crew) -> None:
    config = grouped(4)
    ranks = crew.run(rank_jobs.train, 2, config=config, precision="float64", steps=range(6), accumulate=2)
    assert_same_run(ranks, alone(config, steps=range(6)))


def test_two_heads_with_a_power_law_are_the_same_run(crew: Crew) -> None:
    config = small_config(swav={"prototypes": (10, 6), "prior": "powerlaw"}, model={"bn_groups": 2})
    ranks = crew.run(rank_jobs.train, 2, config=config, precision="float64", steps=range(8))
    assert_same_run(ranks, alone(config, steps=range(8)))


def test_a_moving_average_of_the_weights_is_the_same_run(crew: Crew) -> None:
    config = small_config(model={"bn_groups": 4}, optim={"average_decay": 0.8})
    ranks = crew.run(rank_jobs.train, 2, config=config, precision="float64", steps=range(8))
    assert_same_run(ranks, alone(config, steps=range(8)))


def test_prototypes_are_reseeded_alike_by_any_number_of_ranks(crew: Crew) -> None:
    config = small_config(
        swav={"prototypes": (40, 30)},
        model={"bn_groups": 4},
        reseed={"after_samples": 2 * BATCH, "interval_samples": BATCH, "share": 0.2},
    )
    one = alone(config, steps=range(10))
    assert one["state"]["values"]["reseed"]["total"] > 10
    for world in (2, 3):
        ranks = crew.run(rank_jobs.train, world, config=config, precision="float64", steps=range(10))
        assert_same_run(ranks, one)
    state = crew.run(rank_jobs.train, 2, config=config, precision="float64", steps=range(6))[1]["state"]
    tail = crew.run(rank_jobs.train, 4, config=config, precision="float64", steps=range(6, 10), state=state)
    assert_same_run(tail, one | {k: one[k][6:] for k in ("losses", "figures")})


def test_a_state_goes_on_under_another_number_of_ranks(crew: Crew) -> None:
    config = grouped(4)
    whole = alone(config)
    state = crew.run(rank_jobs.train, 4, config=config, precision="float64", steps=range(10))[3]["state"]
    for world in (2, 3):
        tail = crew.run(
            rank_jobs.train,
            world,
            config=config,
            precision="float64",
            steps=range(10, STEPS),
            state=state,
        )
        assert_same_run(tail, whole | {k: whole[k][10:] for k in ("losses", "figures")})
    tail = [alone(config, steps=range(10, STEPS), state=state)]
    assert_same_run(tail, whole | {k: whole[k][10:] for k in ("losses", "figures")})


def test_every_rank_queues_its_own_samples_and_any_of_them_can_save_all(crew: Crew) -> None:
    ranks = crew.run(rank_jobs.train, 2, config=grouped(4), precision="float64", steps=range(4))
    first, second = (rank["queued"] for rank in ranks)
    assert first.shape == second.shape == (2, BATCH, 12)
    assert not np.allclose(first, second)
    saved = [rank["state"]["tensors"]["queue.features"] for rank in ranks]
    assert saved[0].shape == (2, 2 * BATCH, 12)
    np.testing.assert_array_equal(*saved)


def test_every_rank_reports_the_health_of_all(crew: Crew) -> None:
    one = alone(grouped(4), steps=range(6))["health"]
    for rank in crew.run(rank_jobs.train, 2, config=grouped(4), precision="float64", steps=range(6)):
        for name in HealthReport.__dataclass_fields__:
            ours, expected = getattr(rank["health"], name), getattr(one, name)
            if isinstance(expected, float | tuple):
                assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9), name
            else:
                assert ours == expected, name


@pytest.mark.parametrize("groups", [0, 4])
def test_one_rank_with_a_batch_that_is_not_finite_stops_all_of_them_unchanged(
    crew: Crew, groups: int
) -> None:
    config = grouped(groups)
    answers = crew.run(rank_jobs.meet_a_spoiled_batch, 4, config=config)
    straight = alone(config, precision="float32", steps=range(3))["losses"]
    for seen, unchanged, losses in answers:
        assert seen == "loss"
        assert unchanged
        assert losses == pytest.approx(straight[1:], rel=1e-3)


def scores(samples: int, prototypes: int, dtype: str) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    z = on_the_sphere(torch.randn(2, samples, 8, generator=generator, dtype=torch.float64))
    c = on_the_sphere(torch.randn(prototypes, 8, generator=generator, dtype=torch.float64))
    cosines: np.ndarray[Any, Any] = (z @ c.T).numpy().astype(dtype)
    return cosines


@pytest.mark.parametrize("sizes", [[20, 20], [37, 3], [1, 2, 3, 34], [10, 10, 10, 10]])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_codes_are_balanced_over_the_batches_of_all_ranks(
    crew: Crew, sizes: list[int], dtype: str, tolerance: float, epsilon: float
) -> None:
    given = scores(sum(sizes), 16, dtype)
    arguments: dict[str, Any] = {"scores": given, "epsilon": epsilon, "prior": None, "keep": None}
    ranks = crew.run(rank_jobs.codes, len(sizes), sizes=sizes, **arguments)
    whole, mass = rank_jobs.codes(SingleProcess(), sizes=[sum(sizes)], **arguments)
    np.testing.assert_allclose(np.concatenate([c for c, _ in ranks], axis=1), whole, rtol=0, atol=tolerance)
    for _, ranks_mass in ranks:
        np.testing.assert_allclose(ranks_mass, mass, rtol=1e-5)


def test_balancing_each_rank_alone_would_give_other_codes() -> None:
    given = scores(40, 16, "float64")
    arguments: dict[str, Any] = {"epsilon": 0.05, "prior": None, "keep": None}
    whole, _ = rank_jobs.codes(SingleProcess(), scores=given, sizes=[40], **arguments)
    local = [
        rank_jobs.codes(SingleProcess(), scores=given[:, first : first + 10], sizes=[10], **arguments)[0]
        for first in range(0, 40, 10)
    ]
    total_variation = np.abs(np.concatenate(local, axis=1) - whole).sum(-1).mean() / 2
    assert total_variation > 0.1


def test_codes_of_ranks_with_a_queue_and_a_prior_are_those_of_one_rank(crew: Crew) -> None:
    given = scores(30, 8, "float64")
    prior = np.linspace(1, 2, 8) / np.linspace(1, 2, 8).sum()
    arguments: dict[str, Any] = {"epsilon": 0.03, "prior": prior}
    ranks = crew.run(rank_jobs.codes, 3, scores=given, sizes=[10, 10, 10], keep=4, **arguments)
    whole, _ = rank_jobs.codes(SingleProcess(), scores=given, sizes=[30], keep=None, **arguments)
    for rank, (codes, _) in enumerate(ranks):
        np.testing.assert_allclose(codes, whole[:, 10 * rank : 10 * rank + 4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20])
def test_sums_leave_their_argument_alone_and_gradients_are_summed_in_any_bucket(
    crew: Crew, bucket_bytes: int
) -> None:
    for rank, answer in enumerate(crew.run(rank_jobs.sums, 3, bucket_bytes=bucket_bytes)):
        assert answer["given"].tolist() == [rank + 1, -2 * (rank + 1)]
        assert answer["sum"].tolist() == [6, -12]
        assert answer["max"].tolist() == [3, -2]
        assert answer["counts"] == (2, 3, 4)
        assert answer["rows"][:, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
        assert [None if g is None else g[0, 0] for g in answer["gradients"]] == [3, 6, None, 12]


def test_one_rank_sums_to_itself() -> None:
    answer = rank_jobs.sums(SingleProcess(), bucket_bytes=1)
    assert answer["sum"].tolist() == answer["given"].tolist() == [1, -2]
    assert answer["counts"] == (2,)
    assert answer["gradients"][1][0, 0] == 1


def test_every_rank_sees_the_drift_of_all(crew: Crew) -> None:
    config = grouped(4)
    one = rank_jobs.watch(SingleProcess(), config=config, steps=range(40))
    assert one[-1][0] is not None
    assert one[-1][2] == pytest.approx(1)
    for found in crew.run(rank_jobs.watch, 3, config=config, steps=range(40)):
        assert [row[:2] for row in found] == [row[:2] for row in one]
        assert found[-1][2] == pytest.approx(one[-1][2])
