"""Reading shards: every record once a pass, in an order that follows from data, seed, lanes and window."""

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import StreamDamaged, StreamMismatch, StreamNotFound
from stream.lanes import Position
from stream.order import ORDERS
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSource, ShardSpec
from stream.source import Availability, Entry
from tests.stream.make_shards import (
    append_shards,
    forget_memory,
    image_bytes,
    make_stream,
    memory_url,
    open_source,
    read_lane,
)

SIZES = [7, 0, 1, 12, 3, 20, 5, 9]
ORDER = st.sampled_from(ORDERS)
# What lane 1 of 3 read of SIZES in pass 1 (window 3, seed 5) after two records, before there was `order`.
OLD_TAIL = [
    (0, 3), (2, 0), (5, 12), (5, 7), (5, 11), (5, 10), (5, 8), (5, 9), (3, 4), (3, 7), (3, 6), (3, 5),
    (4, 1), (7, 3), (7, 5), (7, 4), (6, 2), (6, 1),
]  # fmt: skip


@pytest.fixture
def memory() -> Iterator[str]:
    yield memory_url()
    forget_memory()


def starts(lanes: int) -> list[Position]:
    return [Position(lane=lane) for lane in range(lanes)]


def order_of(
    url: str, lanes: int, window: int, seed: int = 5, pass_number: int = 0, order: str = "window"
) -> list[list[tuple[int, int]]]:
    """The whole order of every lane."""
    source = open_source(url, lanes=lanes, window=window, seed=seed, order=order)
    names = [[name for name, _ in read_lane(source, start, pass_number)] for start in starts(lanes)]
    source.close()
    return names


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    lanes=st.integers(1, 7),
    window=st.integers(0, 7),
    pass_number=st.integers(0, 2),
    order=ORDER,
)
def test_every_record_is_read_exactly_once_a_pass(
    sizes: list[int], lanes: int, window: int, pass_number: int, order: str
) -> None:
    url = memory_url()
    make_stream(url, sizes)
    names = order_of(url, lanes, window, pass_number=pass_number, order=order)
    expected = [(number, index) for number, size in enumerate(sizes) for index in range(size)]
    assert sorted(itertools.chain(*names)) == expected
    assert max(map(len, names)) - min(map(len, names)) <= 1
    forget_memory()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("lanes", "window"), [(1, 1), (3, 2), (4, 5), (5, 8), (2, 20), (3, 0)])
def test_reading_goes_on_from_every_position_with_the_same_tail(
    memory: str, lanes: int, window: int, order: str
) -> None:
    make_stream(memory, SIZES)
    source = open_source(memory, lanes=lanes, window=window, order=order)
    for start in starts(lanes):
        whole = read_lane(source, start)
        total = len(whole)
        assert source.availability(start, 0) == Availability(available=total, ended=True)
        for used, (_, after) in enumerate(whole, 1):
            again = open_source(memory, lanes=lanes, window=window, order=order)
            assert read_lane(again, after) == whole[used:]
            assert again.availability(after, 0) == Availability(available=total - used, ended=True)
            again.close()
    source.close()


def test_the_sample_number_is_left_to_the_caller(memory: str) -> None:
    make_stream(memory, SIZES)
    source = open_source(memory, lanes=2, window=2)
    start = Position(lane=1, seq=17)
    assert {after.seq for _, after in read_lane(source, start)} == {17}
    source.close()


def test_seed_pass_and_window_change_the_order_and_nothing_else(memory: str) -> None:
    make_stream(memory, [30, 30, 30, 30])
    base = order_of(memory, lanes=2, window=2)
    others = [
        order_of(memory, lanes=2, window=2, seed=6),
        order_of(memory, lanes=2, window=2, pass_number=1),
        order_of(memory, lanes=2, window=4),
        order_of(memory, lanes=2, window=0),
        order_of(memory, lanes=2, window=2, order="shard"),
    ]
    assert order_of(memory, lanes=2, window=2) == base
    for other in others:
        assert other != base
        assert [sorted(lane) for lane in other] == [sorted(lane) for lane in base]


def test_records_of_a_window_are_mixed_and_windows_follow_one_another(memory: str) -> None:
    make_stream(memory, [20] * 8)
    for lane in order_of(memory, lanes=2, window=4):
        numbers = [number for number, _ in lane]
        assert {number // 4 for number in numbers[:40]} == {0}
        assert {number // 4 for number in numbers[40:]} == {1}
    first = [lane[0] for lane in order_of(memory, lanes=8, window=8)]
    assert len({number for number, _ in first}) > 2, "all lanes begin with the same shard"


@settings(max_examples=20)
@given(data=st.data(), lanes=st.integers(1, 4), window=st.integers(1, 4), order=ORDER)
def test_order_does_not_depend_on_when_commits_appeared_or_who_looked(
    data: st.DataObject, lanes: int, window: int, order: str
) -> None:
    """A growing stream read as it grows gives what the sealed one gives."""
    url = memory_url()
    manifest = Manifest.open(url, create=True)
    numbers = itertools.count()
    source = open_source(url, lanes=lanes, window=window, order=order)
    positions = starts(lanes)
    read: list[list[tuple[int, int]]] = [[] for _ in range(lanes)]
    for size in SIZES:
        append_shards(manifest, [size], numbers)
        if data.draw(st.booleans()):
            source.refresh()
        for lane in range(lanes):
            most = data.draw(st.integers(0, 8))
            for (name, after), _ in zip(read_lane(source, positions[lane]), range(most), strict=False):
                read[lane].append(name)
                positions[lane] = after
    manifest.seal()
    source.refresh()
    for lane in range(lanes):
        read[lane] += [name for name, _ in read_lane(source, positions[lane])]
    source.close()
    assert read == order_of(url, lanes, window, order=order)
    forget_memory()


def test_a_window_of_all_commits_needs_a_sealed_stream(memory: str) -> None:
    make_stream(memory, [4, 4], seal=False)
    with pytest.raises(StreamMismatch, match=r"still open: seal it .*swavstream seal memory://"):
        open_source(memory, lanes=2, window=0)
    Manifest.open(memory).seal()
    source = open_source(memory, lanes=2, window=0)
    end = read_lane(source, Position(lane=0))[-1][1]
    assert (end.unit, end.base, end.idx) == (2, 0, 0)
    assert source.availability(end, 0) == Availability(available=0, ended=True)
    source.close()


def test_neighbours_in_a_lane_are_of_one_shard_no_more_often_than_by_chance(memory: str) -> None:
    make_stream(memory, [60] * 8)
    for order, least, most in (("window", 0.05, 0.25), ("shard", 0.9, 1.0)):
        for lane in order_of(memory, lanes=2, window=8, order=order):
            same = [one == other for (one, _), (other, _) in itertools.pairwise(lane)]
            assert least <= sum(same) / len(same) <= most  # 1/8 by chance, +- 0.02


def test_the_order_of_shards_is_what_it_was(memory: str) -> None:
    """Cursors of runs from before there was another order go on in it."""
    make_stream(memory, SIZES)
    source = open_source(memory, lanes=3, window=3, order="shard")
    read = read_lane(source, Position(lane=1, unit=0, base=1, idx=1), 1)
    assert [name for name, _ in read] == OLD_TAIL
    source.close()


def test_an_incomplete_window_waits_for_the_rest_or_the_seal(memory: str) -> None:
    manifest = Manifest.open(memory, create=True)
    append_shards(manifest, [4, 4], itertools.count())
    source = open_source(memory, lanes=2, window=3)
    start = Position(lane=0)
    assert read_lane(source, start) == []
    assert source.availability(start, 0) == Availability(available=0, ended=False)
    assert source.unread(starts(2)) == 8
    manifest.seal()
    assert source.refresh()
    assert len(read_lane(source, start)) == 4
    assert source.availability(start, 0) == Availability(available=4, ended=True)
    source.close()


@pytest.mark.parametrize("pass_number", [0, 1])
def test_unread_counts_what_is_committed_and_not_used(memory: str, pass_number: int) -> None:
    make_stream(memory, SIZES)
    source = open_source(memory, lanes=3, window=3)
    positions, used = starts(3), 0
    for lane in range(3):
        for _, after in read_lane(source, positions[lane], pass_number)[: lane * 4]:
            positions[lane] = after
            used += 1
    assert used > 0
    assert source.records() == sum(SIZES)
    assert source.unread(positions, pass_number) == sum(SIZES) - used
    source.close()


def test_identity_is_that_of_the_stream_and_not_of_its_place(tmp_path: Path) -> None:
    manifest = make_stream(str(tmp_path / "here"), [1])
    (tmp_path / "here").rename(tmp_path / "there")
    source = open_source(str(tmp_path / "there"), lanes=1, window=1)
    assert source.identity() == {"kind": "shards", "uuid": manifest.uuid}
    assert len(read_lane(source, Position(lane=0))) == 1
    source.close()


def test_a_spec_travels_to_another_process(tmp_path: Path) -> None:
    make_stream(str(tmp_path), [3])
    spec = ShardSpec(url=str(tmp_path), lanes=1, window=1, seed=0)
    source = pickle.loads(pickle.dumps(spec)).open()
    assert len(read_lane(source, Position(lane=0))) == 3
    source.close()


def test_a_stream_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StreamNotFound):
        open_source(str(tmp_path / "nothing"), lanes=1, window=1)


@pytest.mark.parametrize(
    "change",
    [{"lanes": 0}, {"window": -1}, {"order": "lane"}, {"seed": -1}, {"seed": 2**63}, {"max_record_bytes": 0}],
)
def test_a_spec_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(ShardSpec(url="/x", lanes=1, window=1, seed=0), **change)


@pytest.mark.parametrize(
    "position",
    [
        Position(lane=3),
        Position(lane=-1),
        Position(lane=0, unit=1),
        Position(lane=0, unit=-2),
        Position(lane=0, unit=10),
        Position(lane=0, unit=8, idx=1),
        Position(lane=0, base=3),
        Position(lane=0, base=-1),
        Position(lane=0, idx=500),
        Position(lane=0, idx=-1),
    ],
)
def test_a_position_of_another_stream_is_refused(memory: str, position: Position) -> None:
    make_stream(memory, SIZES)
    source = open_source(memory, lanes=3, window=2)
    with pytest.raises(StreamMismatch, match="another stream"):
        source.availability(position, 0)
    if position.unit != 8:  # behind the last window a reader finds nothing, whatever idx says
        with pytest.raises(StreamMismatch, match="another stream"):
            read_lane(source, position)
    source.close()


def entries(source: ShardSource) -> list[Entry]:
    return sorted(
        (entry for entry, _ in source.read(Position(lane=0), 0)), key=lambda entry: (entry.unit, entry.index)
    )


def one_shard(tmp_path: Path, size: int = 6) -> tuple[Path, ShardSpec]:
    """A stream with one shard; its tar."""
    manifest = make_stream(str(tmp_path), [size])
    return tmp_path / manifest.entry(0).uri, ShardSpec(url=str(tmp_path), lanes=1, window=1, seed=0)


def test_entries_say_where_they_stand_and_what_they_are(tmp_path: Path) -> None:
    _, spec = one_shard(tmp_path)
    source = spec.open()
    for index, entry in enumerate(entries(source)):
        assert entry.record is not None
        assert (entry.unit, entry.index, entry.reason, entry.size) == (0, index, "", len(image_bytes(index)))
        assert entry.record.payload == image_bytes(index)
        assert entry.record.source == f"folder/{index}.jpg"
    source.close()


def test_a_changed_byte_of_an_image_costs_that_record_only(tmp_path: Path) -> None:
    tar, spec = one_shard(tmp_path)
    data = bytearray(tar.read_bytes())
    data[data.find(b"image 2")] ^= 1
    tar.write_bytes(data)
    source = spec.open()
    assert [entry.reason for entry in entries(source)] == ["", "", "checksum", "", "", ""]
    source.close()
    unverified = replace(spec, verify=False).open()
    assert [entry.reason for entry in entries(unverified)] == [""] * 6
    unverified.close()


def test_a_cut_tar_gives_no_half_record(tmp_path: Path) -> None:
    tar, spec = one_shard(tmp_path)
    data = tar.read_bytes()
    tar.write_bytes(data[: data.find(b"image 3")])
    source = spec.open()
    assert [entry.reason for entry in entries(source)] == ["", "", "", "truncated", "truncated", "truncated"]
    source.close()


def test_a_tar_that_was_changed_under_its_index_gives_no_other_record(tmp_path: Path) -> None:
    tar, spec = one_shard(tmp_path)
    data = tar.read_bytes()
    tar.write_bytes(bytes(512) + data)
    source = spec.open()
    assert {entry.reason for entry in entries(source)} == {"index_mismatch"}
    source.close()


def test_an_image_with_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    _, spec = one_shard(tmp_path)
    source = replace(spec, max_record_bytes=10).open()
    assert {entry.reason for entry in entries(source)} == {"too_large"}
    source.close()


def test_json_that_was_damaged_leaves_an_image_that_the_index_vouches_for(tmp_path: Path) -> None:
    tar, spec = one_shard(tmp_path)
    whole = spec.open()
    expected = [entry.record.sha256 for entry in entries(whole) if entry.record]
    whole.close()
    tar.write_bytes(tar.read_bytes().replace(b'{"height"', b'{"heigh"t'))
    source = spec.open()
    found = [entry.record for entry in entries(source) if entry.record]
    assert [record.sha256 for record in found] == expected
    assert all(record.bad_label and not record.source for record in found)
    source.close()


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    tar, spec = one_shard(tmp_path)
    tar.unlink()
    source = spec.open()
    with pytest.raises(StreamDamaged, match=rf"commit 0 of the stream at {tmp_path}: .*{tar.name} is gone"):
        entries(source)
    source.close()


def test_a_damaged_row_is_named_when_rows_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.shards.files._INDEX_BYTES", 1)
    manifest = make_stream(str(tmp_path), [3, 3])
    whole = (tmp_path / manifest.entry(0).index_uri).read_bytes()
    for number in range(2):
        index = tmp_path / manifest.entry(number).index_uri
        data = bytearray(index.read_bytes())
        data[64 + 3 * 16 : 64 + 3 * 16 + 8] = (2**63).to_bytes(8, "little")
        index.write_bytes(data)
    source = open_source(str(tmp_path), lanes=1, window=2)
    # The first index is in memory, whose checksum is looked at; the second is read row by row.
    with pytest.raises(StreamDamaged, match=r"commit 0 .*shard index index/.*wrong checksum"):
        source.entry(0, 1)
    index = tmp_path / manifest.entry(0).index_uri
    index.write_bytes(whole)
    assert source.entry(0, 0).record
    assert source.entry(1, 1).record
    with pytest.raises(
        StreamDamaged, match=r"commit 1 .*shard index index/.*: record 0 lies outside the tar"
    ):
        source.entry(1, 0)
    source.close()


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    _, spec = one_shard(tmp_path)
    source = spec.open()
    index = tmp_path / source.manifest.entry(0).index_uri
    data = bytearray(index.read_bytes())
    data[100] ^= 1
    index.write_bytes(data)
    with pytest.raises(StreamDamaged, match=r"commit 0 .*: shard index index/.*wrong checksum"):
        entries(source)
    source.close()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index_bytes", [1, 72 * 14, 10**6])
def test_files_are_let_go_of_and_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, index_bytes: int
) -> None:
    """Also when no index fits into memory, or two of eight."""
    monkeypatch.setattr("stream.shards.files._OPEN_SHARDS", 2)
    monkeypatch.setattr("stream.shards.files._INDEX_BYTES", index_bytes)
    make_stream(str(tmp_path), [6] * 8)
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = open_source(str(tmp_path), lanes=3, window=8, order=order)
    assert read_lane(source, Position(lane=0))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4  # two tars and two indexes
    for _ in range(2):
        for start in starts(3):
            assert len(read_lane(source, start)) == 16
    source.close()
    source.close()
    assert len(read_lane(source, Position(lane=0))) == 16
    source.close()
