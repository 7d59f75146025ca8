"""Starting ranks from the command line: `learn --nproc`, torchrun, and what a dead rank leaves to be read."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from ops.cli.main import run as run_command
from ops.distributed import launcher
from ops.distributed.environment import Nodes, nodes_of
from ops.rundir.files import read_lines
from ops.rundir.summary import FINISHED
from tests.ops.launching import PROGRAM, started, summary_of
from tests.ops.small_runs import SETTINGS, StopAfter, config_of, run
from tests.ports import free_port
from tests.waiting import LIMIT_S, wait_for

TORCHRUN = [
    sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
    "--nproc-per-node=2", "-m", "ops.cli", "--",
]  # fmt: skip


def command(stream: str, run_dir: Path, *more: str) -> list[str]:
    settings = [f"--set={assignment}" for assignment in SETTINGS]
    return ["learn", stream, f"--run={run_dir}", "--recipe=smoke", "--json", *settings, *more]


def ranks_of(launcher: int) -> list[int]:
    """Processes of the ranks, in their order."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == launcher:
                found |= {int(one[5:]): int(entry.name) for one in variables if one.startswith(b"RANK=")}
    return [found[rank] for rank in sorted(found)]


def await_steps(run_dir: Path, number: int) -> None:
    """Until the run has made so many steps."""
    wait_for(lambda: len(list(read_lines(run_dir / "history.jsonl"))) >= number, f"step {number}")


def test_torchrun_starts_the_ranks_of_a_run(tmp_path: Path, drawn_stream: str) -> None:
    process = started([*TORCHRUN, *command(drawn_stream, tmp_path / "run")])
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    summary = summary_of(out)
    assert summary["status"] == "finished"
    assert summary["samples"] + summary["skipped"] + summary["left_over"] == 331
    assert out.count('"status"') == 1


def test_ranks_of_a_killed_launcher_save_end_and_say_what_happened_in_a_line(
    tmp_path: Path, drawn_stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, temporary = tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = started([*PROGRAM, *command(drawn_stream, run_dir, "--nproc=2", "--set=passes=1000")])
    await_steps(run_dir, 4)
    process.kill()
    out, err = process.communicate(timeout=LIMIT_S)  # of the ranks, which hold its pipes
    summary = summary_of(out)
    assert summary["status"] == "stopped"
    assert summary["samples"] >= 4 * 32
    assert Path(summary["checkpoint"]).is_dir()
    told = [line for line in err.splitlines() if "samples" not in line and line.strip()]
    assert told == ["WARNING: the launcher of the 2 ranks is gone: they save and end"]
    assert list(temporary.iterdir()) == []


def test_warnings_save_and_spare_the_readers_and_a_killed_rank_ends_the_job_by_name(
    tmp_path: Path, drawn_stream: str
) -> None:
    run_dir = tmp_path / "run"
    endless = ["--set=passes=100000", "--set=checkpoint.every_samples=1000000000"]
    process = started([*PROGRAM, *command(drawn_stream, run_dir, "--nproc=2", "--set=workers=1", *endless)])
    await_steps(run_dir, 2)
    for pid in descendants_of(process.pid) - {process.pid}:
        if b"valkey-server" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGUSR1)
    await_checkpoint(run_dir, 1)
    for number, warning in enumerate((signal.SIGUSR1, signal.SIGUSR2), start=2):
        process.send_signal(warning)
        await_checkpoint(run_dir, number)
    victim = ranks_of(process.pid)[1]
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert "as a signal asked" in err
    assert "reader" not in err, "none was replaced"
    assert f"rank 1 (process {victim}) was killed by SIGKILL" in err
    assert "Traceback" not in err
    assert run(drawn_stream, run_dir, config_of()).status == FINISHED, "one rank goes on"


def await_checkpoint(run_dir: Path, number: int) -> None:
    """Until this checkpoint of the run is there."""
    wait_for((run_dir / "checkpoints" / f"ckpt-{number:06d}").is_dir, f"checkpoint {number}")


@pytest.mark.parametrize(
    ("codes", "code"),
    [((143, 143), 143), ((143, 0), 143), ((143, -15), 143), ((1, 78), 78), ((-9, 1), 1), ((3, -15), 1)],
)
def test_the_code_of_a_launcher_is_that_of_its_ranks(
    codes: tuple[int, int], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: dict[int, ProcessFailure] = {}
    for rank, exit_code in enumerate(codes):
        failure = ProcessFailure(local_rank=rank, pid=rank, exitcode=exit_code, error_file="")
        failures |= {rank: failure} if exit_code else {}

    def ended(*_: object) -> None:
        raise ChildFailedError("ranks", failures)

    monkeypatch.setattr(launcher, "elastic_launch", lambda _config, entrypoint: ended)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert launcher.launch(["learn"], nproc=2) == code


def descendants_of(root: int) -> set[int]:
    """A process and all that it started, as far as they still have their parents."""
    found = {root}
    for _ in range(5):
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(entry.read_text().rpartition(")")[2].split()[1]) in found:
                    found.add(int(entry.parent.name))
    return found


def test_sigterm_to_the_launcher_saves_and_ends_with_its_code(tmp_path: Path, drawn_stream: str) -> None:
    run_dir = tmp_path / "run"
    process = started([*PROGRAM, *command(drawn_stream, run_dir, "--nproc=2", "--set=passes=1000")])
    await_steps(run_dir, 2)
    process.terminate()
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143, err
    assert summary_of(out)["status"] == "stopped"
    assert list((run_dir / "checkpoints").glob("ckpt-*"))


def two_started(stream: str, run_dir: Path, *more: str) -> list[subprocess.Popen[str]]:
    where = [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--nnodes=2", "--nproc=1"]
    return [started([*PROGRAM, *command(stream, run_dir, *where, *more)]) for _ in range(2)]


def two_nodes(stream: str, run_dir: Path, *more: str) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, output and errors of two launchers, each of one rank, that meet on this machine."""
    both = two_started(stream, run_dir, *more)
    told = [one.communicate(timeout=LIMIT_S) for one in both]
    return [one.returncode for one in both], [out for out, _ in told], [err for _, err in told]


def test_launchers_of_two_machines_start_the_ranks_of_one_run(tmp_path: Path, drawn_stream: str) -> None:
    codes, out, err = two_nodes(drawn_stream, tmp_path / "run")
    assert codes == [0, 0], err
    (summary,) = [summary_of(text) for text in out if text]
    assert summary["status"] == "finished"
    assert summary["samples"] + summary["skipped"] + summary["left_over"] == 331


def test_ctrl_c_at_one_of_the_launchers_saves_and_ends_all_of_them_soon(
    tmp_path: Path, drawn_stream: str
) -> None:
    run_dir = tmp_path / "run"
    both = two_started(drawn_stream, run_dir, "--set=passes=1000")
    await_steps(run_dir, 2)
    both[1].send_signal(signal.SIGINT)
    told = [one.communicate(timeout=LIMIT_S) for one in both]
    assert both[1].returncode == 0, told
    assert both[0].returncode in {0, 1}, told  # 1: it lost the other one, where all had met
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "stopped"
    assert "frame #" not in "".join(err for _, err in told)


def test_a_refusal_ends_all_launchers_and_that_of_its_rank_with_the_code_that_says_not_to_restart(
    tmp_path: Path, drawn_stream: str
) -> None:
    run_dir = tmp_path / "run"
    run(drawn_stream, run_dir, config_of(), stop=StopAfter(run_dir, 1))
    codes, _, err = two_nodes(drawn_stream, run_dir, "--set=seed=1")
    # The other one may have lost the first before it heard why.
    assert 78 in codes
    assert set(codes) <= {78, 1}
    assert sum("seed" in text for text in err) == 1, "said once"
    assert "Traceback" not in "".join(err)


@pytest.mark.parametrize(
    ("nnodes", "endpoint", "says"),
    [
        ("2", "", "go together"), ("", "host:1", "go together"), ("0", "host:1", "1:8"),
        ("3:2", "host:1", "1:8"), ("two", "host:1", "1:8"), ("2", "host", "HOST:PORT"),
        ("2", "host:0", "HOST:PORT"), ("2", ":29500", "HOST:PORT"),
    ],
)  # fmt: skip
def test_machines_that_cannot_meet_are_refused_and_told_what_to_give(
    nnodes: str, endpoint: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        nodes_of(nnodes, endpoint)


def test_machines_may_be_a_number_or_a_range() -> None:
    assert nodes_of("", "") is None
    assert nodes_of("2", "a:29500") == Nodes(least=2, most=2, endpoint="a:29500")
    assert nodes_of("1:8", "a:29500") == Nodes(least=1, most=8, endpoint="a:29500")


def test_every_option_reaches_the_ranks() -> None:
    from ops.cli.learn import _as_rank
    from ops.cli.learn import command as learn

    given = {
        "run_dir": "RUN", "file": "my.toml", "recipe": "smoke", "assignments": ("a=1", "b=2"),
        "init_from": "OLD", "budget_minutes": 5.0,
        "until": "now", "wait": True, "accept_bad_until": "9", "as_json": True, "stream": "STREAM",
    }  # fmt: skip
    assert set(given) | {"nproc", "nnodes", "endpoint"} == {parameter.name for parameter in learn.params}
    context = click.Context(learn)
    context.params = given
    told = _as_rank(context)
    again = learn.make_context("learn", told[1:])
    for name, value in given.items():
        assert str(again.params[name]) == str(value), name


@pytest.mark.parametrize("more", [["--nproc=0"], ["--nproc=9"]])
def test_a_number_of_ranks_that_the_lanes_do_not_admit_is_refused(
    tmp_path: Path, drawn_stream: str, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert run_command(command(drawn_stream, tmp_path / "run", *more)) == 2
    told = capsys.readouterr().err
    assert "--nproc" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="sets of cores are Linux'")
def test_ranks_divide_the_cores_that_the_launcher_was_given() -> None:
    program = (
        "import os, sys; from ops.distributed.launcher import launch\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); os.environ.pop('OMP_NUM_THREADS', None)\n"
        "os.cpu_count = lambda: 64\n"
        "code = launch(['recipes', 'list'], nproc=2); print(os.environ['OMP_NUM_THREADS'], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.splitlines()[-1] == "1 0", done.stderr
