"""Parts of the documentation that follow from the code: `make docs` writes them, tests/test_docs.py compares.

Each function gives Markdown. The documents call them in their cog comments.
"""

import ast
import dataclasses
import inspect
import json
import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import click

from ingest.config import IngestConfig
from ingest.transcode import REASONS
from ops.cli.main import COMMANDS, cli
from ops.config import recipes
from ops.config.schema import PAPER_CROPS, RunConfig, is_identity
from ops.monitoring.catalog import METRICS, PREFIX

ROOT = Path(__file__).parents[1]
PACKAGES = ("stream", "ingest", "learner", "ops")
HELP_WIDTH = 100
TREE_WIDTH = 120


def metric_table() -> str:
    """Every metric with kind, unit, meaning and labels."""
    lines = ["", "| metric | kind | unit | meaning |", "| --- | --- | --- | --- |"]
    for metric in METRICS:
        labels = f" Labels: {', '.join(f'`{label}`' for label in metric.labels)}." if metric.labels else ""
        values = f" Values: {metric.values}." if metric.values else ""
        lines.append(
            f"| `{PREFIX}{metric.name}` | {metric.kind} | {metric.unit} | {metric.help}{labels}{values} |"
        )
    return "\n".join([*lines, "", ""])


def run_settings() -> str:
    """Every setting of a run."""
    return _settings(RunConfig)


def ingest_settings() -> str:
    """Every setting of an ingest."""
    return _settings(IngestConfig, identity=False)


def _settings(root: type, *, identity: bool = True) -> str:
    lines = []
    for title, meaning, rows in _sections(root, ""):
        lines += ["", f"### `{title}`" if title else "### Top level", "", meaning, ""]
        lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
        for name, default, text in rows:
            fixed = " **Fixed for a run.**" if identity and _fixed(name) else ""
            lines.append(f"| `{name}` | {f'`{default}`' if default else ''} | {text}{fixed} |")
    return "\n".join([*lines, "", ""])


def _fixed(name: str) -> bool:
    return is_identity("crops" if name.startswith("crops") else name, 0, 1)


def _sections(kind: type, prefix: str) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Title, meaning and rows (name, default, text) of a dataclass, then of those in it."""
    rows, inner = [], []
    texts = _attribute_docs(kind)
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            inner.append((hints[field.name], f"{name}."))
            continue
        if field.name == "crops":
            inner.append((hints[field.name].__args__[0], f"{name}.N."))
        rows.append((name, _default(field), texts[field.name]))
    doc = inspect.getdoc(kind) or ""
    yield prefix.removesuffix("."), " ".join(doc.split("\n\n")[0].split()), rows
    for other, place in inner:
        yield from _sections(other, place)


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.name == "crops":
        return ", ".join(f"{crop.count} x {crop.size}" for crop in PAPER_CROPS)
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    return json.dumps(value)


def _attribute_docs(kind: type) -> dict[str, str]:
    """The string under each field, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = str(after.value.value) if documented else ""  # type: ignore[union-attr]
            found[node.target.id] = " ".join(text.split()).replace("|", "\\|")
    return found


def setting_names(root: type) -> set[str]:
    """The dotted name of every setting below a config class."""
    return {name for _, _, rows in _sections(root, "") for name, _, _ in rows}


def command_line() -> str:
    """The --help of every command."""
    return "".join(
        f"\n## `{name}`\n\n```text\n{_help(command, name)}\n```\n" for name, command in every_command()
    )


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Each command with its whole name, groups before what is in them."""
    yield "swavstream", cli
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield f"swavstream {name}", command
        if isinstance(command, click.Group):
            for inner, sub in sorted(command.commands.items()):
                yield f"swavstream {name} {inner}", sub


def _help(command: click.Command, name: str) -> str:
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}
    context = click.Context(command, info_name=name, terminal_width=HELP_WIDTH, **settings)  # type: ignore[arg-type]
    return "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())


def tree(package: str) -> str:
    """The files and folders of a package, each with the first sentence of its docstring."""
    root = ROOT / package
    rows = [(path.name, first_sentence(path)) for path in modules(root)]
    rows += [(f"{folder.name}/", _folder_line(folder)) for folder in folders(root)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [line for name, text in rows for line in _wrapped(name.ljust(width), text)]
    return "\n".join(["", "```text", *lines, "```", "", ""])


def layers(package: str) -> str:
    """The layers of a package as tests/test_architecture.py has them, the lowest first."""
    from tests.test_architecture import LAYERS

    lines = LAYERS.get(package, [])
    text = lines or ["(no layers inside this package are fixed)"]
    return "\n".join(["", "```text", *text, "```", "", ""])


def folder_tree() -> str:
    """The packages and their folders, each with the first sentence of its docstring."""
    rows = []
    for package in PACKAGES:
        rows.append((f"{package}/", first_sentence(ROOT / package / "__init__.py")))
        rows += [(f"  {one.name}/", first_sentence(one / "__init__.py")) for one in folders(ROOT / package)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [line for name, text in rows for line in _wrapped(name.ljust(width), text)]
    return "\n".join(["", "```text", *lines, "```", "", ""])


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, TREE_WIDTH, initial_indent=name, subsequent_indent=" " * len(name), break_on_hyphens=False
    )


def _folder_line(folder: Path) -> str:
    names = [path.stem for path in modules(folder)] + [f"{one.name}/" for one in folders(folder)]
    return f"{first_sentence(folder / '__init__.py')} Modules: {', '.join(names)}."


def modules(folder: Path) -> list[Path]:
    """The modules that lie in a folder itself."""
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def folders(folder: Path) -> list[Path]:
    """The packages that lie in a folder itself."""
    return sorted(path.parent for path in folder.glob("*/__init__.py"))


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line, up to its first full stop."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".") + "."


def alert_table() -> str:
    """Every alert with a link to its runbook and the first sentence of it."""
    lines = ["", "| alert | what it means |", "| --- | --- |"]
    for path in sorted((ROOT / "ops/monitoring/runbooks").glob("*.md")):
        meaning = path.read_text().split("## What it means", 1)[1].strip().split("\n\n")[0]
        sentence = " ".join(meaning.split()).split(". ")[0].rstrip(".")
        lines.append(f"| [{path.stem}](../monitoring/runbooks/{path.name}) | {sentence}. |")
    return "\n".join([*lines, "", ""])


def reason_table() -> str:
    """Every reason for which an ingest skips something."""
    lines = ["", "| reason | meaning |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{reason}` | {text} |" for reason, text in REASONS.items()), "", ""])


def recipe_table() -> str:
    """Every recipe with its title."""
    lines = ["", "| recipe | what it is |", "| --- | --- |"]
    rows = [f"| `{name}` | {recipes.load(name).about.title} |" for name in recipes.names()]
    return "\n".join([*lines, *rows, "", ""])


def private_names() -> str:
    """Every private name of a library that the code uses, with the modules that use it."""
    lines = ["", "| name | modules |", "| --- | --- |"]
    found = sorted(foreign_names().items())
    lines += [
        f"| `{name}` | {', '.join(f'`{place}`' for place in sorted(places))} |" for name, places in found
    ]
    return "\n".join([*lines, "", ""])


PUBLIC_WITH_UNDERSCORE = {"_exit", "_replace"}
"""os._exit and the methods of named tuples are documented."""


def foreign_names() -> dict[str, set[str]]:
    """Names with a leading underscore that the code uses and does not define, and which modules use them."""
    own: Counter[str] = Counter()
    used: dict[str, set[str]] = defaultdict(set)
    inherited: dict[str, set[str]] = defaultdict(set)
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        place = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own[node.name] += 1
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own[node.id] += 1
            elif isinstance(node, ast.ImportFrom):
                for part in (node.module or "").split("."):
                    used[part].add(place)
            elif isinstance(node, ast.Attribute):
                holder = ast.unparse(node.value)
                if holder == "self" and isinstance(node.ctx, ast.Store):
                    own[node.attr] += 1
                else:
                    (inherited if holder == "super()" else used)[node.attr].add(place)
                    if (
                        "fetcher" in holder and node.attr[0].isupper()
                    ):  # an attribute of ours has this name too
                        used[f"{holder.rpartition('.')[2]}.{node.attr}"].add(place)
    found = {name: places for name, places in used.items() if not own[name]}
    found |= {name: places for name, places in inherited.items() if own[name] < 2}
    private = {name: places for name, places in found.items() if re.match(r"_[a-z]", name)}
    return {name: places for name, places in private.items() if name not in PUBLIC_WITH_UNDERSCORE}


def documents() -> list[Path]:
    """Every document, in the order in which a user reads them."""
    named = (
        "ingest kafka training snapshots operations metrics configuration cli results decisions dependencies"
    )
    docs = [ROOT / "ops/docs" / f"{name}.md" for name in named.split()]
    assert set(docs) == set((ROOT / "ops/docs").glob("*.md")), "a document without a place in the order"
    return [
        ROOT / "README.md",
        *docs,
        *(ROOT / package / "README.md" for package in PACKAGES),
        ROOT / ".github/CONTRIBUTING.md",
    ]


def run_cog(*options: str) -> int:
    """Run cog over every document.

    Returns:
        Its exit code; with `--check` 5 where a document is not what the code says.
    """
    from cogapp import Cog

    prologue = "import cog; from tests.generated_docs import *"
    code: int = Cog().main(["cog", "-I", str(ROOT), "-p", prologue, *options, *map(str, documents())])
    return code


if __name__ == "__main__":
    sys.exit(run_cog(*(sys.argv[1:] or ["-r"])))
