import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from ingest.errors import SourceEmpty, SourceNotFound, SourceUnreadable
from ingest.sources import FileSource, Found, Position, open_source
from stream.errors import BadRecord
from tests.ingest.made import encoded, folder_of, labelled, write_tar

NOBODY = 65534


def of(source: FileSource, after: Position | None = None, *, whole_tars: bool = False) -> list[Found]:
    """Everything behind a position."""
    return [item for item in source.items(after, whole_tars=whole_tars) if item is not None]


def found(*specs: Path | str, **options: str) -> list[Found]:
    return of(open_source([str(spec) for spec in specs], **options))  # type: ignore[arg-type]


def names(items: list[Found], root: Path) -> list[str]:
    return [item.name.removeprefix(f"{root}/") for item in items]


def mixed(root: Path) -> Path:
    folder_of(root / "b", 0, 3)
    folder_of(root / "a.d", 3, 2)
    folder_of(root / "a", 5, 2)
    write_tar(root / "c.tar", labelled(7, 3))
    write_tar(root / "b" / "d.tgz", labelled(10, 2), "w:gz")
    (root / "notes.txt").write_text("not an image")
    (root / "labels.json").write_text("{}")
    return root


def test_a_folder_gives_its_images_and_those_of_its_tars_in_the_order_of_names(tmp_path: Path) -> None:
    assert names(found(mixed(tmp_path)), tmp_path) == [
        "a/000005.jpg",
        "a/000006.jpg",
        "a.d/000003.jpg",
        "a.d/000004.jpg",
        "b/000000.jpg",
        "b/000001.jpg",
        "b/000002.jpg",
        "b/d.tgz#000010.jpg",
        "b/d.tgz#000011.jpg",
        "c.tar#000007.jpg",
        "c.tar#000008.jpg",
        "c.tar#000009.jpg",
    ]


def test_from_every_position_exactly_the_rest_comes(tmp_path: Path) -> None:
    source = open_source(str(mixed(tmp_path)))
    everything = of(source)
    for number, item in enumerate(everything):
        position = json.loads(json.dumps(item.position))
        assert of(source, position) == everything[number + 1 :]
        assert source.warnings() == []


def test_positions_hold_for_a_reference_too(tmp_path: Path) -> None:
    source = open_source(str(mixed(tmp_path)))
    everything = of(source, whole_tars=True)
    assert [item.tar for item in everything if item.tar] == [str(tmp_path / "c.tar")]
    for number, item in enumerate(everything):
        assert of(source, item.position, whole_tars=True) == everything[number + 1 :]


def test_a_tar_that_was_begun_image_by_image_is_not_adopted_whole(tmp_path: Path) -> None:
    source = open_source(str(write_tar(tmp_path / "t.tar", labelled(0, 4))))
    second = of(source)[1]
    assert [item.tar for item in of(source, second.position, whole_tars=True)] == ["", ""]


def test_several_sources_come_one_after_the_other(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "z", 0, 2), folder_of(tmp_path / "a", 2, 2)
    assert names(found(one, two), tmp_path) == [
        "z/000000.jpg",
        "z/000001.jpg",
        "a/000002.jpg",
        "a/000003.jpg",
    ]


def test_a_glob_gives_what_matches_and_a_folder_in_it_only_once(tmp_path: Path) -> None:
    mixed(tmp_path)
    assert names(found(f"{tmp_path}/*.tar"), tmp_path)[0] == "c.tar#000007.jpg"
    assert len(found(f"{tmp_path}/**")) == 12
    assert len(found(f"{tmp_path}/b*", f"{tmp_path}/a*/*.jpg")) == 9


def test_hidden_files_and_mac_leftovers_are_not_found(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", 0, 1)
    folder_of(tmp_path / ".thumbnails", 1, 1)
    folder_of(tmp_path / "__MACOSX", 2, 1)
    (tmp_path / "x" / "._000000.jpg").write_bytes(b"mac")
    assert len(found(tmp_path)) == 1


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", 0, 2)
    root = folder_of(tmp_path / "root", 2, 1)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root)
    (root / "one.jpg").symlink_to(tmp_path / "elsewhere" / "000000.jpg")
    assert names(found(root), root) == ["000002.jpg", "linked/000000.jpg", "linked/000001.jpg", "one.jpg"]


def test_a_broken_link_and_a_pipe_under_the_name_of_an_image_are_found_and_lost(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "c.tar")
    assert [item.loss for item in found(tmp_path)] == ["unreadable", "not_a_file", "not_a_file"]


def test_names_that_are_no_text_are_printable_and_their_positions_hold(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe \n%41.jpg"
    Path(os.fsdecode(raw)).write_bytes(encoded(0))
    folder_of(tmp_path, 1, 1)
    source = open_source(str(tmp_path))
    first, second = of(source)
    assert all(item.name.isprintable() for item in (first, second))
    assert Path(second.path).read_bytes() == encoded(0)
    assert of(source, json.loads(json.dumps(first.position))) == [second]
    assert of(source, json.loads(json.dumps(second.position))) == []


def test_evil_member_names_are_escaped(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("../../\x1b[31m\n.jpg", b"1")])
    (item,) = found(path)
    assert item.name.isprintable()
    assert item.name.endswith("#../../\\x1b[31m\\n.jpg")


@pytest.mark.parametrize(
    ("cls", "body", "label", "name", "bad"),
    [
        (b"7\n", None, 7, None, False),
        (b"7", b'{"label": 3, "label_name": "cat"}', 7, "cat", False),
        (None, b'{"label": 3, "label_name": "cat"}', 3, "cat", False),
        (None, b'{"label_name": "cat"}', None, "cat", False),
        (None, b'{"caption": "a cat"}', None, None, False),
        (b"cat", None, None, None, True),
        (b"", None, None, None, True),
        (b"-1", None, None, None, True),
        (b"99999999999999999999", None, None, None, True),
        (None, b'{"label": 1.5}', None, None, True),
        (None, b'{"label": ', None, None, True),
    ],
)
def test_labels_come_from_cls_before_json_in_tars_and_beside_files(
    tmp_path: Path, cls: bytes | None, body: bytes | None, label: int | None, name: str | None, bad: bool
) -> None:
    members = [("k.jpg", encoded(0))]
    members += [("k.cls", cls)] if cls is not None else []
    members += [("k.json", body)] if body is not None else []
    beside = tmp_path / "beside"
    beside.mkdir()
    for member, data in members:
        (beside / member).write_bytes(data)
    for source in (write_tar(tmp_path / "t.tar", members), beside):
        (item,) = found(source)
        assert (item.labels.label, item.labels.label_name, item.labels.bad) == (label, name, bad)


def test_the_folder_is_the_label_where_asked(tmp_path: Path) -> None:
    folder_of(tmp_path / "all" / "cat", 0, 1)
    folder_of(tmp_path / "all" / "7", 1, 1)
    write_tar(
        tmp_path / "t.tar",
        [
            ("dog/1.jpg", b"1"),
            ("dog/1.cls", b"3"),
            ("2.jpg", b"2"),
            ("2.cls", b"5"),
            ("3.jpg", b"3"),
            ("4.jpg", b"4"),
            ("4.json", b'{"caption": "a cat"}'),
        ],
    )
    items = found(tmp_path / "all", tmp_path / "t.tar", label_from="parent")
    assert [(item.labels.label, item.labels.label_name, item.labels.bad) for item in items] == [
        (7, "7", False),
        (None, "cat", False),
        (None, "dog", False),
        (5, None, False),
        (None, None, True),
        (None, None, True),
    ]


def test_a_missing_source_is_an_error_that_names_it(tmp_path: Path) -> None:
    for spec in (tmp_path / "nowhere", tmp_path / "*.tar"):
        with pytest.raises(SourceNotFound, match=str(tmp_path)):
            open_source(str(spec))


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(SourceEmpty, match="no file there is an image or an archive"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("spec", ["s3://bucket/images", "images.7z", "notes.txt", "0f3b9c"])
def test_what_cannot_be_a_source_is_refused(tmp_path: Path, spec: str) -> None:
    if "://" not in spec:
        (tmp_path / spec).write_text("text")
        spec = str(tmp_path / spec)
    with pytest.raises(SourceUnreadable):
        open_source(spec)


def test_an_explicit_tar_of_another_name_is_taken(tmp_path: Path) -> None:
    assert len(found(write_tar(tmp_path / "images.dat", labelled(0, 2)))) == 2


def test_what_says_nothing_by_its_name_is_looked_at_and_the_rest_counted(tmp_path: Path) -> None:
    for number, name in enumerate(
        ["0f3b9c", "c.jpg?w=300", "d.jpg.1", "e.jpg_large", "f.jpeg:large", "g.CR2"]
    ):
        (tmp_path / name).write_bytes(encoded(number))
    (tmp_path / "h.img").write_bytes(encoded(6))
    (tmp_path / "i.dng").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "j.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    (tmp_path / "k.txt").write_text("text")
    write_tar(tmp_path / "l.tar.bz2", labelled(7, 1), "w:bz2")
    write_tar(tmp_path / "m", labelled(8, 1), "w:gz")
    with zipfile.ZipFile(tmp_path / "n.zip", "w") as pack:
        pack.writestr("z.jpg", encoded(9))
    items = found(tmp_path)
    lost = {"i.dng": "unsupported_name", "j.7z": "unsupported_name"}
    assert {name: item.loss for name, item in zip(names(items, tmp_path), items, strict=True)} == {
        **dict.fromkeys(["0f3b9c", "c.jpg?w=300", "d.jpg.1", "e.jpg_large", "f.jpeg:large", "g.CR2"], ""),
        "h.img": "",
        "l.tar.bz2#000007.jpg": "",
        "m#000008.jpg": "",
        "n.zip#z.jpg": "",
        **lost,
    }
    assert all(item.file.startswith(f"{tmp_path}/") and "#" not in item.file for item in items)
    for number, item in enumerate(items):
        assert list(open_source(str(tmp_path)).items(item.position)) == items[number + 1 :]


@pytest.mark.parametrize("name", ["0f3b9c", "x.php", "x.jpg?w=300"])
def test_an_explicit_image_of_any_name_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(0))
    assert [item.path for item in found(tmp_path / name)] == [str(tmp_path / name)]


def test_a_source_of_nothing_that_is_read_says_what_there_is(tmp_path: Path) -> None:
    for name in ("a.7z", "b.7z", "c"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(SourceEmpty, match=r"there are 2 \.7z, 1 without an ending"):
        open_source(str(tmp_path))


def as_nobody(root: Path, code: str) -> str:
    """What a program prints that may not read everything, as root may; its argument is `root`."""
    program = (
        "import os, sys; from ingest.sources import open_source\n"
        f"if os.geteuid() == 0: os.setuid({NOBODY})\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_folders_and_files_that_cannot_be_read_are_counted_and_told_and_the_rest_comes() -> None:
    code = (
        "source = open_source(sys.argv[1])\n"
        "for item in source.items(): print(item.name.removeprefix(sys.argv[1]), item.loss, item.detail)\n"
        "print(*source.warnings())"
    )
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        root.chmod(0o755)
        locked = folder_of(root / "b", 1, 1)
        shut = folder_of(root / "c", 2, 1)  # its names may be read, and nothing else
        (shut / "0f3b9c").write_bytes(encoded(3))
        folder_of(root / "a", 0, 1)
        folder_of(root / "d", 4, 1)
        (root / "d" / "0f3b9c").write_bytes(encoded(5))
        (root / "d" / "0f3b9c").chmod(0)
        locked.chmod(0)
        shut.chmod(0o444)
        told = as_nobody(root, code).splitlines()
        locked.chmod(0o755)
        shut.chmod(0o755)
    denied = "Permission denied"
    assert [line.strip() for line in told[:-1]] == [
        "/a/000000.jpg",
        f"/b unreadable_folder {denied}",
        f"/c/000002.jpg unreadable {denied}",
        f"/c/0f3b9c unreadable {denied}",
        "/d/000004.jpg",
        f"/d/0f3b9c unreadable {denied}",
    ]
    assert told[-1].startswith(f"{locked} ({denied}) cannot be listed: passed")


def test_a_source_of_which_nothing_can_be_read_is_an_error_that_names_it() -> None:
    code = "try: open_source(sys.argv[1])\nexcept Exception as error: print(type(error).__name__, error)"
    with tempfile.TemporaryDirectory() as made:
        locked = folder_of(Path(made) / "locked", 1, 1)
        Path(made).chmod(0o755)
        locked.chmod(0)
        told = as_nobody(locked, code)
        locked.chmod(0o755)
    assert told.startswith(f"SourceUnreadable nothing in {locked} can be read ({locked}: Permission denied)")


def test_a_missing_second_source_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="nothing is at"):
        open_source([str(folder_of(tmp_path / "a", 0, 1)), str(tmp_path / "b")])


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["lost+found"], ["a/000000.jpg", "a/b/000001.jpg", "a/b/000002.jpg"]),
        (["b"], ["a/000000.jpg", "lost+found/000003.jpg"]),
        (["b/"], ["a/000000.jpg", "lost+found/000003.jpg"]),
        (["a/b/*1.jpg", "lost*"], ["a/000000.jpg", "a/b/000002.jpg"]),
        (["*0.jpg", "*3.jpg"], ["a/b/000001.jpg", "a/b/000002.jpg"]),
        (["{root}/a"], ["lost+found/000003.jpg"]),
        (["A", "0000"], ["a/000000.jpg", "a/b/000001.jpg", "a/b/000002.jpg", "lost+found/000003.jpg"]),
    ],
)
def test_patterns_leave_out_by_name_or_by_path(
    tmp_path: Path, patterns: list[str], wanted: list[str]
) -> None:
    folder_of(tmp_path / "a", 0, 1)
    folder_of(tmp_path / "a" / "b", 1, 2)
    folder_of(tmp_path / "lost+found", 3, 1)
    exclude = [pattern.format(root=tmp_path) for pattern in patterns]
    assert names(of(open_source(str(tmp_path), exclude=exclude)), tmp_path) == wanted


def test_files_added_before_the_place_are_not_taken_and_that_is_said(tmp_path: Path) -> None:
    source = open_source(str(folder_of(tmp_path, 10, 3)))
    last = of(source)[-1]
    folder_of(tmp_path, 5, 2)
    folder_of(tmp_path, 20, 2)
    assert names(of(source, last.position), tmp_path) == ["000020.jpg", "000021.jpg"]
    (warning,) = source.warnings()
    assert "4 files stand before" in warning
    assert "then it was 2" in warning


def test_a_last_file_that_was_replaced_is_said(tmp_path: Path) -> None:
    source = open_source(str(folder_of(tmp_path, 0, 3)))
    last = of(source)[-1]
    Path(last.path).write_bytes(b"another")
    assert of(source, last.position) == []
    assert "another size" in source.warnings()[0]


def test_the_identity_of_a_source_is_that_of_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "x", 0, 1)
    absolute = open_source(str(tmp_path / "x")).source_id
    monkeypatch.chdir(tmp_path)
    assert open_source("x/").source_id == absolute
    assert open_source(f"../{tmp_path.name}/x").source_id == absolute
    assert open_source("x", name="mine").source_id == "mine"


def test_an_image_is_read_from_its_file_up_to_one_byte_above_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"0123456789")
    found = Found(name="1.jpg", position={}, path=str(path))
    assert found.read(10) == b"0123456789"
    assert found.read(4) == b"01234"
    assert Found(name="2.jpg", position={}, payload=b"held").read(2) == b"held"
    path.unlink()
    with pytest.raises(BadRecord, match="No such file") as caught:
        found.read(10)
    assert caught.value.reason == "unreadable"
