"""A refused start leaves a run directory as it was: nothing that it made, everything that was there."""

import io
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops.errors import ConfigError, PortInUse, RunLocked, RunMismatch
from ops.rundir.files import read_run, write_json
from ops.rundir.lock import RunClaim, RunLock
from ops.rundir.summary import RunSummary
from ops.train.start import learn
from stream.errors import StreamNotFound
from tests.ops.small_runs import StopAfter, config_of, run, write_stream


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder; a folder holds None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield int(holder.getsockname()[1])


Start = Callable[[str, Path, int], RunSummary]

REFUSED: dict[str, tuple[type[Exception], Start]] = {
    "no stream": (StreamNotFound, lambda _, place, __: run(f"{place.parent}/no", place, config_of())),
    "no address": (Exception, lambda _, place, __: run("kafka://", place, config_of())),
    "port taken": (
        PortInUse,
        lambda stream, place, port: run(stream, place, config_of(f"server.port={port}")),
    ),
    "no weights": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of(), init_from=str(place.parent)),
    ),
    "no device": (ConfigError, lambda stream, place, _: run(stream, place, config_of("device=cuda:7"))),
    "no Redis address": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of("snapshot.url=localhost")),
    ),
    "stream too short": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of("batch=1024")),
    ),
    "queue of less than a batch": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of("swav.queue_samples=20")),
    ),
    "parts of groups": (ConfigError, lambda stream, place, _: run(stream, place, config_of("accumulate=3"))),
    "until of shards": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of(), until="now"),
    ),
    "no number": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of(), accept_bad_until="soon"),
    ),
    "no such network": (
        ConfigError,
        lambda stream, place, _: run(stream, place, config_of("model.backbone=resnet51")),
    ),
}
every_refusal = pytest.mark.parametrize(("error", "start"), REFUSED.values(), ids=REFUSED)


@every_refusal
def test_a_refused_start_leaves_no_directory_behind(
    tmp_path: Path, drawn_stream: str, taken_port: int, error: type[Exception], start: Start
) -> None:
    with pytest.raises(error):
        start(drawn_stream, tmp_path / "above" / "run", taken_port)
    assert tree(tmp_path) == {}


@every_refusal
def test_a_refused_start_leaves_a_directory_that_was_there_as_it_was(
    tmp_path: Path, drawn_stream: str, taken_port: int, error: type[Exception], start: Start
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "notes").write_text("mine")
    with pytest.raises(error):
        start(drawn_stream, place, taken_port)
    assert tree(tmp_path) == {"run": None, "run/notes": b"mine"}


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory, drawn_stream: str) -> Path:
    place = tmp_path_factory.mktemp("stopped") / "run"
    run(drawn_stream, place, config_of(), stop=StopAfter(place, 3))
    return place


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "no weights"])
def test_a_refused_start_leaves_a_run_as_it_was(
    tmp_path: Path, drawn_stream: str, stopped_run: Path, taken_port: int, name: str
) -> None:
    place = tmp_path / "run"
    shutil.copytree(stopped_run, place)
    before = tree(place)
    error, start = REFUSED[name]
    with pytest.raises((error, RunMismatch)):
        start(drawn_stream, place, taken_port)
    assert tree(place) == before


def begun_without_steps(place: Path) -> None:
    """A run that was killed before its first checkpoint."""
    shutil.rmtree(place / "checkpoints")
    (place / "summary.json").unlink()


def test_a_run_without_a_checkpoint_keeps_its_record_and_its_first_weights(
    tmp_path: Path, drawn_stream: str, stopped_run: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(stopped_run, place)
    begun_without_steps(place)
    (place / "initial.safetensors").write_bytes(b"earlier ones")
    before = tree(place)
    with pytest.raises(ConfigError, match="needs a number of records"):
        run(
            drawn_stream, place, config_of("optim.learning_rate=0.5"),
            init_from=str(stopped_run), accept_bad_until="soon",
        )  # fmt: skip
    assert tree(place) == before
    run(drawn_stream, place, config_of(), init_from=str(stopped_run), stop=StopAfter(place, 1))
    assert (place / "initial.safetensors").stat().st_size > 1000
    assert not list(place.glob(".initial*"))


def test_first_weights_that_a_kill_left_half_replaced_are_settled(tmp_path: Path) -> None:
    (tmp_path / ".initial.safetensors.before").write_bytes(b"earlier")
    with RunClaim(tmp_path):
        assert (tmp_path / "initial.safetensors").read_bytes() == b"earlier"
    (tmp_path / ".initial.safetensors.before").write_bytes(b"the ones before")
    with pytest.raises(RuntimeError), RunClaim(tmp_path):
        raise RuntimeError
    assert (tmp_path / "initial.safetensors").read_bytes() == b"earlier"
    assert not (tmp_path / ".initial.safetensors.before").exists()


def test_a_second_learner_that_is_refused_takes_nothing_from_the_first(tmp_path: Path) -> None:
    with RunClaim(tmp_path / "run") as first:
        write_json(tmp_path / "run" / "run.json", {})
        first.begun()
        with pytest.raises(RunLocked):
            RunClaim(tmp_path / "run").__enter__()
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"lock", "run.json"}


def test_a_lock_that_a_refused_start_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    first = RunClaim(place).__enter__()
    real = RunLock._take
    removed: list[int] = []

    def meanwhile(lock: RunLock, handle: int) -> None:
        if not removed:  # the file is open already when its holder removes it
            removed.append(handle)
            first.__exit__(RuntimeError, RuntimeError(), None)
        real(lock, handle)

    monkeypatch.setattr(RunLock, "_take", meanwhile)
    with RunClaim(place) as second:
        second.begun()
        with pytest.raises(RunLocked):
            RunLock(place).acquire()
    assert removed
    assert tree(tmp_path) == {"run": None, "run/lock": b""}


def test_a_stopped_wait_for_a_stream_keeps_the_run_that_goes_on_later(tmp_path: Path) -> None:
    class Impatient(StopAfter):
        def wait(self, _seconds: float) -> bool:
            return True

    place = tmp_path / "run"
    stop = Impatient(place, 0)
    learn(str(tmp_path / "later"), place, config_of(), wait=True, stop=stop, out=io.StringIO())
    assert read_run(place).stream == str(tmp_path / "later")
    stream = write_stream(tmp_path / "later", 64)
    assert run(stream, place, config_of()).samples == 64
