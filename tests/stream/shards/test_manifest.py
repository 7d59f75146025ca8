"""The log of commits: one order for all, nothing lost, nothing twice, quick to open."""

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import StreamDamaged, StreamError, StreamNotFound, StreamSealed
from stream.shards.commits import Accounts, Commit, NewCommit, encode_commit
from stream.shards.manifest import Manifest, commit_name
from stream.shards.segments import BLOCKS, SourceSum, assemble_segment, segment_name
from stream.storage import open_store
from tests.stream.failing_store import FailingStore
from tests.stream.make_shards import files_below, forget_memory, memory_url

BLOCK = BLOCKS[1]
PROGRAM = Path(__file__).with_name("commit_many.py")


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "stream") if request.param == "folder" else memory_url()
    forget_memory()


@pytest.fixture
def memory() -> Iterator[str]:
    yield memory_url()
    forget_memory()


def new(n: int = 3, source: str = "a", position: object = None, skipped: int = 0) -> NewCommit:
    return NewCommit(
        n=n,
        uri="shards/x.tar" if n else "",
        index_uri="index/x.idx" if n else "",
        source_id=source,
        source_position=position,
        accounts=Accounts(written=n, skipped={"empty": skipped} if skipped else {}, bytes=2 * n),
    )


def everything(manifest: Manifest) -> list[Commit]:
    return [manifest.entry(number) for number in range(len(manifest))]


def test_commits_are_numbered_and_know_what_is_before_them(url: str) -> None:
    manifest = Manifest.open(url, create=True)
    commits = [manifest.commit(new(n)) for n in (3, 0, 5, 2)]
    assert [commit.number for commit in commits] == [0, 1, 2, 3]
    assert [commit.before for commit in commits] == [0, 3, 3, 8]
    assert everything(manifest) == commits
    assert everything(Manifest.open(url)) == commits
    assert (len(manifest), manifest.records) == (4, 10)
    assert [manifest.before(number) for number in range(5)] == [0, 3, 3, 8, 10]
    assert [manifest.n(number) for number in range(4)] == manifest.counts().tolist() == [3, 0, 5, 2]


def test_a_stream_that_is_not_there_says_how_to_make_one(url: str) -> None:
    with pytest.raises(StreamNotFound, match="swavstream ingest"):
        Manifest.open(url)


def test_a_folder_of_images_in_the_place_of_a_stream_says_how_to_make_one_of_them(tmp_path: Path) -> None:
    with pytest.raises(StreamNotFound, match=f"if it holds images, `swavstream ingest {tmp_path} STREAM`"):
        Manifest.open(str(tmp_path))


def test_a_stream_that_is_there_is_opened_and_not_made_again(url: str) -> None:
    first = Manifest.open(url, create=True)
    assert Manifest.open(url, create=True).uuid == first.uuid == Manifest.open(url).uuid


def test_a_file_in_the_place_of_a_stream_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StreamNotFound):
        Manifest.open(str(tmp_path / "file"))
    with pytest.raises(StreamError, match="cannot open the stream"):
        Manifest.open(str(tmp_path / "file"), create=True)


@pytest.mark.parametrize(
    "head", [b"", b"{", b"[]", b"{}", b'{"version": 1}', b'{"version": 2, "uuid": "x"}', b"\xff"]
)
def test_a_damaged_head_is_refused(memory: str, head: bytes) -> None:
    open_store(memory).create("stream.json", head)
    with pytest.raises(StreamDamaged):
        Manifest.open(memory)


def test_a_reader_sees_new_commits_only_after_a_look(url: str) -> None:
    writer = Manifest.open(url, create=True)
    reader = Manifest.open(url)
    assert not reader.refresh()
    commit = writer.commit(new())
    assert len(reader) == 0
    assert reader.refresh()
    assert everything(reader) == [commit]
    assert not reader.refresh()


def test_two_writers_that_took_turns_share_one_order(url: str) -> None:
    one, two = Manifest.open(url, create=True), Manifest.open(url)
    for turn in range(6):
        (one, two)[turn % 2].commit(new(turn + 1, source=str(turn % 2)))
    one.refresh()
    two.refresh()
    assert everything(one) == everything(two)
    assert [commit.n for commit in everything(one)] == [1, 2, 3, 4, 5, 6]


def test_writers_that_race_from_several_processes_get_distinct_consecutive_numbers(tmp_path: Path) -> None:
    url = str(tmp_path / "stream")
    count = 60
    writers = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), url, name, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "abc"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    manifest = Manifest.open(url)
    before = 0
    for number, commit in enumerate(everything(manifest)):
        assert (commit.number, commit.before) == (number, before)
        before += commit.n
    for name in "abc":
        own = list(manifest.commits_of(name))
        assert [commit.source_position for commit in own] == list(range(1, count + 1))
    assert len(manifest) == 3 * count
    assert not [name for name in files_below(tmp_path) if name.endswith(".part")]
    assert len({manifest.entry(number).source_id for number in range(count)}) > 1, "they did not race"
    manifest.close()


def test_a_sealed_stream_takes_no_commit(url: str) -> None:
    manifest = Manifest.open(url, create=True)
    manifest.commit(new())
    manifest.seal()
    manifest.seal()
    with pytest.raises(StreamSealed, match="1 commits"):
        manifest.commit(new())
    again = Manifest.open(url)
    assert again.sealed
    assert (len(again), again.records) == (1, 3)


def test_a_writer_that_did_not_see_the_seal_runs_into_it(url: str) -> None:
    writer = Manifest.open(url, create=True)
    Manifest.open(url).seal()
    assert not writer.sealed
    with pytest.raises(StreamSealed):
        writer.commit(new())
    assert len(Manifest.open(url)) == 0


def test_a_seal_comes_after_the_commits_that_it_raced(url: str) -> None:
    sealer = Manifest.open(url, create=True)
    Manifest.open(url).commit(new(4))
    sealer.seal()
    assert (len(sealer), sealer.records, sealer.sealed) == (1, 4, True)


def test_a_reader_notices_the_seal(url: str) -> None:
    writer = Manifest.open(url, create=True)
    reader = Manifest.open(url)
    writer.seal()
    assert reader.refresh()
    assert reader.sealed
    assert not reader.refresh()


def test_what_is_known_of_a_source_is_the_sum_of_its_commits(memory: str) -> None:
    manifest = Manifest.open(memory, create=True)
    for position in range(10):
        manifest.commit(new(position, source="ab"[position % 2], position=position, skipped=position % 3))
    last = manifest.last_of("a")
    assert last is not None
    assert last.source_position == 8
    assert manifest.accounts_of("a") == Accounts(written=20, skipped={"empty": 5}, bytes=40)
    assert [commit.source_position for commit in manifest.commits_of("b")] == [1, 3, 5, 7, 9]
    assert manifest.last_of("c") is None
    assert manifest.accounts_of("c") == Accounts()
    assert list(manifest.commits_of("c")) == []


def fill(manifest: Manifest, count: int) -> None:
    for number in range(len(manifest), len(manifest) + count):
        manifest.commit(new(number % 4, source="ab"[number % 2], position=number, skipped=1))


def test_compaction_changes_nothing_but_the_files(memory: str) -> None:
    manifest = Manifest.open(memory, create=True)
    lagging = Manifest.open(memory)
    fill(manifest, 100)
    lagging.refresh()
    fill(manifest, 3 * BLOCK + 50 - 100)
    fresh = Manifest.open(memory)
    lagging.refresh()
    store = open_store(memory)
    assert [store.exists(segment_name(1, block * BLOCK)) for block in range(4)] == [True, True, True, False]
    assert [store.exists(commit_name(block * BLOCK)) for block in range(4)] == [False, False, True, True]
    commits = everything(manifest)
    assert [commit.source_position for commit in commits] == list(range(3 * BLOCK + 50))
    assert everything(fresh) == everything(lagging) == commits
    for one in (manifest, fresh, lagging):
        assert one.records == sum(commit.n for commit in commits)
        for name in "ab":
            own = [commit for commit in commits if commit.source_id == name]
            assert list(one.commits_of(name)) == own
            assert one.last_of(name) == own[-1]
            assert one.accounts_of(name) == sum((commit.accounts for commit in own), Accounts())
        assert one.last_of("c") is None
        one.close()


def test_a_source_that_ended_long_ago_is_found_in_the_segments(memory: str) -> None:
    manifest = Manifest.open(memory, create=True)
    manifest.commit(new(7, source="old", position="end"))
    fill(manifest, 2 * BLOCK + 10)
    fresh = Manifest.open(memory)
    last = fresh.last_of("old")
    assert last is not None
    assert (last.number, last.source_position) == (0, "end")
    assert fresh.accounts_of("old").written == 7
    assert [commit.number for commit in fresh.commits_of("old")] == [0]


def test_a_writer_that_slept_through_compaction_commits_at_the_true_end(memory: str) -> None:
    sleeper = Manifest.open(memory, create=True)
    sleeper.commit(new(1, position="before"))
    fill(Manifest.open(memory), 3 * BLOCK)
    # The file of its next number is gone: only a segment has that commit.
    assert not open_store(memory).exists(commit_name(1))
    commit = sleeper.commit(new(2, source="sleeper"))
    assert commit.number == 3 * BLOCK + 1
    assert not open_store(memory).exists(commit_name(1))
    fresh = Manifest.open(memory)
    assert everything(fresh) == everything(sleeper)
    assert [one.number for one in fresh.commits_of("sleeper")] == [3 * BLOCK + 1]


def test_a_commit_file_left_by_a_sleeper_that_died_is_not_read(memory: str) -> None:
    fill(Manifest.open(memory, create=True), 3 * BLOCK)
    open_store(memory).create(
        commit_name(5), encode_commit(new(9), number=5, before=6, created=1.0, token="x")
    )
    assert Manifest.open(memory).entry(5).source_position == 5


def test_compaction_that_was_left_out_is_done_by_the_next_writer(memory: str) -> None:
    store = open_store(memory)
    Manifest.open(memory, create=True)
    before = 0
    for number in range(2 * BLOCK + 3):  # a writer that died before each compaction
        one = new(number % 4, position=number)
        store.create(
            commit_name(number), encode_commit(one, number=number, before=before, created=1.0, token="x")
        )
        before += one.n
    manifest = Manifest.open(memory)
    manifest.commit(new(1, position="next"))
    assert store.exists(segment_name(1, 0))
    assert store.exists(segment_name(1, BLOCK))
    fresh = Manifest.open(memory)
    assert [commit.source_position for commit in everything(fresh)] == [*range(2 * BLOCK + 3), "next"]


def failing(url: str) -> tuple[Manifest, FailingStore]:
    """A manifest (of a stream that is made if need be) over a store that can be told to fail."""
    stream_uuid = Manifest.open(url, create=True).uuid
    store = FailingStore(open_store(url))
    manifest = Manifest(store, stream_uuid)
    manifest.refresh()
    return manifest, store


def test_a_compaction_that_fails_does_not_fail_the_commit(
    memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, store = failing(memory)
    fill(manifest, BLOCK - 1)
    store.before = {store.changes + 1}  # the commit itself is done, the segment is not
    assert manifest.commit(new(1)).number == BLOCK - 1
    assert "cannot compact" in caplog.text
    assert not store.exists(segment_name(1, 0))
    manifest.commit(new(1))
    assert store.exists(segment_name(1, 0))


def test_a_lost_answer_is_not_another_writers_commit(memory: str) -> None:
    manifest, store = failing(memory)
    store.after = {0}
    assert manifest.commit(new(2, position="once")).number == 0
    store.twice = {1}
    assert manifest.commit(new(2, position="twice")).number == 1
    assert [one.source_position for one in everything(Manifest.open(memory))] == ["once", "twice"]


def test_a_commit_that_could_not_be_written_was_not_made(memory: str) -> None:
    manifest, store = failing(memory)
    store.before = {0}
    with pytest.raises(StreamError, match="No space left"):
        manifest.commit(new())
    assert len(Manifest.open(memory)) == 0
    assert manifest.commit(new()).number == 0


@pytest.mark.parametrize("number", [-1, 1, 5])
def test_a_commit_that_is_not_there_is_an_index_error(memory: str, number: int) -> None:
    manifest = Manifest.open(memory, create=True)
    manifest.commit(new())
    with pytest.raises(IndexError):
        manifest.entry(number)
    with pytest.raises(IndexError):
        manifest.n(number)


@settings(max_examples=60)
@given(data=st.binary(max_size=80), number=st.integers(0, 2))
def test_no_bytes_in_the_place_of_a_commit_give_anything_but_damage(data: bytes, number: int) -> None:
    url = memory_url()
    manifest = Manifest.open(url, create=True)
    for _ in range(3):
        manifest.commit(new())
    manifest.store.replace(commit_name(number), data)
    with pytest.raises(StreamDamaged, match=f"commit {number}"):
        Manifest.open(url)
    forget_memory()


@settings(max_examples=30)
@given(data=st.binary(max_size=80))
def test_no_bytes_in_the_place_of_a_segment_give_anything_but_damage(data: bytes) -> None:
    url = memory_url()
    Manifest.open(url, create=True).store.replace(segment_name(1, 0), data)
    with pytest.raises(StreamDamaged, match="segment"):
        Manifest.open(url)
    forget_memory()


def test_a_segment_that_follows_other_commits_is_damage(memory: str) -> None:
    fill(Manifest.open(memory, create=True), 2 * BLOCK)
    store = open_store(memory)
    other = memory_url()
    manifest = Manifest.open(other, create=True)
    manifest.commit(new(50))
    fill(manifest, 2 * BLOCK)
    store.replace(segment_name(1, BLOCK), open_store(other).read(segment_name(1, BLOCK)))
    with pytest.raises(StreamDamaged, match="counts other records"):
        Manifest.open(memory)


def checked(text: str) -> bytes:
    """A commit's JSON with its checksum, made without reading it."""
    return f'{text[:-1]},"check":{zlib.crc32(text.encode())}}}'.encode()


def write_large(folder: Path, segments: int) -> int:
    """A stream of so many largest segments, written as compaction writes them; its records."""
    import numpy as np

    store = open_store(str(folder))
    store.create("stream.json", json.dumps({"version": 1, "uuid": "large"}).encode())
    n = BLOCKS[2]
    counts = np.full(n, 1000)
    accounts = Accounts(written=1000, bytes=10**7)
    template = encode_commit(
        NewCommit(
            n=1000,
            uri="shards/0123456789abcdef.tar",
            index_uri="index/0123456789abcdef.idx",
            bytes=10**7,
            sha256="0" * 64,
            source_id="crawl",
            source_position={"file": "urls-000.txt", "line": 1},
            accounts=accounts,
        ),
        number=987654321,
        before=123456789,
        created=1.0,
        token="0" * 32,
    )
    text = template.decode().rpartition(',"check"')[0] + "}"
    for first in range(0, segments * n, n):
        rows = [
            checked(text.replace("987654321", str(number)).replace("123456789,", f"{number * 1000},"))
            for number in range(first, first + n)
        ]
        total = Accounts(written=1000 * n, bytes=n * 10**7)
        sums = {"crawl": SourceSum(last=first + n - 1, accounts=total)}
        store.replace(segment_name(2, first), assemble_segment(first, first * 1000, counts, rows, sums))
    return segments * n * 1000


def test_a_stream_of_many_shards_opens_at_once(tmp_path: Path) -> None:
    records = write_large(tmp_path, 2)
    seconds = []
    for _ in range(3):  # other programs cost this one some of the cache; not each time
        start = time.process_time()
        manifest = Manifest.open(str(tmp_path))
        seconds.append(time.process_time() - start)
    number = 100_003
    assert manifest.records == records
    assert manifest.entry(number).before == number * 1000
    assert manifest.accounts_of("crawl").written == records
    last = manifest.last_of("crawl")
    assert last is not None
    assert last.number == len(manifest) - 1
    start = time.process_time()
    stored = manifest.stored()
    assert time.process_time() - start < 1.5, "the sum of all their bytes, without reading each whole"
    assert stored == sum(manifest.entry(at).bytes for at in range(100)) // 100 * len(manifest)
    # A seventh of a million: the bound of two seconds for a million leaves 0.26 here.
    assert min(seconds) < 0.26
    manifest.close()


MILLION = """
import json, pathlib, sys, time
from stream.lanes import Position
from stream.shards.source import ShardSpec

def largest():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

before = largest()
start = time.perf_counter()
source = ShardSpec(url=sys.argv[1], lanes=64, window=8, seed=5).open()
opened = time.perf_counter() - start
late = len(source.manifest) - len(source.manifest) % 8 - 80
looks = []
for unit in (0, late):
    start = time.perf_counter()
    for lane in range(64):
        source.availability(Position(lane=lane, unit=unit, base=3, idx=5), 0)
    looks.append(time.perf_counter() - start)
start = time.perf_counter()
source.refresh()
idle = time.perf_counter() - start
memory = (largest() - before) * 1024
print(json.dumps([source.records(), source.manifest.before(late), opened, memory, looks, idle]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stream_of_a_million_shards_opens_in_two_seconds_and_goes_on_from_anywhere(tmp_path: Path) -> None:
    records = write_large(tmp_path, 16)
    done = subprocess.run(
        [sys.executable, "-c", MILLION, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    found, late, opened, memory, (first, last), idle = json.loads(done.stdout)
    assert found == records > 10**9
    assert late > 10**9
    assert opened < 2.0
    assert memory < 300 * 2**20
    assert last < 5 * first + 0.05, "from record 10^9 on as from the first"
    assert idle < 0.1
    sys.stdout.write(f"{opened:.2f} s, {memory / 2**20:.0f} MiB, {first:.4f} and {last:.4f} s\n")
