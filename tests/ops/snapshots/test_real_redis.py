"""A user's own Redis: passwords, a Cluster, and every way in which a server can be away."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from ops.errors import RedisUnavailable
from ops.snapshots.aliases import SnapshotNames
from ops.snapshots.encoder_files import EncoderFiles
from ops.snapshots.publisher import Publisher
from ops.snapshots.reader import load_snapshot
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore, warnings_of
from ops.snapshots.types import SnapshotTaken
from ops.snapshots.writer import SnapshotWriter
from tests.ops import synthetic
from tests.ops.redis_publishing import Make
from tests.ops.redis_servers import Server
from tests.ports import free_port
from tests.waiting import freeze, wait_for

SECRET = "s3cr3t-of-nobody"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as one:
        yield one


def test_a_password_file_that_changes_is_read_again_and_never_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publishing: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place = tmp_path / "password"
    place.write_text("an-older-" + SECRET)
    monkeypatch.setenv("SWAVSTREAM_REDIS_PASSWORD_FILE", str(place))
    with server.client() as admin:
        admin.config_set("requirepass", SECRET)
        run = publishing(server.url)
        run.publish(1)
        wait_for(lambda: run.failed(1))
        place.write_text(SECRET)
        wait_for(lambda: run.standing(1) is not None)
    assert SECRET not in caplog.text
    assert not any(SECRET in result.detail for result in run.results)


def test_a_missing_password_or_authority_file_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAVSTREAM_REDIS_CA", "/nowhere/ca.crt")
    with pytest.raises(RedisUnavailable, match="SWAVSTREAM_REDIS_CA names /nowhere/ca"):
        connect("rediss://127.0.0.1:1/0")
    monkeypatch.setenv("SWAVSTREAM_REDIS_PASSWORD_FILE", "/nowhere/password")
    with connect(server.url) as client, pytest.raises(redis.AuthenticationError, match="/nowhere/password"):
        client.ping()


def test_a_server_that_lost_everything_in_a_restart_gets_the_next_number_under_a_higher_epoch(
    server: Server, publishing: Make
) -> None:
    run = publishing(server.url)
    assert (run.published(1).version, run.published(2).version) == (1, 2)
    server.kill()
    run.publish(3)
    wait_for(lambda: run.failed(3))
    server.start()
    wait_for(lambda: run.standing(3) is not None)
    found = run.standing(3)
    assert found is not None
    assert (found.version, found.epoch) == (3, 2)
    assert [(info.version, info.parent) for info in run.store.versions()] == [(3, None)]


def test_a_slow_server_holds_up_the_publisher_and_not_the_learner(server: Server, publishing: Make) -> None:
    run = publishing(server.url)
    run.published(1)
    pause = threading.Thread(target=lambda: server.client().execute_command("DEBUG", "SLEEP", "4.0"))
    pause.start()
    time.sleep(0.1)
    for number in (2, 3, 4):
        run.publish(number)
    pause.join()
    wait_for(lambda: run.standing(4) is not None)
    assert not run.failed(4)


def test_a_server_that_hangs_is_given_up_in_time_and_used_again(
    server: Server, publishing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.snapshots.redis_client.ANSWER_S", 4.0)
    run = publishing(server.url)
    run.published(1)
    assert server.process is not None
    freeze(server.process.pid)
    run.publish(2)
    wait_for(lambda: run.failed(2))
    server.process.send_signal(signal.SIGCONT)
    wait_for(lambda: run.standing(2) is not None)


def test_a_full_server_keeps_what_it_has_and_takes_more_when_there_is_room(
    server: Server, publishing: Make
) -> None:
    run = publishing(server.url)
    run.published(1)
    with server.client() as admin:
        admin.config_set("maxmemory", "1mb")
        run.publish(2)
        wait_for(lambda: run.failed(2))
        assert load_snapshot(run.store, run.files).info.version == 1
        admin.config_set("maxmemory", "0")
    wait_for(lambda: run.standing(2) is not None)


def test_a_server_that_may_lose_snapshots_is_told_of_once(
    tmp_path: Path, publishing: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(tmp_path / "server", maxmemory="100mb", maxmemory_policy="allkeys-lru") as careless:
        run = publishing(careless.url)
        run.published(1)
        careless.client().client_kill_filter(skipme=True, _type="normal")
        run.published(2)
    assert [sentence.split(":")[0] for sentence in run.warnings] == [
        "Redis may drop snapshots when it is full", "Redis keeps nothing over a restart",
    ]  # fmt: skip
    assert caplog.text.count("allkeys-lru") == 1


def test_a_server_that_hides_its_settings_still_tells_its_eviction_policy(server: Server) -> None:
    with server.client() as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.execute_command("ACL", "SETUSER", "plain", "on", ">word", "~*", "&*", "+@all", "-config")
    with connect(f"redis://plain:word@127.0.0.1:{server.port}/0") as client:
        assert "allkeys-lru" in warnings_of(client)[0]


def test_all_keys_of_a_run_are_in_one_slot_of_a_cluster_which_takes_every_script(
    tmp_path: Path,
) -> None:
    bus = str(free_port())  # else 10,000 above the port, which may be too high
    node = Server(tmp_path / "server", cluster_enabled="yes", cluster_port=bus)
    with node, connect(node.url) as client:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_for(lambda: b"cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
        store = SnapshotStore(client, "run-1")
        run = Publisher(store, EncoderFiles(tmp_path / "run"), keep=2)
        run.start()
        for number in (1, 2, 3, 4):
            run.publish(SnapshotTaken(synthetic.snapshot(number), 100 * number, number))
            wait_for(lambda number=number: run.version == number)  # type: ignore[misc]
        assert run.close()
        names = SnapshotNames(store)
        names.pin("paper", 3)
        names.promote(3)
        names.rollback()
        names.unpin("paper")
        SnapshotWriter(store).prune(1)
        there = client.keys("*")
        assert isinstance(there, list)
        assert len(there) >= 9
        assert len({key_slot(key) for key in there}) == 1
    assert key_slot(b"{swavstream:run-1}:x") != key_slot(b"{swavstream:run-2}:x")
    assert os.environ.get("SWAVSTREAM_REDIS_URL") is None


def test_the_node_of_a_cluster_that_holds_the_run_is_named_by_the_others(
    tmp_path: Path, publishing: Make
) -> None:
    slot = key_slot(b"{swavstream:run-1}:x")
    nodes = [
        Server(tmp_path / name, cluster_enabled="yes", cluster_port=str(free_port()))
        for name in ("there", "elsewhere")
    ]
    with nodes[0] as there, nodes[1] as elsewhere:
        own, other = there.client(), elsewhere.client()
        own.execute_command("CLUSTER", "ADDSLOTSRANGE", str(slot), str(slot))
        rest = [str(edge) for edge in (0, slot - 1, slot + 1, 16383)]
        other.execute_command("CLUSTER", "ADDSLOTSRANGE", *rest)
        other.execute_command("CLUSTER", "SET-CONFIG-EPOCH", "2")
        own.execute_command(
            "CLUSTER", "MEET", "127.0.0.1", str(elsewhere.port), elsewhere.settings["cluster-port"]
        )
        for one in (own, other):
            wait_for(lambda one=one: b"cluster_state:ok" in one.execute_command("CLUSTER", "INFO"))  # type: ignore[misc]
        run = publishing(elsewhere.url)
        run.publish(1)
        wait_for(lambda: run.failed(1))
        assert f"give redis://127.0.0.1:{there.port}, which does" in run.results[-1].detail
        assert publishing(there.url).published(1).result == "ok"


# As the documentation gives it.
LEAST_RIGHTS = (
    "-@all +@connection +@read +@write +@scripting +@transaction +@pubsub -@dangerous "
    "resetkeys ~{swavstream:* resetchannels &{swavstream:*"
)


def test_the_least_rights_of_the_documentation_suffice_for_publishing_and_for_operators(
    server: Server, publishing: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LEAST_RIGHTS in (Path(__file__).parents[3] / "ops/docs/snapshots.md").read_text()
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "swavstream", "on", ">pass/word", *LEAST_RIGHTS.split())
        admin.set("of-others", "kept")
    monkeypatch.setenv("SWAVSTREAM_REDIS_USER", "swavstream")
    monkeypatch.setenv("SWAVSTREAM_REDIS_PASSWORD", "pass/word")
    learner = publishing(server.url)
    for number in (1, 2):
        assert learner.published(number).version == number
    with connect(server.url) as client:
        store, names = SnapshotStore(client, "run-1"), SnapshotNames(SnapshotStore(client, "run-1"), "me")
        assert [info.version for info in store.versions()] == [2, 1]
        assert load_snapshot(store, EncoderFiles(learner.files.folder.parent), "head").info.version == 2
        names.promote(1)
        names.pin("paper", 1)
        assert store.show("pin:paper").version == store.show("stable").version == 1
        names.unpin("paper")
        for forbidden in (("GET", "of-others"), ("FLUSHALL",), ("CONFIG", "GET", "dir"), ("KEYS", "*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*forbidden)
    with server.client() as admin:
        denied = admin.acl_log()
    told = {str(entry["object"]).lower() for entry in denied}
    assert told <= {"of-others", "flushall", "config|get", "keys", "info"}, "nothing of ours was refused"
