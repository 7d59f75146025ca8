import gzip
import io
import random
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.archive_bytes import open_content
from ingest.tars import TarSample, read_tar
from stream.storage import LocalBytes
from stream.tar import BLOCK_BYTES as BLOCK
from stream.tar import TarLoss
from stream.tar_samples import group_tar, run_through
from tests.ingest.made import Members, labelled, write_tar

MAX = 1024 * 1024


def events(path: Path, max_bytes: int = MAX) -> list[TarSample | TarLoss]:
    return [event for event in read_tar(path, max_bytes=max_bytes) if event is not None]


def images(path: Path) -> list[TarSample]:
    return [event for event in events(path) if isinstance(event, TarSample)]


def losses(path: Path, max_bytes: int = MAX) -> list[str]:
    return [event.reason for event in events(path, max_bytes) if isinstance(event, TarLoss)]


def tar_of(path: Path, members: Members) -> Path:
    return write_tar(path / "made.tar", members)


def test_members_of_one_key_become_one_image_with_its_label(tmp_path: Path) -> None:
    found = images(
        tar_of(tmp_path, [("a/1.jpg", b"x"), ("a/1.cls", b"7"), ("a/1.json", b"{}"), ("a/2.png", b"y")])
    )
    assert found == [TarSample("a/1.jpg", b"x", b"7", b"{}"), TarSample("a/2.png", b"y", None, None)]


def test_a_label_before_its_image_is_found_too(tmp_path: Path) -> None:
    assert images(tar_of(tmp_path, [("1.cls", b"3"), ("1.jpg", b"x")])) == [
        TarSample("1.jpg", b"x", b"3", None)
    ]


def test_several_images_of_a_key_each_take_the_label_of_their_own_stem_or_of_the_key(tmp_path: Path) -> None:
    members = [("k.a.jpg", b"1"), ("k.a.cls", b"5"), ("k.b.jpg", b"2"), ("k.cls", b"6")]
    assert [(image.name, image.cls) for image in images(tar_of(tmp_path, members))] == [
        ("k.a.jpg", b"5"),
        ("k.b.jpg", b"6"),
    ]


def test_dots_in_folders_are_no_part_of_the_extension(tmp_path: Path) -> None:
    members = [("v1.2/x.jpg", b"1"), ("v1.2/x.cls", b"4"), ("v1.2/y.jpg", b"2")]
    assert [image.cls for image in images(tar_of(tmp_path, members))] == [b"4", None]


def test_labels_that_stand_apart_find_their_image_and_others_are_told(tmp_path: Path) -> None:
    members = [
        ("2.cls", b"2"),
        ("1.jpg", b"1"),
        ("2.jpg", b"2"),
        ("1.cls", b"1"),
        ("3.cls", b"3"),
        ("1.json", b'{"label_name": "one"}'),
        ("1.cls", b"9"),
    ]
    path = tar_of(tmp_path, members)
    assert images(path) == [
        TarSample("1.jpg", b"1", b"1", b'{"label_name": "one"}'),
        TarSample("2.jpg", b"2", b"2", None),
    ]
    lost = [event for event in events(path) if isinstance(event, TarLoss)]
    assert [(loss.reason, loss.label_only) for loss in lost] == [("no_image", False), ("label_apart", True)]


def test_joined_archives_with_the_same_names_keep_their_own_labels(tmp_path: Path) -> None:
    first = [("1.jpg", b"a"), ("2.jpg", b"b"), ("1.cls", b"1"), ("2.cls", b"2")]
    second = [("1.jpg", b"c"), ("2.jpg", b"d"), ("1.cls", b"3"), ("2.cls", b"4")]
    found = images(tar_of(tmp_path, first + second))
    assert [(image.payload, image.cls) for image in found] == [
        (b"a", b"1"),
        (b"b", b"2"),
        (b"c", b"3"),
        (b"d", b"4"),
    ]


def test_an_image_above_the_limit_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path, [("1.jpg", b"x" * 2000), ("2.jpg", b"y")])
    assert losses(path, max_bytes=1999) == ["too_many_bytes"]
    assert len(images(path)) == 2
    assert [type(event) for event in events(path, 1999)] == [TarLoss, TarSample]


def test_a_long_archive_gives_the_word_back_now_and_then(tmp_path: Path) -> None:
    path = tar_of(tmp_path, [(f"{number}.txt", b"") for number in range(12_000)] + [("1.jpg", b"x")])
    assert list(read_tar(path, max_bytes=MAX)) == [None, None, TarSample("1.jpg", b"x", None, None)]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_are_counted_and_never_followed(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("passwd.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert losses(path) == ["link"]
    assert not images(path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_dialect_are_read(tmp_path: Path, form: int) -> None:
    name = "/".join(["ordner"] * 25) + ".jpg"
    assert [image.name for image in images(write_tar(tmp_path / "t.tar", [(name, b"1")], format=form))] == [
        name
    ]


def test_a_size_in_pax_wins_over_the_header(tmp_path: Path) -> None:
    path = tmp_path / "pax.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("1.jpg")
        info.size, info.pax_headers = 3, {"size": "3"}
        tar.addfile(info, io.BytesIO(b"abc"))
    assert images(path)[0].payload == b"abc"


def damaged(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def test_reading_goes_on_after_a_damaged_header(tmp_path: Path) -> None:
    path = damaged(tar_of(tmp_path, labelled(0, 5)), 0, b"\xff" * 20)
    assert losses(path) == ["archive_damaged"]
    assert len(images(path)) == 4


@pytest.mark.parametrize("packed", [False, True])
def test_a_size_that_lies_costs_one_image_and_no_memory(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "lie.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in labelled(0, 6):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    content = bytearray(path.read_bytes())
    header = tarfile.TarInfo("000000.jpg")
    header.size = MAX // 2  # within the limit for images, beyond the end of the file
    content[:BLOCK] = header.tobuf()[:BLOCK]
    path.write_bytes(gzip.compress(content) if packed else content)
    assert losses(path) == ["archive_size"]
    assert [image.name for image in images(path)] == [f"{seed:06d}.jpg" for seed in range(1, 6)]


def test_eight_exabytes_are_not_allocated(tmp_path: Path) -> None:
    header = tarfile.TarInfo("1.jpg")
    header.size = 2**63
    path = tmp_path / "huge.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"x" * BLOCK)
    assert losses(path) == ["archive_cut"]
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert losses(path) == ["archive_cut"]


def test_joined_archives_are_read_to_the_end_and_nothing_is_lost(tmp_path: Path) -> None:
    one, two = write_tar(tmp_path / "1.tar", labelled(0, 3)), write_tar(tmp_path / "2.tar", labelled(3, 3))
    both = tmp_path / "both.tar"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert len(images(both)) == 6
    assert not losses(both)


def test_zeros_among_the_members_are_reported_as_a_hole(tmp_path: Path) -> None:
    path = tar_of(tmp_path, [(f"{number}.jpg", b"x" * BLOCK) for number in range(8)])
    path = damaged(path, 3 * 2 * BLOCK, bytes(2 * 2 * BLOCK))
    assert losses(path) == ["archive_hole"]
    assert [image.name for image in images(path)] == [f"{number}.jpg" for number in (0, 1, 2, 5, 6, 7)]


def test_an_image_whose_archive_ends_in_it_is_lost_whole(tmp_path: Path) -> None:
    path = tar_of(tmp_path, [("1.jpg", b"x" * BLOCK), ("2.jpg", b"y" * 2 * BLOCK)])
    path.write_bytes(path.read_bytes()[: 4 * BLOCK])
    assert [image.name for image in images(path)] == ["1.jpg"]
    assert losses(path) == ["archive_cut"]


def test_missing_end_blocks_are_no_loss(tmp_path: Path) -> None:
    path = tar_of(tmp_path, [("1.jpg", b"x" * BLOCK)])
    path.write_bytes(path.read_bytes()[: 2 * BLOCK])
    assert len(images(path)) == 1
    assert not losses(path)


def test_gzip_is_known_by_its_bytes_whatever_the_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path, labelled(0, 3))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert len(images(path)) == 3


def test_several_gzip_members_are_one_archive_and_padding_is_no_damage(tmp_path: Path) -> None:
    content = tar_of(tmp_path, labelled(0, 4)).read_bytes()
    path = tmp_path / "parts.tar.gz"
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]) + bytes(100))
    assert len(images(path)) == 4
    assert not losses(path)


def big(count: int) -> list[tuple[str, bytes]]:
    """Members that do not deflate, 20,000 bytes each."""
    return [(f"{seed:03}.jpg", random.Random(seed).randbytes(20_000)) for seed in range(count)]


def test_what_stands_well_before_a_damaged_place_of_a_gzip_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar.gz"
    # A block of the reserved type in the middle: inflating fails there, and nowhere before.
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    plain = tar_of(tmp_path, big(150)).read_bytes()
    content = packer.compress(plain[:3_000_000]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 1000
    path.write_bytes(content)
    found = images(path)
    assert [(image.name, image.payload) for image in found] == big(len(found))
    assert len(found) == (3_000_000 - 1024 * 1024) // 20_992
    assert set(losses(path)) == {"gzip_damaged"}
    assert len(losses(path)) == 3_000_000 // 20_992 - len(found) + 1


@pytest.mark.parametrize("members", [1, 2])
def test_nothing_of_a_gzip_member_with_a_wrong_checksum_is_given_out(tmp_path: Path, members: int) -> None:
    plain = tar_of(tmp_path, big(20)).read_bytes()
    first = bytearray(gzip.compress(plain[:210_000], 1))
    packed = bytearray(gzip.compress(plain, 1)) if members == 1 else first + gzip.compress(plain[210_000:], 1)
    packed[100_000] ^= 16  # inside the data of the fifth image, which is stored as it is
    path = tmp_path / "flipped.tar.gz"
    path.write_bytes(packed)
    found = images(path)
    kept = [] if members == 1 else big(20)[11:]
    assert [(image.name, image.payload) for image in found] == kept
    assert losses(path) == ["gzip_damaged"] * (20 - len(kept))


def test_a_wrong_checksum_is_told_where_no_image_is(tmp_path: Path) -> None:
    plain = tar_of(tmp_path, big(2)).read_bytes()
    last = bytearray(gzip.compress(plain[2 * 20_992 :]))
    last[-8] ^= 1
    path = tmp_path / "end.tar.gz"
    path.write_bytes(gzip.compress(plain[: 2 * 20_992]) + last)
    assert [(image.name, image.payload) for image in images(path)] == big(2)
    assert losses(path) == ["gzip_damaged"]


@settings(max_examples=60, deadline=None)
@given(place=st.integers(10, 10**9), bit=st.integers(0, 7), level=st.integers(0, 9))
def test_no_flipped_bit_of_a_gzipped_archive_lets_an_altered_image_through(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, level: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    members = labelled(0, 8)
    packed = bytearray(gzip.compress(tar_of(folder, members).read_bytes(), level))
    packed[place % len(packed)] ^= 1 << bit
    path = folder / "t.tar.gz"
    path.write_bytes(packed)
    whole = dict(members)
    for event in events(path):
        assert isinstance(event, TarLoss) or event.payload == whole[event.name]


def test_a_cut_gzip_gives_what_is_there(tmp_path: Path) -> None:
    content = gzip.compress(tar_of(tmp_path, labelled(0, 40)).read_bytes())
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(content[: len(content) // 2])
    assert 10 <= len(images(path)) < 30
    assert losses(path) == ["archive_cut"]


def test_a_gzip_bomb_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(tar_of(tmp_path, labelled(0, 2)).read_bytes()[: -2 * BLOCK])
        for _ in range(400):
            file.write(bytes(1024 * 1024))
    assert path.stat().st_size < 4_000_000
    data = open_content(LocalBytes(path))
    found = run_through(group_tar(data, max_bytes=MAX))
    assert [event.reason for event in found if isinstance(event, TarLoss)] == ["gzip_bomb"]
    assert data.position < 300 * 1024 * 1024


@settings(max_examples=60)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 30_000), st.binary(min_size=1, max_size=600)), max_size=4),
    end=st.integers(0, 30_000),
    packed=st.booleans(),
)
def test_no_damage_raises_hangs_or_invents_more_images_than_there_were(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, bytes]], end: int, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t.tar"
    content = bytearray(write_tar(path, labelled(0, 8)).read_bytes())
    if packed:
        content = bytearray(gzip.compress(content))
    for place, data in cuts:
        at = place % len(content)
        content[at : at + len(data)] = data[: len(content) - at]
    path.write_bytes(content[: max(1, len(content) - end % len(content))])
    assert len(images(path)) <= 8


@settings(max_examples=60)
@given(content=st.binary(max_size=4000))
def test_any_bytes_are_read_without_an_exception(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "t.tar"
    path.write_bytes(content)
    assert not images(path)
