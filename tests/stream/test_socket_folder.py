"""The folder for sockets: of this user alone, the same for all commands, whatever the environment says."""

import os
from pathlib import Path

import pytest

from stream import socket_folder as module
from stream.socket_folder import NoSocketFolder, socket_folder

NAME = f"swavstream-{os.getuid()}"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders in which it may lie."""
    both = (tmp_path / "one", tmp_path / "two")
    for place in both:
        place.mkdir()
    monkeypatch.setattr(module, "parents", lambda: both)
    return both


def test_it_is_made_for_its_owner_alone_and_found_again(places: tuple[Path, Path]) -> None:
    before = os.umask(0)
    try:
        made = socket_folder()
    finally:
        os.umask(before)
    assert made == places[0] / NAME
    assert made.stat().st_mode & 0o777 == 0o700
    assert socket_folder() == made


def test_it_leaves_room_for_a_name_and_does_not_depend_on_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = socket_folder()
    assert len(os.fsencode(found)) < 40
    for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.setenv(name, "/somewhere/else")
    assert socket_folder() == found


@pytest.mark.parametrize("kind", ["open to all", "a file", "a link", "of another user"])
def test_what_is_not_private_is_passed_over_and_told_when_nothing_is_left(
    places: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    if kind == "of another user" and os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "private").mkdir(mode=0o700)
    for place in places:
        match kind:
            case "open to all":
                (place / NAME).mkdir()
                (place / NAME).chmod(0o777)
            case "a file":
                (place / NAME).write_text("in the way")
            case "a link":
                (place / NAME).symlink_to(tmp_path / "private")
            case _:
                (place / NAME).mkdir(mode=0o700)
                os.chown(place / NAME, 12345, 12345)
        if place == places[0]:
            assert socket_folder() == places[1] / NAME
            (places[1] / NAME).rmdir()
    with pytest.raises(NoSocketFolder, match=f"{places[0] / NAME}.*{places[1] / NAME}"):
        socket_folder()
