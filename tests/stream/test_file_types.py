import io
import tarfile
import zipfile

import pytest
from PIL import Image

from stream.file_types import FileKind, ending_of, kind_by_name, kind_of
from stream.record import EXTENSIONS


def head_of(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(out, kind)
    return out.getvalue()[:512]


def tar_head() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x.jpg"))
    return out.getvalue()[:512]


def zip_head() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        pack.writestr("x", b"1")
    return out.getvalue()[:512]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/b.d/x.jpg", FileKind.IMAGE),
        ("x.JPG", FileKind.IMAGE),
        ("x.jpg?w=300", FileKind.IMAGE),
        ("x.jpg?to=b.png.php", FileKind.IMAGE),
        ("x.jpg_large", FileKind.IMAGE),
        ("x.jpeg:large", FileKind.IMAGE),
        ("x.jpg.1", FileKind.IMAGE),
        ("x.jpg (2)", FileKind.IMAGE),
        ("x.img", FileKind.IMAGE),
        ("x.tar", FileKind.ARCHIVE),
        ("x.tar.bz2", FileKind.ARCHIVE),
        ("x.TXZ", FileKind.ARCHIVE),
        ("pictures.jpg.zip", FileKind.ARCHIVE),
        ("x.jpg.txt", FileKind.BESIDE),
        ("x.json", FileKind.BESIDE),
        ("labels.tsv.gz", FileKind.BESIDE),
        ("x.d.gz", None),
        ("x.jpg_meta.csv", FileKind.BESIDE),
        ("x.jpgs", None),
        ("jpg", None),
        ("x.jpg/0f3b9c", None),
        ("x.jpg_old.gz", None),
        ("x.cr2", None),
        ("", None),
    ],
)
def test_a_name_promises_an_image_an_archive_text_or_nothing(name: str, kind: FileKind | None) -> None:
    assert kind_by_name(name) is kind


@pytest.mark.parametrize("ending", [*EXTENSIONS.values(), "img"])
def test_the_names_that_our_own_shards_use_are_those_of_images(ending: str) -> None:
    assert kind_by_name(f"0-000000-0123456789abcdef.{ending}") is FileKind.IMAGE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "DDS", "SUN"])
@pytest.mark.parametrize("name", ["0f3b9c", "x.php", "x.part", "x.NEF"])
def test_where_a_name_says_nothing_the_first_bytes_tell_an_image(kind: str, name: str) -> None:
    # Pillow reads Sun rasters and does not write them.
    head = b"\x59\xa6\x6a\x95" + bytes(28) if kind == "SUN" else head_of(kind)
    wanted = FileKind.UNSUPPORTED if (kind, name) == ("TIFF", "x.NEF") else FileKind.IMAGE
    assert kind_of(name, head) is wanted


def test_a_camera_file_without_a_name_is_not_taken_for_a_tiff() -> None:
    assert kind_of("0f3b9c", b"II*\0\x10\0\0\0CR\x02\0") is FileKind.UNSUPPORTED


def test_archives_without_a_name_are_told_by_their_first_bytes() -> None:
    assert kind_of("0f3b9c", tar_head()) is FileKind.ARCHIVE
    assert kind_of("x.tar.1", tar_head()) is FileKind.ARCHIVE
    assert kind_of("0f3b9c", b"\x1f\x8b\x08", tar_head()) is FileKind.ARCHIVE
    assert kind_of("0f3b9c", b"\x1f\x8b\x08", head_of("JPEG")) is FileKind.UNSUPPORTED
    assert kind_of("0f3b9c", zip_head()) is FileKind.ARCHIVE
    assert kind_of("letter.docx", zip_head()) is FileKind.UNSUPPORTED


@pytest.mark.parametrize("head", [b"", b"\0" * 512, b"<html>", b"\x1f\x8b\x08", b"PK\x03", b"%PDF-1.7"])
def test_whatever_else_it_is_is_unsupported(head: bytes) -> None:
    assert kind_of("0f3b9c", head) is FileKind.UNSUPPORTED


def test_a_promise_of_the_name_is_believed_before_the_bytes() -> None:
    assert kind_of("x.jpg", b"<html>") is FileKind.IMAGE
    assert kind_of("x.txt", head_of("JPEG")) is FileKind.BESIDE


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a/x.CR2", ".cr2"),
        ("x.tar.zst", ".tar.zst"),
        ("x.jpg.1", ".1"),
        ("0f3b9c", ""),
        (".profile", ""),
        ("a.b/x", ""),
        ("x.", ""),
        ("x.0123456789abcdef", ""),
        ("x.a b", ""),
    ],
)
def test_endings_are_counted_by_what_a_person_would_call_them(name: str, ending: str) -> None:
    assert ending_of(name) == ending
