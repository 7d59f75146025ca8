"""Real servers for the tests: redis-server where it is installed, else the embedded program."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops.snapshots.embedded_redis import server_program
from tests.ports import free_port
from tests.waiting import wait_for

REQUIRED = "redis-tls" in os.environ.get("SWAVSTREAM_REQUIRE", "").split(",")


def debian_server() -> str:
    """Redis itself, which knows TLS; the test is skipped without it."""
    found = shutil.which("redis-server")
    if found and shutil.which("openssl"):
        return found
    if REQUIRED:
        pytest.fail("SWAVSTREAM_REQUIRE asks for redis-tls, but redis-server or openssl is not installed")
    pytest.skip("needs redis-server and openssl: apt-get install redis-server openssl")


class Server:
    """One server process on a port of 127.0.0.1, with its data in `folder`; killed at the end of a `with`."""

    def __init__(self, folder: Path, *, program: str = "", port: int = 0, **settings: str) -> None:
        self.folder, self.port = folder, port or free_port()
        self.program = program or shutil.which("redis-server") or str(server_program())
        self.settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "save": '""',
            "enable-debug-command": "yes",
        }
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        self.mode: tuple[str, ...] = ()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.ready: Callable[[], Any] = self._ping
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{name} {value}\n" for name, value in self.settings.items())
        (self.folder / "server.conf").write_text(lines)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, str(self.folder / "server.conf"), *self.mode],
                cwd=self.folder, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(self._up)
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()

    def client(self, **options: Any) -> Any:
        """A client that tries once; replies are those of the library, whose types leave them open."""
        return redis.Redis(host="127.0.0.1", port=self.port, retry=Retry(NoBackoff(), 0), **options)

    def _ping(self) -> None:
        with self.client() as client:
            client.ping()

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        try:
            self.ready()
        except (redis.ConnectionError, redis.BusyLoadingError):
            return False
        return True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def sentinel(folder: Path, master: Server, *, quorum: int = 1) -> Server:
    """A Sentinel that takes the master for dead after 0.4 s, when so many say so."""
    watcher = Server(folder, program=debian_server())
    for name in ("save", "enable-debug-command"):
        del watcher.settings[name]
    watcher.settings |= {"sentinel monitor": f"prototypes 127.0.0.1 {master.port} {quorum}"}
    for name, value in (("down-after-milliseconds", 400), ("failover-timeout", 3000)):
        watcher.settings[f"sentinel {name}"] = f"prototypes {value}"
    watcher.mode = ("--sentinel",)
    return watcher


def certificates(folder: Path) -> dict[str, Path]:
    """A certificate authority, a certificate for 127.0.0.1 from it, and an authority that signed neither."""
    folder.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    (folder / "extensions").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
    )
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *new_key, "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.crt")  # fmt: skip
    openssl("req", *new_key, "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", "server.crt")  # fmt: skip
    return {name: folder / name for name in ("ca.crt", "other.crt", "server.key", "server.crt")}
