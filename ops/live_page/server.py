"""The HTTP port of a learner: metrics, health, the live page and what it shows; read-only.

The live page is one document: its parts are files of the package, put together once.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import http.server
import importlib.resources
import ipaddress
import logging
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ops.errors import PortInUse
from ops.live_page.state import LiveView
from ops.monitoring.metrics import Metrics
from ops.rundir import files


@functools.cache
def page() -> bytes:
    """The whole page; nothing in it is fetched from elsewhere but the run's own figures and pictures."""
    return (
        static_part("page.html")
        .replace("/*STYLE*/", static_part("page.css"))
        .replace("/*SCRIPT*/", _script())
        .encode()
    )


@functools.cache
def page_policy() -> str:
    """Content-Security-Policy: exactly this page's style and script run, nothing is fetched elsewhere."""
    return (
        f"default-src 'none'; script-src {_hash(_script())}; style-src {_hash(static_part('page.css'))}; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _script() -> str:
    return "".join(static_part(name) for name in ("charts.js", "heatmap.js", "clusters.js", "page.js"))


def static_part(name: str) -> str:
    """Text of one file of the page."""
    return (importlib.resources.files("ops.live_page") / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


logger = logging.getLogger(__name__)

IDLE_S = 30.0
"""A connection that says nothing for so long is closed, seconds."""
TOP_MOST = 200
"""Most prototypes that one request lists."""
OFFSET_MOST = 10**9
DIGITS = 10
"""A number of more digits names no prototype."""

JSON = "application/json; charset=utf-8"


class Server:
    """Serves one run over HTTP.

    `start` returns once the port is open; requests are answered in daemon threads that only read copies, so
    nothing here can stall the learner. `close` may be called twice.

    Args:
        live: state of the run.
        metrics: of the run.
        host: address to listen on; 127.0.0.1 is this machine only.
        port: 0 takes any free one.
    """

    def __init__(self, live: LiveView, metrics: Metrics, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._live = live
        self._metrics = metrics
        self._host = host
        self._port = port
        self._server: _HttpServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the page is, for people; empty before `start`."""
        if self._server is None:
            return ""
        host = self._host
        if host in {"0.0.0.0", "::", ""}:  # noqa: S104  only compared
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}/"

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before `start`."""
        return 0 if self._server is None else int(self._server.server_address[1])

    def start(self) -> str:
        """Open the port and serve; returns `url`.

        Raises:
            PortInUse: the port is taken, or may not be listened on.
        """
        handler = functools.partial(_Handler, self._live, self._metrics, _is_loopback(self._host))
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        server_class = type("_Server", (_HttpServer,), {"address_family": family})
        try:
            self._server = server_class((self._host, self._port), handler)
        except OSError as error:
            raise PortInUse(_why(error, self._host, self._port)) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )
        self._thread.start()
        return self.url

    def await_scrape(self, most_s: float) -> None:
        """Return once the metrics have been asked for again; blocks for `most_s` seconds at most.

        Only where they are asked for regularly: twice so far, and the last time no longer ago than twice the
        pause between the two.
        """
        if self._server is not None:
            self._server.scrapes.await_next(most_s)

    def close(self) -> None:
        """Close the port; answers under way are cut off."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.hang_up()
        if self._thread is not None:
            self._thread.join(5.0)


class Scrapes:
    """When the metrics were asked for; any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: deque[float] = deque(maxlen=2)
        self._changed = threading.Condition()

    def note(self) -> None:
        """The metrics have been sent."""
        with self._changed:
            self._asked.append(self._clock())
            self._changed.notify_all()

    def expected_within(self) -> float:
        """Seconds within which the next one is to be expected; 0 where no client asks regularly."""
        with self._changed:
            if len(self._asked) < 2:
                return 0.0
            first, last = self._asked
            pause = last - first
            return max(0.0, last + 2 * pause - self._clock())

    def await_next(self, most_s: float) -> None:
        """Wait for the next one while it is to be expected, for `most_s` seconds at most."""
        within = min(most_s, self.expected_within())
        with self._changed:
            before = self._asked[-1] if self._asked else None
            self._changed.wait_for(lambda: bool(self._asked) and self._asked[-1] != before, within)


class _HttpServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self.scrapes = Scrapes()
        super().__init__(*args)

    def server_bind(self) -> None:
        """Take the port, and no more: HTTPServer asks for the host's full name here, which may take long."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection, which may carry many requests."""
        with self._open_lock:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.discard(request)

    def hang_up(self) -> None:
        """Break off connections that browsers keep open, or their threads would go on answering."""
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""
        logger.debug("a request from %s broke off", client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server_version = "swavstream"
    sys_version = ""

    def __init__(self, live: LiveView, metrics: Metrics, local: bool, *args: Any) -> None:
        self._live = live
        self._metrics = metrics
        self._local = local
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer one request."""
        if self._local and not _is_loopback(_host_name(self.headers.get("Host", ""))):
            # A page of some other site, whose name was made to point at this machine, must not read the
            # images.
            self._send(
                403, "text/plain; charset=utf-8", b"ask for localhost or 127.0.0.1, or set server.host\n"
            )
            return
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            answer = self._answer(parts.path, query)
        except ValueError as error:
            answer = (400, JSON, files.dumps({"error": str(error)}).encode())
        self._send(*answer)
        if parts.path == "/metrics" and isinstance(self.server, _HttpServer):
            self.server.scrapes.note()

    do_HEAD = do_GET

    def _answer(self, path: str, query: dict[str, str]) -> tuple[int, str, bytes]:
        if path == "/":
            return 200, "text/html; charset=utf-8", page()
        if path == "/metrics":
            body, kind = self._metrics.text(self.headers.get("Accept", ""))
            return 200, kind, body
        if path in {"/healthz", "/readyz"}:
            good, text = self._live.healthy() if path == "/healthz" else self._live.ready()
            status = "ok" if good else "failed"
            return 200 if good else 503, JSON, files.dumps({"status": status, "detail": text}).encode()
        if path.startswith("/api/v1/"):
            return self._api(path.removeprefix("/api/v1/"), query)
        return _not_found(path)

    def _api(self, what: str, query: dict[str, str]) -> tuple[int, str, bytes]:
        body: Any
        if what == "status":
            body = self._live.status()
        elif what == "history":
            body = self._live.history()
        elif what == "events":
            body = self._live.events(_number(query, "count", 50, 1, 1000))
        elif what == "heatmap":
            body = self._live.prototypes.heatmap(query.get("order", "size"))
        elif what == "prototypes":
            body = self._prototypes(query)
        elif what.startswith("prototypes/") and what.endswith(".png"):
            return self._images(what.removeprefix("prototypes/").removesuffix(".png"))
        elif what.startswith("prototypes/"):
            return self._prototype(what.removeprefix("prototypes/"))
        else:
            return _not_found(f"/api/v1/{what}")
        return 200, JSON, files.dumps(body).encode()

    def _prototypes(self, query: dict[str, str]) -> Any:
        prototypes = self._live.prototypes
        if "top" in query:
            return prototypes.busiest(_number(query, "top", 24, 0, TOP_MOST))
        if "sort" not in query:
            return prototypes.all()
        return prototypes.table(
            sort=query["sort"],
            rising=_number(query, "rising", 0, 0, 1) == 1,
            offset=_number(query, "offset", 0, 0, OFFSET_MOST),
            count=_number(query, "count", 24, 1, TOP_MOST),
        )

    def _prototype(self, number: str) -> tuple[int, str, bytes]:
        if not (number.isascii() and number.isdecimal() and len(number) < DIGITS):
            return _not_found(f"/api/v1/prototypes/{number}")
        try:
            body = self._live.prototypes.one(int(number))
        except IndexError:
            return _not_found(f"/api/v1/prototypes/{number}")
        return 200, JSON, files.dumps(body).encode()

    def _images(self, number: str) -> tuple[int, str, bytes]:
        exemplars = self._live.exemplars
        if exemplars is None or not number.isdecimal() or int(number) >= exemplars.prototypes:
            return _not_found(f"/api/v1/prototypes/{number}.png")
        return 200, "image/png", exemplars.strip(int(number))

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        # Pictures are asked for with a number that changes when they do.
        versioned = kind == "image/png" and "?v=" in self.path
        self.send_header("Cache-Control", "private, max-age=3600" if versioned else "no-store")
        if kind.startswith("text/html"):
            self.send_header("Content-Security-Policy", page_policy())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""
        logger.debug(format, *args)


def _not_found(path: str) -> tuple[int, str, bytes]:
    known = (
        "/, /metrics, /healthz, /readyz, /api/v1/status, /api/v1/history, /api/v1/heatmap, "
        "/api/v1/prototypes, /api/v1/prototypes/NUMBER, /api/v1/prototypes/NUMBER.png, /api/v1/events"
    )
    return 404, JSON, files.dumps({"error": f"nothing at {path}", "known": known.split(", ")}).encode()


def _number(query: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, str(default))
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"{name} must be a whole number in {least}..{most}, got {text!r}")
    return int(text)


def _host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    return urlsplit(f"//{header}").hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use: choose another with --set server.port=N, 0 takes any free one"
        )
    if error.errno == errno.EACCES:
        return (
            f"port {port} may not be listened on by this user: choose one above 1023 with --set server.port=N"
        )
    return (
        f"cannot listen on {host} port {port} ({error.strerror or error}): check server.host and server.port"
    )
