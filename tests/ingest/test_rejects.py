import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.rejects import FileList, Listed, Reject, StoreList, lists_of, read_rejects
from ingest.shard_destination import ShardDestination
from ingest.sources import open_source
from ingest.worker import IngestReport, run_ingest
from stream.errors import StreamDamaged
from stream.shards.manifest import Manifest
from stream.storage import open_store
from tests.ingest.made import encoded, folder_of, ingest, labelled, settings, write_tar


def mixed(root: Path) -> Path:
    """Images, and 11 things that are rejected for five reasons, in files and in a tar."""
    folder_of(root, 0, 12)
    for number in (1, 4, 5, 9):
        (root / f"{number:06d}.jpg").write_bytes(b"<html>" + bytes([number]))
    (root / "000000.7z").write_bytes(b"?")
    (root / "000003-empty.png").write_bytes(b"")
    (root / "0000061.jpg").write_bytes(encoded(6))
    (root / "zz.mp4").write_bytes(b"?")
    members = [*labelled(20, 3), ("x.jpg", b"none"), ("y.mp4", b"?"), ("z.jpg", encoded(2))]
    write_tar(root / "000008.tar", members)
    return root


def url_of(kind: str, tmp_path: Path) -> str:
    return (
        str(tmp_path / "out") if kind == "folder" else f"memory://{tmp_path.parent.name}/{tmp_path.name}/out"
    )


def listed(url: str) -> list[tuple[str, str]]:
    return [(one.reason, one.source.rpartition("/")[2]) for one in read_rejects(Manifest.open(url))]


WANTED = [
    ("unsupported_name", "000000.7z"),
    ("not_an_image", "000001.jpg"),
    ("empty", "000003-empty.png"),
    ("not_an_image", "000004.jpg"),
    ("not_an_image", "000005.jpg"),
    ("duplicate", "0000061.jpg"),
    ("not_an_image", "000008.tar#x.jpg"),
    ("unsupported_name", "000008.tar#y.mp4"),
    ("duplicate", "000008.tar#z.jpg"),
    ("not_an_image", "000009.jpg"),
    ("unsupported_name", "zz.mp4"),
]


def run(root: Path, url: str, stop: Callable[[], bool] | None = None, **options: Any) -> IngestReport:
    return run_ingest(open_source(str(root)), url, settings(per_shard=3), stop=stop, **options)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_everything_that_is_not_written_is_named_with_its_reason(tmp_path: Path, kind: str) -> None:
    root, url = mixed(tmp_path / "in"), url_of(kind, tmp_path)
    told: list[Reject] = []
    report = run(root, url, rejected=told.append)
    rejects = list(read_rejects(Manifest.open(url)))
    assert sorted(listed(url)) == sorted(WANTED)
    assert told == rejects
    assert Counter(one.reason for one in rejects) == report.skipped
    assert {one.path for one in rejects} == {f"{root}/{name.partition('#')[0]}" for _, name in WANTED}
    ((_, known),) = lists_of(Manifest.open(url))
    assert known.lines == len(WANTED)


def test_in_a_folder_the_list_is_one_file_of_json_lines(tmp_path: Path) -> None:
    root = mixed(tmp_path / "in")
    run(root, str(tmp_path / "out"))
    (path,) = (tmp_path / "out" / "rejects").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "reason": "unsupported_name",
        "source": f"{root}/000000.7z",
        "detail": "",
        "path": f"{root}/000000.7z",
    }
    assert all(line.keys() == {"reason", "source", "detail", "path"} for line in lines)


class Killed(Exception):
    """Stands for a kill: what was open is not made safe."""


def killed_after(steps: int) -> Callable[[], bool]:
    count = itertools.count(1)

    def stop() -> bool:
        if next(count) > steps:
            raise Killed
        return False

    return stop


@pytest.mark.parametrize("kind", ["folder", "memory"])
@pytest.mark.parametrize("every", [1, 2, 3, 5, 7, 11])
def test_killed_anywhere_again_and_again_the_list_has_each_line_once(
    tmp_path: Path, kind: str, every: int
) -> None:
    root, url = mixed(tmp_path / "in"), url_of(kind, tmp_path)
    run(root, whole := url_of(kind, tmp_path / "whole"))
    for steps in itertools.chain([0, every], itertools.count(every + 3, every)):
        try:
            run(root, url, killed_after(steps))
            break
        except Killed:
            ended = Manifest.open(url)
            skipped = sum((Counter(one.accounts.skipped) for one in ended.sources().values()), Counter())
            assert Counter(reason for reason, _ in listed(url)) == skipped
    assert listed(url) == listed(whole)
    if kind == "folder":
        (one,), (two,) = ((Path(place) / "rejects").iterdir() for place in (url, whole))
        assert one.read_bytes() == two.read_bytes()


def test_stopped_and_gone_on_the_list_is_that_of_one_run(tmp_path: Path) -> None:
    root, url = mixed(tmp_path / "in"), str(tmp_path / "out")
    status = "stopped"
    while status == "stopped":
        asked = itertools.count(1)
        status = run(root, url, lambda asked=asked: next(asked) > 2).status  # type: ignore[misc]
    assert sorted(listed(url)) == sorted(WANTED)


def test_a_reader_sees_no_line_that_no_commit_counts(tmp_path: Path) -> None:
    root, url = mixed(tmp_path / "in"), str(tmp_path / "out")
    run(root, url)
    (path,) = (tmp_path / "out" / "rejects").iterdir()
    with path.open("ab") as file:
        file.write(b'{"reason": "half a li')
    assert sorted(listed(url)) == sorted(WANTED)


def test_a_list_that_lost_lines_is_damage_and_an_ingest_goes_on_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, url = tmp_path / "in", str(tmp_path / "out")
    folder_of(root, 0, 3)
    for name in ("000000x.jpg", "000001x.jpg"):
        (root / name).write_bytes(b"")
    ingest(root, tmp_path / "out", open_stream=True)
    (path,) = (tmp_path / "out" / "rejects").iterdir()
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(
        StreamDamaged, match=r"has a line that cannot be read|has 1 lines, its commits count 2"
    ):
        listed(url)
    (root / "000009.jpg").write_bytes(b"")
    report = ingest(root, tmp_path / "out", open_stream=True)
    assert report.skipped == {"empty": 3}
    assert "1 lines are gone from the list" in caplog.text
    assert listed(url) == [("empty", "000000x.jpg"), ("empty", "000009.jpg")]


def test_two_sources_have_lists_of_their_own(tmp_path: Path) -> None:
    for name, number in (("a", 0), ("b", 5)):
        root = folder_of(tmp_path / name, number, 2)
        (root / "x.jpg").write_bytes(name.encode())
        ingest(root, tmp_path / "out", open_stream=True)
    url = str(tmp_path / "out")
    assert sorted(one.source for one in read_rejects(Manifest.open(url))) == [
        f"{tmp_path}/a/x.jpg",
        f"{tmp_path}/b/x.jpg",
    ]


def test_an_ingest_without_rejects_makes_no_file(tmp_path: Path) -> None:
    ingest(folder_of(tmp_path / "in", 0, 3), tmp_path / "out")
    assert not (tmp_path / "out" / "rejects").exists()
    assert listed(str(tmp_path / "out")) == []


def test_a_commit_of_an_earlier_build_has_no_list_and_can_be_gone_on_from(tmp_path: Path) -> None:
    root = mixed(tmp_path / "in")

    class Earlier(ShardDestination):
        @property
        def listed(self) -> Listed | None:
            return None

        def reject(self, reject: Reject) -> None:
            pass

    source = open_source(str(root))
    asked = itertools.count(1)
    config = settings(per_shard=3)
    run_ingest(
        source, str(tmp_path / "out"), config,
        destination=Earlier(str(tmp_path / "out"), source.source_id, config), stop=lambda: next(asked) > 6,
    )  # fmt: skip
    assert listed(str(tmp_path / "out")) == []
    run(root, str(tmp_path / "out"))
    assert listed(str(tmp_path / "out")) == [one for one in WANTED if one[1] >= "000005"]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_undecodable_names_and_much_text_come_back(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.rejects.SPILL_BYTES", 300)
    rejects = [
        Reject(reason="empty", source=f"{number}\\xff", detail="ü\n" * number, path=os.fsdecode(b"/\xff"))
        for number in range(20)
    ]
    store = open_store(url_of(kind, tmp_path))
    place = FileList(tmp_path / "out" / "x.jsonl") if kind == "folder" else StoreList(store, "x")
    for number, reject in enumerate(rejects):
        place.add(reject)
        if number == 12:
            place.flush()
            committed = place.listed
    again = FileList(tmp_path / "out" / "x.jsonl") if kind == "folder" else StoreList(store, "x")
    assert again.resume(committed) == 0
    for reject in rejects[13:]:
        again.add(reject)
    again.flush()
    if kind == "folder":
        data = (tmp_path / "out" / "x.jsonl").read_bytes()
    else:
        data = b"".join(store.read(f"x/{name}") for name in sorted(store.names("x")))
    lines = [json.loads(line) for line in data.splitlines()]
    assert [Reject(**line) for line in lines] == rejects
    assert again.listed == Listed(lines=20, bytes=len(data))


def test_copied_and_adopted_tars_list_the_same_with_names_that_say_nothing(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "a.tar",
        [
            ("1.jpg", encoded(1)), ("2", encoded(2)), ("3.jpg?w=3", encoded(3)), ("4.mp4", b"?"),
            ("5.jpg", b""), ("6.jpg", encoded(1)), ("7.cls", b"1"),
        ],
    )  # fmt: skip
    expected = [("unsupported_name", "4.mp4"), ("empty", "5.jpg"), ("duplicate", "6.jpg"), ("no_image", "7")]
    for reference in (True, False):
        out = tmp_path / f"out-{reference}"
        report = ingest(tar, out, reference=reference)
        assert (report.found, report.written, report.unsupported_names) == (7, 3, {".mp4": 1})
        rejects = list(read_rejects(Manifest.open(str(out))))
        assert [(one.reason, one.source.removeprefix(f"{tar}#")) for one in rejects] == expected
        assert {one.path for one in rejects} == {str(tar)}
