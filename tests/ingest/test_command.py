import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.cli.main import run
from stream.shards.manifest import Manifest
from tests.ingest.made import encoded, folder_of, labelled, stored, write_tar
from tests.waiting import wait_for

Output = pytest.CaptureFixture[str]


def told(capsys: Output, *arguments: object) -> tuple[int, Any]:
    code = run(["ingest", *map(str, arguments), "--json", "--set", "workers=0"])
    out, _ = capsys.readouterr()
    return code, json.loads(out) if out.strip() else None


def error_of(capsys: Output, *arguments: object) -> tuple[int, str]:
    code = run(["ingest", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return code, err


def test_json_has_the_accounts(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 0, 4)
    (root / "x.jpg").write_bytes(b"")
    code, body = told(capsys, root, tmp_path / "out")
    assert code == 0
    assert {key: body[key] for key in ("found", "written", "skipped", "shards", "status", "sealed")} == {
        "found": 5,
        "written": 4,
        "skipped": {"empty": 1},
        "shards": 1,
        "status": "finished",
        "sealed": True,
    }
    assert body["bytes"] == sum(len(encoded(seed)) for seed in range(4))
    assert body["seconds"] >= 0
    assert body.keys() == {
        *(
            "found",
            "written",
            "skipped",
            "bytes",
            "shards",
            "seconds",
            "status",
            "sealed",
            "unsupported_names",
            "labels_lost",
            "warnings",
        )
    }
    assert told(capsys, root, tmp_path / "out") == (0, body)


def test_people_are_told_in_sentences(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 0, 4)
    (root / "x.jpg").write_bytes(b"")
    assert run(["ingest", str(root), str(tmp_path / "out"), "--set", "workers=1"]) == 0
    out, err = capsys.readouterr()
    assert "finished: 5 found = 4 written + 1 skipped (1 empty)" in out
    assert "is sealed" in out
    assert all(" found " in line for line in err.splitlines())  # progress, where that took long


def test_several_sources_options_and_settings_reach_the_ingest(tmp_path: Path, capsys: Output) -> None:
    one = folder_of(tmp_path / "in" / "cat", 0, 2)
    two = write_tar(tmp_path / "t.tar", labelled(1, 2))
    out = tmp_path / "out"
    options = ["--open", "--label-from", "parent", "--keep-duplicates", "--set", "short_side=16"]
    code, body = told(capsys, one, two, out, *options, "--set", "shard.max_records=3")
    assert (code, body["written"], body["shards"], body["sealed"]) == (0, 4, 2, False)
    records = stored(out)
    assert [record.body.get("label_name") for record in records] == ["cat", "cat", None, None]
    assert {record.body["height"] for record in records} == {16}


def test_reference_leaves_the_images_where_they_are(tmp_path: Path, capsys: Output) -> None:
    tar = write_tar(tmp_path / "t.tar", labelled(0, 3))
    code, body = told(capsys, tar, tmp_path / "out", "--reference")
    assert (code, body["written"]) == (0, 3)
    assert not (tmp_path / "out" / "shards").exists()


def test_an_open_stream_is_sealed_by_its_own_command(tmp_path: Path, capsys: Output) -> None:
    told(capsys, folder_of(tmp_path / "a", 0, 2), tmp_path / "out", "--open")
    told(capsys, folder_of(tmp_path / "b", 2, 3), tmp_path / "out", "--open")
    for _ in range(2):
        assert run(["seal", str(tmp_path / "out"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"records": 5, "commits": 2, "sealed": True}
    assert Manifest.open(str(tmp_path / "out")).sealed
    code, message = error_of(capsys, folder_of(tmp_path / "c", 9, 1), tmp_path / "out")
    assert code == 1
    assert "is sealed: write to another one" in message
    assert run(["seal", str(tmp_path / "nowhere")]) == 1
    assert "no stream at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{0}/nowhere", "{0}/out"], 1, "nothing is at"),
        (["{0}/*.tgz", "{0}/out"], 1, "no file matches"),
        (["{0}/empty", "{0}/out"], 1, "nothing to ingest"),
        (["{0}/in", "{0}/in/out"], 1, "lies inside the source"),
        (["{0}/in", "{0}/out", "--set", "shortside=3"], 78, "did you mean `short_side`"),
        (["{0}/in", "{0}/out", "--set", "quality=0"], 78, "quality must be in 1..100"),
        (["{0}/in", "{0}/empty/file/out"], 1, "cannot open the stream"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: Output, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "file").touch()
    folder_of(tmp_path / "in", 0, 1)
    answer, err = error_of(capsys, *(argument.format(tmp_path) for argument in arguments))
    assert answer == code
    assert err.startswith("Error: ")
    assert message in err
    assert not (tmp_path / "out").exists()


def when_committed(stream: Path, act: Callable[[], None]) -> threading.Thread:
    def watch() -> None:
        wait_for(lambda: list(stream.glob("commits/*.json")), "the first commit")
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_safely_and_the_same_command_goes_on(
    tmp_path: Path, capsys: Output, number: signal.Signals, code: int
) -> None:
    root, out = folder_of(tmp_path / "in", 0, 300), tmp_path / "out"
    thread = when_committed(out, lambda: os.kill(os.getpid(), number))
    first = told(capsys, root, out, "--set", "shard.max_records=3")
    thread.join()
    assert first[0] == code
    assert (first[1]["status"], first[1]["sealed"]) == ("stopped", False)
    assert 3 <= first[1]["written"] < 300
    assert len(stored(out)) == first[1]["written"]
    second = told(capsys, root, out)
    assert (second[0], second[1]["status"], second[1]["written"]) == (0, "finished", 300)
    assert [record.payload for record in stored(out)] == [encoded(seed) for seed in range(300)]


class Terminal:
    """Standard error as a terminal, kept."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_only(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path / "in", 0, 5)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert told(capsys, root, tmp_path / "out")[0] == 0
    assert "found" in terminal.text
    assert "/s" in terminal.text
    assert terminal.text.endswith("\n")


def test_rejected_files_are_named_as_they_come_where_asked(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 0, 2)
    (root / "x.jpg").write_bytes(b"")
    (root / "y.png").write_bytes(encoded(1, "PNG", width=4, height=4))
    (root / "z.7z").write_bytes(b"?")
    assert run(["ingest", str(root), str(tmp_path / "out"), "-v", "--set", "workers=0"]) == 0
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("rejected: ")] == [
        f"rejected: empty: {root}/x.jpg",
        f"rejected: too_small: {root}/y.png (4 x 4 pixels, the shorter side must have 8)",
        f"rejected: unsupported_name: {root}/z.7z",
    ]
    assert "Warning: 1 file is neither image nor archive" in err


def test_what_is_excluded_is_not_found(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 0, 3)
    folder_of(root / "lost+found", 3, 2)
    code, body = told(capsys, root, tmp_path / "out", "--exclude", "lost+found", "--exclude", "*2.jpg")
    assert (code, body["found"], body["written"]) == (0, 2, 2)


def test_a_folder_for_the_list_is_for_topics(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 0, 1)
    assert run(["ingest", str(root), str(tmp_path / "out"), "--state", str(tmp_path / "state")]) != 0
    assert f"lies in {tmp_path}/out/rejects" in capsys.readouterr().err


def test_warnings_go_to_standard_error(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 5, 2)
    told(capsys, root, tmp_path / "out", "--open")
    (root / "000005.jpg").write_bytes(encoded(9, width=50))
    assert run(["ingest", str(root), str(tmp_path / "out"), "--open", "--json", "--set", "workers=0"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["written"] == 3
    assert "Warning: " in err


def test_a_growing_folder_is_taken_whatever_the_names_in_a_random_order_of_the_seed(
    tmp_path: Path, capsys: Output
) -> None:
    root, orders = tmp_path / "in", []
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        shutil.rmtree(root, ignore_errors=True)
        for first in (50, 0):
            folder_of(root, first, 20)
            _, report = told(
                capsys, root, tmp_path / out, "--open", "--shuffle", "--seed", str(seed), "--keep-duplicates"
            )
        assert (report["found"], report["written"], report["warnings"]) == (40, 40, [])
        orders.append([record.source for record in stored(tmp_path / out)])
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order[:20]) != order[:20] and "000050" in str(order[:20]) for order in orders)


def test_state_is_for_topics_only(tmp_path: Path, capsys: Output) -> None:
    root = folder_of(tmp_path / "in", 0, 1)
    assert run(["ingest", str(root), str(tmp_path / "out"), "--state", str(tmp_path / "state")]) != 0
    assert "is listed beside a stream of shards" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["ingest", "seal"])
def test_help_teaches_by_example(capsys: Output, command: str) -> None:
    assert run([command, "--help"]) == 0
    assert f"swavstream {command} " in capsys.readouterr().out
