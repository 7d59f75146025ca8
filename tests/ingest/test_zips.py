import bz2
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest import archive_bytes
from ingest.tars import TarSample
from ingest.zips import read_archive
from stream.tar import TarLoss
from tests.ingest.made import Members, encoded, labelled, write_tar

PACKERS: dict[str, Callable[[bytes], bytes]] = {"bz2": bz2.compress, "xz": lzma.compress}


def read(path: Path, max_bytes: int = 1 << 20) -> list[TarSample | TarLoss]:
    return [one for one in read_archive(path, max_bytes=max_bytes) if one is not None]


def losses(path: Path, max_bytes: int = 1 << 20) -> list[tuple[str, str]]:
    return [(one.reason, one.name) for one in read(path, max_bytes) if isinstance(one, TarLoss)]


def images(path: Path) -> list[tuple[str, bytes, bytes | None]]:
    return [(one.name, one.payload, one.cls) for one in read(path) if isinstance(one, TarSample)]


def write_zip(path: Path, members: Members, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as pack:
        for name, data in members:
            pack.writestr(name, data)
    return path


WANTED = [(f"{seed:06d}.jpg", encoded(seed), str(seed % 10).encode()) for seed in range(20)]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_gives_its_images_with_their_labels(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "x.zip", labelled(0, 20), method)
    assert images(path) == WANTED
    assert losses(path) == []


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz", "w:gz", "w"])
def test_a_compressed_tar_gives_what_the_plain_one_does(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "x.tar", labelled(0, 20), mode)
    assert images(path) == WANTED
    assert losses(path) == []


@pytest.mark.parametrize("kind", PACKERS)
def test_streams_that_were_joined_are_one_tar(tmp_path: Path, kind: str) -> None:
    plain = write_tar(tmp_path / "x.tar", labelled(0, 20)).read_bytes()
    half = len(plain) // 2 + 7
    pack = PACKERS[kind]
    path = tmp_path / "joined"
    path.write_bytes(pack(plain[:half]) + pack(plain[half:]) + bytes(8))
    assert images(path) == WANTED
    assert losses(path) == []


@pytest.mark.parametrize("kind", PACKERS)
def test_a_cut_or_damaged_stream_is_said_and_what_came_before_is_given(tmp_path: Path, kind: str) -> None:
    # bzip2 gives out whole blocks of 100 to 900 kB, so the tar must have several of them.
    members = [(f"{seed}.jpg", encoded(seed, width=900, height=700, quality=95)) for seed in range(8)]
    plain = write_tar(tmp_path / "x.tar", members).read_bytes()
    packed = bz2.compress(plain, 1) if kind == "bz2" else lzma.compress(plain)
    path = tmp_path / "x"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    assert [reason for reason, _ in losses(path)] == ["archive_cut"]
    assert [payload for _, payload, _ in images(path)] == [data for _, data in members[: len(images(path))]]
    assert len(images(path)) >= 3
    middle = len(packed) // 2
    path.write_bytes(packed[:middle] + bytes(64) + packed[middle + 64 :])
    assert losses(path)[-1][0] == "packed_damaged"
    path.write_bytes(packed + b"something else")
    assert [reason for reason, _ in losses(path)] == ["packed_damaged"]
    assert len(images(path)) == 8


@pytest.mark.parametrize("kind", PACKERS)
def test_what_grows_beyond_reason_is_left(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_bytes, "BOMB_BYTES", 1 << 20)
    path = tmp_path / "x"
    plain = write_tar(tmp_path / "t", [("a.jpg", encoded(0)), ("zeros.jpg", bytes(8 << 20))]).read_bytes()
    path.write_bytes(PACKERS[kind](plain))
    assert [name for name, _, _ in images(path)] == ["a.jpg"]
    assert losses(path)[-1][0] == "packed_bomb"


def test_members_of_a_zip_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "x.zip",
        [
            ("a.jpg", encoded(0)),
            ("big.jpg", bytes(2000)),
            ("more.tar", b"1"),
            ("film.mp4", b"0"),
            ("0f3b9c", encoded(1)),
            ("notes.txt", b"text"),
            ("__MACOSX/a.jpg", b"1"),
            ("folder/", b""),
        ],
        zipfile.ZIP_STORED,
    )
    assert [name for name, _, _ in images(path)] == ["a.jpg", "big.jpg", "0f3b9c"]
    assert losses(path) == [("unsupported_name", "more.tar"), ("unsupported_name", "film.mp4")]
    assert losses(path, max_bytes=1900)[0] == ("too_many_bytes", "big.jpg")
    data = bytearray(path.read_bytes())
    at = data.index(encoded(0)) + 100
    data[at] ^= 0xFF
    path.write_bytes(data)
    assert losses(path)[0] == ("zip_damaged", "a.jpg")  # by its checksum
    assert [name for name, _, _ in images(path)] == ["big.jpg", "0f3b9c"]


def test_a_zip_without_its_directory_and_a_locked_member_are_said(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", labelled(0, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert losses(path) == [("zip_damaged", "")]
    locked = bytearray(whole)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(signature) + flags] |= 1
    path.write_bytes(locked)
    assert losses(path) == [("encrypted", "000000.jpg")]
    assert len(images(path)) == 2


def test_a_zip_whose_members_share_their_bytes_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.zips.BOMB_BYTES", 1 << 20)
    path = write_zip(tmp_path / "x.zip", [(f"{number}.jpg", bytes(500_000)) for number in range(9)])
    assert losses(path) == [("packed_bomb", "2.jpg")]


def test_a_member_of_a_tar_whose_name_says_nothing_is_looked_at(tmp_path: Path) -> None:
    members = [
        ("a/0f3b9c", encoded(0)),
        ("a/0f3b9c.cls", b"4"),
        ("b.jpg_large", encoded(1)),
        ("c.img", encoded(2)),
        ("d.dng", b"II*\0" + bytes(600)),
        ("e.tar", b"1"),
        ("f.bin", b""),
        ("g.txt", b"text"),
        ("h.php", encoded(3)),
    ]
    for mode in ("w", "w:gz", "w:xz"):
        path = write_tar(tmp_path / "x.tar", members, mode)
        assert images(path) == [
            ("a/0f3b9c", encoded(0), b"4"),
            ("b.jpg_large", encoded(1), None),
            ("c.img", encoded(2), None),
            ("h.php", encoded(3), None),
        ]
        assert losses(path) == [("unsupported_name", name) for name in ("d.dng", "e.tar", "f.bin")]


def test_a_link_without_the_name_of_an_image_is_counted(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("0f3b9c")
        info.type = tarfile.SYMTYPE
        info.linkname = "elsewhere"
        tar.addfile(info)
    (tmp_path / "x.tar").write_bytes(out.getvalue())
    assert losses(tmp_path / "x.tar") == [("link", "0f3b9c")]
