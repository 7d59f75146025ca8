"""`swavstream dashboards`: what Prometheus and Grafana need."""

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Write dashboards, alert rules and all that brings them up.

    \b
    Examples:
        swavstream dashboards export MONITORING/
    """  # noqa: D301


@command.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--target", "targets", multiple=True, metavar="HOST:PORT",
    help="A learner that Prometheus asks; may be repeated. Default: learner:9464, as in compose.yaml.",
)  # fmt: skip
@click.option(
    "--prometheus", default="http://prometheus:9090", show_default=True, metavar="URL",
    help="Where Grafana finds Prometheus.",
)  # fmt: skip
@click.option(
    "--runbooks", default="", metavar="URL",
    help="Where alerts say that their runbooks are; else the files in DIR, opened on this machine.",
)  # fmt: skip
@click.option(
    "--page", default="http://localhost:9464", show_default=True, metavar="URL",
    help="The learner's live page, where dashboards lead to its clusters.",
)  # fmt: skip
def export_all(folder: Path, targets: tuple[str, ...], prometheus: str, runbooks: str, page: str) -> None:
    """Write rules, dashboards, provisioning, runbooks and manifests into DIR.

    Files of the same names are replaced; nothing else in DIR is touched.

    \b
    Examples:
        swavstream dashboards export MONITORING/
        swavstream dashboards export MONITORING/ --target gpu1:9464 --target gpu2:9464
    """  # noqa: D301
    from ops.monitoring.export import export, files

    for target in targets:
        host, _, port = target.rpartition(":")
        if not host or not port.isdigit():
            raise click.BadParameter(f"--target needs HOST:PORT, got {target!r}")
    runbooks = runbooks or (folder.absolute() / "runbooks").as_uri()
    contents = files(
        targets=targets or ("learner:9464",),
        prometheus=prometheus,
        runbooks=f"{runbooks.rstrip('/')}/",
        page=page.rstrip("/"),
    )
    for path in export(folder, contents):
        click.echo(path)
