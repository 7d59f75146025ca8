"""Prometheus and promtool as they are installed: found, started on free ports, asked, stopped."""

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tests.ports import free_port
from tests.waiting import LIMIT_S, wait_for

FOLDER_VARIABLE = "SWAVSTREAM_TEST_PROMETHEUS"
REQUIRED = "prometheus" in os.environ.get("SWAVSTREAM_REQUIRE", "").split(",")


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`: in the folder that the variable names, else on the PATH."""
    folder = os.environ.get(FOLDER_VARIABLE)
    found = shutil.which(name, path=folder) if folder else shutil.which(name)
    if found is None:
        _missing(f"there is no {name} (apt-get install prometheus, or set {FOLDER_VARIABLE} to its folder)")
    return found


def _missing(what: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(f"SWAVSTREAM_REQUIRE asks for prometheus, but {what}")
    pytest.skip(f"rules and dashboards are not tested: {what}")


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; its output is the test's message."""
    return subprocess.run(
        [program("promtool"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str, **more: str) -> list[dict[str, Any]]:
        """An instant query: `metric` and `value` of each series."""
        found: list[dict[str, Any]] = self._get("query", query=expression, **more)["result"]
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def _get(self, what: str, **query: str) -> dict[str, Any]:
        address = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=LIMIT_S) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        data: dict[str, Any] = body["data"]
        return data


@contextmanager
def running(
    folder: Path, *, targets: Mapping[str, int], rules: Mapping[str, Any], every: str = "200ms"
) -> Iterator[Prometheus]:
    """A server that scrapes 127.0.0.1 at these ports, each as an instance of its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.yml").write_text(yaml.safe_dump(dict(rules), sort_keys=False))
    config = {
        "global": {"scrape_interval": every, "evaluation_interval": every, "scrape_timeout": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": "swavstream",
                "static_configs": [
                    {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
                    for name, port in targets.items()
                ],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command: Sequence[str] = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_ready(f"http://127.0.0.1:{port}", server, folder / "log")
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(LIMIT_S)


def _wait_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    def ready() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=LIMIT_S):
                return True
        except OSError:
            return False

    wait_for(ready, "prometheus")
