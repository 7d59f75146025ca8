"""Rules of the architecture: who may import whom, and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "stream": set(),
    "ingest": {"stream"},
    "learner": set(),
    "ops": {"stream", "ingest", "learner"},
}
# Lower layers first; what stands in one line does not import each other.
LAYERS: dict[str, list[str]] = {
    "stream": [
        "config lanes order",
        "errors json_values machine secrets socket_folder",
        "record storage",
        "file_types source fork_server",
        "tar images processes",
        "tar_samples cursor",
        "shards kafka_topic loader",
    ],
    "ingest": [
        "errors config names archive_bytes rejects kafka_history",
        "tars listing kafka_lease",
        "zips survey",
        "sources",
        "listed decode_pool shard_destination",
        "transcode kafka_destination",
        "decode_worker worker",
    ],
    "ops": [
        "durations errors",
        "config",
        "distributed rundir",
        "snapshots",
        "inference",
        "monitoring evaluate",
        "live_page",
        "doctor train",
        "demo",
        "cli",
    ],
}
SHIMS = {"ops": {"snapshot_watch"}}
LEARNER_THIRD_PARTY = {"torch", "torchvision"}
LEARNER_FORBIDDEN_STANDARD = {"os", "pathlib", "socket", "time", "logging", "subprocess", "shutil", "urllib"}
HEAVY = {
    "torch",
    "torchvision",
    "webdataset",
    "numpy",
    "kafka",
    "redis",
    "PIL",
    "prometheus_client",
    "safetensors",
}


def modules_imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def modules_loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_it_may(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}
    for path in sorted((ROOT / package).rglob("*.py")):
        assert not modules_imported(path) & forbidden, path.relative_to(ROOT)


def inner_imports(path: Path, package: str) -> set[str]:
    """Which files or folders of its own package a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            parts = node.module.split(".")
            if parts[0] == package:
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_lower_layers_never_import_upper_ones(package: str) -> None:
    level = {name: number for number, line in enumerate(LAYERS[package]) for name in line.split()}
    for path in sorted((ROOT / package).rglob("*.py")):
        place = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if place == "__init__" or place in SHIMS.get(package, ()):
            continue
        assert place in level, f"{path.relative_to(ROOT)} stands in no layer"
        for other in inner_imports(path, package) - {place}:
            assert level[other] < level[place], f"{path.relative_to(ROOT)} imports {package}.{other}"


def test_learner_knows_torch_and_nothing_of_the_world() -> None:
    for path in sorted((ROOT / "learner").rglob("*.py")):
        for name in modules_imported(path) - {"learner"}:
            standard = name in sys.stdlib_module_names
            assert standard or name in LEARNER_THIRD_PARTY, f"{path.name} imports {name}"
            assert name not in LEARNER_FORBIDDEN_STANDARD, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    "module", ["stream.config", "learner.config", "ingest.config", "ops.config.schema", "ops.cli.main"]
)
def test_configuration_and_command_line_import_nothing_heavy(module: str) -> None:
    assert not modules_loaded_by(f"import {module}") & HEAVY


def test_package_files_hold_one_docstring_and_nothing_else() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path


def test_the_packages_found_are_those_of_this_project() -> None:
    code = "import stream, learner, ingest, ops; print(*(m.__file__ for m in (stream, learner, ingest, ops)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {Path(place).parents[1] for place in done.stdout.split()} == {ROOT}


def test_nothing_unpickles_or_runs_a_shell() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text, path
            assert "shell=True" not in text, path
            assert ".extractall(" not in text, path
            assert "weights_only=False" not in text, path
