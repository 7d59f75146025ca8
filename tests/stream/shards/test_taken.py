import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stream.errors import StreamDamaged, StreamError
from stream.shards.taken import KeySet, PathSet, Segment, TakenFile, TakenList, key_of, keys_from
from stream.storage import LocalStore, Store, open_store


def files(first: int, count: int) -> list[TakenFile]:
    return [
        TakenFile(
            f"/in/{number:05d}.jpg", number, 10**18 + number, number % 7 == 0, "a.cls", "", number % 3, 1
        )
        for number in range(first, first + count)
    ]


def keys_of(some: list[TakenFile]) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return keys_from([key_of(file.path, file.size, file.time_ns) for file in some])


def append(taken: TakenList, source: str, first: int, count: int) -> bool:
    some = files(first, count)
    return taken.append(source, first=first, files=some, keys=keys_of(some))


@pytest.fixture(params=["folder", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}/list")


def told(segments: list[Segment]) -> list[tuple[int, str, int, int]]:
    return [(segment.number, segment.source, segment.first, segment.count) for segment in segments]


def test_what_was_appended_is_read_back_by_whoever_looks(store: Store) -> None:
    writer = TakenList(store)
    for number in range(9):
        assert append(writer, "crawl", 5 * number, 5)
    assert writer.append("crawl", first=45, upto=45)
    assert writer.refresh() == [], "its own segments are known to it"
    reader = TakenList(store)
    segments = reader.refresh()
    assert told(segments) == [*((n, "crawl", 5 * n, 5) for n in range(9)), (9, "crawl", 45, 0)]
    assert [segment.upto for segment in segments] == [-1] * 9 + [45]
    assert reader.files(3) == files(15, 5)
    assert bytes(segments[3].keys) == bytes(keys_of(files(15, 5)))
    assert append(writer, "crawl", 45, 1)
    assert told(reader.refresh()) == [(10, "crawl", 45, 1)]


def test_of_two_that_append_at_once_one_is_first_and_the_other_sees_it(store: Store) -> None:
    one, other = TakenList(store), TakenList(store)
    assert append(one, "a", 0, 3)
    assert not append(other, "b", 0, 4), "number 0 is taken"
    assert told(other.refresh()) == [(0, "a", 0, 3)]
    assert append(other, "b", 0, 4)
    assert told(one.refresh()) == [(1, "b", 0, 4)]


def test_a_put_whose_answer_was_lost_is_known_as_ones_own(tmp_path: Path) -> None:
    class Lossy(LocalStore):
        def create(self, name: str, data: bytes) -> bool:
            super().create(name, data)
            raise OSError("no answer")

    assert append(TakenList(Lossy(tmp_path)), "a", 0, 3)
    assert told(TakenList(LocalStore(tmp_path)).refresh()) == [(0, "a", 0, 3)]


def test_a_store_that_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(StreamError, match="list of what was taken"):
        append(TakenList(LocalStore(tmp_path)), "a", 0, 3)


@pytest.mark.parametrize("at", [0, 3, 200, -1])
def test_a_changed_byte_is_noticed(tmp_path: Path, at: int) -> None:
    append(TakenList(LocalStore(tmp_path)), "a", 0, 30)
    (path,) = (tmp_path / "taken").iterdir()
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    with pytest.raises(StreamDamaged, match=r"00000\.list"):
        TakenList(LocalStore(tmp_path)).refresh()


def test_names_that_are_no_text_are_kept(store: Store) -> None:
    name = b"/in/\xff\xfe \n%41.jpg".decode("utf-8", "surrogateescape")
    some = [TakenFile(name, 1, 2)]
    TakenList(store).append("a", first=0, files=some, keys=keys_of(some))
    assert TakenList(store).files(0) == some


def test_keys_are_found_by_state_and_paths_by_path() -> None:
    rng = np.random.default_rng(0)
    known, paths = KeySet(), PathSet()
    numbers = rng.permutation(20_000)
    for start in range(0, 10_000, 700):
        some = keys_of([TakenFile(f"/{n}", int(n), 5) for n in numbers[start : min(start + 700, 10_000)]])
        known.add(some)
        paths.add(some)
    assert len(known) == 10_000
    same = keys_of([TakenFile(f"/{n}", int(n), 5) for n in numbers])
    expected = np.arange(20_000) < 10_000
    assert (known.has(same) == expected).all()
    other_time = keys_of([TakenFile(f"/{n}", int(n), 6) for n in numbers])
    assert not known.has(other_time).any()
    assert (paths.has(other_time) == expected).all()


def test_equal_keys_and_empty_sets_are_no_trouble() -> None:
    keys = keys_of([TakenFile("/a", 1, 1)] * 3 + [TakenFile("/b", 1, 1)])
    known = KeySet()
    assert not known.has(keys).any()
    known.add(keys[:3])
    known.add(keys[:2])
    assert known.has(keys).tolist() == [True, True, True, False]
    assert not known.has(keys[:0]).size
    assert not PathSet().has(keys).any()


def test_a_million_files_cost_some_tens_of_bytes_each_in_memory() -> None:
    code = (
        "import resource, numpy as np\n"
        "from stream.shards.taken import KeySet, PathSet, keys_from\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "known, paths = KeySet(), PathSet()\n"
        "before = peak()\n"
        "rng = np.random.default_rng(0)\n"
        "for _ in range(1_000_000 // 32_768 + 1):\n"
        "    keys = keys_from([rng.bytes(24 * 32_768)])\n"
        "    known.add(keys); paths.add(keys)\n"
        "print((peak() - before) / len(known))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200, "with what sorting takes for a moment"
