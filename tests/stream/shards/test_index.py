"""The index sidecar and the set of known digests."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.errors import StreamDamaged
from stream.shards.digests import DigestSet, known_digests
from stream.shards.index import NO_DIGEST, IndexRow, decode_index, encode_index, read_digests
from stream.storage import open_store
from stream.tar import Member
from tests.stream.make_shards import image_bytes, make_stream

TAR_BYTES = 10**9
MEMBERS = st.builds(Member, st.integers(512, TAR_BYTES // 2), st.integers(0, TAR_BYTES // 2))
ROWS = st.lists(
    st.builds(
        IndexRow,
        image=MEMBERS,
        extension=st.sampled_from(["jpg", "png", "webp"]),
        json=st.none() | MEMBERS,
        cls=st.none() | MEMBERS,
        digest=st.binary(min_size=16, max_size=16),
        label=st.none() | st.integers(0, 2**31 - 1),
        label_name=st.none() | st.text(max_size=5),
    ),
    max_size=5,
)


@given(rows=ROWS, adopted=st.booleans())
def test_an_index_comes_back_as_it_was(rows: list[IndexRow], adopted: bool) -> None:
    index = decode_index(encode_index(rows, tar_bytes=TAR_BYTES, adopted=adopted), name="x", n=len(rows))
    assert [index.row(number) for number in range(len(index))] == rows
    assert (index.adopted, index.tar_bytes) == (adopted, TAR_BYTES)


@given(rows=ROWS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_digests_are_read_without_the_rows(tmp_path: Path, rows: list[IndexRow]) -> None:
    store = open_store(str(tmp_path))
    store.replace("index/x.idx", encode_index(rows, tar_bytes=TAR_BYTES, adopted=False))
    file = store.open("index/x.idx")
    assert read_digests(file, name="x", n=len(rows)) == b"".join(row.digest for row in rows)
    file.close()


ONE = IndexRow(image=Member(1024, 100), extension="jpg", json=Member(512, 10), digest=b"d" * 16)


@given(data=st.data(), labelled=st.booleans())
def test_every_damage_of_an_index_is_noticed(data: st.DataObject, labelled: bool) -> None:
    one = replace(ONE, label=3, label_name="cat") if labelled else ONE
    whole = encode_index([one] * 3, tar_bytes=TAR_BYTES, adopted=False)
    damage = data.draw(st.sampled_from(["flip", "cut", "more", "noise"]))
    if damage == "flip":
        bad = bytearray(whole)
        # 40 bytes of header have a meaning, the rest of it has none.
        bad[data.draw(st.integers(0, 39) | st.integers(64, len(whole) - 1))] ^= 1 << data.draw(
            st.integers(0, 7)
        )
    elif damage == "cut":
        bad = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif damage == "more":
        bad = bytearray(whole + data.draw(st.binary(min_size=1, max_size=60)))
    else:
        bad = bytearray(data.draw(st.binary(max_size=200)))
    with pytest.raises(StreamDamaged, match="shard index x"):
        decode_index(bytes(bad), name="x", n=3)


@pytest.mark.parametrize(
    "member",
    [
        Member(0, 10),
        Member(511, 1),
        Member(TAR_BYTES + 1, 0),
        Member(1024, TAR_BYTES),
        Member(2**64 - 1, 2**32 - 1),
    ],
)
def test_a_member_outside_the_tar_is_damage(member: Member) -> None:
    rows = [ONE, IndexRow(image=member, extension="jpg")]
    data = encode_index(rows, tar_bytes=TAR_BYTES, adopted=True)
    with pytest.raises(StreamDamaged, match="record 1 lies outside"):
        decode_index(data, name="x", n=2)


def test_an_index_without_labels_is_as_it_always_was() -> None:
    data = encode_index([ONE, ONE], tar_bytes=TAR_BYTES, adopted=True)
    assert len(data) == 64 + 2 * (16 + 56)
    assert data[24:28] == b"\1\0\0\0"


def test_records_without_digest_are_counted() -> None:
    rows = [ONE, replace(ONE, digest=NO_DIGEST), ONE]
    data = encode_index(rows, tar_bytes=TAR_BYTES, adopted=True)
    assert decode_index(data, name="x", n=3).without_digest == 1


def test_an_index_of_another_shard_is_damage() -> None:
    with pytest.raises(StreamDamaged, match="has 2 records, its commit says 3"):
        decode_index(encode_index([ONE] * 2, tar_bytes=TAR_BYTES, adopted=False), name="x", n=3)


DIGESTS = st.lists(st.sampled_from([bytes([a]) * 8 + bytes([b]) * 8 for a in range(1, 5) for b in range(4)]))


@given(at_once=DIGESTS, one_by_one=DIGESTS, asked=DIGESTS)
def test_a_digest_set_answers_like_a_set(
    at_once: list[bytes], one_by_one: list[bytes], asked: list[bytes]
) -> None:
    known, model = DigestSet(), set(at_once)
    known.add_many(b"".join(at_once) + NO_DIGEST)
    for digest in one_by_one:
        assert (digest in known) == (digest in model)
        known.add(digest + b"the rest does not count")
        model.add(digest)
    for digest in asked:
        assert (digest in known) == (digest in model)
    assert len(known) == len(model)
    assert NO_DIGEST not in known


def test_a_digest_set_merges_what_it_was_given_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.shards.digests._MERGE_AT", 10)
    known = DigestSet()
    digests = [hashlib.sha256(bytes([number])).digest() for number in range(95)]
    for digest in digests:
        known.add(digest)
    assert len(known) == 95
    assert all(digest in known for digest in digests)


def test_a_short_digest_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        DigestSet().add(b"short")


def test_what_a_stream_holds_is_known_from_its_indexes(tmp_path: Path) -> None:
    manifest = make_stream(str(tmp_path), [3, 0, 4], seal=False)
    known = known_digests(manifest)
    assert len(known) == 7
    assert all(hashlib.sha256(image_bytes(number)).digest() in known for number in range(7))
    assert hashlib.sha256(image_bytes(7)).digest() not in known
