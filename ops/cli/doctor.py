"""`swavstream doctor`: what is wrong with a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ops.errors import EXIT_FAILED

if TYPE_CHECKING:
    from ops.doctor.diagnosis import Finding
    from ops.monitoring.facts import Facts


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run_dir: Path, as_json: bool) -> int:
    """Say what is wrong with the run in RUN, why, and which setting to change.

    Asks the live run when there is one, and else reads the directory. Changes nothing. Exit code 0: nothing
    was found; 1: something was. What follows from another finding stands under it.

    \b
    Examples:
        swavstream doctor RUN/
        swavstream doctor RUN/ --json
    """  # noqa: D301
    from ops.doctor.diagnosis import examine
    from ops.doctor.facts import gather

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
    from ops.doctor.diagnosis import depth

    where = "asked live" if facts.live else "from its files"
    pages = Path(__file__).parents[1] / "monitoring" / "runbooks"
    head = f"{facts.status}, {facts.samples:,} samples ({where})"
    if not findings:
        return f"{head}: nothing found"
    lines = [f"{head}: {len(findings)} found"]
    numbers = {finding.name: number for number, finding in enumerate(findings, start=1)}
    for finding in findings:
        told = [f"{numbers[finding.name]}. {finding.cause}"]
        if finding.follows_from:
            told[0] += f" (follows from {numbers[finding.follows_from]})"
        told.append(f"   seen     {finding.evidence}")
        if finding.setting and not finding.follows_from:
            told.append(f"   setting  {finding.setting}")
        if not finding.follows_from:  # what to do about a consequence is to mend its cause
            told.append(f"   do       {finding.advice}")
        if finding.runbook:
            told.append(f"   page     {pages / finding.runbook}.md")
        indent = "   " * depth(finding, findings)
        lines += [indent + line for line in told]
    return "\n".join(lines)
