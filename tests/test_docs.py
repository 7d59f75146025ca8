"""The documentation is true: its commands run, its tables are those of the code, its links lead somewhere."""

import ast
import re
import shlex
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from ingest.config import IngestConfig
from ops.config.schema import RunConfig
from ops.demo.drawings.pictures import draw
from ops.snapshots import watch
from tests.generated_docs import (
    PACKAGES,
    ROOT,
    documents,
    every_command,
    folder_tree,
    folders,
    foreign_names,
    modules,
    setting_names,
    tree,
)
from tests.warm_commands import WarmCommands

DOCUMENTS = [path for path in documents() if path.name != "cli.md"]
COMMANDS = dict(every_command())
RUN_SETTINGS, INGEST_SETTINGS = setting_names(RunConfig), setting_names(IngestConfig)
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for path in DOCUMENTS:
        for block in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            yield path, block


def commands_that_run() -> list[str]:
    return [line for _, block in blocks("sh") for line in block.splitlines() if line.strip()]


def commands_that_are_only_shown() -> Iterator[tuple[str, str]]:
    """Those that need a GPU, a cloud, a container or several machines, and those inside sentences."""
    for path, block in blocks("console"):
        for line in block.splitlines():
            yield path.name, line.removeprefix("$ ").partition(" # ")[0]
    for path in DOCUMENTS:
        for code in re.findall(r"(?<!`)`(swavstream [^`\n]+)`(?!`)", path.read_text()):
            yield path.name, code


def test_generated_parts_are_what_the_code_says() -> None:
    # In a fresh interpreter: click keeps the help option of a command that another test has invoked.
    check = [sys.executable, "-m", "tests.generated_docs", "--check"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"run `make docs`\n{run.stdout}{run.stderr}"


def test_package_files_and_folders_are_all_in_the_trees() -> None:
    for package in PACKAGES:
        told = tree(package)
        for path in modules(ROOT / package):
            assert re.search(rf"^{path.name} ", told, re.MULTILINE), path
        for folder in folders(ROOT / package):
            assert re.search(rf"^{folder.name}/ ", told, re.MULTILINE), folder
            assert re.search(rf"^  {folder.name}/ ", folder_tree(), re.MULTILINE), folder
        assert told in (ROOT / package / "README.md").read_text()
    assert folder_tree() in README


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_named_files_are_there(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        place, _, anchor = link.partition("#")
        target = (path.parent / place) if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    within = {"stream", "ingest", "learner", "ops", "tests"}
    for name in re.findall(r"`([\w./-]+/[\w-]+\.(?:py|md|toml|yaml|js))`", text):
        if name.partition("/")[0] in within and "NAME" not in name:
            assert (ROOT / name).is_file(), name


def test_the_readme_is_short_and_leads_to_every_document() -> None:
    assert len(README.splitlines()) <= 240
    linked = {(ROOT / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", README)}
    assert {path for path in documents() if path.name != "README.md"} <= linked


def test_the_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:`|\$ )make ([a-z]+)", path.read_text()))
        assert named <= targets, path
    assert {"demo", "test"} <= set(re.findall(r"\$ make ([a-z]+)", README))


def test_settings_that_are_named_exist() -> None:
    known = RUN_SETTINGS | INGEST_SETTINGS
    sections = {name.partition(".")[0] for name in known if "." in name}
    for path in DOCUMENTS:
        for name in re.findall(r"`([a-z_]+\.[a-z_0-9]+)(?:=[^`]*)?`", path.read_text()):
            if name.partition(".")[0] in sections and not name.endswith(
                (".py", ".md", ".json", ".safetensors")
            ):
                assert name in known, f"{path.name}: {name}"


@pytest.mark.parametrize(("where", "line"), sorted(set(commands_that_are_only_shown())))
def test_commands_that_are_only_shown_have_options_that_exist(where: str, line: str) -> None:
    words = shlex.split(line)
    while "=" in words[0]:  # a variable of the environment
        words.pop(0)
    if words[0] in {"make", ".venv/bin/python"}:
        return
    assert words.pop(0) == "swavstream", f"{where}: {line}"
    name = "swavstream"
    while words and f"{name} {words[0]}" in COMMANDS:
        name = f"{name} {words.pop(0)}"
    assert name != "swavstream" or not words or words[0].startswith("-"), f"{where}: no command in {line!r}"
    check_options(COMMANDS[name], name, words)


def check_options(command: click.Command, name: str, words: list[str]) -> None:
    options = {text: one for one in command.params for text in [*one.opts, *one.secondary_opts]}
    known = INGEST_SETTINGS if name.endswith(" ingest") else RUN_SETTINGS
    arguments = []
    while words:
        word = words.pop(0)
        if word.startswith("-") and word not in {"--help", "-h"}:
            assert word in options, f"`{name}` has no {word}"
            one = options[word]
            if isinstance(one, click.Option) and not one.is_flag:
                assert words, f"`{name}` {word} needs a value"
                value = words.pop(0)
                assert word != "--set" or value.partition("=")[0] in known, value
        else:
            arguments.append(word)
    most = [one.nargs for one in command.params if isinstance(one, click.Argument)]
    assert isinstance(command, click.Group) or -1 in most or len(arguments) <= sum(most), (
        f"{name}: {arguments}"
    )


def test_the_python_example_is_the_one_that_runs_in_its_own_test() -> None:
    assert watch.__doc__ is not None
    found = re.search(r"\n\n((?:    .*\n|\n)+)\n", watch.__doc__)
    assert found is not None
    examples = [block for path, block in blocks("python") if path.name != "CONTRIBUTING.md"]
    assert examples == [textwrap.dedent(found.group(1)).strip() + "\n"]


def test_the_code_that_contributors_are_shown_is_python() -> None:
    examples = [block for path, block in blocks("python") if path.name == "CONTRIBUTING.md"]
    assert examples
    for block in examples:
        ast.parse(block)


def test_private_names_of_libraries_are_explained() -> None:
    text = (ROOT / "ops/docs/dependencies.md").read_text().split("Where they are used", 1)[0]
    for name in foreign_names():
        assert name in text, f"{name} is used: say in dependencies.md why, and what would break"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with PICTURES/, OTHER_PICTURES/ and TAR/."""
    for number in range(200):
        picture, kind = draw(5, number, 40)
        place = (
            tmp_path / ("PICTURES" if number < 160 else "OTHER_PICTURES") / str(kind) / f"{number:04d}.png"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(picture)).save(place)
    (tmp_path / "TAR").mkdir()
    with tarfile.open(tmp_path / "TAR" / "some.tar", "w") as tar:
        tar.add(tmp_path / "OTHER_PICTURES", "other")
    return tmp_path


@pytest.mark.timeout(900)
def test_every_command_runs_in_order(pictures: Path) -> None:
    lines = commands_that_run()
    assert len(lines) >= 25
    done = set()
    with WarmCommands(pictures) as run:
        for line in lines:
            if line in done:  # a document shows again what an earlier one did
                continue
            done.add(line)
            program, *arguments = shlex.split(line)
            assert program == "swavstream", line
            began = time.monotonic()
            code, told = run(arguments)
            print(f"{time.monotonic() - began:6.1f} s  {line}")  # noqa: T201  shown where it fails
            # Of a run that is over so soon the doctor says that it learned nothing, with 1 as its code.
            allowed = {0, 1} if arguments[0] == "doctor" else {0}
            assert code in allowed, f"{line}\n{told}"
