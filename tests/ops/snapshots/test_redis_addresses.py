"""Where a user's own Redis is: TLS with its authority, Sentinels, and addresses that are none."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ops.errors import RedisUnavailable
from ops.snapshots.reader import load_snapshot
from ops.snapshots.redis_client import connect
from ops.snapshots.store import SnapshotStore
from tests.ops import redis_servers
from tests.ops.redis_publishing import Make
from tests.ops.redis_servers import Server
from tests.ports import free_port
from tests.waiting import wait_for

SECRET = "s3cr3t-of-nobody"


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


def test_a_server_of_another_authority_is_refused_and_the_learner_goes_on(
    tls: Server, keys: dict[str, Path], publishing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAVSTREAM_REDIS_CA", str(keys["other.crt"]))
    run = publishing(tls.url)
    run.publish(1)
    wait_for(lambda: run.failed(1))
    assert "certificate" in run.results[-1].detail.lower()


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
            wait_for(lambda: run.standing(2) is not None)
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
        wait_for(lambda: run.standing(2) is not None)
        found = run.standing(2)
        assert found is not None
        assert (found.version, found.epoch) == (2, first.epoch + 1)


def _knows(watcher: Server, *, sentinels: int, replicas: int) -> bool:
    """Whether a Sentinel has met the others, and the replicas of the master."""
    state = watcher.client().sentinel_master("prototypes")
    return bool(state["num-other-sentinels"] == sentinels and state["num-slaves"] == replicas)


def test_sentinels_that_are_all_away_hold_nothing_up_and_are_asked_again(
    tmp_path: Path, publishing: Make
) -> None:
    with Server(tmp_path / "a", program=redis_servers.debian_server()) as master:
        watcher = redis_servers.sentinel(tmp_path / "b", master)
        run = publishing(f"sentinel://127.0.0.1:{free_port()},127.0.0.1:{watcher.port}/prototypes")
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
