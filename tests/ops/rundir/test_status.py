"""What `swavstream status` says of lanes."""

import socket
from pathlib import Path

import pytest

from ops.live_page.server import Server
from ops.live_page.state import LiveView
from ops.monitoring.metrics import Metrics
from ops.rundir.files import RunRecord, write_json, write_run
from ops.rundir.lock import RunLock, read_holder
from ops.rundir.status import WORST_LANES, lag_lines, read_status


def lane(number: int, behind: int) -> dict[str, float | int | None]:
    return {
        "lane": number, "trained_records": behind, "trained_s": None, "fetched_records": 0, "fetched_s": None,
    }  # fmt: skip


def test_the_lanes_farthest_behind_are_named_and_the_others_summed() -> None:
    lines = lag_lines([lane(number, number) for number in range(WORST_LANES + 3)])
    assert len(lines) == WORST_LANES + 1
    assert lines[0].startswith("  lane 10    10 records behind")
    assert lines[-1] == "  and 2 more lanes 3 records together"
    assert lag_lines([lane(0, 0)]) == []


@pytest.mark.parametrize("kind", ["its own", "of an earlier learner", "of another machine", "of another run"])
def test_a_live_page_is_believed_only_when_it_is_of_the_learner_at_work(tmp_path: Path, kind: str) -> None:
    record = RunRecord.new(stream="stream", config={})
    write_run(tmp_path, record)
    with RunLock(tmp_path) as lock:
        live = LiveView(
            run="other" if kind == "of another run" else record.uuid, run_dir=str(tmp_path), prototypes=4
        )
        server = Server(live, Metrics(version="0", run=record.uuid))
        try:
            here = {"url": server.start(), "pid": lock_pid(lock.path), "host": socket.gethostname()}
            told: dict[str, dict[str, object]] = {
                "of an earlier learner": {"pid": 1},
                "of another machine": {"host": "elsewhere"},
            }
            write_json(tmp_path / "server.json", {**here, **told.get(kind, {})})
            standing = read_status(tmp_path)
        finally:
            server.close()
    assert standing.status == "running"
    assert standing.url == (here["url"] if kind == "its own" else "")
    assert bool(standing.live) == (kind == "its own")


def lock_pid(path: Path) -> int:
    holder = read_holder(path)
    assert holder is not None
    return holder.pid
