"""The embedded server of a run: shared, taken over, brought back, stopped by the last one who leaves."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from ops.embedded import EmbeddedRedis, open_redis
from ops.embedded_program import command_line
from ops.errors import RedisUnavailable
from ops.redis_client import connect, redis_url, safe_url


def server_pid(url: str) -> int:
    with connect(url) as client:
        return int(client.info("server")["process_id"])


def answers(url: str) -> bool:
    with connect(url) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def test_data_outlive_the_server(tmp_path: Path) -> None:
    with open_redis(tmp_path) as client:
        client.set("key", b"value")
    with open_redis(tmp_path) as client:
        assert client.get("key") == b"value"


def test_the_run_directory_says_where_the_server_is_to_its_owner_alone(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded:
        place = tmp_path / "redis" / "url"
        assert place.read_text().strip() == embedded.url
        assert place.stat().st_mode & 0o077 == 0
        assert (tmp_path / "redis" / "redis.sock").stat().st_mode & 0o077 == 0
    assert not place.exists()


def test_a_second_command_talks_to_the_live_server_and_does_not_stop_it(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as first:
        pid = server_pid(first.url)
        with EmbeddedRedis(tmp_path) as second:
            assert server_pid(second.url) == pid
        assert answers(first.url)
    assert not answers(first.url)


def test_the_server_stays_for_a_command_that_came_later(tmp_path: Path) -> None:
    first, second = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
    first.start()
    second.start()
    first.close()
    assert answers(second.url)
    second.close()
    assert not answers(second.url)


def test_what_a_killed_command_left_is_taken_over_and_stopped(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from ops.embedded import EmbeddedRedis\n"
        f"EmbeddedRedis(Path({str(tmp_path)!r})).start(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    later = EmbeddedRedis(tmp_path)
    pid = server_pid(later.url)
    with later:
        assert server_pid(later.url) == pid
    assert not answers(later.url)


def test_a_killed_server_is_brought_back_with_its_data(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded, connect(embedded.url) as client:
        client.set("key", b"value")
        os.kill(server_pid(embedded.url), signal.SIGKILL)
        embedded.ensure()
        assert client.get("key") == b"value"


def test_a_server_that_cannot_be_reached_is_ended_before_another_writes_its_data(tmp_path: Path) -> None:
    first = EmbeddedRedis(tmp_path)
    first.start()
    lost = server_pid(first.url)
    (tmp_path / "redis" / "redis.sock").unlink()
    with EmbeddedRedis(tmp_path) as second:
        assert server_pid(second.url) != lost
        assert (
            str(lost)
            not in subprocess.run(
                ["ps", "-o", "pid=", "-p", str(lost)], capture_output=True, text=True, check=False
            ).stdout
            or not Path(f"/proc/{lost}/cmdline").read_bytes()
        )
    first.close()


def test_a_server_whose_run_was_removed_is_ended(tmp_path: Path) -> None:
    embedded = EmbeddedRedis(tmp_path / "run")
    embedded.start()
    pid = server_pid(embedded.url)
    shutil.rmtree(tmp_path / "run")
    embedded.close()
    assert command_line(pid) == ""


def test_what_runs_in_a_directory_can_be_ended_before_it_is_removed(tmp_path: Path) -> None:
    EmbeddedRedis(tmp_path).end_left_over()
    assert list(tmp_path.iterdir()) == [], "where there is none nothing is made"
    left = EmbeddedRedis(tmp_path)
    left.start()
    pid = server_pid(left.url)
    EmbeddedRedis(tmp_path).end_left_over()
    assert command_line(pid) == ""
    left.close()


def test_a_server_that_could_not_be_started_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "redis").write_text("in the way")
    embedded = EmbeddedRedis(tmp_path)
    with pytest.raises(RedisUnavailable, match="no Redis server can be started"):
        embedded.start()
    (tmp_path / "redis").unlink()
    embedded.ensure()
    assert answers(embedded.url)
    embedded.close()


def test_a_closed_one_is_not_started_again(tmp_path: Path) -> None:
    embedded = EmbeddedRedis(tmp_path)
    embedded.start()
    embedded.close()
    embedded.ensure()
    assert not answers(embedded.url)


def test_a_process_number_that_was_given_to_another_program_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (folder / "server.pid").write_text(str(other.pid))
        with EmbeddedRedis(tmp_path) as embedded:
            assert answers(embedded.url)
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_long_path_puts_the_socket_into_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / ("long" * 30) / "run with spaces, 100 %"
    run_dir.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", None)
    with EmbeddedRedis(run_dir) as embedded:
        url = embedded.url
        assert answers(url)
    assert len(url) < 120
    assert Path(url.removeprefix("unix://")).parent.stat().st_mode & 0o077 == 0


def test_a_shared_folder_for_the_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"swavstream-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"swavstream-{os.getuid()}").chmod(0o777)
    run_dir = tmp_path / ("long" * 30)
    run_dir.mkdir()
    with pytest.raises(RedisUnavailable, match="not a private folder"):
        EmbeddedRedis(run_dir).start()


def test_damaged_data_are_one_clear_error(tmp_path: Path) -> None:
    with open_redis(tmp_path) as client:
        client.set("key", b"value" * 100)
    for file in (tmp_path / "redis" / "appendonlydir").glob("*.manifest"):
        file.write_text("nonsense\n")
    with pytest.raises(RedisUnavailable, match=r"does not start: .*server\.log"):
        EmbeddedRedis(tmp_path).start()


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded:
        pid = server_pid(embedded.url)
        assert os.getsid(pid) != os.getsid(0)


def test_a_user_s_own_server_is_named_by_configuration_or_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert redis_url() == ""
    monkeypatch.setenv("SWAVSTREAM_REDIS_URL", "redis://away:1/0")
    assert redis_url() == "redis://away:1/0"
    assert redis_url("redis://here:2/0") == "redis://here:2/0"


def test_no_message_shows_a_password() -> None:
    assert safe_url("rediss://user:secret@host:6380/2?password=secret") == "rediss://host:6380/2"
    assert safe_url("foo") == "foo"
    assert safe_url("user:secret@host:6380?password=secret") == "host:6380"
    with pytest.raises(RedisUnavailable) as caught:
        connect("http://user:secret@host/")
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away_fails_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        with connect(url) as client, pytest.raises(redis.ConnectionError):
            client.ping()
