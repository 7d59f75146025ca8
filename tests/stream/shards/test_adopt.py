"""Foreign tars: adopted where they are, whatever is wrong with them, with every loss counted."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.errors import StreamError, StreamSealed
from stream.lanes import Position
from stream.record import Record, sha256_of
from stream.shards.adopt import AdoptOptions, adopt_tar
from stream.shards.commits import Commit
from stream.shards.manifest import Manifest
from stream.source import Entry
from stream.storage import open_store
from stream.tar import DIGEST, SKIP, StoredTar, TarFile, TarLoss, open_tar, parse_header, walk_tar
from stream.tar_samples import TarImage, group_tar, run_through
from tests.stream.make_shards import files_below, forget_memory, image_bytes, memory_url, open_source


@pytest.fixture
def memory() -> Iterator[str]:
    yield memory_url()
    forget_memory()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.open(str(tmp_path / "stream"), create=True)


def tar_bytes(members: list[tuple[str, bytes]], *, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def adopted(manifest: Manifest, data: bytes) -> Commit:
    path = Path(manifest.url).with_name("foreign.tar")
    path.write_bytes(data)
    return adopt_tar(manifest, str(path), source_id="tars", source_position=1)


def entries_of(url: str) -> list[Entry]:
    source = open_source(url, lanes=1, window=1)
    entries = [entry for entry, _ in source.read(Position(lane=0), 0)]
    source.close()
    return sorted(entries, key=lambda entry: (entry.unit, entry.index))


def records_of(url: str) -> list[Record]:
    return [entry.record for entry in entries_of(url) if entry.record is not None]


def test_a_tar_of_webdataset_is_read_where_it_is(manifest: Manifest, tmp_path: Path) -> None:
    data = tar_bytes(
        [
            ("a/0001.jpg", image_bytes(1)),
            ("a/0001.cls", b"4"),
            ("a/0001.json", b'{"label_name": "cat", "width": 5, "height": 6}'),
            ("a/0002.PNG", image_bytes(2)),
            ("a/0003.txt", b"a caption alone"),
        ]
    )
    commit = adopted(manifest, data)
    assert (commit.n, commit.bytes, commit.uri) == (2, len(data), str(tmp_path / "foreign.tar"))
    assert commit.accounts.found == commit.accounts.written == 2
    first, second = records_of(manifest.url)
    assert (first.payload, first.label, first.label_name) == (image_bytes(1), 4, "cat")
    assert (first.width, first.height) == (5, 6)
    assert second.payload == image_bytes(2)
    assert first.source == f"{commit.uri}#a/0001.jpg"
    assert not any(name.endswith(".tar") for name in files_below(tmp_path / "stream"))


def test_a_tar_on_a_remote_store_is_read_by_ranges(memory: str) -> None:
    members = [(f"{number:04d}.jpg", image_bytes(number, size=5000)) for number in range(200)]
    open_store(memory).create("tars/x.tar", tar_bytes(members))
    stream = f"{memory}/stream"
    commit = adopt_tar(Manifest.open(stream, create=True), f"{memory}/tars/x.tar", source_id="tars")
    assert commit.n == 200
    assert [record.payload for record in records_of(stream)] == [data for _, data in members]


def test_the_digest_of_another_form_of_the_image_is_no_damage(manifest: Manifest) -> None:
    own, other = image_bytes(1), sha256_of(b"what was downloaded, before it was resized")
    adopted(
        manifest,
        tar_bytes(
            [
                ("1.jpg", own),
                ("1.json", json.dumps({"sha256": other, "url": "http://a/b.jpg"}).encode()),
                ("2.jpg", own),
                ("2.json", json.dumps({"sha256": sha256_of(own)}).encode()),
            ]
        ),
    )
    first, second = records_of(manifest.url)
    assert (first.payload, first.sha256, first.source) == (own, sha256_of(own), "http://a/b.jpg")
    assert second.sha256 == sha256_of(own)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["short.jpg", "d" * 90 + "/" + "n" * 90 + ".jpg", "x" * 96 + ".jpg"])
def test_every_form_of_name_is_understood(manifest: Manifest, kind: int, name: str) -> None:
    stem = name.removesuffix(".jpg")
    data = tar_bytes([(name, image_bytes(1)), (f"{stem}.cls", b"3")], kind=kind)
    assert adopted(manifest, data).n == 1
    assert records_of(manifest.url)[0].label == 3


def test_members_of_a_sample_need_not_be_neighbours(manifest: Manifest) -> None:
    images = [(f"{number}.jpg", image_bytes(number, size=200_000)) for number in range(3)]
    labels = [(f"{number}.cls", str(number).encode()) for number in range(3)]
    adopted(manifest, tar_bytes(images + labels))
    assert [record.label for record in records_of(manifest.url)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "extensions", "skipped"),
    [
        (["1.jpg", "1.jpg"], ["jpg", "jpg"], []),
        (["1.left.jpg", "1.right.jpg"], ["jpg", "jpg"], []),
        (["1.mask.png", "1.jpg"], ["png", "jpg"], []),
        (["v1.2/1.jpg", "v1.2/2.jpg"], ["jpg", "jpg"], []),
        (["._1.jpg", ".DS_Store", "__MACOSX/1.jpg", ".jpg", "a/.b.jpg", ".a/b.jpg"], [], []),
        (["jpg", "1.", "1.mp4"], [], ["unsupported_name"] * 3),
        (["1.JPG", "1.JPEG"], ["jpg", "jpeg"], []),
        (["1.txt", "2.json", "2.cls"], [], ["no_image"]),
        (["/etc/1.jpg", "../../1.jpg", "a\nb\x01.jpg"], ["jpg", "jpg", "jpg"], []),
    ],
)
def test_members_make_samples_by_their_names(
    names: list[str], extensions: list[str], skipped: list[str]
) -> None:
    data = StoredTar(InMemory(tar_bytes([(name, b"x") for name in names])))
    events = run_through(group_tar(data, max_bytes=10))
    assert [event.extension for event in events if isinstance(event, TarImage)] == extensions
    assert [event.reason for event in events if isinstance(event, TarLoss)] == skipped


def test_an_empty_image_is_counted_and_its_label_dropped(manifest: Manifest) -> None:
    commit = adopted(manifest, tar_bytes([("1.jpg", b""), ("1.cls", b"1"), ("2.jpg", image_bytes(2))]))
    assert (commit.n, dict(commit.accounts.skipped)) == (1, {"empty": 1})


def test_a_tar_without_images_is_committed_with_its_accounts(manifest: Manifest) -> None:
    commit = adopted(manifest, tar_bytes([("1.jpg", b""), ("2.txt", b"x")]))
    assert (commit.n, commit.uri, commit.accounts.found) == (0, "", 1)
    assert commit.source_position == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x1f\x8b" + bytes(600), "compressed with gzip"),
        (b"BZh9" + bytes(600), "compressed with bzip2"),
    ],
)
def test_a_compressed_tar_is_refused(manifest: Manifest, data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        adopted(manifest, data)
    assert len(manifest) == 0
    assert files_below(Path(manifest.url)) == {"stream.json"}


@pytest.mark.parametrize(("data", "reason"), [(b"", "empty"), (b"<html>" * 200, "not_an_archive")])
def test_what_is_no_tar_is_counted(manifest: Manifest, data: bytes, reason: str) -> None:
    commit = adopted(manifest, data)
    assert (commit.n, dict(commit.accounts.skipped)) == (0, {reason: 1})


def test_a_tar_that_is_not_there_is_one_clear_error(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"cannot read .*no\.tar: No such file"):
        adopt_tar(manifest, str(tmp_path / "no.tar"), source_id="tars")


def test_a_sealed_stream_adopts_nothing(manifest: Manifest, tmp_path: Path) -> None:
    manifest.seal()
    with pytest.raises(StreamSealed):
        adopted(manifest, tar_bytes([("1.jpg", image_bytes(1))]))
    assert files_below(tmp_path / "stream" / "index") == set()


SOUND = tar_bytes([(f"{number}.jpg", image_bytes(number, size=700)) for number in range(6)])


class InMemory:
    """A file of bytes, which remembers the longest read that anybody asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.longest = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.longest = max(self.longest, length)
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


def walked(data: bytes) -> list[TarFile | TarLoss]:
    file = InMemory(data)
    found = list(walk_tar(open_tar(file, "x.tar"), lambda _name, size: SKIP if size % 2 else DIGEST))
    assert file.longest <= 1 << 20, "a size was believed"
    return found


def files(found: list[TarFile | TarLoss]) -> list[str]:
    return [entry.name for entry in found if isinstance(entry, TarFile) and not entry.reason]


@settings(max_examples=150)
@given(data=st.data())
def test_no_damage_of_a_tar_makes_a_file_where_none_is(data: st.DataObject) -> None:
    bad = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["byte", "block", "zeros", "cut", "swap"]))
        block = 512 * data.draw(st.integers(0, len(bad) // 512))
        if kind == "byte":
            at = data.draw(st.integers(0, max(len(bad) - 1, 0)))
            bad[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "block":
            bad[block : block + 512] = data.draw(st.randoms(use_true_random=False)).randbytes(512)
        elif kind == "zeros":
            bad[block : block + 512] = bytes(512)
        elif kind == "cut":
            del bad[data.draw(st.integers(0, len(bad))) :]
        else:
            bad[block:block] = bad[:512]
    try:
        found = walked(bytes(bad))
    except StreamError:  # it begins like a compressed file
        return
    for entry in found:
        if isinstance(entry, TarFile):
            assert 512 <= entry.offset <= entry.offset + entry.size <= len(bad)
            assert parse_header(bytes(bad[entry.offset - 512 : entry.offset])) is not None


@settings(max_examples=100)
@given(
    size=st.binary(min_size=12, max_size=12), kind=st.sampled_from([b"0", b"x", b"L", b"S", b"5", b"7", b"g"])
)
def test_a_size_that_lies_is_never_believed(size: bytes, kind: bytes) -> None:
    second = 512 + 1024  # the first member has 704 bytes
    head = bytearray(SOUND[second : second + 512])
    head[124:136] = size
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    found = walked(SOUND[:second] + bytes(head) + SOUND[second + 512 :])
    assert isinstance(found[0], TarFile)
    assert (found[0].name, found[0].offset, found[0].size) == ("0.jpg", 512, 704)
    for entry in found:
        if isinstance(entry, TarFile):
            assert entry.offset + entry.size <= len(SOUND)


@settings(max_examples=60)
@given(
    pax=st.binary(max_size=120) | st.from_regex(rb"([0-9]{1,3} (path|size|GNU.sparse.map)=[^\n]{0,9}\n){1,3}")
)
def test_extended_headers_of_any_content_do_no_harm(pax: bytes) -> None:
    data = bytearray(tar_bytes([("pax", pax)]))
    head = data[:512]
    head[156:157] = b"x"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    whole = bytes(head) + bytes(data[512 : 512 + 512 * -(-len(pax) // 512)]) + SOUND
    found = walked(whole)
    # The first member may have got another name, or be of two sizes; it is still there or told, and so are
    # those behind it, but for one that its size reaches over.
    assert files(found)[-4:] == [f"{number}.jpg" for number in range(2, 6)]
    first = found[0]
    assert isinstance(first, TarLoss) or first.reason in {"odd_size", "sparse", "not_a_file", ""}
    assert first.reason or (isinstance(first, TarFile) and first.size == 704)


def test_a_sparse_file_is_told_and_its_neighbours_are_read() -> None:
    sparse = bytearray(SOUND[:512])
    sparse[156:157] = b"S"
    sparse[482:483] = b"\x01"  # the map goes on in one more block
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    found = walked(bytes(sparse) + bytes(512) + SOUND[512:])
    assert (found[0].name, found[0].reason) == ("0.jpg", "sparse")
    assert files(found) == [f"{number}.jpg" for number in range(1, 6)]


def test_a_prefix_is_believed_of_posix_headers_only() -> None:
    block = bytearray(tarfile.TarInfo("1.jpg").tobuf(tarfile.GNU_FORMAT))
    block[345:356] = b"15000000000"  # GNU tar keeps a time there
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    header = parse_header(bytes(block))
    assert header is not None
    assert header.name == "1.jpg"


def test_a_second_archive_behind_the_first_is_read_too() -> None:
    assert files(walked(SOUND + SOUND)) == [f"{number}.jpg" for number in range(6)] * 2


@pytest.mark.parametrize(
    ("name", "labels", "bad"),
    [
        ("bad-labels.tar", 5, 7),
        ("bad-json.tar", 6, 6),
        ("shouting.tar", 12, 0),
        ("interleaved.tar", 12, 0),
        ("ok.tar", 12, 0),
    ],
)
def test_labels_of_odd_tars_are_taken_or_told(
    test_data: Path, manifest: Manifest, name: str, labels: int, bad: int
) -> None:
    adopt_tar(manifest, str(test_data / "tarmess" / name), source_id="x")
    records = records_of(manifest.url)
    assert sum(record.label is not None for record in records) == labels
    assert sum(record.bad_label for record in records) == bad


def test_no_name_of_an_evil_tar_becomes_a_file(test_data: Path, manifest: Manifest, tmp_path: Path) -> None:
    adopt_tar(manifest, str(test_data / "tarmess" / "evil-names.tar"), source_id="x")
    assert len(records_of(manifest.url)) == 12
    written = files_below(tmp_path)
    assert {Path(name).parts[1] for name in written} == {"stream.json", "commits", "index"}
    assert not Path("/etc/evil.jpg").exists()


def options(**fields: object) -> AdoptOptions:
    return AdoptOptions(**fields)  # type: ignore[arg-type]


def test_a_tar_is_taken_once_however_it_is_spelled(manifest: Manifest, tmp_path: Path) -> None:
    data = tar_bytes([(f"{number}.jpg", image_bytes(number)) for number in range(4)])
    assert adopted(manifest, data).n == 4
    (tmp_path / "link.tar").symlink_to(tmp_path / "foreign.tar")
    spellings = ("foreign.tar", "link.tar", "stream/../foreign.tar")
    for spelling in spellings:
        for digests in (True, False):
            again = adopt_tar(
                manifest, f"{tmp_path}/{spelling}", source_id=spelling, options=options(digests=digests)
            )
            assert (again.n, dict(again.accounts.skipped)) == (0, {"duplicate": 4})


def test_of_a_tar_that_grew_what_is_new_is_taken(manifest: Manifest) -> None:
    members = [(f"{number}.jpg", image_bytes(number)) for number in range(6)]
    adopted(manifest, tar_bytes(members[:4]))
    grown = adopted(manifest, tar_bytes(members))
    assert (grown.n, dict(grown.accounts.skipped)) == (2, {"duplicate": 4})
    assert [record.payload for record in records_of(manifest.url)] == [data for _, data in members]


def test_another_tar_at_the_same_place_is_taken(manifest: Manifest) -> None:
    adopted(manifest, tar_bytes([("1.jpg", image_bytes(1, size=700))]))
    assert adopted(manifest, tar_bytes([("1.jpg", image_bytes(2, size=700))])).n == 1


def test_an_image_that_changed_since_its_tar_was_adopted_is_of_no_use(
    manifest: Manifest, tmp_path: Path
) -> None:
    data = bytearray(tar_bytes([(f"{number}.jpg", image_bytes(number, size=700)) for number in range(3)]))
    adopted(manifest, bytes(data))
    data[512 + 1536 + 300] ^= 1
    (tmp_path / "foreign.tar").write_bytes(data)
    assert [entry.reason for entry in entries_of(manifest.url)] == ["", "checksum", ""]


def test_without_digests_nothing_is_read_and_nothing_is_known(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "foreign.tar"
    path.write_bytes(tar_bytes([("1.jpg", image_bytes(1))]))
    adopt_tar(manifest, str(path), source_id="tars", options=options(digests=False))
    assert [record.sha256 for record in records_of(manifest.url)] == [""]


def test_an_image_above_the_limit_is_counted_as_when_it_is_copied(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "foreign.tar"
    path.write_bytes(tar_bytes([("1.jpg", image_bytes(1, size=3000)), ("2.jpg", image_bytes(2, size=100))]))
    commit = adopt_tar(manifest, str(path), source_id="tars", options=options(max_bytes=2000))
    assert (commit.n, dict(commit.accounts.skipped)) == (1, {"too_many_bytes": 1})


def test_labels_given_at_adoption_are_read_from_the_index(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "foreign.tar"
    members = [("cat/1.jpg", image_bytes(1)), ("7/2.jpg", image_bytes(2)), ("7/2.cls", b"3")]
    path.write_bytes(tar_bytes([*members, ("3.jpg", image_bytes(3)), ("3.cls", b"5")]))

    def label(image: TarImage) -> tuple[int | None, str | None, bool]:
        folder = image.name.rpartition("/")[0]
        return (int(folder) if folder.isdecimal() else None), folder or None, False

    adopt_tar(manifest, str(path), source_id="tars", options=options(label=label, keep_labels=True))
    labels = [(record.label, record.label_name) for record in records_of(manifest.url)]
    assert labels == [(None, "cat"), (7, "7"), (5, None)]
