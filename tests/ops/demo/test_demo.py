import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from ingest.config import IngestConfig
from ingest.worker import run_ingest
from ops.cli.main import run as command
from ops.demo import feed as demo_feed
from ops.demo import run as demo_run
from ops.demo.contact_sheet import DARK, LIGHT
from ops.demo.feed import DrawnSource, Feed, FeedProcess, samples_used
from ops.demo.judge import draw_sheet
from ops.demo.run import DemoOptions, prepare_directory
from ops.errors import OpsError, RunLocked
from ops.inference.load_model import load
from ops.rundir.files import write_json
from ops.rundir.lock import RunLock
from ops.rundir.summary import RunSummary
from ops.snapshots.embedded_redis import EmbeddedRedis, command_line
from ops.snapshots.redis_client import connect
from ops.train.signals import StopRequest
from stream.shards.manifest import Manifest
from stream.shards.source import ShardSpec
from tests.ops.drawn_runs import drawn, write_stream
from tests.waiting import LIMIT_S, wait_for

PROGRAM = [sys.executable, "-c", "from ops.cli.main import main; main()", "demo"]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """One short demo through the command line: its directory, what `--json` printed, and stderr."""
    run_dir = tmp_path_factory.mktemp("demo") / "demo-run"
    done = subprocess.run(
        [*PROGRAM, "--seconds", "15", "--run", str(run_dir), "--port", "0", "--json"],
        capture_output=True, text=True, env=_environment(), timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return run_dir, json.loads(line), done.stderr


def test_a_demo_learns_from_a_stream_that_grows_meanwhile(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    run_dir, result, _ = finished
    assert result["learn"]["samples"] >= 64
    manifest = Manifest.open(str(run_dir / "stream"))
    assert manifest.sealed
    assert len(manifest) > 1, "one shard would be no growing stream"
    assert manifest.records == result["ingest"]["written"]


def test_its_accounts_add_up(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = finished
    ingest, learned = result["ingest"], result["learn"]
    assert ingest["found"] == ingest["written"] + sum(ingest["skipped"].values())
    read = learned["samples"] + learned["skipped"] + learned["left_over"]
    if result["status"] == "finished":
        assert read == ingest["written"]
    else:  # the machine is so slow that the time was over first
        assert read <= ingest["written"]


def test_it_compares_itself_with_the_untrained_network_and_with_chance(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    _, result, _ = finished
    assert set(result["purity"]) == {"trained", "untrained", "chance"}
    assert set(result["knn20"]) == {"trained", "untrained", "raw_pixels"}
    # A few seconds of learning on a loaded machine: far above chance is all that can be asked for.
    assert result["purity"]["trained"] > 1.5 * result["purity"]["chance"]


def test_it_leaves_a_contact_sheet_a_page_and_a_run(finished: tuple[Path, dict[str, Any], str]) -> None:
    run_dir, result, _ = finished
    with Image.open(run_dir / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 800
    page = (run_dir / "summary.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    for text in (
        "ln K",
        "data:image/png;base64,",
        "Accounts",
        "raw pixels",
        f"{result['learn']['samples']:,}",
    ):
        assert text in page, text
    assert Path(result["learn"]["checkpoint"]).is_dir()
    assert result["learn"]["snapshot"]["version"] >= 1


def test_the_table_lists_the_prototypes_of_the_contact_sheet(
    finished: tuple[Path, dict[str, Any], str],
) -> None:
    run_dir, _, _ = finished
    sheet = draw_sheet(load(run_dir), str(run_dir / "stream"))
    used = [prototype for prototype, share in enumerate(sheet.usage) if share > 0]
    busiest = sorted(used, key=lambda prototype: -sheet.usage[prototype])[:20]
    assert list(sheet.prototypes) == busiest, "a busy prototype has no row"
    page = (run_dir / "summary.html").read_text(encoding="utf-8")
    table = page.split("What the busiest prototypes hold")[1].split("</table>")[0]
    assert [int(number) for number in re.findall(r"<td>#(\d+)</td>", table)] == busiest


def test_the_sheet_has_a_dark_scheme(finished: tuple[Path, dict[str, Any], str]) -> None:
    run_dir, _, _ = finished
    with (
        Image.open(run_dir / "contact-sheet.png") as light,
        Image.open(run_dir / "contact-sheet-dark.png") as dark,
    ):
        assert dark.size == light.size
        assert light.getpixel((0, 0)) == LIGHT.background
        assert dark.getpixel((0, 0)) == DARK.background
    page = (run_dir / "summary.html").read_text(encoding="utf-8")
    assert '<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,' in page


def test_given_images_are_read_again_until_the_time_is_used(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(70):
        (pictures / f"{number:02}.jpg").write_bytes(drawn(number).payload)
    done = subprocess.run(
        [
            *PROGRAM, "--images", str(pictures), "--seconds", "15", "--run", str(tmp_path / "run"),
            "--port", "0", "--json",
        ],
        capture_output=True, text=True, env=_environment(), timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    learned = result["learn"]
    assert result["status"] == "finished"
    assert result["passes"] > 1
    assert learned["samples"] + learned["skipped"] + learned["left_over"] == pytest.approx(
        result["passes"] * 70, abs=1
    )
    assert f"70 records read {result['passes']:.1f} times" in done.stderr
    assert "went by" in (tmp_path / "run" / "summary.html").read_text(encoding="utf-8")


def test_it_tells_where_to_look_while_it_runs(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, told = finished
    assert re.search(r"http://127\.0\.0\.1:\d+/", told)
    assert result["live_page"] in told
    assert "purity by kind" in told


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many processes share a page")
def test_all_its_processes_together_stay_below_2_gb(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = finished
    assert 0.2e9 < result["peak_memory_bytes"] < 2e9
    assert result["peak_processes"] >= 3


def test_ctrl_c_saves_and_still_sums_up(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    child = subprocess.Popen(
        [*PROGRAM, "--seconds", "90", "--run", str(run_dir), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(),
        start_new_session=True,
    )  # fmt: skip
    watchdog = threading.Timer(LIMIT_S, child.kill)
    watchdog.start()
    try:
        while samples_used(run_dir / "history.jsonl") == 0:
            assert child.poll() is None
            time.sleep(0.1)
        # To the whole group, as a terminal does it: the ingest side must not die of it.
        os.killpg(child.pid, signal.SIGINT)
        told, _ = child.communicate()
    finally:
        watchdog.cancel()
        child.kill()
    assert child.returncode == 0, told
    assert "demo stopped" in told
    assert "Traceback" not in told
    assert Manifest.open(str(run_dir / "stream")).sealed
    assert (run_dir / "summary.html").exists()
    assert (run_dir / "contact-sheet.png").exists()


def test_an_earlier_demo_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    assert prepare_directory(run_dir) is False
    assert prepare_directory(run_dir) is False, "an empty directory holds no demo"
    write_json(run_dir / demo_run.MARK, {})
    (run_dir / "old").write_text("")
    assert prepare_directory(run_dir) is True
    assert list(run_dir.iterdir()) == []
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "run.json").write_text("{}")
    with pytest.raises(OpsError, match="was not made by a demo"):
        prepare_directory(precious)
    (tmp_path / "file").write_text("")
    with pytest.raises(OpsError, match="was not made by a demo"):
        prepare_directory(tmp_path / "file")
    assert (precious / "run.json").exists()


def test_a_demo_that_still_runs_is_not_replaced(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    prepare_directory(run_dir)
    write_json(run_dir / demo_run.MARK, {})
    with RunLock(run_dir), pytest.raises(RunLocked, match="still runs"):
        prepare_directory(run_dir)
    assert (run_dir / demo_run.MARK).exists()


def test_a_wrong_source_is_told_before_anything_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "demo-run"
    prepare_directory(run_dir)
    write_json(run_dir / demo_run.MARK, {})
    assert command(["demo", "--images", str(tmp_path / "nothing"), "--run", str(run_dir)]) == 1
    assert "nothing is at" in capsys.readouterr().err
    assert (run_dir / demo_run.MARK).exists()


def test_a_time_too_short_for_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds must be >= 15"):
        DemoOptions(run_dir=tmp_path, seconds=3)


def test_the_usual_port_is_taken_when_it_is_free_and_another_when_not(tmp_path: Path) -> None:
    asked = demo_run.demo_config(DemoOptions(run_dir=tmp_path, port=12345))
    assert asked.server.port == 12345
    assert demo_run.demo_config(DemoOptions(run_dir=tmp_path, seed=7)).seed == 7
    usual = demo_run.demo_config(DemoOptions(run_dir=tmp_path)).server
    assert usual.port in {0, 9464}


def _feed(tmp_path: Path, **changes: Any) -> Feed:
    values: dict[str, Any] = {
        "stream": str(tmp_path / "stream"), "run_dir": str(tmp_path), "images": "", "seed": 0, "size": 32,
        "until": 0.0, "least_s": 60.0, "ahead": 100, "fewest_ahead": 100, "shard_records": 40,
    }  # fmt: skip
    return Feed(**(values | changes))


def test_the_ingest_side_waits_for_the_learner_and_seals_when_it_is_stopped(tmp_path: Path) -> None:
    with FeedProcess(_feed(tmp_path)) as feeding:
        wait_for(lambda: (tmp_path / "stream" / "stream.json").exists() and len(_manifest(tmp_path)) >= 2)
        time.sleep(1.0)
        assert _manifest(tmp_path).records <= 100, "it may not run further ahead"
        (child,) = (one for one in multiprocessing.active_children() if one.name == "demo-ingest")
        assert psutil.Process(child.pid).children() == [], "a fork server of its own takes 700 MB for nothing"
        (tmp_path / "history.jsonl").write_text('{"samples": 64}\n')
        wait_for(lambda: len(_manifest(tmp_path)) >= 4)
        feeding.stop()
        assert feeding.ended()
        assert not feeding.failed()
    manifest = _manifest(tmp_path)
    assert manifest.sealed
    assert manifest.records == feeding.report()["written"] <= 164


def _manifest(tmp_path: Path) -> Manifest:
    return Manifest.open(str(tmp_path / "stream"))


def test_an_ingest_side_that_fails_is_noticed(tmp_path: Path) -> None:
    write_stream(tmp_path / "stream", [drawn(0)])  # sealed: nothing can be written to it
    with FeedProcess(_feed(tmp_path)) as feeding:
        wait_for(feeding.ended)
        assert feeding.failed()


def test_an_ingest_side_whose_demo_was_killed_ends_and_seals_nothing(tmp_path: Path) -> None:
    program = (
        "import os, signal, time\n"
        "from pathlib import Path\n"
        "from ops.demo.feed import Feed, FeedProcess\n"
        "if __name__ == '__main__':\n"
        f"    feeding = FeedProcess({_feed(tmp_path)!r})\n"
        "    feeding.__enter__()\n"
        f"    while not list(Path({str(tmp_path)!r}).glob('stream/shards/*.tar')):\n"
        "        time.sleep(0.05)\n"
        "    print(feeding._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=_environment(), timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for(lambda: not command_line(int(done.stdout)), "the end of what has lost its demo")
    assert not _manifest(tmp_path).sealed


def test_what_is_skipped_does_not_hold_the_ingest_side_up(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(30):
        (pictures / f"{number:02}.jpg").write_bytes(b"no image %d" % number)
    (pictures / "99.jpg").write_bytes(drawn(0).payload)
    over = time.monotonic() + LIMIT_S
    feed = _feed(tmp_path, images=str(pictures), ahead=5, fewest_ahead=5)
    demo_feed._ingest(feed, lambda: time.monotonic() > over)
    report = json.loads((tmp_path / demo_feed.REPORT).read_text())
    assert (report["status"], report["written"], report["skipped"]) == ("finished", 1, {"not_an_image": 30})


def test_the_redis_of_a_killed_demo_is_ended_when_it_is_replaced(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-run"
    prepare_directory(run_dir)
    write_json(run_dir / demo_run.MARK, {})
    left = EmbeddedRedis(run_dir)
    with connect(left.start()) as client:
        pid = int(client.info("server")["process_id"])
    assert prepare_directory(run_dir) is True
    assert command_line(pid) == ""
    assert list(run_dir.iterdir()) == []
    left.close()


def test_sigterm_before_the_learner_has_begun_leaves_no_ingest_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(*_: object, stop: StopRequest, **__: object) -> RunSummary:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(LIMIT_S)
        raise OpsError("stopped early")

    monkeypatch.setattr(demo_run, "learn", early)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # else the signal would end the tests
    try:
        with pytest.raises(OpsError, match="stopped early"):
            demo_run.run_demo(DemoOptions(run_dir=tmp_path / "run", port=0), say=print, out=io.StringIO())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not [child for child in multiprocessing.active_children() if child.name == "demo-ingest"]


def test_progress_is_read_from_the_end_of_a_history(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    assert samples_used(history) == 0
    history.write_text("".join(json.dumps({"samples": n, "loss": 1.0}) + "\n" for n in range(64, 64_000, 64)))
    assert samples_used(history) == 63_936
    with history.open("a") as file:
        file.write('{"samples": 640')  # being written
    assert samples_used(history) == 63_936
    history.write_text("nonsense\n")
    assert samples_used(history) == 0


def test_drawn_pictures_are_ingested_and_resumed_like_files(tmp_path: Path) -> None:
    config = IngestConfig(short_side=0, workers=0)
    asked = io.StringIO()

    def after(images: int) -> bool:
        asked.write(".")
        return len(asked.getvalue()) >= images

    source = DrawnSource(seed=3, size=32)
    first = run_ingest(source, str(tmp_path / "stream"), config, stop=lambda: after(30))
    second = run_ingest(source, str(tmp_path / "stream"), config, stop=lambda: after(50))
    assert (first.status, first.written) == ("stopped", 30)
    assert second.written == 50
    reader = ShardSpec(url=str(tmp_path / "stream"), lanes=1, window=1, seed=0).open()
    from stream.lanes import Position

    found = {entry.record.source for entry, _ in reader.read(Position(lane=0), 0) if entry.record}
    assert found == {f"drawn-3-32#{number}" for number in range(50)}
    reader.close()
