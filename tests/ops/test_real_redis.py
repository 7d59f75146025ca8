"""A user's own Redis: TLS, passwords, Sentinel, Cluster, and every way in which it can be away."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from ops import publisher as publisher_module
from ops.encoders import EncoderFiles
from ops.errors import RedisUnavailable
from ops.publish_job import PublishResult
from ops.publisher import Publisher
from ops.redis_client import connect
from ops.snapshot_names import SnapshotNames
from ops.snapshot_reader import load_snapshot
from ops.snapshot_writer import SnapshotWriter
from ops.snapshots import SnapshotStore, warnings_of
from tests.ops import redis_servers, synthetic
from tests.ops.redis_servers import Server, wait_for

SECRET = "s3cr3t-of-nobody"
HELD_UP_S = 0.7
"""A learner that waited for a server of these tests would wait longer; a busy machine does not make it so."""


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "RETRY_FIRST_S", 0.05)
    monkeypatch.setattr(publisher_module, "RETRY_LONGEST_S", 0.2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as one:
        yield one


class Publishing:
    """A learner's publisher, as it runs beside the loop."""

    def __init__(self, url: str, folder: Path) -> None:
        self.results: list[PublishResult] = []
        self.warnings: list[str] = []
        self.client = connect(url)
        self.store = SnapshotStore(self.client, "run-1")
        self.files = EncoderFiles(folder)
        self.longest_s = 0.0
        self.publisher = Publisher(
            self.store, self.files, on_result=self.results.append, on_warning=self.warnings.append
        )
        self.publisher.start()

    def publish(self, number: int) -> None:
        """As the learner's thread does; notes how long that held it up."""
        shot = synthetic.snapshot(number)
        began = time.monotonic()
        self.publisher.publish(shot, samples=100 * number, updates=number)
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def published(self, number: int, timeout_s: float = 15.0) -> PublishResult:
        self.publish(number)
        wait_for(lambda: self.standing(number) is not None, timeout_s)
        found = self.standing(number)
        assert found is not None
        return found

    def standing(self, number: int) -> PublishResult | None:
        return next((one for one in self.results if one.samples == 100 * number and one.version), None)

    def failed(self, number: int) -> bool:
        return any(one.samples == 100 * number and one.result == "error" for one in self.results)

    def close(self) -> bool:
        done = self.publisher.close(1)
        self.client.close()
        return done


@pytest.fixture
def publishing(tmp_path: Path) -> Iterator[Callable[[str], Publishing]]:
    made: list[Publishing] = []

    def make(url: str) -> Publishing:
        made.append(Publishing(url, tmp_path / "run"))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one.longest_s < HELD_UP_S, "the learner never waits"


Make = Callable[[str], Publishing]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    redis_servers.debian_server()
    return redis_servers.certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, Path]) -> Iterator[Server]:
    """A server that speaks TLS only, and asks for a user and a password."""
    secure = Server(
        tmp_path_factory.mktemp("tls"),
        program=redis_servers.debian_server(),
        tls_cert_file=str(keys["server.crt"]),
        tls_key_file=str(keys["server.key"]),
        tls_ca_cert_file=str(keys["ca.crt"]),
        tls_auth_clients="no",
        user=f"learner on >{SECRET} ~* &* +@all",
    )
    secure.settings |= {"port": "0", "tls-port": str(secure.port), "requirepass": SECRET + "-of-default"}
    secure.url = f"rediss://127.0.0.1:{secure.port}/0"

    def ready() -> None:
        with (
            secure.client(ssl=True, ssl_ca_certs=str(keys["ca.crt"])) as one,
            contextlib.suppress(redis.AuthenticationError),
        ):
            one.ping()

    secure.ready = ready
    with secure:
        yield secure


def test_tls_with_an_own_authority_and_a_password_file_publishes_and_reads(
    tls: Server, keys: dict[str, Path], publishing: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text(SECRET + "\n")
    monkeypatch.setenv("SWAVSTREAM_REDIS_CA", str(keys["ca.crt"]))
    monkeypatch.setenv("SWAVSTREAM_REDIS_USER", "learner")
    monkeypatch.setenv("SWAVSTREAM_REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    run = publishing(tls.url)
    assert run.published(1).result == "ok"
    assert load_snapshot(run.store, run.files).info.version == 1
    monkeypatch.delenv("SWAVSTREAM_REDIS_CA")
    with connect(f"{tls.url}?ssl_ca_certs={keys['ca.crt']}") as by_url:
        assert by_url.ping()


def test_a_password_file_that_changes_is_read_anew_and_never_shown(
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


def test_a_server_of_another_authority_is_refused_and_the_learner_goes_on(
    tls: Server, keys: dict[str, Path], publishing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAVSTREAM_REDIS_CA", str(keys["other.crt"]))
    run = publishing(tls.url)
    run.publish(1)
    wait_for(lambda: run.failed(1))
    assert "certificate" in run.results[-1].detail.lower()


def test_a_missing_password_or_authority_file_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAVSTREAM_REDIS_CA", "/nowhere/ca.crt")
    with pytest.raises(RedisUnavailable, match="SWAVSTREAM_REDIS_CA names /nowhere/ca"):
        connect("rediss://127.0.0.1:1/0")
    monkeypatch.setenv("SWAVSTREAM_REDIS_PASSWORD_FILE", "/nowhere/password")
    with connect(server.url) as client, pytest.raises(redis.AuthenticationError, match="/nowhere/password"):
        client.ping()


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://host:26379",
        "sentinel:///name",
        "sentinel://host:x/name",
        "sentinelx://host/name",
        "sentinel://host:99999/name",
        "sentinel://one,,two/name",
        "sentinel://[::1/name",
        "sentinel://host/name/first",
    ],
)
def test_an_address_of_sentinels_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RedisUnavailable, match="not a Redis URL"):
        connect(url)


def test_sentinel_names_the_new_master_after_a_failover_and_publishing_goes_on(
    tmp_path: Path, publishing: Make
) -> None:
    master = Server(tmp_path / "a", program=redis_servers.debian_server())
    with master:
        replica = Server(
            tmp_path / "b", program=master.program, replicaof=f"127.0.0.1 {master.port}",
            repl_diskless_sync_delay="0",
        )  # fmt: skip
        with replica, redis_servers.sentinel(tmp_path / "c", master) as watcher:
            wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up")
            wait_for(lambda: watcher.client().sentinel_master("prototypes")["num-slaves"] == 1)
            run = publishing(f"sentinel://127.0.0.1:{watcher.port}/prototypes/0")
            first = run.published(1)
            wait_for(lambda: bool(replica.client().exists(run.store.key("snap:1"))))
            master.kill()
            run.publish(2)
            wait_for(lambda: run.standing(2) is not None, 30)
            found = run.standing(2)
            assert found is not None
            assert (found.version, found.epoch) == (2, first.epoch + 1)
            with connect(replica.url) as there:
                assert [info.version for info in SnapshotStore(there, "run-1").versions()] == [2, 1]


def test_several_sentinels_of_which_one_is_down_agree_on_the_new_master(
    tmp_path: Path, publishing: Make
) -> None:
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(Server(tmp_path / "a", program=redis_servers.debian_server()))
        replica = stack.enter_context(
            Server(
                tmp_path / "b", program=master.program, replicaof=f"127.0.0.1 {master.port}",
                repl_diskless_sync_delay="0",
            )
        )  # fmt: skip
        three = [
            stack.enter_context(redis_servers.sentinel(tmp_path / f"sentinel-{number}", master, quorum=2))
            for number in range(3)
        ]
        wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up")
        for one in three:
            wait_for(lambda one=one: _knows(one, sentinels=2, replicas=1))  # type: ignore[misc]
        three[0].kill()
        places = ",".join(f"127.0.0.1:{one.port}" for one in three)
        run = publishing(f"sentinel://{places}/prototypes")
        first = run.published(1)
        wait_for(lambda: bool(replica.client().exists(run.store.key("snap:1"))))
        master.kill()
        run.publish(2)
        wait_for(lambda: run.standing(2) is not None, 60)
        found = run.standing(2)
        assert found is not None
        assert (found.version, found.epoch) == (2, first.epoch + 1)


def _knows(watcher: Server, *, sentinels: int, replicas: int) -> bool:
    """Whether a Sentinel has met the others, and the replicas of the master."""
    state = watcher.client().sentinel_master("prototypes")
    return bool(state["num-other-sentinels"] == sentinels and state["num-slaves"] == replicas)


def test_sentinels_that_are_all_away_hold_up_nobody_and_are_asked_again(
    tmp_path: Path, publishing: Make
) -> None:
    with Server(tmp_path / "a", program=redis_servers.debian_server()) as master:
        watcher = redis_servers.sentinel(tmp_path / "b", master)
        run = publishing(
            f"sentinel://127.0.0.1:{redis_servers.free_port()},127.0.0.1:{watcher.port}/prototypes"
        )
        run.publish(1)
        wait_for(lambda: run.failed(1))
        with watcher:
            wait_for(lambda: run.standing(1) is not None)


def test_sentinels_and_master_are_reached_over_tls(
    tmp_path: Path, keys: dict[str, Path], publishing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure = {
        "tls-cert-file": str(keys["server.crt"]), "tls-key-file": str(keys["server.key"]),
        "tls-ca-cert-file": str(keys["ca.crt"]), "tls-auth-clients": "no", "tls-replication": "yes",
        "port": "0",
    }  # fmt: skip

    def over_tls(server: Server) -> Server:
        server.settings |= {**secure, "tls-port": str(server.port)}
        server.ready = lambda: server.client(ssl=True, ssl_ca_certs=str(keys["ca.crt"])).ping()
        return server

    master = over_tls(Server(tmp_path / "a", program=redis_servers.debian_server()))
    with master, over_tls(redis_servers.sentinel(tmp_path / "b", master)) as watcher:
        monkeypatch.setenv("SWAVSTREAM_REDIS_CA", str(keys["ca.crt"]))
        run = publishing(f"sentinels://127.0.0.1:{watcher.port}/prototypes")
        assert run.published(1).result == "ok"


@pytest.mark.parametrize(
    ("places", "hosts"),
    [
        ("one,two:7", [("one", 26379), ("two", 7)]),
        ("[::1]:7,[fe80::2]", [("::1", 7), ("fe80::2", 26379)]),
    ],
)
def test_addresses_of_sentinels_may_leave_the_port_out_and_be_of_ipv6(
    places: str, hosts: list[tuple[str, int]]
) -> None:
    with connect(f"sentinel://{places}/name") as client:
        asked = client.connection_pool.sentinel_manager.sentinels
        found = [one.connection_pool.connection_kwargs for one in asked]
    assert [(one["host"], one["port"]) for one in found] == hosts


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
    pause = threading.Thread(target=lambda: server.client().execute_command("DEBUG", "SLEEP", "2.0"))
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
    monkeypatch.setattr("ops.redis_client.ANSWER_S", 1.5)
    run = publishing(server.url)
    run.published(1)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
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
    bus = str(redis_servers.free_port())  # else 10,000 above the port, which may be too high
    node = Server(tmp_path / "server", cluster_enabled="yes", cluster_port=bus)
    with node, connect(node.url) as client:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        wait_for(lambda: b"cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
        store = SnapshotStore(client, "run-1")
        run = Publisher(store, EncoderFiles(tmp_path / "run"), keep=2)
        run.start()
        for number in (1, 2, 3, 4):
            run.publish(synthetic.snapshot(number), samples=100 * number, updates=number)
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
        Server(tmp_path / name, cluster_enabled="yes", cluster_port=str(redis_servers.free_port()))
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
            wait_for(lambda one=one: b"cluster_state:ok" in one.execute_command("CLUSTER", "INFO"), 30)  # type: ignore[misc]
        run = publishing(elsewhere.url)
        run.publish(1)
        wait_for(lambda: run.failed(1))
        assert f"give redis://127.0.0.1:{there.port}, which does" in run.results[-1].detail
        assert publishing(there.url).published(1).result == "ok"
