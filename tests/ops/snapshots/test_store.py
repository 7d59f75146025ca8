"""Snapshots against a real server: publish rules, fence, what readers see, what is verified."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from learner import learner as learner_module
from learner.config import LearnerConfig, ModelConfig, SwavConfig
from learner.report import Snapshot
from ops.errors import SnapshotDamaged, SnapshotNotFound, StaleEpoch
from ops.snapshots.embedded_redis import EmbeddedRedis
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.reader import load_snapshot, load_tensors
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore, warnings_of
from ops.snapshots.types import PublishResult
from ops.snapshots.writer import EpochLost, SnapshotWriter
from tests.ops import synthetic
from tests.waiting import LIMIT_S


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("run")) as embedded:
        yield embedded


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with connect(server.url) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def store(client: redis.Redis) -> SnapshotStore:
    return SnapshotStore(client, "run-1")


class Learner:
    """What a learner process does with the writer: one owner, its epoch, its snapshots."""

    def __init__(self, store: SnapshotStore, name: str, *, started_ms: int = 1) -> None:
        self.writer = SnapshotWriter(store)
        self.name = name
        self.started_ms = started_ms
        self.epoch = 0
        self.version = 0

    def acquire(self, *, again: bool = False) -> int:
        self.epoch, last = self.writer.acquire(
            self.name,
            started_ms=self.started_ms,
            floor_epoch=self.epoch,
            floor_version=self.version,
            again=again,
        )
        self.version = max(self.version, last)
        return self.epoch

    def publish(self, shot: Snapshot, samples: int) -> PublishResult:
        rows, dim = shot.tensors["prototypes"].shape
        done = self.writer.publish(
            owner=self.name,
            epoch=self.epoch,
            samples=samples,
            digest=shot.digest,
            tensors=shot.tensors,
            healthy=shot.health["verdict"] == "healthy",
            fields={
                "format": "1",
                "updates": samples // 64,
                "prototypes": rows,
                "dim": dim,
                "encoder_digest": shot.encoder_digest,
                "encoder": f"encoders/{shot.encoder_digest}.safetensors",
                "run_dir": "/run",
                "config_hash": "c",
                "health": '{"verdict":"healthy"}',
                "publisher": self.name,
            },
            floor_version=self.version,
        )
        self.version = done.version
        return done


@pytest.fixture
def learner(store: SnapshotStore) -> Learner:
    one = Learner(store, "one")
    one.acquire()
    return one


def test_a_published_snapshot_is_read_back_whole(store: SnapshotStore, learner: Learner) -> None:
    shot = synthetic.snapshot()
    learner.publish(shot, 640)
    info = store.show("head")
    tensors = load_tensors(store, info)
    assert (info.version, info.samples, info.updates, info.prototypes, info.dim) == (1, 640, 10, 8, 4)
    assert (info.digest, info.parent, info.epoch) == (shot.digest, None, 1)
    assert info.aliases == ("head", "stable")
    assert tensors.keys() == shot.tensors.keys()
    assert all(torch.equal(tensors[name], shot.tensors[name]) for name in tensors)


def test_each_snapshot_names_the_one_before_as_its_parent(store: SnapshotStore, learner: Learner) -> None:
    for number in (1, 2, 3):
        learner.publish(synthetic.snapshot(number), 100 * number)
    assert [(info.version, info.parent) for info in store.versions()] == [(3, 2), (2, 1), (1, None)]


def test_equal_bytes_that_another_learner_published_meanwhile_do_not_expire(
    store: SnapshotStore, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    shot, other, upload = synthetic.snapshot(), Learner(store, "two"), learner.writer.scripts["upload"]

    def late(**more: Any) -> Any:
        """The other one publishes between the question whether the blob is there and its upload."""
        other.acquire()
        other.publish(shot, 640)
        return upload(**more)

    monkeypatch.setitem(learner.writer.scripts, "upload", late)
    with pytest.raises(StaleEpoch):
        learner.publish(shot, 640)
    blob = store.key(f"blob:{store.show('head').blob_sha256}")
    assert store.client.ttl(blob) == -1


def test_a_blob_that_no_snapshot_names_expires(store: SnapshotStore, learner: Learner) -> None:
    upload = learner.writer.scripts["upload"]
    keys = [store.key("blob:x"), store.key("refs")]
    for _ in range(2):
        upload(keys=keys, args=[b"bytes", "x", 60])
        assert 0 < store.client.ttl(keys[0]) <= 60
    assert store.client.get(keys[0]) == b"bytes"


def test_an_unhealthy_snapshot_moves_head_but_not_stable(store: SnapshotStore, learner: Learner) -> None:
    learner.publish(synthetic.snapshot(1), 100)
    done = learner.publish(synthetic.snapshot(2, verdict="unhealthy"), 200)
    assert done.result == "unhealthy"
    assert store.aliases() == {"head": 2, "stable": 1}


def test_publishing_again_after_a_lost_answer_changes_nothing(store: SnapshotStore, learner: Learner) -> None:
    shot = synthetic.snapshot()
    learner.publish(shot, 100)
    events = store.events()
    done = learner.publish(shot, 100)
    assert (done.version, done.result) == (1, "repeated")
    assert len(store.versions()) == 1
    assert store.events() == events


def test_an_older_learner_is_refused(store: SnapshotStore, learner: Learner) -> None:
    learner.publish(synthetic.snapshot(1), 100)
    newer = Learner(store, "two", started_ms=2)
    assert newer.acquire() == 2
    with pytest.raises(StaleEpoch, match="two learners"):
        learner.publish(synthetic.snapshot(2), 200)
    newer.publish(synthetic.snapshot(3), 200)
    assert [info.epoch for info in store.versions()] == [2, 1]


def test_an_older_learner_cannot_win_its_epoch_back(store: SnapshotStore, learner: Learner) -> None:
    Learner(store, "two", started_ms=2).acquire()
    with pytest.raises(StaleEpoch):
        learner.acquire(again=True)


def test_the_same_epoch_of_another_owner_is_refused(store: SnapshotStore, learner: Learner) -> None:
    other = Learner(store, "two", started_ms=2)
    other.epoch = learner.epoch
    with pytest.raises(StaleEpoch):
        other.publish(synthetic.snapshot(), 100)


def test_an_epoch_that_was_given_up_is_refused(store: SnapshotStore, learner: Learner) -> None:
    learner.acquire(again=True)
    learner.epoch -= 1
    with pytest.raises(StaleEpoch):
        learner.publish(synthetic.snapshot(), 100)


def test_after_a_failover_that_doubled_an_epoch_the_later_learner_stays(
    client: redis.Redis, store: SnapshotStore
) -> None:
    early, late = Learner(store, "early", started_ms=1), Learner(store, "late", started_ms=2)
    early.acquire()
    client.flushall()  # the server that took over never saw it
    late.acquire()
    assert early.epoch == late.epoch == 1
    with pytest.raises(StaleEpoch):
        early.acquire(again=True)
    assert late.acquire(again=True) == 2


def test_an_emptied_server_asks_for_the_epoch_again_and_numbers_go_on(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    for number in (1, 2, 3):
        learner.publish(synthetic.snapshot(number), 100 * number)
    client.flushall()
    with pytest.raises(EpochLost):
        learner.publish(synthetic.snapshot(4), 400)
    assert learner.acquire(again=True) == 2
    assert learner.publish(synthetic.snapshot(4), 400).version == 4
    assert [(info.version, info.parent) for info in store.versions()] == [(4, None)]


def test_numbers_go_on_from_the_checkpoint_when_the_server_was_emptied(
    client: redis.Redis, store: SnapshotStore
) -> None:
    resumed = Learner(store, "two")
    resumed.epoch, resumed.version = 7, 12
    assert resumed.acquire() == 8
    assert resumed.publish(synthetic.snapshot(), 100).version == 13


def test_snapshots_ahead_of_a_resumed_learner_are_abandoned(store: SnapshotStore, learner: Learner) -> None:
    for number in (1, 2, 3):
        learner.publish(synthetic.snapshot(number), 100 * number)
    resumed = Learner(store, "two", started_ms=2)
    resumed.acquire()
    done = resumed.publish(synthetic.snapshot(9), 150)
    assert (done.version, done.abandoned) == (4, (3, 2))
    assert {info.version: info.abandoned for info in store.versions()} == {
        4: False, 3: True, 2: True, 1: False,
    }  # fmt: skip
    assert store.show("head").parent == 1
    rewind = next(event for event in store.events() if event["kind"] == "rewind")
    assert (rewind["version"], rewind["abandoned"]) == ("4", "3,2")


def test_a_resume_that_repeats_an_old_snapshot_gets_a_higher_number(
    store: SnapshotStore, learner: Learner
) -> None:
    for number in (1, 2):
        learner.publish(synthetic.snapshot(number), 100 * number)
    resumed = Learner(store, "two", started_ms=2)
    resumed.acquire()
    assert resumed.publish(synthetic.snapshot(1), 100).version == 3
    assert resumed.publish(synthetic.snapshot(2), 200).version == 4
    assert store.show("head").parent == 3


def test_every_publish_is_announced(client: redis.Redis, store: SnapshotStore, learner: Learner) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
        heard.subscribe(store.key("notify"))
        heard.get_message(timeout=LIMIT_S)
        learner.publish(synthetic.snapshot(), 100)
        message = heard.get_message(timeout=LIMIT_S)
    assert message is not None
    assert message["data"] == b"1"


def test_equal_blobs_are_stored_once_and_go_with_their_last_snapshot(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    shot = synthetic.snapshot(verdict="unhealthy")
    learner.publish(shot, 100)
    learner.publish(replace(shot, digest="other"), 200)
    learner.publish(synthetic.snapshot(3), 300)
    first = store.show(1)
    assert first.blob_sha256 == store.show(2).blob_sha256
    assert client.hget(store.key("refs"), first.blob_sha256) == b"2"
    learner.writer.prune(2)
    assert client.ttl(store.key(f"blob:{first.blob_sha256}")) == -1
    learner.writer.prune(1)
    assert 0 < client.ttl(store.key(f"blob:{first.blob_sha256}")) <= 300


def test_pruning_keeps_the_newest_and_what_a_name_points_at(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    learner.publish(synthetic.snapshot(1), 100)
    for number in range(2, 8):
        learner.publish(synthetic.snapshot(number, verdict="unhealthy"), 100 * number)
    client.hset(store.key("pins"), "paper", 3)
    assert learner.writer.prune(2, owner="one", epoch=1) == [5, 4, 2]
    assert [info.version for info in store.versions()] == [7, 6, 3, 1]
    assert store.show("pin:paper").version == 3
    assert load_tensors(store, store.show("stable"))


def test_a_fenced_off_learner_may_not_prune(store: SnapshotStore, learner: Learner) -> None:
    Learner(store, "two", started_ms=2).acquire()
    with pytest.raises(StaleEpoch):
        learner.writer.prune(1, owner="one", epoch=learner.epoch)


def test_a_refused_publish_uploads_no_blob(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    Learner(store, "two", started_ms=2).acquire()
    with pytest.raises(StaleEpoch):
        learner.publish(synthetic.snapshot(), 100)
    assert not list(client.scan_iter(store.key("blob:*").replace("{", "[{]")))


def test_a_blob_that_was_tampered_with_is_not_handed_out(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    learner.publish(synthetic.snapshot(), 100)
    info = store.show()
    client.setrange(store.key(f"blob:{info.blob_sha256}"), info.blob_bytes - 4, b"\x01\x02\x03\x04")
    with pytest.raises(SnapshotDamaged, match="not what its digest says"):
        load_tensors(store, info)


def test_a_blob_that_was_evicted_is_named(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    learner.publish(synthetic.snapshot(), 100)
    client.delete(store.key(f"blob:{store.show().blob_sha256}"))
    with pytest.raises(SnapshotDamaged, match="evicted"):
        load_tensors(store, store.show())


def test_metadata_of_another_format_is_refused(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    learner.publish(synthetic.snapshot(), 100)
    client.hset(store.key("snap:1"), "format", "99")
    with pytest.raises(SnapshotDamaged, match="format '99'"):
        store.show(1)


def test_stated_shape_that_the_blob_does_not_have_is_refused(
    client: redis.Redis, store: SnapshotStore, learner: Learner
) -> None:
    learner.publish(synthetic.snapshot(), 100)
    client.hset(store.key("snap:1"), "prototypes", "9")
    with pytest.raises(SnapshotDamaged, match="9 x 4"):
        load_tensors(store, store.show(1))


def test_an_unknown_version_or_name_is_named(store: SnapshotStore, learner: Learner) -> None:
    with pytest.raises(SnapshotNotFound, match="no snapshot 5"):
        store.show(5)
    with pytest.raises(SnapshotNotFound, match="'best'; names: none yet"):
        store.show("best")


def test_runs_do_not_see_each_other(client: redis.Redis, learner: Learner) -> None:
    learner.publish(synthetic.snapshot(), 100)
    assert SnapshotStore(client, "run-2").versions() == []


def test_a_snapshot_is_loaded_with_its_encoder_and_every_digest_checked(
    store: SnapshotStore, learner: Learner, tmp_path: Path
) -> None:
    shot, files = synthetic.snapshot(), EncoderFiles(tmp_path)
    files.save(shot.encoder_digest, shot.encoder)
    learner.publish(shot, 100)
    loaded = load_snapshot(store, files)
    assert loaded.info.digest == shot.digest
    assert all(torch.equal(loaded.encoder[name], shot.encoder[name]) for name in shot.encoder)


def test_an_encoder_that_does_not_belong_to_the_prototypes_is_refused(
    store: SnapshotStore, learner: Learner, tmp_path: Path
) -> None:
    shot, other, files = synthetic.snapshot(1), synthetic.snapshot(2), EncoderFiles(tmp_path)
    files.save(other.encoder_digest, other.encoder)
    learner.publish(replace(shot, encoder_digest=other.encoder_digest), 100)
    with pytest.raises(SnapshotDamaged, match="content of snapshot 1"):
        load_snapshot(store, files)


def test_an_encoder_file_with_flipped_bits_is_refused(tmp_path: Path) -> None:
    shot, files = synthetic.snapshot(), EncoderFiles(tmp_path)
    path = files.save(shot.encoder_digest, shot.encoder)
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    with pytest.raises(SnapshotDamaged, match="not what its name says"):
        files.load(shot.encoder_digest)


def test_an_encoder_that_the_disk_does_not_take_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    shot, files = synthetic.snapshot(), EncoderFiles(tmp_path)
    with pytest.raises(OSError, match="no space left"):
        files.save(shot.encoder_digest, shot.encoder)
    assert list(files.folder.iterdir()) == []


def test_encoders_that_no_snapshot_names_are_removed_but_for_the_newest(tmp_path: Path) -> None:
    files = EncoderFiles(tmp_path)
    shots = [synthetic.snapshot(number) for number in range(4)]
    for age, shot in enumerate(shots):
        path = files.save(shot.encoder_digest, shot.encoder)
        os.utime(path, (1000 + age, 1000 + age))
    removed = files.prune({shots[0].encoder_digest}, newest=1)
    assert [path.stem for path in removed] == [shots[2].encoder_digest, shots[1].encoder_digest]
    assert files.load(shots[0].encoder_digest)


def test_a_server_that_may_drop_snapshots_is_warned_of(client: redis.Redis) -> None:
    assert warnings_of(client) == []
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        found = warnings_of(client)
    finally:
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory-policy", "noeviction")
    assert "allkeys-lru" in found[0]
    assert "keeps nothing over a restart" in found[1]


def test_what_the_real_learner_hands_over_is_verified_when_it_is_loaded(
    store: SnapshotStore, learner: Learner, tmp_path: Path
) -> None:
    config = LearnerConfig(
        model=ModelConfig(backbone="resnet18", projection_hidden=16, projection_dim=8),
        swav=SwavConfig(prototypes=(12,)),
    )
    real = learner_module.Learner(
        config,
        seed=0,
        device=torch.device("cpu"),
        precision="float32",
        total_samples=None,
        clock=time.monotonic,
    )
    shot, files = replace(real.snapshot(), health={"verdict": "healthy"}), EncoderFiles(tmp_path)
    files.save(shot.encoder_digest, shot.encoder)
    learner.publish(shot, 100)
    loaded = load_snapshot(store, files, "stable")
    assert (loaded.info.prototypes, loaded.info.dim) == (12, 8)
    assert loaded.encoder.keys() == shot.encoder.keys()
