"""What ranks agree on before an update, seen by one of them: the others say what a test makes them say."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ops.distributed.world import Rows, World
from ops.errors import RankFailed, RankLost, Starved
from ops.train.events import Waiting
from ops.train.sync import Patience, Row, State, Steps, StopVote, decided
from stream.loader.loader import Loader
from stream.loader.step import Readiness
from tests.stream.loader.test_loader import CONFIG, KINDS, SPEC, begin

NEVER = Patience(warn_s=10**6, fail_s=10**6)
AT_ONCE = Patience(warn_s=0.0, fail_s=0.0)


class Two(World):
    """The first of two ranks. Whenever it is ready, the other one says the same, but for the next change."""

    world_size = 2

    def __init__(
        self, *changes: dict[str, Any], told: Any = None, reasons: dict[str, int] | None = None
    ) -> None:
        self._changes, self._told, self._reasons = list(changes), told, reasons

    def all_gather_ints(self, row: Sequence[int]) -> Callable[[], Rows]:
        own = Row.of_wire(list(row))
        change = self._changes.pop(0) if self._changes and own.state is State.READY else {}
        rows = [list(row), replace(own, **change).wire()]
        return lambda: rows

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Reasons of what is skipped are gathered too, at many steps."""
        if isinstance(value, list):
            return [value, value]
        of_reasons = isinstance(value, dict) and "starving" not in value
        return [value, (self._reasons or value) if of_reasons else self._told]


def steps_of(
    world: World, *, patience: Patience = NEVER, waits: list[Waiting] | None = None, **more: Any
) -> Steps:
    loader = Loader(
        SPEC, cursor=begin(SPEC), crops=KINDS, config=CONFIG, workers=0,
        ranks=world.world_size, rank=0,
    )  # fmt: skip
    while loader.ready(60.0) is Readiness.WAITING:  # so that the turns of a test are those it is about
        pass
    kept: list[Waiting] = [] if waits is None else waits
    given: dict[str, Any] = {"stop": lambda: StopVote.NO, "warn": print, "on_wait": kept.append} | more
    return Steps(loader, world, patience=patience, **given)


def test_a_rank_that_is_not_ready_is_waited_for() -> None:
    waits: list[Waiting] = []
    late = {"state": State.WAITING, "starving": 1, "lag": 7}
    steps = steps_of(Two(late, late), waits=waits)
    with steps.loader:
        batch = next(iter(steps))
    assert [waiting.records for waiting in waits] == [True, True]
    assert batch.cursor.samples == 2 * len(batch.lane_B)


class Ends(Two):
    """Two ranks: a lane of the other one has ended."""

    def all_gather_ints(self, row: Sequence[int]) -> Callable[[], Rows]:
        other = replace(Row.of_wire(list(row)), state=State.PASS_ENDED)
        return lambda: [list(row), other.wire()]


def test_a_pass_ends_for_all_also_when_a_lane_elsewhere_can_not_be_read_on() -> None:
    steps = steps_of(Ends())
    with steps.loader:
        steps.error = OSError("a lane of this rank")
        assert list(steps) == []
        assert steps.loader.finished


def test_the_account_of_a_batch_is_that_of_all_ranks() -> None:
    steps = steps_of(Two({"read": 9, "used": 6}, reasons={"undecodable": 3}))
    with steps.loader:
        batch = next(iter(steps))
    assert batch.stats.used == len(batch.lane_B) + 6
    assert batch.stats.skipped["undecodable"] >= 3
    assert batch.stats.read == batch.stats.used + sum(batch.stats.skipped.values())


def test_a_stop_asked_of_any_rank_ends_all() -> None:
    steps = steps_of(Two({}, {}, {"stop": StopVote.TERMINATE}))
    with steps.loader:
        assert len(list(steps)) == 2
    assert steps.stop is StopVote.TERMINATE


def test_what_keeps_another_rank_from_going_on_is_told() -> None:
    steps = steps_of(Two({}, {"state": State.FAILED}, told=["StreamDamaged: a shard is gone", 78]))
    with (
        steps.loader,
        pytest.raises(RankFailed, match="rank 1 of 2 cannot go on: StreamDamaged: a shard") as e,
    ):
        list(steps)
    assert e.value.exit_code == 78


def row(state: State, starving: int = 0) -> Row:
    return Row(
        turn=1,
        state=state,
        stop=StopVote.NO,
        starving=starving,
        lag=0,
        restarts=0,
        rebuilding=0,
        name=0,
        tell=0,
    )


def test_a_failure_is_told_once_no_rank_is_still_reading() -> None:
    assert decided([row(State.WAITING, starving=2), row(State.FAILED)]) is State.FAILED
    assert decided([row(State.READY), row(State.FAILED)]) is State.FAILED
    assert decided([row(State.WAITING), row(State.FAILED)]) is State.WAITING
    assert decided([row(State.PASS_ENDED), row(State.FAILED)]) is State.PASS_ENDED


def test_ranks_that_have_lost_step_are_refused() -> None:
    steps = steps_of(Two({"turn": 5}))
    with steps.loader, pytest.raises(RankLost, match=r"lost step: they stand at \[\d+, 5\]"):
        next(iter(steps))


def test_lanes_without_records_are_named_after_a_while() -> None:
    said: list[str] = []
    world = Two({"state": State.WAITING, "starving": 2}, told={"starving": [3, 5], "lanes": [3, 4, 5]})
    steps = steps_of(world, patience=AT_ONCE, warn=said.append)
    with steps.loader:
        next(iter(steps))
    assert said == ["waiting 0 s for records of lanes 3, 5 (rank 1); other lanes have some"]


def test_a_rank_whose_readers_bring_nothing_ends_the_run_by_name() -> None:
    world = Two({"state": State.WAITING}, told={"starving": [], "lanes": [3, 4, 5]})
    steps = steps_of(world, patience=AT_ONCE)
    with (
        steps.loader,
        pytest.raises(Starved, match=r"rank 1 \(lanes 3, 4, 5\): no batch for 0 s although records are"),
    ):
        next(iter(steps))


def test_records_that_have_not_arrived_never_end_a_run() -> None:
    late = {"state": State.WAITING, "starving": 3}
    told = {"starving": [3, 4, 5], "lanes": [3, 4, 5]}
    steps = steps_of(Two(late, late, late, told=told), patience=AT_ONCE, warn=lambda _text: None)
    with steps.loader:
        assert next(iter(steps)).cursor.steps == 1
