"""How often the host waits for the device in one update. No GPU is needed: see `far_device`."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from learner import step_stats
from tests.learner import far_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What happens on the far device, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-P", "-m", "tests.learner.far_run"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def the_read() -> str:
    """`file:line` of the one place where an update may wait: figures and the check that all is finite."""
    lines, first = inspect.getsourcelines(step_stats.measure)
    (number,) = (first + index for index, line in enumerate(lines) if ".cpu()" in line)
    return f"learner/step_stats.py:{number}"


@pytest.mark.parametrize("case", far_run.CASES)
def test_an_update_waits_for_the_device_once_to_read_its_figures(seen: dict[str, Any], case: str) -> None:
    for step, waits in enumerate(seen["updates"][case]["waits"][1:], start=1):
        others = [wait for wait in waits if not wait.startswith(the_read())]
        assert not others, f"update {step} waits for the device at\n" + "\n".join(others)
        assert len(waits) == 1


@pytest.mark.parametrize("case", far_run.CASES)
def test_a_health_report_reads_a_few_times_more_where_it_is_made(seen: dict[str, Any], case: str) -> None:
    waits = [wait for wait in seen["updates"][case]["waits"][0] if "augment.py" not in wait]
    assert len(waits) <= 6, waits
    assert all(wait.startswith("learner/step_stats.py") for wait in waits), waits


@pytest.mark.parametrize("case", far_run.CASES)
def test_an_update_sends_a_handful_of_copies_in_all(seen: dict[str, Any], case: str) -> None:
    # Crops and draws of each kind, rows of groups for each size, priors; parts go through twice.
    passes = 1 if far_run.CASES[case].parts == 1 else 2 * far_run.CASES[case].parts
    assert all(4 <= sent <= 8 * passes for sent in seen["updates"][case]["sent"])


@pytest.mark.parametrize("case", far_run.CASES)
def test_what_is_watched_is_the_run_that_the_cpu_makes(seen: dict[str, Any], case: str) -> None:
    setting = far_run.CASES[case]
    learner = setting.learner(torch.device("cpu"))
    losses = [setting.step(learner, number).loss for number in range(far_run.STEPS)]
    # bfloat16 is cast elsewhere, so rounding differs.
    tolerance = 1e-5 if setting.precision == "float32" else 0.05
    assert seen["updates"][case]["losses"] == pytest.approx(losses, rel=tolerance)


def test_a_value_that_is_looked_at_in_a_pass_is_found_with_its_line(seen: dict[str, Any]) -> None:
    lines = Path(far_run.__file__).read_text(encoding="utf-8").splitlines()
    forward, backward = (
        f"tests/learner/far_run.py:{number}"
        for direction in ("forward", "backward")
        for number, line in enumerate(lines, start=1)
        if line.endswith(f"# planted: {direction}")
    )
    found = [wait.partition(": ")[0] for wait in seen["planted"]]
    # Two sizes of crops are two passes in each direction.
    assert found == [forward] * 2 + [backward] * 2 + [the_read()]


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("a value", "_local_scalar_dense reads a value back"),
        ("a truth", "reads a value back"),
        ("a list", "a copy of (4,) from the device"),
        ("a size", "nonzero has a size that depends on values"),
        ("a mask", "index by booleans"),
        ("a mask that is written through", "index_put_ by booleans"),
        ("an index on the CPU", "index by an index on the CPU"),
        ("a tensor from a list", "a blocking copy of (2,) to the device"),
        ("a blocking copy", "a blocking copy of (3,) to the device"),
        ("a copy into a tensor", "a blocking copy of (4,) to the device"),
        ("a copy out of ordinary memory", "from memory that is not page-locked"),
        ("counts", "bincount has a size that depends on values"),
        ("operands on both", "add has operands on the CPU and on the device"),
    ],
)
def test_each_kind_of_wait_is_noted_where_it_is(seen: dict[str, Any], fault: str, what: str) -> None:
    assert [what in wait for wait in seen["faults"][fault]] == [True]
    assert seen["faults"][fault][0].startswith("tests/learner/far_run.py:")


@pytest.mark.parametrize(
    "work", ["numbers", "a mask that is filled", "an index on the device", "a copy out of page-locked memory"]
)
def test_work_that_stays_on_the_device_is_not_noted(seen: dict[str, Any], work: str) -> None:
    assert seen["faults"][work] == []


def test_tensors_of_several_dtypes_go_over_in_one_copy(seen: dict[str, Any]) -> None:
    given, back, sent = seen["packed"]
    assert back == given
    assert sent == 1
