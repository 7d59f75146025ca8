"""README tells the truth: its commands run, its tables are those of the code, its file map is complete."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ops.demo.drawings.pictures import draw
from ops.monitoring.catalog import METRICS, PREFIX
from tests.warm_commands import WarmCommands

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PACKAGES = ("stream", "ingest", "learner", "ops")


def between(start: str, end: str) -> str:
    return README.split(start, 1)[1].split(end, 1)[0]


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_metric_is_in_the_table_with_its_kind_unit_and_help() -> None:
    table = between("<!-- metrics:", "<!-- end of metrics -->")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    wanted = [
        f"| `{PREFIX}{metric.name}` | {metric.kind} | {metric.unit} | {metric.help}"
        + (f" Labels: {', '.join(metric.labels)}: {metric.values}." if metric.labels else "")
        + " |"
        for metric in METRICS
    ]
    assert rows == wanted


def test_the_file_map_names_every_module_and_nothing_else() -> None:
    named = set(
        re.findall(r"^ {4}(\S+\.py)\b", between("<!-- file map:", "<!-- end of file map -->"), re.MULTILINE)
    )
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == there


def test_pictures_and_files_that_are_linked_are_there() -> None:
    for place in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / place).is_file(), place


def test_the_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"(?:`|\$ )make ([a-z]+)", README)) <= targets


@pytest.mark.timeout(280)
def test_every_command_runs_in_order(tmp_path: Path) -> None:
    for number in range(200):
        picture, kind = draw(5, number, 40)
        place = (
            tmp_path / ("PICTURES" if number < 160 else "OTHER_PICTURES") / str(kind) / f"{number:04d}.png"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(picture)).save(place)
    lines = commands()
    assert len(lines) >= 12
    with WarmCommands(tmp_path) as run:
        for line in lines:
            program, *arguments = shlex.split(line)
            assert program == "swavstream", line
            code, told = run(arguments)
            # Of a run that is over so soon the doctor says that it learned nothing, with 1 as its code.
            allowed = {0, 1} if arguments[0] == "doctor" else {0}
            assert code in allowed, f"{line}\n{told}"
