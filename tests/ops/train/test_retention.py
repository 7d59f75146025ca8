"""What stays in the store, and the names that people give: on a real server, by its own scripts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from learner.report import Snapshot
from ops.errors import SnapshotError, SnapshotNotFound
from ops.snapshots.aliases import SnapshotNames
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore
from ops.snapshots.types import PublishResult
from ops.snapshots.writer import SnapshotWriter
from tests.ops import synthetic


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as embedded:
        yield embedded


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with connect(server.url) as connected:
        connected.flushall()
        yield connected


class Line:
    """A learner that publishes one snapshot after the other."""

    def __init__(self, client: redis.Redis) -> None:
        self.store = SnapshotStore(client, "run-1")
        self.writer = SnapshotWriter(self.store)
        self.names = SnapshotNames(self.store, "host:1")
        self.epoch, _ = self.writer.acquire("one", started_ms=1)

    def publish(
        self, number: int, *, verdict: str = "healthy", generations: dict[int, int] | None = None
    ) -> PublishResult:
        shot: Snapshot = synthetic.snapshot(number, verdict=verdict)
        for k, generation in (generations or {}).items():
            shot.tensors["generation"][k] = generation
        return self.writer.publish(
            owner="one",
            epoch=self.epoch,
            samples=100 * number,
            digest=shot.digest,
            tensors=shot.tensors,
            healthy=verdict == "healthy",
            fields={
                "format": "1", "updates": number, "prototypes": 8, "dim": 4, "config_hash": "", "encoder": "",
                "encoder_digest": shot.encoder_digest, "run_dir": "/run", "health": "{}", "publisher": "one",
            },
        )  # fmt: skip

    def versions(self) -> list[int]:
        return [info.version for info in self.store.versions()]

    def events(self, kind: str) -> list[dict[str, str]]:
        return [event for event in self.store.events() if event["kind"] == kind]


@pytest.fixture
def line(client: redis.Redis) -> Line:
    return Line(client)


@pytest.mark.parametrize("rungs", [1, 4])
def test_the_ladder_keeps_few_and_leaves_no_long_gap(line: Line, rungs: int) -> None:
    keep, last = 4, 150
    for number in range(1, last + 1):
        line.publish(number, verdict="unhealthy")
        line.writer.prune(keep, ladder=rungs, owner="one", epoch=line.epoch)
    left = line.versions()
    assert left[:keep] == [150, 149, 148, 147]
    ages = [last - version for version in left[keep:]]
    assert len(ages) <= (rungs + 1) * 7, "some for each doubling of 150"
    assert all(later <= 4 * max(earlier, keep) for earlier, later in zip([keep, *ages], ages, strict=False))
    assert max(ages) > last // 4


def test_without_rungs_only_the_newest_stay(line: Line) -> None:
    for number in range(1, 9):
        line.publish(number, verdict="unhealthy")
    line.writer.prune(3)
    assert line.versions() == [8, 7, 6]


def test_a_dry_run_says_what_would_go_and_changes_nothing(line: Line) -> None:
    for number in range(1, 6):
        line.publish(number, verdict="unhealthy")
    assert line.writer.prune(2, dry_run=True) == [3, 2, 1]
    assert line.versions() == [5, 4, 3, 2, 1]
    assert line.events("prune") == []
    assert line.writer.prune(2) == [3, 2, 1]


def test_blobs_and_reference_counts_go_with_the_last_snapshot_that_names_them(line: Line) -> None:
    for number in range(1, 5):
        line.publish(number, verdict="unhealthy")
    gone = [line.store.show(version).blob_sha256 for version in (1, 2)]
    line.writer.prune(2)
    left = {info.blob_sha256 for info in line.store.versions()}
    counted = line.store.client.hkeys(line.store.key("refs"))
    assert {digest.decode() for digest in counted} == left
    lives = {digest: line.store.client.ttl(line.store.key(f"blob:{digest}")) for digest in (*gone, *left)}
    assert all(0 < lives[digest] <= 300 for digest in gone)
    assert all(lives[digest] == -1 for digest in left)


def test_pins_stable_and_where_a_rollback_goes_outlive_any_prune(line: Line) -> None:
    for number, verdict in (
        (1, "healthy"),
        (2, "unhealthy"),
        (3, "healthy"),
        (4, "unhealthy"),
        (5, "unhealthy"),
    ):
        line.publish(number, verdict=verdict)
    line.names.pin("paper", 2)
    assert line.writer.prune(1) == [4]
    assert line.names.rollback() == (1, 3)
    line.names.unpin("paper")
    assert line.writer.prune(1) == [3, 2]
    assert line.store.aliases() == {"head": 5, "stable": 1}


def test_promote_moves_stable_alone_and_rollback_undoes_it(line: Line) -> None:
    for number in (1, 2, 3):
        line.publish(number)
    assert line.names.promote(1) == 3
    assert line.store.aliases() == {"head": 3, "stable": 1}
    assert line.names.rollback() == (3, 1)
    assert line.store.aliases() == {"head": 3, "stable": 3}
    assert line.names.rollback() == (2, 3)
    assert [event["version"] for event in line.events("rollback")] == ["2", "3"]


def test_promoting_what_is_stable_already_changes_nothing(line: Line) -> None:
    line.publish(1)
    assert line.names.promote(1) == 1
    assert line.events("promote") == []


def test_an_unhealthy_or_abandoned_snapshot_is_promoted_by_force_only(line: Line) -> None:
    line.publish(1)
    line.publish(3)
    line.publish(4, verdict="unhealthy")
    line.publish(2)  # the learner went on from an earlier checkpoint
    for version, why in ((3, "health gate"), (2, "abandoned")):
        with pytest.raises(SnapshotError, match=why):
            line.names.promote(version)
        assert line.names.promote(version, force=True) is not None
    assert line.store.aliases()["stable"] == 2


def test_rollback_passes_over_what_was_abandoned_or_is_gone(line: Line, client: redis.Redis) -> None:
    for number in (1, 2, 5, 6):
        line.publish(number)
    line.publish(4)  # abandons versions 4 and 3
    client.delete(line.store.key("snap:2"))
    assert line.names.rollback() == (1, 5)
    with pytest.raises(SnapshotError, match="stable stays at 1"):
        line.names.rollback()


def test_rollback_passes_over_what_has_lost_its_blob_and_prune_keeps_what_is_next(
    line: Line, client: redis.Redis
) -> None:
    for number in (1, 2, 3):
        line.publish(number)
    client.delete(line.store.key(f"blob:{line.store.show(2).blob_sha256}"))
    assert line.writer.prune(1) == [2]
    assert line.names.rollback() == (1, 3)


def test_rollback_moves_nothing_before_the_version_is_verified(line: Line) -> None:
    for number in (1, 2, 3):
        line.publish(number)
    seen = []

    def verify(version: int) -> None:
        seen.append((version, line.store.aliases()["stable"]))
        if len(seen) == 1:
            raise SnapshotError("damaged")

    with pytest.raises(SnapshotError, match="damaged"):
        line.names.rollback(verify)
    assert line.store.aliases()["stable"] == 3
    assert line.names.rollback(verify) == (2, 3)
    assert seen == [(2, 3), (2, 3)]
    assert line.names.rollback() == (1, 2), "one move, one way back"


def test_a_rollback_that_is_overtaken_verifies_where_it_goes_then(line: Line) -> None:
    for number in (1, 2):
        line.publish(number)
    seen: list[int] = []

    def verify(version: int) -> None:
        if not seen:
            line.publish(3)
        seen.append(version)

    assert line.names.rollback(verify) == (2, 3)
    assert seen == [1, 2]


@pytest.mark.parametrize("name", ["head", "stable"])
def test_a_pin_does_not_take_a_name_of_the_run(line: Line, name: str) -> None:
    line.publish(1)
    with pytest.raises(ValueError, match="another name"):
        line.names.pin(name, 1)
    assert line.store.aliases() == {"head": 1, "stable": 1}


def test_where_earlier_moves_are_not_known_rollback_goes_to_the_newest_healthy_one_before(
    line: Line, client: redis.Redis
) -> None:
    for number, verdict in ((1, "healthy"), (2, "unhealthy"), (3, "healthy")):
        line.publish(number, verdict=verdict)
    client.delete(line.store.key("stable_log"))
    assert line.names.rollback() == (1, 3)


def test_a_blob_that_is_gone_cannot_become_stable(line: Line, client: redis.Redis) -> None:
    line.publish(1)
    line.publish(2)
    client.delete(line.store.key(f"blob:{line.store.show(1).blob_sha256}"))
    with pytest.raises(SnapshotError, match="blob of snapshot 1 is gone"):
        line.names.promote(1, force=True)


def test_a_pin_moves_and_says_where_it_was(line: Line) -> None:
    line.publish(1)
    line.publish(2)
    assert line.names.pin("production", 1) is None
    assert line.names.pin("production", 2) == 1
    assert line.names.unpin("production") == 2
    with pytest.raises(SnapshotNotFound, match="pins: none"):
        line.names.unpin("production")
    with pytest.raises(SnapshotNotFound, match="no snapshot 9"):
        line.names.pin("production", 9)


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "pin:x"])
def test_a_pin_without_a_proper_name_is_refused(line: Line, name: str) -> None:
    line.publish(1)
    with pytest.raises(ValueError, match="a pin is called by"):
        line.names.pin(name, 1)


def test_prototypes_that_were_reseeded_are_an_event_of_their_lineage(line: Line) -> None:
    line.publish(1, generations={5: 1})
    done = line.publish(2, generations={2: 1, 5: 1, 7: 3})
    assert done.reseeded == (2, 7)
    event = line.events("reseed")[0]
    assert (event["version"], event["parent"], event["count"], event["generations"]) == (
        "2",
        "1",
        "2",
        "2:1,7:3",
    )
    assert line.publish(3, generations={2: 1, 5: 1, 7: 3}).reseeded == ()
    assert len(line.events("reseed")) == 1


def test_a_lost_answer_does_not_repeat_a_lineage_event(line: Line) -> None:
    line.publish(1)
    line.publish(2, generations={3: 1})
    assert line.publish(2, generations={3: 1}).result == "repeated"
    assert len(line.events("reseed")) == 1


def test_generations_of_a_rewind_are_compared_with_the_parent(line: Line) -> None:
    line.publish(1)
    line.publish(3, generations={3: 1})
    assert line.publish(2, generations={4: 1}).reseeded == (4,)


def test_an_equal_encoder_that_is_wanted_again_counts_as_new(tmp_path: Path) -> None:
    files = EncoderFiles(tmp_path)
    shots = [synthetic.snapshot(number) for number in range(3)]
    for age, shot in enumerate(shots):
        os.utime(files.save(shot.encoder_digest, shot.encoder), (1000 + age, 1000 + age))
    files.save(shots[0].encoder_digest, shots[0].encoder)
    assert [path.stem for path in files.prune(set(), newest=1)] == [
        shots[2].encoder_digest, shots[1].encoder_digest,
    ]  # fmt: skip
    assert files.load(shots[0].encoder_digest).keys() == shots[0].encoder.keys()
