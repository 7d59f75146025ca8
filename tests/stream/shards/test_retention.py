"""Retention: what leaves, what must stay for whom, and what a prune that dies leaves behind."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.config import CropConfig, ReaderConfig, RetentionConfig
from stream.cursor import start_cursor
from stream.errors import StreamDamaged, StreamError, StreamPruned
from stream.lanes import Position
from stream.loader.loader import Loader
from stream.record import sha256_of
from stream.shards.adopt import adopt_tar
from stream.shards.digests import known_digests
from stream.shards.low_watermark import NAME, Floor, decode_floor, encode_floor
from stream.shards.manifest import Manifest
from stream.shards.readers import ReaderRecord, decode_reader, encode_reader, read_readers, write_reader
from stream.shards.retention import Retention, forget, past_limits, prune, unread_by
from stream.shards.source import ShardSpec
from tests.stream.failing_store import FailingStore
from tests.stream.make_shards import (
    append_shards,
    files_below,
    forget_memory,
    image_bytes,
    make_stream,
    memory_url,
    open_source,
    read_lane,
)

SIZES = (10, 7, 0, 9, 12, 8)
NOTHING = RetentionConfig(keep_hours=1e-9)
"""Keeps nothing that is not needed."""
KINDS = (CropConfig(count=2, size=8, scale_min=0.5, scale_max=1.0),)


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "stream") if request.param == "local" else memory_url()
    forget_memory()


def keeping(manifest: Manifest, commits: int) -> RetentionConfig:
    """Limits that keep so many of the newest commits."""
    size = len(manifest)
    return RetentionConfig(
        keep_bytes=1 + sum(manifest.entry(number).bytes for number in range(size - commits, size))
    )


def tars(manifest: Manifest) -> list[int]:
    """Commits whose tar is there."""
    numbers = [number for number in range(len(manifest)) if manifest.n(number)]
    return [number for number in numbers if manifest.store.exists(manifest.entry(number).uri)]


def test_the_oldest_shards_leave_and_the_manifest_keeps_their_accounts(url: str) -> None:
    manifest = make_stream(url, SIZES)
    done = prune(manifest, keeping(manifest, 2))
    assert (done.first, done.records, done.shards, done.held_by) == (4, 26, 3, None)
    assert done.bytes == sum(manifest.entry(number).bytes for number in range(4))
    again = Manifest.open(url)
    assert (len(again), again.records, again.sealed) == (6, sum(SIZES), True)
    assert again.accounts_of("test").written == sum(SIZES)
    assert tars(again) == [4, 5]
    assert again.floor == Floor(first=4, records=26, swept=4)


def test_what_is_kept_is_read_in_the_same_order_as_before(url: str) -> None:
    manifest = make_stream(url, SIZES)
    whole = {lane: read_lane(open_source(url, lanes=3, window=2), Position(lane=lane)) for lane in range(3)}
    prune(manifest, keeping(manifest, 2))
    source = open_source(url, lanes=3, window=2)
    assert source.begin == 4
    for lane in range(3):
        tail = [pair for pair in whole[lane] if pair[0][0] >= 4]
        assert read_lane(source, Position(lane=lane, unit=4)) == tail


def test_shards_leave_by_age(url: str) -> None:
    manifest = make_stream(url, SIZES)
    ages = [manifest.entry(number).created for number in range(6)]
    limits = RetentionConfig(keep_hours=1.0)
    assert past_limits(manifest, limits, now=ages[3] + 3600.0) == 3
    assert prune(manifest, limits).commits == 0
    assert past_limits(manifest, limits, now=time.time() + 7200) == 6


def test_a_dry_run_changes_nothing(url: str) -> None:
    manifest = make_stream(url, SIZES)
    planned = prune(manifest, keeping(manifest, 2), dry_run=True)
    assert tars(manifest) == [0, 1, 3, 4, 5]
    assert Manifest.open(url).floor == Floor()
    assert prune(manifest, keeping(manifest, 2)) == planned


def test_nothing_that_a_registered_run_needs_is_pruned(url: str) -> None:
    manifest = make_stream(url, SIZES)
    slow, fast = ReaderRecord(run="slow", first=1), ReaderRecord(run="fast", first=5)
    write_reader(manifest.store, slow)
    write_reader(manifest.store, fast)
    assert read_readers(manifest.store) == [fast, slow]
    done = prune(manifest, NOTHING)
    assert (done.first, done.held_by) == (1, slow)
    assert forget(manifest, "slo") == "slow"
    done = prune(manifest, NOTHING)
    assert (done.first, done.held_by) == (5, fast)
    assert tars(manifest) == [5]


def test_a_run_that_registers_while_a_prune_begins_keeps_its_shards(url: str) -> None:
    manifest = make_stream(url, SIZES)

    class Late(FailingStore):
        def replace(self, name: str, data: bytes) -> None:
            super().replace(name, data)
            if name == NAME and self.changes == 1:
                write_reader(self, ReaderRecord(run="late", first=3))

    manifest.store = Late(manifest.store)
    done = prune(manifest, NOTHING)
    assert done.first == 3
    assert done.held_by is not None
    assert done.held_by.run == "late"
    assert tars(manifest) == [3, 4, 5]
    assert Manifest.open(url).floor == Floor(first=3, records=17, swept=3)


@pytest.mark.parametrize("name", ["", "nobody", "a"])
def test_a_run_that_is_not_one_is_not_forgotten(url: str, name: str) -> None:
    manifest = make_stream(url, SIZES)
    write_reader(manifest.store, ReaderRecord(run="ab"))
    write_reader(manifest.store, ReaderRecord(run="ac"))
    with pytest.raises(ValueError, match="stream show"):
        forget(manifest, name)
    assert len(read_readers(manifest.store)) == 2


def test_nothing_is_pruned_while_it_cannot_be_read_who_reads(url: str) -> None:
    manifest = make_stream(url, SIZES)
    write_reader(manifest.store, ReaderRecord(run="ab"))
    manifest.store.replace("readers/ab.json", b"{}")
    with pytest.raises(StreamDamaged, match="--forget ab"):
        prune(manifest, NOTHING)
    assert tars(manifest) == [0, 1, 3, 4, 5]
    forget(manifest, "ab")
    assert prune(manifest, NOTHING).first == 6


@pytest.mark.parametrize("lost", ["before", "after"])
def test_killed_at_any_change_a_prune_leaves_a_stream_that_opens_and_the_next_one_ends_it(
    url: str, lost: str
) -> None:
    for change in itertools.count():
        place = f"{url}-{change}"
        manifest = make_stream(place, SIZES)
        store = FailingStore(manifest.store)
        manifest.store = store
        store.dead_from = change if lost == "before" else change + 1
        if lost == "after":
            store.after.add(change)
        try:
            prune(manifest, keeping(manifest, 2))
        except StreamError:
            pass
        else:
            assert change == 5, "raise the floor, three tars, say so"
            return
        opened = Manifest.open(place)
        assert set(tars(opened)) >= {number for number in (0, 1, 3, 4, 5) if number >= opened.floor.first}
        assert opened.records == sum(SIZES)
        assert prune(opened, keeping(opened, 2)).first == 4
        assert tars(opened) == [4, 5]
        assert Manifest.open(place).floor == Floor(first=4, records=26, swept=4)


def test_an_adopted_tar_is_no_longer_read_and_stays_where_it_is(tmp_path: Path) -> None:
    one = make_stream(str(tmp_path / "one"), (5,))
    tar = tmp_path / "one" / one.entry(0).uri
    manifest = Manifest.open(str(tmp_path / "two"), create=True)
    for _ in range(2):
        adopt_tar(manifest, str(tar), source_id="tars")
    append_shards(manifest, (4,), itertools.count(100))
    done = prune(manifest, replace(NOTHING, keep_hours=0.0, keep_bytes=10**9))
    assert done.commits == 0
    write_reader(manifest.store, ReaderRecord(run="ab", first=1))
    done = prune(manifest, NOTHING)
    assert (done.first, done.records, done.shards, done.bytes) == (1, 5, 0, 0)
    assert tar.exists()


def test_images_that_were_pruned_are_still_known_as_duplicates(url: str) -> None:
    manifest = make_stream(url, SIZES)
    prune(manifest, NOTHING)
    assert not tars(manifest)
    known = known_digests(Manifest.open(url))
    assert all(bytes.fromhex(sha256_of(image_bytes(number))) in known for number in range(sum(SIZES)))


def test_a_stream_goes_on_growing_after_it_was_pruned(url: str) -> None:
    manifest = make_stream(url, SIZES, seal=False)
    prune(manifest, NOTHING)
    source = open_source(url, lanes=2, window=4)
    assert (source.begin, source.records(source.begin)) == (8, 0)
    assert not source.availability(Position(lane=0, unit=8), 0).available
    append_shards(manifest, (4, 4, 6, 2, 2, 2), itertools.count(100))
    source.refresh()
    assert source.unread([Position(lane=0, unit=8), Position(lane=1, unit=8)]) == 12
    got = [read_lane(source, Position(lane=lane, unit=8)) for lane in range(2)]
    assert {entry[0] for lane in got for entry, _ in lane} == {8, 9, 10, 11}


def test_a_cursor_below_the_floor_is_refused_with_how_much_it_missed(url: str) -> None:
    manifest = make_stream(url, SIZES)
    spec = ShardSpec(url=url, lanes=3, window=2, seed=5)
    cursor = start_cursor(spec.open(), seed=5, chunk=1, window=2)
    seen = {lane: read_lane(spec.open(), Position(lane=lane)) for lane in range(3)}
    for used in range(7):  # all in the first window
        moved = replace(cursor, positions=tuple(seen[lane][used][1] for lane in range(3)))
        unread = sum(1 for lane in range(3) for (number, _), _ in seen[lane][used + 1 :] if number < 4)
        if used == 0:
            Loader(spec, cursor=moved, crops=KINDS, config=ReaderConfig(), workers=0).close()
            prune(manifest, keeping(manifest, 2))
        with pytest.raises(StreamPruned, match=f"{unread:,} records") as caught:
            Loader(spec, cursor=moved, crops=KINDS, config=ReaderConfig(), workers=0)
        assert caught.value.missed == unread
        if any(position.unit for position in moved.positions):
            return


def test_a_run_whose_shards_leave_while_it_reads_them_is_told_so(url: str) -> None:
    manifest = make_stream(url, SIZES)
    source = open_source(url, lanes=1, window=1)
    reading = source.read(Position(lane=0), 0)
    next(reading)
    prune(manifest, keeping(manifest, 2))
    with pytest.raises(StreamPruned, match="was pruned while it was read"):
        list(reading)
    with pytest.raises(StreamPruned, match="lane 0: the next 26 records"):
        source.availability(Position(lane=0), 0)


def test_each_pass_of_a_run_over_a_pruned_stream_begins_where_the_first_did(url: str) -> None:
    manifest = make_stream(url, SIZES)
    prune(manifest, keeping(manifest, 2))
    spec = ShardSpec(url=url, lanes=2, window=2, seed=5)
    source = spec.open()
    cursor = start_cursor(source, seed=5, chunk=1, window=2, begin=source.begin)
    assert cursor == type(cursor).from_json(cursor.to_json())
    with Loader(
        spec, cursor=cursor, crops=KINDS, config=ReaderConfig(max_bad_fraction=1.0), workers=0, passes=2
    ) as loader:
        loader.settle([loader.pass_report()])
        assert [position.unit for position in loader.cursor.positions] == [4, 4]
        assert loader.cursor.left_over == 20


def test_one_prune_at_a_time(tmp_path: Path) -> None:
    manifest = make_stream(str(tmp_path), SIZES)
    (tmp_path / "locks").mkdir()
    with (tmp_path / "locks" / "prune.lock").open("w") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StreamError, match="another process prunes"):
            prune(manifest, NOTHING)
    assert prune(manifest, NOTHING).first == 6


@pytest.mark.parametrize(
    "floor", [{"first": 7, "records": 46}, {"first": 2, "records": 16}, {"first": 2, "records": -1}, {}]
)
def test_a_floor_that_does_not_fit_is_damage(url: str, floor: dict[str, int]) -> None:
    manifest = make_stream(url, SIZES)
    body = {"version": 1, "swept": 0, **floor}
    manifest.store.replace(NAME, json.dumps(body).encode())
    with pytest.raises(StreamDamaged):
        Manifest.open(url)


@given(
    data=st.binary()
    | st.builds(
        lambda value: json.dumps(value).encode(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["version", "first"]), inner)
            ),
        ),
    )
)
def test_no_bytes_in_the_place_of_floor_or_entry_give_anything_but_damage(data: bytes) -> None:
    with pytest.raises(StreamDamaged):
        decode_floor(data, url="here")
    with pytest.raises(StreamDamaged):
        decode_reader(data, name="run")


def test_floor_and_entry_come_back_as_they_were() -> None:
    floor = Floor(first=3, records=30, swept=2)
    assert decode_floor(encode_floor(floor), url="here") == floor
    entry = ReaderRecord(run="ab", where="here:/run", first=3, begin=2, used=9, waiting=True, seen=1.5)
    assert decode_reader(encode_reader(entry), name="ab") == entry
    with pytest.raises(StreamDamaged, match="of run ab"):
        decode_reader(encode_reader(entry), name="ac")


def test_a_floor_that_was_lost_is_found_again_by_the_next_prune(url: str) -> None:
    manifest = make_stream(url, SIZES)
    prune(manifest, keeping(manifest, 2))
    manifest.store.replace(NAME, b"lost")
    with pytest.raises(StreamDamaged, match="remove it and prune again"):
        Manifest.open(url)
    manifest.store.delete(NAME)
    again = Manifest.open(url)
    assert again.floor.first == 0
    assert prune(again, keeping(again, 2)).first == 4
    assert tars(again) == [4, 5]


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_writer_prunes_now_and_then(url: str) -> None:
    manifest = make_stream(url, SIZES, seal=False)
    clock = Clock()
    retention = Retention(manifest, NOTHING, clock=clock)
    retention.tick()
    assert manifest.floor.first == 6
    append_shards(manifest, (3,), itertools.count(100))
    retention.tick()
    assert manifest.floor.first == 6
    clock.now = 11.0
    retention.tick()
    assert manifest.floor.first == 7


def test_trouble_with_pruning_is_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_stream(url, SIZES, seal=False)
    manifest.store.replace("readers/ab.json", b"{}")
    Retention(manifest, NOTHING).tick()
    assert "cannot prune" in caplog.text


def test_a_writer_waits_while_the_slowest_run_is_too_far_behind(url: str) -> None:
    manifest = make_stream(url, SIZES, seal=False)
    clock = Clock()
    retention = Retention(manifest, RetentionConfig(max_ahead=30), clock=clock)

    def ahead(**entry: object) -> int:
        write_reader(manifest.store, ReaderRecord(run="slow", **entry))  # type: ignore[arg-type]
        clock.now += 1.0
        found = retention.ahead_of()
        return found[1] if found else 0

    assert retention.ahead_of() is None, "there is no reader"
    write_reader(manifest.store, ReaderRecord(run="fast", used=80))
    assert ahead(used=10) == 36
    assert ahead(used=16) == 0
    assert ahead(begin=1, used=0) == 36
    assert ahead(begin=2, used=0) == 0
    append_shards(Manifest.open(url), (40,), itertools.count(100))
    assert ahead(used=40) == 46
    assert ahead(used=40, waiting=True) == 0, "it may need a whole window of commits"
    clock.now += 31.0
    assert ahead(used=40, waiting=True) == 46, "it has not said so for long"


def test_unread_is_counted_from_where_the_run_began(url: str) -> None:
    manifest = make_stream(url, SIZES)
    assert unread_by(manifest, ReaderRecord(run="a", begin=1, used=7)) == 29
    assert unread_by(manifest, ReaderRecord(run="a", begin=99, used=0)) == 0


def test_pruning_leaves_no_unfinished_file(tmp_path: Path) -> None:
    manifest = make_stream(str(tmp_path / "stream"), SIZES)
    prune(manifest, NOTHING)
    assert not [name for name in files_below(tmp_path) if name.endswith((".part", ".tar"))]
    assert not list((tmp_path / "stream" / "shards").iterdir())
