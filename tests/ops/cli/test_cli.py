"""The command line: quick help, errors on one line with their exit codes, learn from start to end."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ops.cli.main import COMMANDS, cli, run
from ops.errors import CheckpointDamaged, ConfigError, OpsError, RunLocked, exit_code_of
from ops.rundir.files import read_json, read_lines
from stream.errors import StreamDamaged, StreamError, StreamMismatch, StreamPruned, TooManyBadRecords
from stream.shards.manifest import Manifest
from tests.ops.small_runs import write_stream
from tests.waiting import wait_for

HEAVY = {"torch", "numpy", "webdataset", "redis", "PIL", "safetensors", "prometheus_client", "kafka"}
SMALL = (
    "--recipe", "smoke", "--set", "lanes=8", "--set", "batch=32", "--set", "workers=0", "--set", "device=cpu",
    "--set", "server.port=-1", "--set", "crops.0.size=16", "--set", "crops.1.size=8",
    "--set", "reader.thumbnail_px=0", "--set", "reader.poll_s=0.05",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


def test_help_answers_in_under_a_third_of_a_second() -> None:
    program = [sys.executable, "-c", "from ops.cli.main import main; main()", "--help"]
    root = Path(__file__).parents[3]
    times = []
    for _ in range(5):
        before = processor_s()
        done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=root)
        times.append(processor_s() - before)
    assert "learn" in done.stdout
    assert min(times) < 0.3  # of the processor: another program may have had it meanwhile


def processor_s() -> float:
    """Seconds of processor time that children of this process have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_of_no_command_imports_anything_heavy() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from ops.cli.main import COMMANDS, run\n"
        "for name in COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        assert run([name, '--help']) == 0, name\n"
        "print(*sys.modules)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & HEAVY


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for path in every_command(cli):
        assert run([*path, "--help"]) == 0
        text = capsys.readouterr().out
        assert re.search(rf"swavstream {' '.join(path)}", text.partition("Example")[2]), path


def test_the_list_of_commands_tells_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"swavstream, version \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["lern"], 2, "no command 'lern': did you mean 'learn'?"),
        (["learn"], 2, "Missing argument 'STREAM'"),
        (["learn", "S", "--run", "{}/new"], 2, "smoke  "),
        (["recipes", "show", "smok"], 78, "no recipe `smok`: did you mean `smoke`?"),
        (["learn", "S", "--run", "{}/new", "--recipe", "smok"], 78, "did you mean `smoke`?"),
        (["learn", "S", "--run", "{}/new", "--config", "{}/no.toml"], 78, "no.toml cannot be read"),
        (["learn", "S", "--run", "{}/n", *SMALL, "--set", "swav.epsilom=1"], 78, "`swav.epsilon`?"),
        (["learn", "S", "--run", "{}/n", *SMALL, "--set", "batch=33"], 78, "batch 32 or 40"),
        (["learn", "S", "--run", "{}/n", *SMALL, "--set", "device=cuda:99"], 78, "cuda:99 is not there"),
        (["learn", "{}/none", "--run", "{}/n", *SMALL], 1, "no stream at"),
        (["learn", "{}/S", "--run", "{}/n", *SMALL, "--set", "model.backbone=resnet51"], 78, "mean resnet50"),
        (["stream", "show", "{}/none"], 1, "no stream at"),
        (["status", "{}/none"], 1, "no run in"),
    ],
)
def test_an_error_is_told_in_one_line_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    write_stream(tmp_path / "S", 40)
    assert run([argument.replace("{}", str(tmp_path)) for argument in arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert told in shown.err
    assert "Traceback" not in shown.err
    if code != 2:
        assert shown.err.strip().splitlines()[-1].startswith("Error: ")
        assert shown.err.count("Error: ") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 78),
        (RunLocked("x"), 1),
        (OpsError("x"), 1),
        (CheckpointDamaged("x"), 78),
        (StreamMismatch("x"), 78),
        (StreamDamaged("x"), 78),
        (StreamPruned("x"), 78),
        (TooManyBadRecords("x"), 78),
        (StreamError("x"), 1),
        (ValueError("x"), 1),
        (OSError("x"), 1),
        (KeyError("x"), None),
    ],
)
def test_exit_codes_tell_a_supervisor_whether_a_restart_may_help(error: Exception, code: int | None) -> None:
    assert exit_code_of(error) == code


def test_recipes_are_listed_for_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list"]) == 0
    assert "cifar10-onepass" in capsys.readouterr().out
    assert run(["recipes", "list", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["imagenet-800ep-4096"]["published"].startswith("75.3 %")


def test_a_recipe_is_shown_with_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "uncurated-continuous"]) == 0
    assert "# warning: batch + queue is 4096, fewer than the 16000 prototypes" in capsys.readouterr().out
    assert run(["recipes", "show", "imagenet-400ep-256", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["samples"], shown["steps"]) == (400 * 5004 * 256, 400 * 5004)


def test_a_stream_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = write_stream(tmp_path / "stream", 70)
    assert run(["stream", "show", stream, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["records"], shown["shards"], shown["sealed"]) == (70, 2, True)
    assert run(["stream", "show", stream]) == 0
    assert "sealed" in capsys.readouterr().out


def test_learn_ends_with_one_line_of_json_and_status_agrees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, run_dir = write_stream(tmp_path / "stream", 150), str(tmp_path / "run")
    assert run(["learn", stream, "--run", run_dir, *SMALL, "--json"]) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out)
    assert (summary["status"], summary["samples"], summary["left_over"]) == ("finished", 128, 22)
    assert run(["learn", stream, "--run", run_dir, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert run(["status", run_dir, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["status"], status["samples"], status["steps"]) == ("finished", 128, 4)
    assert status["checkpoint"] == summary["checkpoint"]
    assert run(["status", run_dir]) == 0
    assert "128 in 4 steps" in capsys.readouterr().out
    assert run(["learn", stream, "--run", run_dir, "--set", "seed=4"]) == 78
    assert "seed is 0 there and 4 here" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    stream, run_dir = write_stream(tmp_path / "stream", 70, seal=False), tmp_path / "run"
    arguments = ["learn", stream, "--run", str(run_dir), *SMALL, "--set", "window=1", "--json"]
    child = os.fork()
    if child == 0:
        os._exit(run(arguments))
    wait_for(lambda: list(read_lines(run_dir / "history.jsonl")), "the first step")
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == code
    stopped = read_json(run_dir / "summary.json")
    assert stopped is not None
    assert stopped["status"] == "stopped"
    assert stopped["checkpoint"] is not None
    assert "stopping: the run is being saved" in capfd.readouterr().err
    manifest = Manifest.open(stream)
    manifest.seal()
    assert run(arguments) == 0
    finished = json.loads(capfd.readouterr().out)
    assert finished["status"] == "finished"
    assert finished["samples"] + finished["skipped"] + finished["left_over"] == 70
