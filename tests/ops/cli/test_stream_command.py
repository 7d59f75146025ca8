"""`swavstream stream`, called as a person calls it."""

import json
import time
from pathlib import Path

import pytest

from ops.cli.main import run
from stream.shards.adopt import AdoptOptions, adopt_tar
from stream.shards.index import decode_index
from stream.shards.low_watermark import Floor, write_floor
from stream.shards.manifest import Manifest, commit_name
from stream.shards.readers import ReaderRecord, write_reader
from stream.shards.segments import BLOCKS, segment_name
from tests.ingest.made import encoded, folder_of, ingest
from tests.stream.fake_source import picture
from tests.stream.make_shards import append_shards, make_stream
from tests.stream.shards.test_manifest import fill
from tests.stream.shards.test_segments import new_commit

SIZES = (5, 3, 0, 4)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    make_stream(str(tmp_path / "stream"), SIZES, image=picture)
    return tmp_path / "stream"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run(arguments)
    return code, capsys.readouterr().out


def damages(capsys: pytest.CaptureFixture[str], stream: Path, *more: str) -> list[str]:
    """Names of what is damaged; none when the exit code is 0."""
    code, out = told(capsys, "stream", "verify", str(stream), "--json", *more)
    found = [damage["name"] for damage in json.loads(out)["damages"]]
    assert code == (78 if found else 0)
    return found


def tar_of(stream: Path, number: int) -> Path:
    return stream / Manifest.open(str(stream)).entry(number).uri


def test_show_tells_what_is_pruned_and_who_reads(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_reader(
        Manifest.open(str(stream)).store, ReaderRecord(run="abcd", where="here:/run", first=1, used=6)
    )
    assert told(capsys, "stream", "prune", str(stream), "--keep-bytes", "1")[0] == 0
    code, out = told(capsys, "stream", "show", str(stream))
    assert code == 0
    assert "records 12, the first 5 of them pruned" in out
    assert "run     abcd: 6 records unread, needs commits from 1 on" in out
    body = json.loads(told(capsys, "stream", "show", str(stream), "--json")[1])
    assert (body["records"], body["pruned_records"], body["first_commit"], body["shards"]) == (12, 5, 1, 2)
    assert [reader["run"] for reader in body["readers"]] == ["abcd"]


def test_show_sums_what_is_kept_over_segments_and_single_commits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.open(str(tmp_path), create=True)
    for number in range(BLOCKS[1] + 9):
        manifest.commit(new_commit(number, n=number % 7))
    write_floor(manifest.store, Floor(first=5, records=manifest.before(5), swept=5))
    kept = [manifest.entry(number) for number in range(5, len(manifest))]
    body = json.loads(told(capsys, "stream", "show", str(tmp_path), "--json")[1])
    assert body["bytes"] == sum(commit.bytes for commit in kept) > 0
    assert body["shards"] == sum(commit.n > 0 for commit in kept)
    assert (body["oldest_commit"], body["newest_commit"]) == (kept[0].created, kept[-1].created)


def test_show_of_a_stream_without_a_commit_knows_no_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Manifest.open(str(tmp_path), create=True)
    body = json.loads(told(capsys, "stream", "show", str(tmp_path), "--json")[1])
    assert (body["bytes"], body["oldest_commit"], body["newest_commit"]) == (0, None, None)


def test_prune_says_who_holds_what_and_forgets_on_demand(
    stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = ReaderRecord(run="abcd", where="here:/run", first=1, seen=time.time())
    write_reader(Manifest.open(str(stream)).store, reader)
    code, out = told(capsys, "stream", "prune", str(stream), "--keep-bytes", "1", "--dry-run")
    assert (code, "would prune 5 records in 1 commits" in out) == (0, True)
    code, out = told(capsys, "stream", "prune", str(stream), "--keep-bytes", "1")
    assert "pruned 5 records in 1 commits; 1 shards" in out
    assert "more would go, but run abcd (here:/run" in out
    forget = ["stream", "prune", str(stream), "--keep-bytes", "1", "--forget", "ab"]
    assert run(forget) == 1
    assert "run abcd was seen 0 s ago (here:/run): stop it first" in capsys.readouterr().err
    assert run([*forget, "--dry-run"]) == 2
    body = json.loads(told(capsys, *forget, "--force", "--json")[1])
    assert (body["forgotten"], body["records"], body["first"], body["held_by"]) == ("abcd", 7, 4, None)


@pytest.mark.parametrize("command", [["show"], ["verify"], ["prune", "--keep-hours", "1"]])
def test_a_topic_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run(["stream", *command, "kafka://nowhere:9092/images"]) == 2
    assert "is a Kafka topic" in capsys.readouterr().err


def test_prune_without_a_limit_says_what_to_give(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stream", "prune", str(stream)]) == 2
    assert "--keep-hours" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [["--keep-hours", "-1"], ["--keep-bytes", "-1"], ["--keep-hours", "nan"]])
def test_a_limit_out_of_bounds_is_refused(
    stream: Path, capsys: pytest.CaptureFixture[str], limit: list[str]
) -> None:
    assert run(["stream", "prune", str(stream), *limit]) == 1
    assert "must be >= 0" in capsys.readouterr().err


def test_a_whole_stream_has_no_damage(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert damages(capsys, stream) == []
    assert damages(capsys, stream, "--deep") == []
    code, out = told(capsys, "stream", "verify", str(stream))
    assert (code, out) == (0, f"{stream}: 4 commits, 12 records, no damage\n")


def test_a_pruned_stream_has_no_damage(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "stream", "prune", str(stream), "--keep-bytes", "1")
    assert damages(capsys, stream, "--deep") == []


def test_a_shard_that_is_gone_is_named(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar_of(stream, 1).unlink()
    assert damages(capsys, stream) == [f"commit 1, {Manifest.open(str(stream)).entry(1).uri}"]


def test_a_shard_that_is_cut_is_named(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tar_of(stream, 3)
    place.write_bytes(place.read_bytes()[:-1])
    assert damages(capsys, stream) == [f"commit 3, shards/{place.name}"]


def test_a_byte_that_changed_is_seen_by_reading_all(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tar_of(stream, 0)
    data = bytearray(place.read_bytes())
    data[700] ^= 1
    place.write_bytes(data)
    assert damages(capsys, stream) == []
    assert damages(capsys, stream, "--deep") == [f"commit 0, shards/{place.name}"]


def test_an_index_that_is_damaged_or_gone_is_named(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest.open(str(stream))
    first, second = manifest.entry(0).index_uri, manifest.entry(1).index_uri
    (stream / first).unlink()
    data = (stream / second).read_bytes()
    (stream / second).write_bytes(data[:-1])
    assert damages(capsys, stream) == [f"commit 0, {first}", f"commit 1, {second}"]


def test_an_adopted_tar_that_changed_is_named_by_reading_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_stream(str(tmp_path / "one"), (5,), image=picture)
    tar = tmp_path / "one" / one.entry(0).uri
    manifest = Manifest.open(str(tmp_path / "two"), create=True)
    adopt_tar(manifest, str(tar), source_id="tars")
    assert damages(capsys, tmp_path / "two", "--deep") == []
    data = bytearray(tar.read_bytes())
    data[:512] = bytes(512)
    tar.write_bytes(data)
    assert damages(capsys, tmp_path / "two", "--deep") == [f"commit 0, {tar}"]


def half_of_some(number: int) -> bytes:
    """Of every third image the first half of its codes, closed by an end marker."""
    whole = encoded(number)
    return whole if number % 3 else whole[: whole.index(b"\xff\xda") + 60] + b"\xff\xd9"


def test_an_image_that_was_half_when_it_was_written_is_seen_by_decoding_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_stream(str(tmp_path / "one"), (5, 2), image=half_of_some)
    assert damages(capsys, tmp_path / "one") == []
    code, out = told(capsys, "stream", "verify", str(tmp_path / "one"), "--deep")
    assert code == 78
    assert "commit 0, shards/" in out
    assert "2 of 5 records cannot be used: 0 truncated, 3 truncated" in out
    assert "1 of 2 records cannot be used: 1 truncated" in out
    manifest = Manifest.open(str(tmp_path / "two"), create=True)
    adopt_tar(manifest, str(tmp_path / "one" / one.entry(0).uri), source_id="tars")
    out = told(capsys, "stream", "verify", str(tmp_path / "two"), "--deep")[1]
    assert "2 of 5 records cannot be used: 0 truncated, 3 truncated" in out


@pytest.mark.parametrize("digests", [True, False])
def test_an_image_that_changed_is_told_or_said_to_be_unchecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], digests: bool
) -> None:
    one = make_stream(str(tmp_path / "one"), (5,), image=encoded)
    tar = tmp_path / "one" / one.entry(0).uri
    manifest = Manifest.open(str(tmp_path / "two"), create=True)
    adopt_tar(manifest, str(tar), source_id="tars", options=AdoptOptions(digests=digests))
    row = decode_index(manifest.store.read(manifest.entry(0).index_uri), name="x", n=5).row(2)
    data = bytearray(tar.read_bytes())
    data[data.index(b"\xff\xdb", row.image.offset) + 40] ^= 2  # a quantization table: it still decodes
    tar.write_bytes(data)
    assert damages(capsys, tmp_path / "two") == []
    assert damages(capsys, tmp_path / "two", "--deep") == ([f"commit 0, {tar}"] if digests else [])
    code = run(["stream", "verify", str(tmp_path / "two"), "--deep"])
    told = capsys.readouterr().out
    assert (code, "1 of 5 records cannot be used: 2 checksum" in told) == (
        (78, True) if digests else (0, False)
    )
    assert ("content not checked: 5 records" in told) == (not digests)


def test_a_commit_that_is_damaged_is_the_damage_of_the_manifest(
    stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = stream / commit_name(2)
    place.write_text(place.read_text().replace('"before":8', '"before":9'))
    assert damages(capsys, stream) == ["manifest"]


def test_a_row_that_is_damaged_in_a_segment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.open(str(tmp_path), create=True)
    fill(manifest, 2 * BLOCKS[1])
    place = tmp_path / segment_name(1, 0)
    data = bytearray(place.read_bytes())
    data[-3] ^= 1
    place.write_bytes(data)
    names = damages(capsys, tmp_path)
    assert names[0] == "segment of commits 0 and on"
    assert "commit 255" in names


def test_an_entry_of_a_reader_that_is_damaged_is_named(
    stream: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stream / "readers").mkdir()
    (stream / "readers" / "ab.json").write_text("[]")
    assert damages(capsys, stream) == ["readers"]


def test_verify_changes_nothing(stream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in stream.rglob("*")}
    damages(capsys, stream, "--deep")
    assert {path: path.stat().st_mtime_ns for path in stream.rglob("*")} == before


def test_more_can_be_ingested_after_a_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make_stream(str(tmp_path / "open"), SIZES, seal=False, image=picture)
    told(capsys, "stream", "prune", str(tmp_path / "open"), "--keep-bytes", "1")
    append_shards(manifest, (2,), iter(range(100, 102)), image=picture)
    assert damages(capsys, tmp_path / "open", "--deep") == []


def test_show_counts_what_was_skipped_and_says_where_it_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = folder_of(tmp_path / "in", 0, 3), tmp_path / "out"
    for name in ("x.jpg", "y.jpg", "z.mp4"):
        (root / name).write_bytes(b"")
    ingest(root, out)
    text = told(capsys, "stream", "show", str(out))[1]
    assert (
        "skipped 3 of 6 found (2 empty, 1 unsupported_name); 3 listed in "
        f"{out}/rejects"
    ) in text  # fmt: skip
    body = json.loads(told(capsys, "stream", "show", str(out), "--json")[1])
    assert (body["found"], body["skipped"]) == (6, {"empty": 2, "unsupported_name": 1})
    assert body["rejects_listed"] == 3
