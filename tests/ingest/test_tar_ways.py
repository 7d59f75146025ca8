"""A tar gives the same images, labels and reasons whether it is copied or read where it is."""

import io
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ingest.sources import open_source
from ingest.worker import run_ingest
from stream.errors import BadRecord
from stream.images.decode import decode_image
from stream.lanes import Position
from tests.ingest.made import encoded
from tests.ingest.made import settings as config_of
from tests.stream.make_shards import open_source as open_stream

IMAGES = [encoded(seed) for seed in range(8)]


@dataclass(frozen=True)
class Taken:
    """What became of a tar."""

    records: list[tuple[bytes, int | None, str | None]]
    skipped: dict[str, int]
    labels_lost: dict[str, int]


def taken(tar: Path, stream: Path, *, reference: bool, label_from: str = "", again: bool = False) -> Taken:
    config = config_of(reencode="never", short_side=0, label_from=label_from, keep_duplicates=again)
    source = open_source(str(tar), label_from=label_from, max_bytes=config.max_bytes)
    report = run_ingest(source, str(stream), config, reference=reference, open_stream=True)
    assert report.found == report.written + sum(report.skipped.values())
    if not report.written:
        return Taken([], dict(report.skipped), dict(report.labels_lost))
    opened = open_stream(str(stream), lanes=1, window=1)
    entries = [entry for entry, _ in opened.read(Position(lane=0), 0)]
    opened.close()
    records = [entry.record for entry in sorted(entries, key=lambda entry: (entry.unit, entry.index))]
    assert None not in records
    return Taken(
        [(record.payload, record.label, record.label_name) for record in records if record is not None],
        dict(report.skipped),
        dict(report.labels_lost),
    )


def both_ways(tar: Path, folder: Path, *, label_from: str = "", again: bool = False) -> tuple[Taken, Taken]:
    """What is taken by copying, and by reading in place."""
    copied, read = (
        taken(tar, folder / way, reference=way == "read", label_from=label_from, again=again)
        for way in ("copied", "read")
    )
    return copied, read


def both(tar: Path, folder: Path, *, label_from: str = "") -> Taken:
    """The same, by either way."""
    copied, read = both_ways(tar, folder, label_from=label_from)
    assert read == copied
    return copied


def _decodes(payload: bytes) -> bool:
    """Whether an image can be used: of a tar that stays where it is no image is decoded."""
    try:
        decode_image(payload, max_pixels=10**6)
    except BadRecord:
        return False
    return True


ONLY_EOF = "only-eof.tar"


def test_odd_tars_give_the_same_by_either_way(test_data: Path, tmp_path: Path) -> None:
    tars = sorted((test_data / "tarmess").glob("*.tar*"))
    assert len(tars) == 30
    for tar in tars:
        if tar.name != ONLY_EOF:  # it holds nothing, which is an error by either way
            for label_from in ("", "parent"):
                both(tar, tmp_path / f"{tar.name}{label_from}", label_from=label_from)


FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KEYS = st.sampled_from(
    ["1", "2", "a/1", "v1.2/3", "cat/x", "ü" * 30 + "/" + "n" * 80, ".hidden", "__MACOSX/1"]
)
STEMS = st.sampled_from(["", "", ".left", ".right", ".a.b"])
MEMBERS = st.one_of(
    st.tuples(
        KEYS,
        STEMS,
        st.sampled_from([".jpg", ".JPG", ".png"]),
        st.sampled_from([*IMAGES, b""]),
    ),
    st.tuples(KEYS, STEMS, st.just(".cls"), st.sampled_from([b"1", b" 7\n", b"-1", b"cat", b"", b"\xff"])),
    st.tuples(
        KEYS,
        STEMS,
        st.just(".json"),
        st.sampled_from([
            b"{}", b'{"label": 3}', b'{"label_name": "dog"}', b'{"label": true, "label_name": 5}',
            b'{"label": ', b"[]", b'{"label": 99999999999, "label_name": ""}',
        ]),
    ),
    st.tuples(KEYS, STEMS, st.sampled_from([".txt", "", "."]), st.just(b"caption")),
)  # fmt: skip
KINDS = st.sampled_from([tarfile.REGTYPE] * 12 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"5"])
DAMAGES = ("zeros", "noise", "cut", "byte", "size", "sparse", "zeros between", "junk")


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """One archive, or several joined, of members in any order, with damages."""
    whole = b""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=draw(st.sampled_from(FORMS))) as tar:
            for key, stem, extension, data in draw(st.lists(MEMBERS, max_size=12)):
                info = tarfile.TarInfo(key + stem + extension)
                info.type = draw(KINDS)
                info.size = len(data) if info.isreg() else 0
                tar.addfile(info, io.BytesIO(data))
        whole += file.getvalue()
    bad = bytearray(whole)
    for kind in draw(st.lists(st.sampled_from(DAMAGES), max_size=2)):
        at = 512 * draw(st.integers(0, max(0, len(bad.rstrip(b"\0")) // 512)))
        if kind == "zeros":
            bad[at : at + 1024] = bytes(1024)
        elif kind == "zeros between":
            bad[at:at] = bytes(512 * draw(st.integers(1, 25)))
        elif kind == "noise":
            bad[at : at + 512] = draw(st.randoms(use_true_random=False)).randbytes(512)
        elif kind == "cut":
            del bad[draw(st.integers(0, len(bad))) :]
        elif kind == "junk":
            bad += draw(st.randoms(use_true_random=False)).randbytes(700)
        elif len(bad) >= at + 512:
            _alter_header(bad, at, kind, draw)
    return bytes(bad)


def _alter_header(bad: bytearray, at: int, kind: str, draw: st.DrawFn) -> None:
    head = bad[at : at + 512]
    if kind == "byte":
        head[draw(st.integers(0, 511))] ^= 1
    else:
        if kind == "size":
            head[124:136] = b"%011o\0" % draw(st.sampled_from([0, 1, 600, 5000, 8**11 - 1]))
        else:
            head[156:157], head[482:483] = b"S", draw(st.sampled_from([b"\0", b"\1"]))
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
    bad[at : at + 512] = head


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=archives(), label_from=st.sampled_from(["", "parent"]), again=st.booleans())
def test_any_tar_gives_the_same_by_either_way(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, label_from: str, again: bool
) -> None:
    folder = tmp_path_factory.mktemp("ways")
    (folder / "sound.tar").write_bytes(_tar([("zz.jpg", encoded(99))]))
    # A sound tar beside it: a source without any image is an error.
    (folder / "made.tar").write_bytes(data)
    copied, read = both_ways(folder / "*.tar", folder, label_from=label_from, again=again)
    assume(all(_decodes(payload) for payload, _, _ in read.records))  # a damage may lie inside an image
    assert read == copied


def _tar(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_each_image_of_a_sample_is_a_record_by_either_way(tmp_path: Path) -> None:
    members = [("1.left.jpg", IMAGES[0]), ("1.right.jpg", IMAGES[1]), ("1.right.cls", b"5"), ("1.cls", b"4")]
    (tmp_path / "pairs.tar").write_bytes(_tar(members))
    assert both(tmp_path / "pairs.tar", tmp_path) == Taken(
        [(IMAGES[0], 4, None), (IMAGES[1], 5, None)], {}, {}
    )


@pytest.mark.parametrize("first", ["images", "labels"])
def test_labels_apart_from_their_images_are_found_by_either_way(tmp_path: Path, first: str) -> None:
    images = [(f"{number}.jpg", IMAGES[number]) for number in range(4)]
    labels = [(f"{number}.cls", str(number).encode()) for number in range(4)]
    members = images + labels if first == "images" else labels + images
    (tmp_path / "apart.tar").write_bytes(_tar(members))
    records = both(tmp_path / "apart.tar", tmp_path).records
    assert [label for _, label, _ in records] == [0, 1, 2, 3]


def test_the_same_content_is_taken_once_by_either_way(tmp_path: Path) -> None:
    members = [("1.jpg", IMAGES[0]), ("1.jpg", IMAGES[0]), ("2.jpg", IMAGES[0]), ("1.jpg", IMAGES[1])]
    (tmp_path / "double.tar").write_bytes(_tar(members))
    found = both(tmp_path / "double.tar", tmp_path)
    assert [payload for payload, _, _ in found.records] == IMAGES[:2]
    assert Counter(found.skipped) == {"duplicate": 2}


def test_folders_as_labels_are_kept_with_a_tar_that_is_read_where_it_is(tmp_path: Path) -> None:
    members = [("a/cat/1.jpg", IMAGES[0]), ("7/2.jpg", IMAGES[1]), ("3.jpg", IMAGES[2])]
    (tmp_path / "classes.tar").write_bytes(_tar(members))
    found = both(tmp_path / "classes.tar", tmp_path, label_from="parent")
    assert [record[1:] for record in found.records] == [(None, "cat"), (7, "7"), (None, None)]
    assert found.labels_lost == {"bad_label": 1}
