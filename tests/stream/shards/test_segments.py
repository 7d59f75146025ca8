"""Commits and segments: what is written is read back, and no damage passes for a commit."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.errors import StreamDamaged
from stream.shards.commits import (
    Accounts,
    Commit,
    NewCommit,
    Seal,
    decode_commit,
    encode_checked,
    encode_commit,
    encode_seal,
)
from stream.shards.segments import BLOCKS, Segment, SegmentStore, SourceSum, encode_segment, segment_name
from stream.storage import open_store
from tests.damages import other_than

ACCOUNTS = st.builds(
    Accounts,
    written=st.integers(0, 10**9),
    skipped=st.dictionaries(st.text(max_size=8), st.integers(0, 10**9), max_size=3),
    bytes=st.integers(0, 2**50),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
BLOCK = BLOCKS[1]


def new_commit(number: int, n: int = 3, source: str = "a") -> NewCommit:
    return NewCommit(
        n=n,
        uri=f"shards/{number:x}.tar",
        index_uri=f"index/{number:x}.idx",
        bytes=1000 + number,
        sha256="0" * 64,
        source_id=source,
        source_position={"at": number},
        accounts=Accounts(written=n, skipped={"empty": number % 2}, bytes=10 * n),
    )


def block_of(first: int, before: int, count: int = BLOCK) -> tuple[list[bytes], list[Commit]]:
    """Rows and commits of a block, of two sources and 0 to 6 records each."""
    rows, commits = [], []
    for number in range(first, first + count):
        new = new_commit(number, n=number % 7, source="ab"[number % 2])
        row = encode_commit(new, number=number, before=before, created=5.0, token="t")
        commit = decode_commit(row, number=number, before=before)
        assert isinstance(commit, Commit)
        rows.append(row)
        commits.append(commit)
        before += commit.n
    return rows, commits


@given(accounts=ACCOUNTS, position=JSON, number=st.integers(0, 2**40), before=st.integers(0, 2**60))
def test_a_commit_comes_back_as_it_was(
    accounts: Accounts, position: object, number: int, before: int
) -> None:
    new = NewCommit(
        n=5, uri="/tars/a b.tar", index_uri="index/0.idx", source_position=position, accounts=accounts
    )
    data = encode_commit(new, number=number, before=before, created=1.5, token="t")
    commit = decode_commit(data, number=number, before=before)
    assert isinstance(commit, Commit)
    assert (commit.number, commit.before, commit.created) == (number, before, 1.5)
    for name in ("n", "uri", "index_uri", "bytes", "sha256", "source_id", "source_position", "accounts"):
        assert getattr(commit, name) == getattr(new, name)


def test_a_seal_comes_back_as_it_was() -> None:
    data = encode_seal(number=4, before=40, created=2.0, token="t")
    assert decode_commit(data, number=4, before=40) == Seal(number=4, before=40, created=2.0)


@given(accounts=ACCOUNTS, other=ACCOUNTS)
def test_accounts_add_up(accounts: Accounts, other: Accounts) -> None:
    assert (accounts + other).found == accounts.found + other.found
    assert accounts.found == accounts.written + sum(accounts.skipped.values())


@pytest.mark.parametrize(
    "uri",
    ["../x.tar", "shards/../../etc/passwd", "x.tar", "shards/.hidden", "simplecache::s3://a/b", "/a\0b"],
)
def test_a_commit_names_no_file_outside_its_folders(uri: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        NewCommit(n=1, uri=uri, index_uri="index/a.idx")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 3),
        ("number", 5),
        ("before", 1),
        ("n", -1),
        ("n", True),
        ("n", 2**50),
        ("n", "3"),
        ("uri", "../../x"),
        ("uri", 3),
        ("accounts", {"found": 9, "written": 1, "skipped": {}, "bytes": 0}),
        ("accounts", []),
        ("accounts", None),
        ("created", "now"),
        ("created", 10**400),
        ("sha256", None),
    ],
)
def test_a_commit_with_a_wrong_field_is_damage(field: str, value: object) -> None:
    body = json.loads(encode_commit(new_commit(4), number=4, before=0, created=1.0, token="t"))
    body[field] = value
    del body["check"]
    with pytest.raises(StreamDamaged, match="commit 4"):
        decode_commit(encode_checked(body), number=4, before=0)


@pytest.mark.parametrize("field", ["version", "n", "before", "uri", "accounts", "source_id", "created"])
def test_a_commit_without_a_field_is_damage(field: str) -> None:
    body = json.loads(encode_commit(new_commit(4), number=4, before=0, created=1.0, token="t"))
    del body[field], body["check"]
    with pytest.raises(StreamDamaged, match="commit 4"):
        decode_commit(encode_checked(body), number=4, before=0)


def test_a_commit_of_before_there_were_checksums_is_still_read() -> None:
    body = json.loads(encode_commit(new_commit(4), number=4, before=0, created=1.0, token="t"))
    checked = decode_commit(
        encode_checked({k: v for k, v in body.items() if k != "check"}), number=4, before=0
    )
    old = {**body, "version": 1}
    del old["check"]
    assert decode_commit(json.dumps(old).encode(), number=4, before=0) == checked
    with pytest.raises(StreamDamaged, match="checksum"):
        decode_commit(json.dumps({**body, "version": 1}).encode(), number=4, before=0)
    with pytest.raises(StreamDamaged, match="commit 4"):
        decode_commit(json.dumps({**old, "version": 2}).encode(), number=4, before=0)


@pytest.mark.parametrize("kind", ["commit", "seal"])
@given(data=st.data())
def test_no_changed_byte_of_a_commit_is_taken_for_what_was_written(kind: str, data: st.DataObject) -> None:
    made = new_commit(4)
    if kind == "commit":
        written = encode_commit(made, number=4, before=9, created=1.25, token="t")
    else:
        written = encode_seal(number=4, before=9, created=1.25, token="t")
    changed = data.draw(other_than(written))
    try:
        found = decode_commit(changed, number=4, before=9)
    except StreamDamaged:
        return
    assert found == decode_commit(written, number=4, before=9)


@given(
    data=st.binary(max_size=60) | st.just(b"[" * 50_000) | JSON.map(lambda body: json.dumps(body).encode())
)
def test_no_bytes_pass_for_a_commit(data: bytes) -> None:
    with pytest.raises(StreamDamaged):
        decode_commit(data, number=0, before=0)


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_commit_with_one_bit_changed_is_another_commit_or_damage(at: int, bit: int) -> None:
    data = bytearray(encode_commit(new_commit(4), number=4, before=0, created=1.0, token="t"))
    data[at % len(data)] ^= 1 << bit
    try:
        commit = decode_commit(bytes(data), number=4, before=0)
    except StreamDamaged:
        return
    assert commit.number == 4
    assert commit.before == 0


def open_segment(folder: Path, data: bytes, first: int = 0, count: int = BLOCK) -> Segment:
    store = open_store(str(folder))
    store.replace("segments/x.seg", data)
    file = store.open("segments/x.seg")
    try:
        return Segment("segments/x.seg", file, first=first, count=count)
    except StreamDamaged:
        file.close()
        raise


def test_a_segment_has_the_rows_counts_and_sources_of_its_commits(tmp_path: Path) -> None:
    first, before = 2 * BLOCK, 77
    rows, commits = block_of(first, before)
    segment = open_segment(tmp_path, encode_segment(first, before, rows, commits), first)
    assert segment.before == before
    assert segment.counts().tolist() == [commit.n for commit in commits]
    assert [segment.row(number) for number in range(first, first + BLOCK)] == rows
    sums = segment.sources()
    for name in "ab":
        own = [commit for commit in commits if commit.source_id == name]
        total = sum((commit.accounts for commit in own), Accounts())
        assert sums[name] == SourceSum(last=own[-1].number, accounts=total)
    segment.close()


def read_all(folder: Path, data: bytes) -> None:
    segment = open_segment(folder, data)
    try:
        segment.counts()
        segment.sources()
        for number in range(segment.first, segment.first + segment.count):
            segment.row(number)
    finally:
        segment.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_damage_of_a_segment_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    rows, commits = block_of(0, 0)
    whole = encode_segment(0, 0, rows, commits)
    damage = data.draw(st.sampled_from(["flip", "cut", "noise"]))
    if damage == "flip":
        # The first bytes are as likely as the many of the rows; the header's padding means nothing.
        at = data.draw(st.integers(0, 51) | st.integers(64, 7000) | st.integers(64, len(whole) - 1))
        bad = bytearray(whole)
        bad[at] ^= 1 << data.draw(st.integers(0, 7))
    elif damage == "cut":
        bad = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        bad = bytearray(data.draw(st.binary(max_size=300)))
    with pytest.raises(StreamDamaged, match=r"segments/x\.seg"):
        read_all(tmp_path, bytes(bad))


def test_a_segment_of_other_commits_is_refused(tmp_path: Path) -> None:
    whole = encode_segment(0, 0, *block_of(0, 0))
    with pytest.raises(StreamDamaged, match="256 commits from 0"):
        open_segment(tmp_path, whole, first=BLOCK)


def test_equal_commits_give_equal_segments() -> None:
    assert encode_segment(0, 0, *block_of(0, 0)) == encode_segment(0, 0, *block_of(0, 0))


def test_the_largest_segment_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    segments = SegmentStore(store)
    before = 0
    for first in range(0, BLOCKS[2], BLOCK):
        if first % 16384 == 0:
            rows, commits = block_of(first, before)
            segments.compact(first, before, rows, commits)
            before += sum(commit.n for commit in commits)
        else:  # the same rows at another place: merging does not look into them
            template = encode_segment(first, before, rows, commits)
            store.replace(segment_name(1, first), template)
            before += sum(commit.n for commit in commits)
    assert segments.covering(0) is segments.find(1, 0)
    assert segments.merge(0)
    merged = segments.find(2, 0)
    assert merged is not None
    assert segments.covering(5) is merged
    assert int(merged.counts().sum()) == before
    assert merged.count == BLOCKS[2]
    part = segments.find(1, 16384)
    assert part is not None
    assert merged.row(16390) == part.row(16390)
    assert np.array_equal(merged.counts()[16384 : 16384 + BLOCK], part.counts())
    total = sum((own.accounts for own in merged.sources().values()), Accounts())
    assert total.written == before
    segments.close()


def test_merging_waits_for_every_part(tmp_path: Path) -> None:
    segments = SegmentStore(open_store(str(tmp_path)))
    segments.compact(0, 0, *block_of(0, 0))
    assert not segments.merge(0)
    assert segments.find(2, 0) is None
    segments.close()


@pytest.mark.parametrize("position", [{"at": 1}, {"bytes": 7, "created": 8.5}, '"bytes":7,"created":'])
def test_the_sizes_of_all_tars_are_read_at_once(tmp_path: Path, position: object) -> None:
    store, (rows, commits) = open_store(str(tmp_path)), block_of(0, 0)
    new = replace(new_commit(4, n=4), source_position=position)
    rows[4] = encode_commit(new, number=4, before=commits[4].before, created=5.0, token="t")
    store.replace(segment_name(1, 0), encode_segment(0, 0, rows, commits))
    segment = SegmentStore(store).find(1, 0)
    assert segment is not None
    assert segment.sizes().tolist() == [commit.bytes for commit in commits]
    segment.close()


def test_sizes_are_not_taken_from_a_damaged_row(tmp_path: Path) -> None:
    store, (rows, commits) = open_store(str(tmp_path)), block_of(0, 0)
    written = encode_segment(0, 0, rows, commits)
    store.replace(segment_name(1, 0), written.replace(b'"bytes":1009,', b'"bytes":9009,'))
    segment = SegmentStore(store).find(1, 0)
    assert segment is not None
    with pytest.raises(StreamDamaged, match="checksum of commit 9 is wrong"):
        segment.sizes()
    segment.close()
