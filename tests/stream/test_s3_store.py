"""An S3 store whose conditional puts fail as those of real stores do; moto behind it answers as S3 does."""

import http.client
import http.server
import logging
import threading
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from stream.storage import TRIES, RemoteStore

REFUSALS = {409: "ConditionalRequestConflict", 501: "NotImplemented", 403: "AccessDenied"}


class Front(http.server.BaseHTTPRequestHandler):
    """Hands requests on to moto, but refuses the next conditional puts."""

    protocol_version = "HTTP/1.1"
    behind = 0
    refuse: list[int]
    puts: list[bool]
    """Of each put, whether it was conditional."""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "PUT":
            self.puts.append(self.headers.get("If-None-Match") is not None)
            if self.puts[-1] and self.refuse:
                status = self.refuse.pop(0)
                code = f"<Error><Code>{REFUSALS[status]}</Code><Message>not now</Message></Error>"
                self.tell(status, {"Content-Type": "application/xml"}, code.encode())
                return
        ahead = http.client.HTTPConnection("127.0.0.1", self.behind)
        ahead.request(self.command, self.path, body, dict(self.headers.items()))
        got = ahead.getresponse()
        content = got.read()
        left_out = {"transfer-encoding", "connection", "content-length", "server", "date"}
        self.tell(got.status, {n: v for n, v in got.getheaders() if n.lower() not in left_out}, content)
        ahead.close()

    def tell(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Nothing is told."""


@pytest.fixture(scope="module")
def moto_port() -> Iterator[int]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    port = server.get_host_and_port()[1]
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
    client.create_bucket(Bucket="bucket")
    client.close()
    yield port
    server.stop()


@pytest.fixture
def front(moto_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Front]]:
    class Own(Front):
        behind, refuse, puts = moto_port, [], []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("stream.storage.time.sleep", lambda _: None)
    yield Own
    server.shutdown()
    server.server_close()
    thread.join()


def store(name: str) -> RemoteStore:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    return RemoteStore(f"s3://bucket/{name}")


def test_a_put_that_met_another_request_is_tried_again(front: type[Front]) -> None:
    one = store("conflict")
    front.refuse += [409, 409]
    assert one.create("commits/1", b"first")
    assert not one.create("commits/1", b"second")
    assert one.read("commits/1") == b"first"
    assert front.puts == [True] * 4


def test_a_put_that_always_meets_another_request_fails_in_the_end(front: type[Front]) -> None:
    one = store("always")
    front.refuse += [409] * TRIES
    with pytest.raises(OSError, match="ConditionalRequestConflict"):
        one.create("commits/1", b"first")
    assert front.puts == [True] * TRIES
    assert not one.exists("commits/1")


def test_a_store_without_conditional_puts_takes_one_writer_and_says_so_once(
    front: type[Front], caplog: pytest.LogCaptureFixture
) -> None:
    one = store("missing")
    front.refuse += [501] * 9
    assert one.create("commits/1", b"first")
    assert not one.create("commits/1", b"second")
    assert one.create("commits/2", b"third")
    assert one.read("commits/1") == b"first"
    assert front.puts == [True, False, False]
    assert caplog.text.count("has no conditional puts: let one writer at a time") == 1


def test_another_refusal_is_not_tried_again(front: type[Front]) -> None:
    front.refuse += [403]
    with pytest.raises(PermissionError):
        store("forbidden").create("commits/1", b"first")
    assert front.puts == [True]
