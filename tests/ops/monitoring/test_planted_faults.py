"""One failure at a time in a real run, watched by a real Prometheus: the right alert, no other, the cause.

Time runs 300 times faster in the rules; what fires after which time as shipped is in `test_alerts.py`.
"""

import functools
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops.cli.main import cli
from ops.doctor import diagnosis
from ops.monitoring import alerts
from ops.monitoring.conditions import Scale
from ops.snapshots.publisher import start_publisher
from ops.train.signals import StopRequest
from tests.ops.faults import FAST, FAULTS, HEALTHY_AFTER, SETTINGS, Fault, Planted, mixed, nothing
from tests.ops.prometheus import Prometheus, running
from tests.ops.small_runs import config_of, run
from tests.ports import free_port

logger = logging.getLogger(__name__)

SCALE = Scale(factor=1 / 300, warm_up_updates=HEALTHY_AFTER, stalled_s=60, start_s=20)
HEALTHY = "healthy"
WAIT_S = 120.0
"""Longest wait for anything; a machine that is busy takes its time."""
ABOUT_THE_MACHINE = {"SwavstreamMetricsAbsent"}
"""Prometheus got no answer within 0.2 s a few times in a row, which is no fault of the run."""
SETTLE_S = 1.0 + SCALE.factor * max(alert.for_s for alert in alerts.alerts(SCALE))
"""How much longer to look for alerts that should not fire, once the right one has: none takes longer."""
HEALTHY_S = 4.0 + SETTLE_S
"""Length of the healthy run."""

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(4 * WAIT_S)]


@dataclass
class Watched:
    """A running Prometheus, and the port that each run is to have."""

    server: Prometheus
    ports: dict[str, int]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    ports = {name: free_port() for name in (HEALTHY, *(fault.name for fault in FAULTS))}
    folder = tmp_path_factory.mktemp("prometheus")
    with running(folder, targets=ports, rules=alerts.rules(SCALE)) as server:
        yield Watched(server, ports)


@dataclass
class Life:
    """A run in a thread, and the alerts that fired once it was well, with the second of each."""

    name: str
    run_dir: Path
    thread: threading.Thread
    stop: StopRequest
    fired: dict[str, float] = field(default_factory=dict)
    failed: list[BaseException] = field(default_factory=list)
    well: float = 0.0
    """When it was, by `time.monotonic`."""


def begin(fault: Fault | None, watched: Watched, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    """Write the stream and start the run."""
    name = fault.name if fault else HEALTHY
    (fault.feed if fault else mixed)(folder / "stream")
    plant, run_dir = (fault.plant if fault else nothing), folder / "run"

    class Learner(Planted):
        pass

    stop = StopRequest()
    Learner.plant, Learner.run_dir, Learner.stop = staticmethod(plant), run_dir, stop
    Learner.after = fault.after if fault else HEALTHY_AFTER
    monkeypatch.setattr("ops.train.resume.Learner", Learner)
    examined = functools.partial(diagnosis.examine, scale=Scale(start_s=SCALE.start_s))
    monkeypatch.setattr(diagnosis, "examine", examined)
    hurried = functools.partial(start_publisher, retry_s=(0.1, 0.3))
    monkeypatch.setattr("ops.train.listeners.start_publisher", hurried)
    own = fault.settings if fault else ()
    config = config_of(*SETTINGS, f"server.port={watched.ports[name]}", *own)
    life = Life(name, run_dir, threading.Thread(), stop)

    def work() -> None:
        try:
            run(str(folder / "stream"), run_dir, config, stop=stop, publish_s=1.0)
        except BaseException as error:  # noqa: BLE001  carried to the test, whose failure it is
            life.failed.append(error)

    life.thread = threading.Thread(target=work, daemon=True)
    life.thread.start()
    expected = fault.expected if fault else frozenset()
    await_well(life, watched.server, expected, updates=Learner.after)
    return life


def await_well(life: Life, server: Prometheus, expected: frozenset[str], *, updates: int) -> None:
    """Until Prometheus sees a run that is well but for its fault: in steps, not in seconds."""
    here = f'{{instance="{life.name}"}}'
    well = f"swavstream_run_updates{here} >= {updates} or swavstream_learner_waiting{here} == 1"
    if not updates:
        well = f"swavstream_learner_start_timestamp_seconds{here}"
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and life.thread.is_alive():
        if server.query(f"up{here} == 1") and server.query(well) and not firing(life, server) - expected:
            break
        time.sleep(0.05)
    life.well = time.monotonic()


def firing(life: Life, server: Prometheus, within_s: float = 0.0) -> set[str]:
    """Alerts that fire now, or did within so many seconds, however seldom one looks."""
    series = f'ALERTS{{instance="{life.name}",alertstate="firing"}}'
    found = server.query(f"count_over_time({series}[{1000 * within_s:.0f}ms])" if within_s else series)
    return {one["metric"]["alertname"] for one in found} - ABOUT_THE_MACHINE


def look(life: Life, server: Prometheus) -> None:
    """Note which alerts have fired since the run was well."""
    since = time.monotonic() - life.well
    for name in firing(life, server, within_s=max(since, 0.001)):
        life.fired.setdefault(name, since)
    time.sleep(0.1)


def doctor(run_dir: Path) -> tuple[int, dict[str, str]]:
    """Exit code, and the setting of each finding by its name."""
    done = CliRunner().invoke(cli, ["doctor", str(run_dir), "--json"], standalone_mode=False)
    body = json.loads(done.output)
    assert isinstance(done.return_value, int)
    return done.return_value, {row["name"]: row["setting"] for row in body["findings"]}


def test_a_healthy_run_fires_nothing_for_its_whole_length(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin(None, watched, tmp_path, monkeypatch)
    examined = None
    while life.thread.is_alive():
        look(life, watched.server)
        if examined is None and time.monotonic() > life.well + HEALTHY_S:
            examined = doctor(life.run_dir)
            life.stop.ask()
    assert not life.failed
    assert life.fired == {}
    assert examined == (0, {})
    assert doctor(life.run_dir) == (0, {}), "from its files alone"


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, id=f.name, marks=[] if f.name in FAST else pytest.mark.slow) for f in FAULTS],
)
def test_a_planted_fault_is_found_named_and_not_taken_for_another(
    fault: Fault, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = begin(fault, watched, tmp_path, monkeypatch)
    if fault.alert in firing(life, watched.server, within_s=WAIT_S):
        life.fired[fault.alert] = 0.0
    while life.thread.is_alive() and fault.alert not in life.fired and time.monotonic() < life.well + WAIT_S:
        look(life, watched.server)
    found = time.monotonic()
    code, findings = doctor(life.run_dir)  # now, as whoever the alert has called would ask
    while life.thread.is_alive() and time.monotonic() < found + SETTLE_S:
        look(life, watched.server)
    looked_to_the_end = life.thread.is_alive()
    life.stop.ask()
    life.thread.join(60)
    logger.info("%-18s %s doctor: %s", fault.name, {n: round(s, 1) for n, s in life.fired.items()}, findings)
    assert not life.failed
    assert fault.alert in life.fired
    assert life.fired.keys() <= fault.expected
    assert looked_to_the_end, "the run came to its end before all other alerts could have fired"
    assert code == 1
    assert findings[fault.finding] == fault.setting
