"""`swavstream doctor`: what is wrong with a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.errors import EXIT_FAILED

if TYPE_CHECKING:
    from ops.doctor_case import Facts, Finding


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_dir: Path, as_json: bool) -> int:
    """Say what is wrong with the run in RUN, why, and which setting to change.

    Asks the live run when there is one, and else reads the directory. Changes nothing. Exit code 0: nothing
    was found; 1: something was.

    \b
    Examples:
        swavstream doctor RUN/
        swavstream doctor RUN/ --json
    """  # noqa: D301
    from ops.doctor import examine
    from ops.doctor_facts import gather

    facts = gather(run_dir)
    findings = examine(facts)
    if as_json:
        body = {
            "status": facts.status,
            "live": facts.live,
            "samples": facts.samples,
            "findings": [finding.to_json() for finding in findings],
        }
        click.echo(json.dumps(body))
    else:
        click.echo(_told(facts, findings))
    return EXIT_FAILED if findings else 0


def _told(facts: "Facts", findings: "list[Finding]") -> str:
    where = "asked live" if facts.live else "from its files"
    pages = Path(__file__).parents[1] / "runbooks"
    head = f"{facts.status}, {facts.samples:,} samples ({where})"
    if not findings:
        return f"{head}: nothing found"
    lines = [f"{head}: {len(findings)} found"]
    for number, finding in enumerate(findings, start=1):
        lines.append(f"{number}. {finding.cause}")
        lines.append(f"   seen     {finding.evidence}")
        if finding.setting:
            lines.append(f"   setting  {finding.setting}")
        lines.append(f"   do       {finding.advice}")
        if finding.runbook:
            lines.append(f"   page     {pages / finding.runbook}.md")
    return "\n".join(lines)
