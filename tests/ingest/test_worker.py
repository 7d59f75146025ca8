import os
from pathlib import Path

import pytest

from ingest.errors import SourceBusy, SourceEmpty, SourceNotFound
from ingest.sources import FileSource, open_source
from ingest.transcode import LABEL_TROUBLES, REASONS
from ingest.worker import MOST_ENDINGS, IngestReport, run_ingest
from stream.errors import StreamSealed
from stream.shards.digests import known_digests
from stream.shards.manifest import Manifest
from tests.ingest.made import (
    Stored,
    add_up,
    encoded,
    folder_of,
    ingest,
    labelled,
    settings,
    stored,
    write_tar,
)


def names(records: list[Stored], root: Path) -> list[str]:
    return [record.source.removeprefix(f"{root}/") for record in records]


def test_a_folder_becomes_a_sealed_stream_of_its_images(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 25)
    report = ingest(root, tmp_path / "out", settings(per_shard=10))
    records = stored(tmp_path / "out")
    assert names(records, root) == [f"{seed:06d}.jpg" for seed in range(25)]
    assert [record.payload for record in records] == [encoded(seed) for seed in range(25)]
    assert records[0].body["width"], records[0].body["height"] == (40, 32)
    assert (report.found, report.written, report.skipped, report.shards) == (25, 25, {}, 3)
    assert report.bytes == sum(len(record.payload) for record in records)
    assert (report.status, report.sealed) == ("finished", True)
    assert Manifest.open(str(tmp_path / "out")).sealed


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars_keep_their_labels(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "in.tar", labelled(0, 30), mode)
    ingest(path, tmp_path / "out")
    records = stored(tmp_path / "out")
    assert [record.cls for record in records] == [str(seed % 10).encode() for seed in range(30)]
    assert [record.body["label"] for record in records] == [seed % 10 for seed in range(30)]
    assert records[3].source == f"{path}#000003.jpg"


def test_the_folder_is_the_label_name_where_asked(tmp_path: Path) -> None:
    for seed, animal in enumerate(("cat", "dog")):
        folder_of(tmp_path / "in" / animal, seed, 1)
    ingest(tmp_path / "in", tmp_path / "out", settings(label_from="parent"))
    assert [record.body["label_name"] for record in stored(tmp_path / "out")] == ["cat", "dog"]


def test_a_bad_label_leaves_the_image_in_and_is_counted(tmp_path: Path) -> None:
    members = [
        ("1.jpg", encoded(1)),
        ("1.cls", b"cat"),
        ("2.jpg", encoded(2)),
        ("3.jpg", encoded(3)),
        ("2.cls", b"2"),
        ("1.cls", b"1"),
    ]
    report = ingest(write_tar(tmp_path / "t.tar", members), tmp_path / "out")
    assert (report.found, report.written) == (3, 3)
    assert report.labels_lost == {"bad_label": 1, "label_apart": 1}
    assert [record.cls for record in stored(tmp_path / "out")] == [None, b"2", None]
    assert report.labels_lost.keys() == LABEL_TROUBLES.keys()


def test_the_same_content_is_written_once_unless_asked(tmp_path: Path) -> None:
    folder_of(tmp_path / "in" / "a", 0, 5)
    folder_of(tmp_path / "in" / "b", 3, 5)
    report = ingest(tmp_path / "in", tmp_path / "out")
    assert (report.found, report.written, report.skipped) == (10, 8, {"duplicate": 2})
    assert ingest(tmp_path / "in", tmp_path / "all", settings(keep_duplicates=True)).written == 10


def test_duplicates_are_known_over_restarts_and_sources(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "a", 0, 5), folder_of(tmp_path / "b", 3, 5)
    ingest(one, tmp_path / "out", open_stream=True)
    assert ingest(two, tmp_path / "out", open_stream=True).skipped == {"duplicate": 2}


def test_every_reason_that_is_counted_is_in_the_table(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 2)
    (root / "a.jpg").write_bytes(b"")
    (root / "b.jpg").write_bytes(b"<html>")
    (root / "c.png").write_bytes(encoded(1, "PNG", width=4, height=4))
    (root / "d.tar").write_bytes(b"no tar at all")
    (root / "e.jpg").symlink_to(tmp_path / "nowhere")
    report = ingest(root, tmp_path / "out")
    assert report.skipped == {
        "empty": 1,
        "not_an_archive": 1,
        "not_an_image": 1,
        "too_small": 1,
        "unreadable": 1,
    }
    assert report.skipped.keys() <= REASONS.keys()
    assert add_up(report)


def test_a_finished_ingest_run_again_does_nothing_and_reports_the_same(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 12)
    (root / "zz.jpg").write_bytes(b"")
    first = ingest(root, tmp_path / "out", settings(per_shard=5))
    commits = sorted((tmp_path / "out" / "commits").iterdir())
    assert ingest(root, tmp_path / "out", settings(per_shard=5)) == first
    assert sorted((tmp_path / "out" / "commits").iterdir()) == commits
    assert first.found == 13


def test_an_open_ingest_run_again_takes_only_what_is_new(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 5)
    ingest(root, tmp_path / "out", open_stream=True)
    folder_of(root, 5, 3)
    report = ingest(root, tmp_path / "out", open_stream=True)
    assert (report.found, report.written, report.shards, report.sealed) == (8, 8, 2, False)
    assert names(stored(tmp_path / "out"), root) == [f"{seed:06d}.jpg" for seed in range(8)]


def test_a_sealed_stream_is_refused_unless_it_has_all_of_the_source(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 5)
    ingest(root, tmp_path / "out")
    with pytest.raises(StreamSealed, match="write to another one"):
        ingest(folder_of(tmp_path / "other", 10, 1), tmp_path / "out")
    folder_of(root, 5, 1)
    with pytest.raises(StreamSealed, match=r"000005\.jpg"):
        ingest(root, tmp_path / "out")


def test_a_stream_inside_its_source_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 1)
    with pytest.raises(ValueError, match="lies inside the source"):
        ingest(root, root / "out")


def test_archives_without_any_image_are_an_empty_source(tmp_path: Path) -> None:
    with pytest.raises(SourceEmpty):
        ingest(write_tar(tmp_path / "t.tar", []), tmp_path / "out")
    assert not Manifest.open(str(tmp_path / "out")).sealed


def test_a_source_without_any_image_is_empty_whatever_its_archives_hold(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", [("a.mp4", b"?"), ("b.mp4", b"?"), ("c", b"?")])
    with pytest.raises(SourceEmpty, match=r"there are 2 \.mp4, 1 without an ending"):
        ingest(tar, tmp_path / "out")
    assert not Manifest.open(str(tmp_path / "out")).sealed


def test_a_sealed_stream_misses_nothing_when_only_other_files_were_added(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 2)
    report = ingest(root, tmp_path / "out")
    (root / "film.mp4").write_bytes(b"?")
    assert ingest(root, tmp_path / "out").written == report.written


def test_an_unreadable_folder_is_counted_and_told_and_the_rest_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "in"
    for number, name in enumerate("abc"):
        folder_of(root / name, 4 * number, 4)
    listed = os.scandir

    def locked(path: object) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return listed(path)  # type: ignore[call-overload]

    monkeypatch.setattr("ingest.listing.os.scandir", locked)
    report = ingest(root, tmp_path / "out")
    assert (report.found, report.written, report.skipped) == (9, 8, {"unreadable_folder": 1})
    assert report.warnings[0].startswith(f"{root}/b (Permission denied) cannot be listed")
    assert ingest(root, tmp_path / "out") == report


def test_a_source_that_vanishes_leaves_what_came_before_committed(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "a", 0, 3), folder_of(tmp_path / "b", 3, 3)
    source = open_source([str(one), str(two)])
    for path in two.iterdir():
        path.unlink()
    two.rmdir()
    with pytest.raises(SourceNotFound):
        run_ingest(source, f"memory://{tmp_path.name}/lost", settings())
    with pytest.raises(SourceNotFound):  # between the look at the specs and the second of them
        _vanishing(source, tmp_path / "out", folder_of(two, 3, 3))
    assert len(stored(tmp_path / "out")) == 3


def _vanishing(source: FileSource, out: Path, folder: Path) -> None:
    def meanwhile() -> bool:
        if folder.exists():
            folder.rename(folder.with_name("moved"))
        return False

    run_ingest(source, str(out), settings(), stop=meanwhile)


def test_names_that_are_not_read_are_counted_by_ending_over_restarts(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 2)
    for name in ("a.7z", "b.mp4", "c.7z", "d"):
        (root / name).write_bytes(b"?")
    write_tar(root / "z.tar", [("f/x.mp4", b"?"), ("f.d/none", b"?")])
    asked = iter([False, False, False, True])
    stopped = ingest(root, tmp_path / "out", stop=lambda: next(asked))
    assert stopped.skipped == {"unsupported_name": 2}
    report = ingest(root, tmp_path / "out")
    assert report.skipped == {"unsupported_name": 6}
    assert report.unsupported_names == {"": 2, ".7z": 2, ".mp4": 2}
    (warning,) = report.warnings
    assert warning.startswith("6 files are neither image nor archive")
    assert "2 without an ending, 2 .7z, 2 .mp4" in warning
    assert ingest(root, tmp_path / "out") == report


def test_endings_without_number_are_counted_together(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 1)
    for number in range(MOST_ENDINGS + 5):
        (root / f"x.e{number}").write_bytes(b"?")
    report = ingest(root, tmp_path / "out")
    assert len(report.unsupported_names) == MOST_ENDINGS + 1
    assert report.unsupported_names["other"] == 5


def test_asked_to_stop_it_commits_what_is_open_and_goes_on_later(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 20)
    whole = ingest(root, tmp_path / "whole", settings(per_shard=6))
    reports: list[IngestReport] = []
    while not reports or reports[-1].status == "stopped":
        asked = iter([False, False, True])
        reports.append(
            ingest(root, tmp_path / "out", settings(per_shard=6), stop=lambda asked=asked: next(asked))
        )
    assert [report.written for report in reports] == [3, 6, 9, 12, 15, 18, 20]
    assert not any(report.sealed for report in reports[:-1])
    assert (reports[-1].found, reports[-1].written) == (whole.found, whole.written)
    assert reports[-1].shards == 7
    seconds = [report.seconds for report in reports]
    assert seconds == sorted(seconds)
    assert [r.payload for r in stored(tmp_path / "out")] == [r.payload for r in stored(tmp_path / "whole")]


def test_progress_tells_the_accounts_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.worker.PROGRESS_S", 0.0)
    seen: list[IngestReport] = []
    ingest(folder_of(tmp_path / "in", 0, 10), tmp_path / "out", progress=seen.append)
    assert [report.written for report in seen] == list(range(1, 11))
    assert {report.status for report in seen} == {"running"}


def test_plain_tars_are_adopted_where_they_are_and_gzipped_ones_copied(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    plain = write_tar(root / "a.tar", labelled(0, 6))
    write_tar(root / "b.tar.gz", labelled(6, 4), "w:gz")
    folder_of(root / "c", 10, 2)
    report = ingest(root, tmp_path / "out", reference=True)
    manifest = Manifest.open(str(tmp_path / "out"))
    commits = [manifest.entry(number) for number in range(len(manifest))]
    assert [(commit.n, commit.uri.startswith("shards/")) for commit in commits] == [(6, False), (6, True)]
    assert commits[0].uri == str(plain)
    assert (report.found, report.written, report.shards, report.sealed) == (12, 12, 2, True)
    assert ingest(root, tmp_path / "out", reference=True) == report


def test_a_referenced_tar_is_not_taken_again_by_another_source(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    one = write_tar(root / "a.tar", labelled(0, 6))
    two = write_tar(root / "b.tar", labelled(6, 4))
    first = ingest([str(one), str(two)], tmp_path / "out", reference=True, open_stream=True)
    assert (first.written, first.skipped) == (10, {})
    write_tar(root / "c.tar", labelled(8, 4))  # two of its images are new
    for number, (reference, new) in enumerate(((True, 2), (False, 0)), 1):
        for tar in root.iterdir():  # as if they were written again: the list of what was taken knows them not
            os.utime(tar, (number, number))
        report = ingest(
            f"{root}/*.tar", tmp_path / "out", reference=reference, open_stream=True, name=str(new)
        )
        assert (report.written, report.skipped) == (new, {"duplicate": 14 - new})


def test_digests_are_left_out_where_asked(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", labelled(0, 6))
    ingest(tar, tmp_path / "out", settings(digests=False), reference=True)
    manifest = Manifest.open(str(tmp_path / "out"))
    assert len(known_digests(manifest)) == 0
    ingest(tar, tmp_path / "with", reference=True)
    assert len(known_digests(Manifest.open(str(tmp_path / "with")))) == 6


def test_an_interrupted_reference_adopts_no_tar_twice(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for number in range(4):
        write_tar(root / f"{number}.tar", labelled(10 * number, 3))
    for _ in range(6):
        ingest(root, tmp_path / "out", reference=True, stop=lambda: True)
    report = ingest(root, tmp_path / "out", reference=True)
    assert (report.written, report.shards) == (12, 4)


def test_a_second_ingest_of_the_same_source_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 3)
    refused = []

    def meanwhile() -> bool:
        with pytest.raises(SourceBusy, match="another ingest of the same source"):
            ingest(root, tmp_path / "out")
        other = ingest(root, tmp_path / "out", name="other")
        refused.append((other.written, other.sealed))
        assert "3 files are left to another ingest that is at work" in other.warnings[0]
        return True

    ingest(root, tmp_path / "out", stop=meanwhile)
    assert refused == [(0, False)], "it neither takes the files of the other, nor seals the stream under it"
    assert ingest(root, tmp_path / "out").status == "finished"


def test_a_stream_may_lie_behind_any_url(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/stream"
    source = open_source(str(folder_of(tmp_path / "in", 0, 5)))
    report = run_ingest(source, url, settings(per_shard=2))
    assert (report.written, report.shards, report.sealed) == (5, 3, True)
    assert run_ingest(source, url, settings(per_shard=2)) == report
    assert Manifest.open(url).records == 5
