"""The list of what was taken: new files whatever their names, none twice, whatever is killed or spelled."""

import contextlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ingest import listed
from ingest.config import IngestConfig
from ingest.errors import SourceBusy, SourceChanged
from ingest.listed import ListedFiles
from ingest.shard_destination import ShardDestination
from ingest.sources import open_source
from ingest.worker import IngestReport, run_ingest
from stream.errors import StreamDamaged, StreamSealed
from stream.record import Record
from stream.shards.manifest import Manifest
from stream.shards.taken import TakenList
from stream.shards.verify import verify
from stream.storage import LocalStore
from tests.ingest.made import (
    add_up,
    encoded,
    folder_of,
    ingest,
    labelled,
    settings,
    stored,
    write_tar,
)


def names(stream: Path, root: Path) -> list[str]:
    return [record.source.removeprefix(f"{root}/") for record in stored(stream)]


def images(stream: Path) -> list[bytes]:
    return [record.payload for record in stored(stream)]


def put(root: Path, *seeds: int) -> Path:
    for seed in seeds:
        folder_of(root, seed, 1)
    return root


def adopted(stream: Path) -> list[int]:
    manifest = Manifest.open(str(stream))
    return [manifest.n(number) for number in range(len(manifest)) if manifest.n(number)]


class WithoutList(ShardDestination):
    """Writes positions by names, as this program did before there was a list."""

    @property
    def taken(self) -> None:  # type: ignore[override]
        return None


def ingest_as_before(
    root: Path, out: Path, config: IngestConfig | None = None, *, stop_after: int = 10**9, **options: Any
) -> IngestReport:
    config = config or settings()
    source = open_source(str(root))
    calls = iter(range(stop_after))
    report = run_ingest(
        source, str(out), config, open_stream=True, stop=lambda: next(calls, None) is None,
        destination=WithoutList(str(out), source.source_id, config), **options,
    )  # fmt: skip
    assert not (out / "taken").exists()
    return report


def test_a_growing_folder_is_taken_whole_whatever_the_names(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    order = random.Random(3).sample(range(120), 120)
    for day in range(4):
        put(root, *order[30 * day : 30 * day + 30])
        report = ingest(root, out, settings(per_shard=7), open_stream=True)
        assert (report.found, report.written, report.warnings) == (30 * (day + 1), 30 * (day + 1), ())
    assert sorted(images(out)) == sorted(encoded(seed) for seed in range(120))
    assert names(out, root)[30:60] == sorted(f"{seed:06d}.jpg" for seed in order[30:60])


def test_a_run_over_an_unchanged_folder_adds_nothing(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 9), tmp_path / "out"
    first = ingest(root, out, open_stream=True)
    before = sorted(out.rglob("*"))
    assert ingest(root, out, open_stream=True) == first
    assert sorted(out.rglob("*")) == before


def test_other_spellings_of_the_same_files_find_them_in_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = folder_of(tmp_path / "in" / "x", 0, 6), tmp_path / "out"
    write_tar(tmp_path / "in" / "t.tar", labelled(6, 4))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    config = settings(keep_duplicates=True)
    assert ingest(tmp_path / "in", out, config, open_stream=True).written == 10
    monkeypatch.chdir(root)
    spellings: list[list[str]] = [
        ["."], ["../t.tar", "*.jpg"], [str(tmp_path / "link")], sorted(map(str, root.iterdir())),
        [f"{tmp_path}/link/*"], [str(tmp_path / "in")] * 2,
    ]  # fmt: skip
    for number, spelling in enumerate(spellings):
        report = ingest(spelling, out, config, open_stream=True, name=f"name {number}")
        assert (report.found, report.status) == (0, "finished")
        assert "are in the stream already" in report.warnings[0]
    put(root, 50)
    assert ingest(["../x/*.jpg"], out, config, open_stream=True).written == 1
    assert len(images(out)) == 11


def test_a_file_in_two_specs_of_one_command_is_taken_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 4)
    report = ingest([str(root), f"{root}/*.jpg"], tmp_path / "out", settings(keep_duplicates=True))
    assert (report.found, report.written) == (4, 4)


def test_an_unquoted_glob_that_grows_adopts_each_tar_once(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for number in (2, 0, 1):
        write_tar(root / f"{number}.tar", labelled(10 * number, 5))
        ingest(sorted(map(str, root.iterdir())), out, reference=True, open_stream=True)
    assert adopted(out) == [5, 5, 5]
    (tmp_path / "today.tar").symlink_to(root / "1.tar")
    assert ingest(tmp_path / "today.tar", out, reference=True, open_stream=True).written == 0


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("keep_duplicates", [False, True])
def test_tars_that_grew_give_their_new_members_once(
    tmp_path: Path, reference: bool, keep_duplicates: bool
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    config = settings(keep_duplicates=keep_duplicates)
    for number in range(2):
        write_tar(root / f"{number}.tar", labelled(10 * number, 4))
    ingest(root, out, config, reference=reference, open_stream=True)
    for number in range(2):
        write_tar(root / f"{number}.tar", labelled(10 * number + 4, 3), "a")
    report = ingest(root, out, config, reference=reference, open_stream=True)
    assert (report.found, report.written, report.skipped) == (22, 14, {"duplicate": 8})
    assert "2 files have another size or time" in report.warnings[0]
    if reference:
        assert adopted(out) == [4, 4, 3, 3]
        assert list(verify(Manifest.open(str(out)), deep=True)) == []
        with (root / "1.tar").open("ab") as tar:
            tar.write(bytes(512))
        assert len(list(verify(Manifest.open(str(out))))) == 2, "a growth that was not taken"
    else:
        assert sorted(images(out)) == sorted(encoded(10 * n + m) for n in range(2) for m in range(7))
    if not reference:
        assert ingest(root, out, config, open_stream=True).found == 22


def test_a_tar_adopted_before_there_was_a_list_is_not_adopted_again(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    write_tar(root / "0.tar", labelled(0, 4))
    ingest_as_before(root, out, reference=True)
    write_tar(root / "1.tar", labelled(10, 4))
    report = ingest(sorted(map(str, root.iterdir())), out, reference=True, open_stream=True)
    assert (report.written, report.skipped) == (4, {"duplicate": 4})
    assert adopted(out) == [4, 4]


def test_changed_shrunken_and_replaced_files_are_told_and_taken(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 6), tmp_path / "out"
    write_tar(root / "t.tar", labelled(20, 6))
    ingest(root, out, open_stream=True)
    (root / "000000.jpg").unlink()
    (root / "000002.jpg").write_bytes(encoded(50))
    same_size = bytearray(encoded(3))
    same_size[-40:-30] = bytes(reversed(same_size[-40:-30]))
    (root / "000003.jpg").write_bytes(same_size)
    write_tar(root / "t.tar", labelled(22, 2) + labelled(60, 1))
    put(root, 4)  # the same content again, at another time
    report = ingest(root, out, open_stream=True)
    assert "4 files have another size or time than when taken" in report.warnings[0]
    assert str(root / "000002.jpg") in report.warnings[0]
    assert {encoded(50), bytes(same_size), encoded(60)} <= set(images(out))
    assert Counter(images(out)).most_common(1)[0][1] == 1
    assert (report.written, report.skipped) == (15, {"duplicate": 3})
    assert add_up(report)


def test_shuffled_files_come_in_a_random_order_of_the_seed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 0, 200)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        ingest(root, tmp_path / name, settings(shuffle=True, seed=seed))
    one, same, other = (names(tmp_path / name, root) for name in "abc")
    assert one == same
    assert one != other
    assert sorted(one) == sorted(other) == [f"{seed:06d}.jpg" for seed in range(200)]
    shares = [sum(name < "000100" for name in one[start : start + 50]) for start in range(0, 200, 50)]
    assert all(14 <= share <= 36 for share in shares), "halves are mixed in every quarter"
    moved = root.rename(tmp_path / "elsewhere")
    ingest(moved, tmp_path / "d", settings(shuffle=True, seed=1))
    assert [name.rpartition("/")[2] for name in names(tmp_path / "d", root)] == one


@pytest.mark.parametrize("shuffle", [False, True])
def test_stopped_anywhere_a_source_comes_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    monkeypatch.setattr(listed, "FIRST_CLAIM", 3)
    root = folder_of(tmp_path / "in" / "b", 0, 25)
    write_tar(tmp_path / "in" / "a.tar", labelled(30, 7))
    config = settings(per_shard=4, shuffle=shuffle, seed=5)
    ingest(root.parent, tmp_path / "whole", config)
    status, starts = "", 0
    while status != "finished":
        calls = iter(range(3 + starts % 3))
        stop = lambda calls=calls: next(calls, None) is None  # noqa: E731
        status = ingest(root.parent, tmp_path / "out", config, stop=stop).status
        starts += 1
    assert starts > 5
    assert [(r.source, r.payload, r.cls) for r in stored(tmp_path / "out")] == [
        (r.source, r.payload, r.cls) for r in stored(tmp_path / "whole")
    ]


def test_files_that_come_while_an_ingest_is_stopped_come_behind_the_listed_ones(tmp_path: Path) -> None:
    root, out = put(tmp_path / "in", 10, 11, 12), tmp_path / "out"
    calls = iter([False, True])
    ingest(root, out, stop=lambda: next(calls), open_stream=True)
    put(root, 5, 20)
    assert ingest(root, out).written == 5
    assert names(out, root) == [f"{seed:06d}.jpg" for seed in (10, 11, 12, 5, 20)]


def test_what_a_dead_ingest_of_another_name_left_is_taken_over_and_not_repeated(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    folder_of(root, 0, 3)
    write_tar(root / "t.tar", labelled(10, 6))
    folder_of(root / "z", 30, 3)
    config = settings(per_shard=2, keep_duplicates=True)
    calls = iter(range(5))
    ingest(root, out, config, name="first", stop=lambda: next(calls, None) is None)
    assert len(images(out)) == 6, "it ends inside the tar"
    report = ingest(root, out, config, name="second", open_stream=True)
    assert report.warnings == ()
    expected = sorted(encoded(seed) for seed in [*range(3), *range(10, 16), *range(30, 33)])
    assert sorted(images(out)) == expected
    assert ingest(root, out, config, name="first").status == "finished"
    assert sorted(images(out)) == expected


def test_a_second_writer_of_a_source_is_refused_where_there_are_no_locks(tmp_path: Path) -> None:
    """Behind a URL no process knows of another, but each sees the segments of the other."""
    url = f"memory://{tmp_path.name}/stream"
    root = folder_of(tmp_path / "in", 0, 3)
    inner: list[str] = []

    def meanwhile() -> bool:
        if not inner:
            inner.append("begun")
            put(root, 7)
            inner[0] = run_ingest(open_source(str(root)), url, settings(), open_stream=True).status
            put(root, 8)
        return False

    slow = open_source(str(root))
    units = slow.units

    def one_by_one() -> Any:
        for unit in units():
            yield unit
            meanwhile()

    slow.units = one_by_one  # type: ignore[method-assign]
    with pytest.raises(SourceBusy, match="another ingest of the same source"):
        run_ingest(slow, url, settings(), open_stream=True)
    assert inner == ["finished"]


def test_two_writers_of_overlapping_sources_take_each_file_once(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 40), tmp_path / "out"
    config = settings(per_shard=3, keep_duplicates=True)
    others: list[IngestReport] = []

    def meanwhile() -> bool:
        if len(others) == 3:
            folder_of(root, 60, 4)
        if len(others) < 8:
            name = f"other {len(others)}"
            others.append(ingest(sorted(map(str, root.iterdir())), out, config, name=name, open_stream=True))
        return False

    mine = ingest(root, out, config, stop=meanwhile, open_stream=True)
    assert [report.written for report in others] == [0, 0, 0, 4, 0, 0, 0, 0]
    assert mine.written == 40
    assert sorted(images(out)) == sorted(encoded(seed) for seed in [*range(40), *range(60, 64)])


@pytest.mark.parametrize("stop_after", [1, 4, 7, 10, 12, 10**9])
@pytest.mark.parametrize("unchanged", [True, False])
def test_a_stream_from_before_the_list_goes_on_whole(
    tmp_path: Path, stop_after: int, unchanged: bool
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    put(root, 10, 11, 12, 40, 41)
    write_tar(root / "000020.tar", labelled(20, 5))
    ingest_as_before(root, out, stop_after=stop_after)
    seeds = [10, 11, 12, 40, 41, *range(20, 25)]
    if not unchanged:
        put(root, 5, 15, 50)
        seeds += [5, 15, 50]
    report = ingest(root, out, open_stream=True)
    assert sorted(images(out)) == sorted(map(encoded, seeds))
    assert report.written == len(seeds)
    if unchanged:
        assert (report.skipped, report.warnings) == ({}, ()), "nothing is read a second time"
    else:
        assert "stand before the place where an earlier version" in report.warnings[0]
    put(root, 1, 2)
    again = ingest(root, out, open_stream=True)
    assert (again.written, again.warnings) == (len(seeds) + 2, ())
    assert sorted(images(out)) == sorted(map(encoded, [*seeds, 1, 2]))


def test_a_kill_while_an_old_position_is_converted_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = put(tmp_path / "in", *range(10, 30)), tmp_path / "out"
    ingest_as_before(root, out, stop_after=15)
    monkeypatch.setattr(listed, "MOST_FILES", 4)
    whole = tmp_path / "whole"
    shutil.copytree(out, whole)
    for kept in range(6):
        copy = tmp_path / f"copy{kept}"
        shutil.copytree(out, copy)
        appends = iter(range(kept))

        def dies(
            self: TakenList, *args: Any, left: Any = appends, append: Any = TakenList.append, **options: Any
        ) -> bool:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return bool(append(self, *args, **options))

        with monkeypatch.context() as patch:
            patch.setattr(TakenList, "append", dies)
            with pytest.raises(KeyboardInterrupt):
                ingest(root, copy, open_stream=True)
        put(root, 5 - kept)
        report = ingest(root, copy, open_stream=True)
        expected = [*range(5 - kept, 6), *range(10, 30)]
        assert sorted(images(copy)) == sorted(map(encoded, expected))
        assert report.written == len(expected)


def test_a_sealed_stream_from_before_the_list_is_still_complete(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 5), tmp_path / "out"
    ingest_as_before(root, out)
    Manifest.open(str(out)).seal()
    assert ingest(root, out).found == 5
    folder_of(root, 7, 1)
    with pytest.raises(StreamSealed, match=r"000007\.jpg"):
        ingest(root, out)


def test_a_sealed_stream_that_has_all_under_another_name_is_complete(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 5), tmp_path / "out"
    ingest(root, out)
    before = sorted(path for path in out.rglob("*") if path.suffix != ".lock")
    report = ingest(f"{root}/*.jpg", out)
    assert (report.status, report.sealed, report.found) == ("finished", True, 0)
    assert sorted(path for path in out.rglob("*") if path.suffix != ".lock") == before
    put(root, 3)
    with pytest.raises(StreamSealed, match="is sealed: write to another one"):
        ingest(f"{root}/*.jpg", out)


def test_without_a_list_more_files_before_the_place_are_refused_with_what_to_do(tmp_path: Path) -> None:
    root, out = put(tmp_path / "in", 10, 11), tmp_path / "out"
    ingest_as_before(root, out)
    put(root, 12)
    assert ingest_as_before(root, out).written == 3
    put(root, 5)
    with pytest.raises(SourceChanged, match="give --state DIR"):
        ingest_as_before(root, out)
    (root / "000005.jpg").unlink()
    (root / "000012.jpg").write_bytes(encoded(13, width=50))
    with pytest.raises(SourceChanged, match="another size"):
        ingest_as_before(root, out)


def test_a_list_with_a_hole_is_refused(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 5), tmp_path / "out"
    taken = TakenList(LocalStore(out))
    taken.append("x", first=5, upto=5)
    with pytest.raises(StreamDamaged, match="begins at file 5 of x, where 0 are listed"):
        ingest(root, out)


def test_a_name_is_the_one_that_the_user_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "in" / "a", 0, 2)
    write_tar(tmp_path / "in" / "t.tar", labelled(5, 1))
    monkeypatch.chdir(tmp_path)
    for number, (spec, expected) in enumerate(
        [
            ("in", "in/a/000000.jpg"),
            ("in/a/", "in/a/000000.jpg"),
            ("in/*/*.jpg", "in/a/000000.jpg"),
            ("*", "in/a/000000.jpg"),
            (".", "./in/a/000000.jpg"),
            ("in/t.tar", "in/t.tar#000005.jpg"),
            (str(root), f"{root}/000000.jpg"),
        ]
    ):
        sources = [found.name for found in open_source(spec).items() if found is not None]
        out = Path(f"../{tmp_path.name}-out") / str(number)
        ingest(spec, out)
        assert [record.source for record in stored(out)] == sources
        assert sources[0] == expected


def test_a_file_that_vanished_after_it_was_listed_is_counted(tmp_path: Path) -> None:
    root, out = folder_of(tmp_path / "in", 0, 4), tmp_path / "out"
    calls = iter([True])
    ingest(root, out, stop=lambda: next(calls))
    (root / "000002.jpg").unlink()
    assert ingest(root, out).skipped == {"unreadable": 1}


class Recorded:
    """A destination's view of sources, for ListedFiles alone."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def place_of(self, source_id: str) -> Any:
        self.asked.append(source_id)

    def at_work(self, source_id: str) -> bool:
        return False

    def as_ingest_error(self) -> Any:
        return contextlib.nullcontext()


def test_only_sources_that_are_not_noted_as_done_are_asked_for(tmp_path: Path) -> None:
    """Every run of a growing unquoted glob is a source of its own: thousands of them must stay cheap."""
    root, listing = folder_of(tmp_path / "in", 0, 4), Recorded()
    for name, done in (("a", True), ("b", False), ("c", True)):
        put(root, 10 + ord(name))
        files = ListedFiles(
            open_source(str(root), name=name), TakenList(LocalStore(tmp_path / "list")), listing
        )
        assert list(files.items())
        if done:
            files.finished()
    assert listing.asked == ["b"]


def test_positions_hold_everywhere(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in" / "b", 0, 3)
    write_tar(root.parent / "a.tar", labelled(10, 3))
    write_tar(root.parent / "c.tgz", labelled(20, 3), "w:gz")
    store = LocalStore(tmp_path / "list")

    def rest(after: Any) -> list[Any]:
        return list(ListedFiles(open_source(str(root.parent)), TakenList(store), Recorded()).items(after))

    everything = rest(None)
    assert len(everything) == 9
    for number, item in enumerate(everything):
        assert rest(item.position) == everything[number + 1 :]
    assert len(list((tmp_path / "list" / "taken").iterdir())) == 1


def test_a_record_that_is_written_says_where_the_source_goes_on(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watched(ShardDestination):
        def write(self, record: Record, position: Any) -> None:
            seen.append(position["source"])
            super().write(record, position)

    source = open_source(str(folder_of(tmp_path / "in", 0, 3)))
    destination = Watched(str(tmp_path / "out"), source.source_id, settings())
    run_ingest(source, str(tmp_path / "out"), settings(), destination=destination)
    assert seen == [{"index": number, "taken": -1} for number in range(3)]
