"""The embedded server of a run: shared, taken over, brought back, stopped by the last one who leaves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from ops.errors import RedisUnavailable
from ops.snapshots.embedded_redis import EmbeddedRedis, command_line, open_redis
from ops.snapshots.redis_client import connect, redis_url
from stream.secrets import safe_url
from stream.socket_folder import socket_folder


def server_pid(url: str) -> int:
    with connect(url) as client:
        return int(client.info("server")["process_id"])


def answers(url: str) -> bool:
    with connect(url) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def leave_server(run_dir: Path) -> int:
    """A killed command leaves its server in a run, with one key in it; the server's process."""
    program = (
        "import os, signal; from pathlib import Path\n"
        "from ops.snapshots.embedded_redis import EmbeddedRedis, connect\n"
        f"url = EmbeddedRedis(Path({str(run_dir)!r})).start(); connect(url).set('key', b'value')\n"
        "print(connect(url).info('server')['process_id'], flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_server_outlives_the_warning_signals_of_a_scheduler(tmp_path: Path, number: int) -> None:
    with EmbeddedRedis(tmp_path) as embedded:
        before = server_pid(embedded.url)
        os.kill(before, number)
        assert server_pid(embedded.url) == before


def test_data_outlive_the_server(tmp_path: Path) -> None:
    with open_redis(tmp_path) as client:
        client.set("key", b"value")
    with open_redis(tmp_path) as client:
        assert client.get("key") == b"value"


def test_a_run_may_have_brackets_and_stars_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10+replay[16] *?"
    folder.mkdir()
    with EmbeddedRedis(folder) as embedded:
        with connect(embedded.url) as client:
            assert client.config_get("dir")["dir"] == str(folder / "redis")
        pid = server_pid(embedded.url)
    assert command_line(pid) == ""


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
    left = leave_server(tmp_path)
    later = EmbeddedRedis(tmp_path)
    with later:
        assert server_pid(later.url) == left
    assert not answers(later.url)


def test_a_killed_server_is_brought_back_with_its_data(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as embedded, connect(embedded.url) as client:
        client.set("key", b"value")
        os.kill(server_pid(embedded.url), signal.SIGKILL)
        embedded.ensure()
        assert client.get("key") == b"value"


def test_a_server_in_use_that_does_not_answer_is_left_alone_and_its_user_brings_it_back(
    tmp_path: Path,
) -> None:
    first = EmbeddedRedis(tmp_path)
    first.start()
    lost = server_pid(first.url)
    (tmp_path / "redis" / "redis.sock").unlink()
    with pytest.raises(
        RedisUnavailable, match=rf"in use by another command; its server is process {lost} on"
    ):
        EmbeddedRedis(tmp_path).start()
    assert command_line(lost)
    first.ensure()
    assert server_pid(first.url) != lost
    assert command_line(lost) == "", "two servers on one data file would destroy it"
    first.close()


def test_a_left_server_that_cannot_be_reached_is_ended_before_another_writes_its_data(tmp_path: Path) -> None:
    lost = leave_server(tmp_path)
    (tmp_path / "redis" / "redis.sock").unlink()
    with EmbeddedRedis(tmp_path) as second:
        assert server_pid(second.url) != lost
        assert command_line(lost) == ""


def test_a_moved_run_goes_on_with_the_server_that_was_left_in_it(tmp_path: Path) -> None:
    for name in ("short", "long" * 30):  # the socket lies beside the data, or in the user's folder
        old, new = tmp_path / name / "a", tmp_path / name / "b"
        old.mkdir(parents=True)
        pid = leave_server(old)
        old.rename(new)
        with EmbeddedRedis(new) as embedded, connect(embedded.url) as client:
            assert client.get("key") == b"value"
            assert server_pid(embedded.url) == pid
        assert command_line(pid) == ""
        with open_redis(new) as client:
            assert client.get("key") == b"value"


def test_looking_at_a_copy_leaves_the_server_of_the_original_alone(tmp_path: Path) -> None:
    for name in ("short", "long" * 30):
        run, copy = tmp_path / name / "run", tmp_path / name / "copy"
        run.mkdir(parents=True)
        with EmbeddedRedis(run) as embedded, connect(embedded.url) as client:
            client.set("key", b"value")
            pid = server_pid(embedded.url)
            subprocess.run(["cp", "-a", run, copy], check=True)
            with open_redis(copy) as other:
                assert other.get("key") == b"value"
                other.set("key", b"of the copy")
            EmbeddedRedis(copy).end_left_over()
            assert server_pid(embedded.url) == pid
            with open_redis(run) as third:
                assert third.get("key") == b"value"


def test_an_address_that_leads_to_another_run_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with EmbeddedRedis(tmp_path / "a") as other, connect(other.url) as client:
        client.set("key", b"of a")
        (tmp_path / "b" / "redis").mkdir(parents=True)
        for file in ("url", "server.pid", "server.lock"):
            shutil.copy(tmp_path / "a" / "redis" / file, tmp_path / "b" / "redis")
        (tmp_path / "b" / "redis" / "redis.sock").symlink_to(tmp_path / "a" / "redis" / "redis.sock")
        with open_redis(tmp_path / "b") as own:
            assert own.get("key") is None
        assert client.get("key") == b"of a"


def test_where_the_server_cannot_be_reached_its_place_is_told_and_no_second_one_started(
    tmp_path: Path,
) -> None:
    pid = leave_server(tmp_path)
    (tmp_path / "redis" / "redis.sock").unlink()
    (tmp_path / "redis" / "server.pid").unlink()  # as in another process space: no such process there
    with pytest.raises(RedisUnavailable, match=rf"its server is process {pid} on {socket.gethostname()}"):
        EmbeddedRedis(tmp_path).start()
    os.kill(pid, signal.SIGKILL)
    with EmbeddedRedis(tmp_path) as embedded:
        assert server_pid(embedded.url) != pid


def test_a_run_at_work_on_another_machine_is_not_given_a_second_server(tmp_path: Path) -> None:
    holder = {"host": "elsewhere", "pid": 7, "started": time.time()}
    (tmp_path / "lock").write_text(json.dumps(holder))
    with pytest.raises(RedisUnavailable, match="at work as process 7 on elsewhere"):
        EmbeddedRedis(tmp_path).start()
    assert not (tmp_path / "redis" / "server.log").exists()
    long_ago = time.time() - 3600
    os.utime(tmp_path / "lock", (long_ago, long_ago))
    with EmbeddedRedis(tmp_path) as embedded:
        assert answers(embedded.url)


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


def test_a_long_path_puts_the_socket_into_the_folder_of_the_user_whatever_tmpdir_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / ("long" * 30) / "run with spaces, 100 %"
    run_dir.mkdir(parents=True)
    urls = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / name))
        with EmbeddedRedis(run_dir) as embedded:
            urls.append(embedded.url)
            assert answers(embedded.url)
    assert urls[0] == urls[1]
    assert Path(urls[0].removeprefix("unix://")).parent == socket_folder()


def test_damaged_data_are_one_clear_error(tmp_path: Path) -> None:
    with open_redis(tmp_path) as client:
        client.set("key", b"value" * 100)
    for file in (tmp_path / "redis" / "appendonlydir").glob("*.manifest"):
        file.write_text("nonsense\n")
    with pytest.raises(RedisUnavailable, match=r"does not start: .*server\.log"):
        EmbeddedRedis(tmp_path).start()


@pytest.mark.skipif(
    os.getuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv to give up rights"
)
def test_a_run_that_may_only_be_read_is_read_and_not_changed(tmp_path: Path) -> None:
    with open_redis(tmp_path) as client:
        client.set("key", b"value")
    program = (
        "import sys; from pathlib import Path; from ops.snapshots.embedded_redis import open_redis\n"
        f"with open_redis(Path({str(tmp_path)!r}), changes=sys.argv[1] == 'changes') as client:\n"
        "    print(client.get('key'))"
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    rights_before = {path: path.stat().st_mode for path in (tmp_path, *before)}
    for path, mode in rights_before.items():
        path.chmod(mode & ~0o222)
    try:
        rights = ["setpriv", "--bounding-set=-all"] if os.getuid() == 0 else []
        said = [
            subprocess.run(
                [*rights, sys.executable, "-c", program, word], capture_output=True, text=True, check=False
            )
            for word in ("looks", "changes")
        ]
    finally:
        for path, mode in rights_before.items():
            path.chmod(mode)
    assert said[0].stdout == "b'value'\n", said[0].stderr
    assert "no Redis server can be started in" in said[1].stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


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


@pytest.mark.parametrize("password", ["first@second/third", "a/b", "a?b", "a#b", "a@b", "x/y@z?q#r@s", "[/p"])
@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_no_part_of_a_password_that_was_typed_as_it_is_is_shown(scheme: str, password: str) -> None:
    url = f"{scheme}://app:{password}@host:6379/3"
    with pytest.raises(RedisUnavailable, match="write them as %40") as caught:
        connect(url)
    shown = {str(caught.value).partition(":")[0], safe_url(url)}
    assert not any(part in text for text in shown for part in (password, "first", "second", "third", "app"))
    assert safe_url(url) == "..."


def test_a_password_that_is_encoded_is_taken_and_not_shown() -> None:
    url = "redis://app:first%40second%2Fthird@host:6379/3"
    assert safe_url(url) == "redis://host:6379/3"
    with connect(url) as client:
        assert client.connection_pool.connection_kwargs["password"] == "first@second/third"


def test_a_server_that_is_away_fails_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        with connect(url) as client, pytest.raises(redis.ConnectionError):
            client.ping()
