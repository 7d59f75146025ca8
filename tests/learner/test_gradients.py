"""Gradients that are summed while backward is at work: the same run, in the same order on every rank."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from learner.collective import SingleProcess
from learner.config import LearnerConfig
from tests.learner import gradient_jobs
from tests.learner.crew import Crew
from tests.learner.small_run import small_config

STEPS = 4
"""Prototypes are frozen in the first two."""

MANY = 4096
"""Bytes of a bucket: about ten for the small net."""

ONE = 1 << 30


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Processes for all tests of this file."""
    crew = Crew(tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


def of_all(crew: Crew, world: int, config: LearnerConfig, **change: Any) -> list[dict[str, Any]]:
    """What each rank saw; first checked to be the run of one rank, in one order."""
    arguments: dict[str, Any] = {"config": config, "steps": STEPS, "bucket_bytes": MANY} | change
    ranks = crew.run(gradient_jobs.train, world, **arguments)
    one = gradient_jobs.train(SingleProcess(), **arguments)
    for rank in ranks:
        assert rank["calls"] == ranks[0]["calls"]
        np.testing.assert_allclose(rank["losses"], one["losses"], rtol=1e-9, atol=1e-9)
        for name, expected in one["state"]["tensors"].items():
            if not name.startswith("usage"):  # order within a batch is free there
                found = rank["state"]["tensors"][name]
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=name)
    return ranks


def later(calls: list[gradient_jobs.Call]) -> list[int]:
    """Places of the sums of gradients among the collectives of a step."""
    return [place for place, (kind, _) in enumerate(calls) if kind == "later"]


def test_unequal_ranks_sum_buckets_between_the_collectives_of_batch_norm(crew: Crew) -> None:
    ranks = of_all(crew, 3, small_config(model={"bn_groups": 1}))
    for calls in ranks[0]["calls"]:
        begun = later(calls)
        waits = [place for place, (kind, _) in enumerate(calls) if kind == "wait"]
        between = [kind for kind, _ in calls[begun[0] : begun[-1]] if kind == "sum_"]
        assert len(begun) >= 8
        assert len(waits) == len(begun)
        assert max(begun) < min(waits), "nothing is waited for before all of backward is done"
        assert len(between) >= 8, "batch norm's backward went on in between"


def test_a_bucket_may_hold_everything(crew: Crew) -> None:
    ranks = of_all(crew, 2, small_config(model={"bn_groups": 4}), bucket_bytes=ONE)
    assert [len(later(calls)) for calls in ranks[0]["calls"]] == [1] * STEPS


def test_every_gradient_is_summed_once_and_frozen_prototypes_hold_nothing_up(crew: Crew) -> None:
    first = of_all(crew, 2, small_config(model={"bn_groups": 4}))[0]
    for step, calls in enumerate(first["calls"]):
        numbers = sum(count for kind, count in calls if kind == "later")
        assert numbers == first["numbers"] - (first["prototypes"] if step < 2 else 0)


def test_a_batch_in_parts_is_summed_in_its_last_pass_only(crew: Crew) -> None:
    first = of_all(crew, 2, small_config(model={"bn_groups": 4}), accumulate=2)[0]
    whole = of_all(crew, 2, small_config(model={"bn_groups": 4}))[0]
    assert [later(calls) for calls in first["calls"]] == [later(calls) for calls in whole["calls"]]


def test_a_head_that_is_frozen_keeps_no_rank_waiting(crew: Crew) -> None:
    first = of_all(crew, 2, small_config(model={"bn_groups": 2}), still_head=True)[0]
    for step, calls in enumerate(first["calls"]):
        numbers = sum(count for kind, count in calls if kind == "later")
        assert numbers == first["numbers"] - (first["prototypes"] if step < 2 else 0)


def test_activations_that_are_made_again_leave_the_order_alone(crew: Crew) -> None:
    ranks = of_all(crew, 3, small_config(model={"bn_groups": 2, "activation_checkpointing": True}))
    assert len(later(ranks[0]["calls"][-1])) >= 8
