"""Runs that begin with the weights of another one."""

import shutil
from pathlib import Path

import pytest
import tomli_w
import torch

from learner.learner import Learner
from learner.report import NonFinite
from ops.cli.main import run as command
from ops.errors import ConfigError, RunMismatch, SnapshotNotFound
from ops.inference import load_model
from ops.rundir.checkpoint import load_newest
from ops.rundir.files import FIRST_WEIGHTS, read_run
from ops.rundir.summary import RunSummary
from ops.snapshots.embedded_redis import EmbeddedRedis
from tests.ops.small_runs import STEPS, StopAfter, bits, config_of, killed, run

pytestmark = pytest.mark.usefixtures("one_thread")

FROZEN = ("optim.learning_rate=1e-30", "optim.weight_decay=0", "seed=5")


def model_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights that training moves, of the newest checkpoint."""
    saved = load_newest(run_dir)
    assert saved is not None
    return {
        name: tensor
        for name, tensor in saved.state["tensors"].items()
        if name.startswith("model.") and not name.endswith(("running_mean", "running_var", "tracked"))
    }


def same_weights(one: Path, other: Path) -> bool:
    """To the rounding with which prototypes are brought back to unit norm."""
    first, second = model_of(one), model_of(other)
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], rtol=0, atol=1e-6) for name in first
    )


@pytest.mark.parametrize("form", ["", ":head", ":1", "/checkpoints/newest"])
def test_a_new_run_begins_with_the_weights_of_a_snapshot_or_checkpoint(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path, form: str
) -> None:
    source = f"{whole_run[0]}{form}"
    if form.startswith("/"):
        source = str(whole_run[1].checkpoint)
    run_dir = tmp_path / "run"
    # A learning rate that moves no weight shows what it began with.
    run(drawn_stream, run_dir, config_of(*FROZEN, "end_samples=32"), init_from=source)
    assert same_weights(run_dir, whole_run[0])
    origin = read_run(run_dir).origin
    assert origin["kind"] == "weights"
    assert (origin["run"], origin["samples"]) == (read_run(whole_run[0]).uuid, STEPS * 32)
    assert whole_run[1].snapshot is not None
    assert origin["digest"] == whole_run[1].snapshot["digest"]


def test_it_is_a_run_from_the_start_and_not_a_resume(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path
) -> None:
    summary = run(drawn_stream, tmp_path / "run", config_of(), init_from=str(whole_run[0]))
    assert (summary.samples, summary.updates) == (STEPS * 32, STEPS)
    assert whole_run[1].loss is not None
    assert summary.loss is not None
    assert summary.loss < whole_run[1].loss


def test_a_run_killed_before_its_first_checkpoint_has_the_same_first_weights(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(whole_run[0], source, ignore=shutil.ignore_patterns("*.sock"))
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    config = config_of("end_samples=160")
    run(drawn_stream, whole, config, init_from=str(source))
    assert killed(
        lambda: run(
            drawn_stream, run_dir, config, init_from=str(source), stop=StopAfter(run_dir, 2, kill=True)
        )
    )
    shutil.rmtree(source)  # nothing depends on it any more
    run(drawn_stream, run_dir, config)
    assert bits(run_dir) == bits(whole)


def test_going_back_to_the_start_is_going_back_to_those_weights(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step
    failed: list[bool] = []

    def once(self: Learner, *given: object, **more: object) -> object:
        if not failed:
            failed.append(True)
            raise NonFinite("loss", float("nan"), 0)
        return step(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", once)
    run(
        drawn_stream,
        tmp_path / "run",
        config_of(*FROZEN, "end_samples=32"),
        init_from=str(whole_run[0]),
    )
    assert failed
    assert same_weights(tmp_path / "run", whole_run[0])


def test_a_run_with_a_checkpoint_goes_on_from_it(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    config = config_of()
    run(drawn_stream, run_dir, config, init_from=str(whole_run[0]), stop=StopAfter(run_dir, 4))
    run(drawn_stream, run_dir, config, init_from=str(whole_run[0]))
    assert "goes on from its checkpoint" in caplog.text
    whole = tmp_path / "whole"
    run(drawn_stream, whole, config, init_from=str(whole_run[0]))
    assert bits(run_dir) == bits(whole)


def test_weights_of_another_network_are_refused_in_one_line_and_leave_no_trace(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"prototypes has shape \(16, 16\), this network needs \(20, 16\)"):
        run(drawn_stream, run_dir, config_of("swav.prototypes=20"), init_from=str(whole_run[0]))
    assert not (run_dir / FIRST_WEIGHTS).exists()
    assert run(drawn_stream, run_dir, config_of("end_samples=32")).samples == 32
    assert read_run(run_dir).origin == {}


def test_what_is_neither_run_nor_checkpoint_is_refused(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="is neither a run nor a checkpoint"):
        run(drawn_stream, tmp_path / "a", config_of(), init_from=str(tmp_path / "nothing"))
    with pytest.raises(SnapshotNotFound, match="no snapshot 99"):
        run(drawn_stream, tmp_path / "b", config_of(), init_from=f"{whole_run[0]}:99")


def test_first_weights_that_were_changed_on_disk_are_refused(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    config = config_of("checkpoint.every_samples=100000")
    stop = StopAfter(run_dir, 1, kill=True)
    assert killed(lambda: run(drawn_stream, run_dir, config, init_from=str(whole_run[0]), stop=stop))
    file = run_dir / FIRST_WEIGHTS
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    with pytest.raises(RunMismatch, match="not what was written"):
        run(drawn_stream, run_dir, config)
    EmbeddedRedis(run_dir).end_left_over()  # of the run that was killed


def test_the_untrained_network_of_such_a_run_is_still_a_drawn_one(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of("end_samples=32"), init_from=str(whole_run[0]))
    drawn = load_model.untrained(load_model.load(whole_run[0])).snapshot()
    assert load_model.untrained(load_model.load(run_dir)).snapshot().digest == drawn.digest


def test_the_command_takes_it(
    whole_run: tuple[Path, RunSummary], drawn_stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(tomli_w.dumps(config_of("end_samples=32").to_dict()), encoding="utf-8")
    run_dir = tmp_path / "run"
    arguments = ["learn", drawn_stream, "--run", str(run_dir), "--config", str(config), "--json"]
    assert command([*arguments, "--init-from", str(whole_run[0])]) == 0
    assert '"samples": 32' in capsys.readouterr().out
