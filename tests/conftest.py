"""Fixtures that every test may use, and what holds for every test."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.kafka_broker import kafka, kafka_of_session  # noqa: F401  fixtures
from tests.left_processes import Started

DATA_VARIABLE = "SWAVSTREAM_TEST_DATA"

KAFKA = (
    "ingest/test_kafka_destination.py",
    "ops/train/test_kafka.py",
    "stream/kafka_topic/test_source.py",
    "stream/kafka_topic/test_gaps.py",
    "stream/kafka_topic/test_security.py",
    "stream/kafka_topic/test_client.py",
    "ingest/test_kafka_lease.py",
)
"""Files that need a Kafka: one worker has them all, so that one broker is started."""

LONGEST = (
    *KAFKA,
    "ops/distributed/test_launch.py",
    "ops/demo/test_demo.py",
    "test_docs.py",
    "ops/train/test_ranks.py",
    "ops/live_page/test_page.py",
    "learner/test_ranks.py",
    "ops/monitoring/test_planted_faults.py",
    "end_to_end/test_main_road.py",
    "end_to_end/test_kills.py",
    "stream/loader/test_pool.py",
    "ops/config/test_memory.py",
    "ops/monitoring/test_alerts.py",
    "ops/train/test_loop.py",
    "ops/train/test_world.py",
    "ops/train/test_tail.py",
    "ops/train/test_replay.py",
    "ops/train/test_stream_registration.py",
    "ops/evaluate/test_evaluate.py",
    "learner/test_waits.py",
    "stream/loader/test_tail.py",
    "stream/loader/test_replay.py",
    "stream/loader/test_prototype_memory.py",
    "ingest/test_processes.py",
    "learner/test_learner_state.py",
)
"""Files that are begun first where files are shared out: none of them is left for one worker at the end."""

ROOT = Path(__file__).parent

# How long an example takes says how busy the machine is.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `LONGEST` come first, in that order; see `make test`."""
    gone = [name for name in LONGEST if not (ROOT / name).is_file()]
    if gone:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {', '.join(gone)}")
    place = {ROOT / name: number for number, name in enumerate(LONGEST)}
    for item in items:
        needs_kafka = "kafka_of_session" in getattr(item, "fixturenames", ())
        if (
            needs_kafka
            and place.get(item.path, len(KAFKA)) >= len(KAFKA)
            and not item.get_closest_marker("slow")
        ):
            raise pytest.UsageError(
                f"{item.nodeid} needs a Kafka: name its file in KAFKA of tests/conftest.py"
            )
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


class _Files(LoadFileScheduling):  # type: ignore[misc]  # xdist is not typed
    """Shares files out to workers; those of `KAFKA` count as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "kafka" if file.removeprefix("tests/") in KAFKA else file


@pytest.hookimpl(optionalhook=True)  # -p no:xdist has no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """The scheduler of `--dist loadfile`."""
    return _Files(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The last test fails when a process of any test is left; a process that is left is named, and killed."""
    if not Path("/proc/self/environ").exists():
        yield
        return
    started = Started(tmp_path_factory.mktemp("forked") / "pids")
    yield
    if left := started.end():
        pytest.fail("left by the tests: " + "; ".join(map(str, left)))


@pytest.fixture
def test_data() -> Path:
    """Folder of real images; the test is skipped where the variable does not name one."""
    place = os.environ.get(DATA_VARIABLE, "")
    if not place:
        pytest.skip(f"needs real images: set {DATA_VARIABLE}")
    folder = Path(place)
    if not folder.is_dir():
        pytest.fail(f"{DATA_VARIABLE} names {place}, which is not a folder")
    return folder.resolve()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not change what they test."""
    for name in list(os.environ):
        if name.startswith("SWAVSTREAM_") and not name.startswith("SWAVSTREAM_TEST_"):
            monkeypatch.delenv(name)
