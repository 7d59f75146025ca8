"""What both kinds of store promise, and what only the local one can."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.errors import StreamError
from stream.storage import (
    LocalStore,
    RemoteStore,
    Store,
    as_stream_error,
    is_locked,
    link_new,
    local_path,
    open_bytes,
    open_lock,
    open_store,
    part_of,
    try_lock,
    whole_file,
    write_whole,
)
from tests.stream.make_shards import files_below, forget_memory, memory_url


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield open_store(str(tmp_path / "root") if request.param == "folder" else memory_url())
    forget_memory()


def test_a_created_file_is_read_back(store: Store) -> None:
    assert store.create("commits/1.json", b"one")
    assert store.read("commits/1.json") == b"one"
    assert store.exists("commits/1.json")


def test_only_the_first_creation_counts(store: Store) -> None:
    assert store.create("a/x", b"first")
    assert not store.create("a/x", b"second")
    assert store.read("a/x") == b"first"


def test_a_file_can_be_replaced(store: Store) -> None:
    store.replace("a/x", b"first")
    store.replace("a/x", b"second")
    assert store.read("a/x") == b"second"


def test_a_missing_file_is_said_to_be_missing(store: Store) -> None:
    assert not store.exists("a/x")
    with pytest.raises(FileNotFoundError):
        store.read("a/x")
    with pytest.raises(FileNotFoundError):
        store.open("a/x")


@pytest.mark.parametrize("names", [["a/0"], ["a/1"], ["a/0", "a/1", "a/2"]])
def test_of_many_files_those_that_are_there_come_back(store: Store, names: list[str]) -> None:
    for number in (0, 2):
        store.create(f"a/{number}", b"%d" % number)
    assert store.read_many(names) == {name: name[-1].encode() for name in names if name != "a/1"}


def test_a_deleted_file_is_gone_and_may_be_deleted_again(store: Store) -> None:
    store.create("a/x", b"1")
    store.delete("a/x")
    store.delete("a/x")
    assert not store.exists("a/x")


def test_a_file_is_read_at_any_place_up_to_its_end(store: Store) -> None:
    store.create("a/x", bytes(range(100)))
    file = store.open("a/x")
    assert file.size == 100
    assert file.read_at(10, 5) == bytes(range(10, 15))
    assert file.read_at(95, 50) == bytes(range(95, 100))
    assert file.read_at(100, 5) == b""
    assert file.read_at(2**60, 5) == b""
    file.close()
    file.close()


def test_a_length_that_lies_takes_no_memory(store: Store) -> None:
    store.create("a/x", b"abc")
    file = store.open("a/x")
    assert file.read_at(1, 2**50) == b"bc"
    file.close()


def test_a_finished_file_is_taken_over(store: Store, tmp_path: Path) -> None:
    part = tmp_path / "root" / "shards" / "x.tar.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"tar")
    store.upload(part, "shards/x.tar")
    assert store.read("shards/x.tar") == b"tar"


def test_a_local_upload_never_covers_another_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("shards/x.tar", b"old")
    part = tmp_path / "shards" / "x.tar.part"
    part.write_bytes(b"new")
    with pytest.raises(FileExistsError):
        store.upload(part, "shards/x.tar")
    assert store.read("shards/x.tar") == b"old"


def test_nothing_unfinished_stays_after_writing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a/x", b"1")
    store.create("a/x", b"2")
    store.replace("a/y", b"3")
    assert files_below(tmp_path) == {"a/x", "a/y"}


def test_creation_is_exclusive_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    for name, made in (("first", True), ("second", False)):
        part = tmp_path / f"{name}.part"
        part.write_text(name)
        assert link_new(part, tmp_path / "final") is made
    assert (tmp_path / "final").read_text() == "first"


def test_other_refusals_of_a_link_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_new(tmp_path / "nothing", tmp_path / "final")


@pytest.mark.parametrize("url", ["file:///a/b", "local:///a/b", "/a/b"])
def test_local_addresses_are_paths(url: str) -> None:
    assert local_path(url) == Path("/a/b")


def test_other_addresses_are_remote() -> None:
    assert local_path("s3://bucket/x") is None
    assert isinstance(open_store("memory://x"), RemoteStore)


@pytest.mark.parametrize("url", ["", "simplecache::s3://bucket/x", "nothing://x"])
def test_an_address_that_cannot_be_opened_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        open_store(url)


def test_any_local_or_remote_file_opens(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"local")
    url = memory_url()
    open_store(url).create("x.tar", b"remote")
    for place, content in ((str(tmp_path / "x.tar"), b"local"), (f"{url}/x.tar", b"remote")):
        file = open_bytes(place)
        assert file.read_at(0, 10) == content
        file.close()
    forget_memory()


def test_what_the_system_refuses_is_explained() -> None:
    with (
        pytest.raises(StreamError, match="cannot write: No space left on device"),
        as_stream_error("cannot write"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_passing_failure_of_a_remote_store_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore(memory_url())
    store.create("a/x", b"1")
    system = store._system
    real, failures = system.cat_file, iter([ConnectionError("reset"), TimeoutError("late")])

    def sometimes(*args: object, **kwargs: object) -> object:
        for failure in failures:
            raise failure
        return real(*args, **kwargs)

    waits: list[float] = []
    monkeypatch.setattr(system, "cat_file", sometimes)
    monkeypatch.setattr("stream.storage.time.sleep", waits.append)
    assert store.read("a/x") == b"1"
    assert waits == [0.2, 0.4]
    forget_memory()


def test_a_pipe_is_refused_and_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_bytes(str(tmp_path / "pipe"))


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_the_disk_does_not_take_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    write_whole(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_not_replaced_when_what_writes_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_whole(path, b"old")

    def write_half() -> None:
        with whole_file(path) as part:
            part.write_bytes(b"half")
            raise ValueError("no figures")

    with pytest.raises(ValueError, match="no figures"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_is_durable_before_it_has_its_name_and_its_folder_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        real(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_whole(tmp_path / "figures.json", b"new")
    assert synced == [tmp_path / ".figures.json.part", tmp_path]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    part_of(path).write_bytes(b"a half that is longer")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "prune.lock"
    assert not is_locked(path)
    handle = open_lock(path)
    assert not is_locked(path)
    assert try_lock(handle) is True
    assert is_locked(path)
    with path.open("rb") as file:
        assert try_lock(file) is False
        assert try_lock(file, shared=True) is False
    os.close(handle)
    assert not is_locked(path)


def test_readers_share_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "users.lock"
    path.touch()
    with path.open("rb") as one, path.open("rb") as other:
        assert try_lock(one, shared=True) is True
        assert try_lock(other, shared=True) is True
        assert is_locked(path)
        assert try_lock(one) is False


def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_: object, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = tmp_path / "prune.lock"
    path.touch()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with path.open("rb") as file:
        assert try_lock(file) is None
    assert not is_locked(path)
