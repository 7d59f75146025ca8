"""What Prometheus sees of an ingest."""

import urllib.request
from pathlib import Path

import pytest

from ingest.sources import open_source
from ingest.worker import run_ingest
from ops.cli.main import run
from ops.errors import PortInUse
from ops.monitoring.catalog import INGEST, PREFIX
from ops.monitoring.metrics import IngestMetrics
from tests.ingest.made import folder_of, settings


def scrape(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
    return body.decode()


def test_the_accounts_of_an_ingest_are_exported_while_it_runs(tmp_path: Path) -> None:
    source = open_source(str(folder_of(tmp_path / "in", 0, 5)))
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    metrics = IngestMetrics()
    url = metrics.serve(0)
    try:
        assert f"{PREFIX}ingest" not in scrape(url)
        report = run_ingest(source, str(tmp_path / "out"), settings(workers=0), progress=metrics.show)
        metrics.show(report)
        body = scrape(url)
    finally:
        metrics.close()
        metrics.close()
    assert f'{PREFIX}ingest_images_total{{outcome="written",reason=""}} 5.0' in body
    skipped = [line for line in body.splitlines() if 'ingest_images_total{outcome="skipped"' in line]
    assert sum(float(line.split()[-1]) for line in skipped) == report.found - 5 == 1
    assert all(f"# TYPE {PREFIX}{row.name}" in body for row in INGEST)
    with pytest.raises(OSError, match="refused"):
        scrape(url)


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "in", 0, 2)
    metrics = IngestMetrics()
    port = metrics.serve(0).split(":")[2].split("/")[0]
    try:
        with pytest.raises(PortInUse):
            IngestMetrics().serve(int(port))
        where = [str(tmp_path / "in"), str(tmp_path / "out")]
        arguments = ["ingest", *where, "--set", "workers=0", "--metrics-port", port]
        assert run(arguments) == 1
        assert "give --metrics-port another one" in capsys.readouterr().err
    finally:
        metrics.close()
    assert run([*arguments[:-1], "0"]) == 0
    assert "metrics http://127.0.0.1:" in capsys.readouterr().err
