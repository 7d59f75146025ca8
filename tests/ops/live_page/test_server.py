"""The HTTP port, asked as browsers and Prometheus ask."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ops.errors import PortInUse
from ops.live_page.exemplars import Exemplars
from ops.live_page.server import Scrapes, Server
from ops.live_page.state import BEAT_S, LiveView
from ops.monitoring.metrics import Metrics
from tests.ops import synthetic
from tests.waiting import LIMIT_S, wait_for


class Site:
    """A server with one step behind it."""

    def __init__(self) -> None:
        exemplars = Exemplars(4, each=3, thumbnail_px=16)
        self.live = LiveView(run="run-1", run_dir="/run", prototypes=4, exemplars=exemplars)
        self.metrics = Metrics(version="0.1.0", run="run-1")
        self.server = Server(self.live, self.metrics)
        self.server.start()

    def step(self, samples: int = 64) -> None:
        report = synthetic.report(samples, synthetic.shares(4), batch=3)
        stats = synthetic.stats(3)
        self.metrics.observe(report, stats, step_s=0.1)
        self.live.observe(report, stats, step_s=0.1, lag=5, keys=["a", "b", "c"], thumbs=synthetic.thumbs(3))
        self.live.usage(np.full(4, 0.25, np.float32))

    def ask(self, path: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=LIMIT_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        return json.loads(self.ask(path)[1])


@pytest.fixture
def site() -> Iterator[Site]:
    one = Site()
    yield one
    one.server.close()


def test_a_free_port_is_taken_and_said(site: Site) -> None:
    assert site.server.url == f"http://127.0.0.1:{site.server.port}/"
    assert site.ask("/")[0] == 200


def test_a_port_in_use_is_one_clear_error(site: Site) -> None:
    other = Server(site.live, site.metrics, port=site.server.port)
    with pytest.raises(PortInUse, match=rf"port {site.server.port} on 127.0.0.1 is in use.*server.port=N"):
        other.start()
    other.close()


def test_an_address_that_is_not_this_machine_s_is_one_clear_error(site: Site) -> None:
    with pytest.raises(PortInUse, match=r"cannot listen on 203\.0\.113\.1"):
        Server(site.live, site.metrics, host="203.0.113.1").start()


def test_metrics_come_in_both_formats(site: Site) -> None:
    site.step()
    status, body, headers = site.ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    assert b"swavstream_steps_total 1.0" in body
    _, body, headers = site.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_ready_follows_the_first_step_and_ends_with_the_run(site: Site) -> None:
    assert site.ask("/readyz")[0] == 503
    site.step()
    assert site.ask("/readyz")[0] == 200
    site.live.state("stopping")
    status, body, _ = site.ask("/readyz")
    assert status == 503
    assert json.loads(body)["detail"] == "stopping"


def test_healthy_while_the_loop_gives_signs_of_life(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert site.ask("/healthz")[0] == 200
    later = time.monotonic() + BEAT_S + 5
    monkeypatch.setattr("ops.live_page.state.time.monotonic", lambda: later)
    assert site.ask("/healthz")[0] == 503
    site.live.state("waiting")
    assert site.ask("/healthz")[0] == 200


def test_status_history_and_events_are_json(site: Site) -> None:
    site.step()
    site.live.event("note", "something")
    assert site.json("/api/v1/status")["samples"] == 64
    assert site.json("/api/v1/history")["samples"] == [64]
    assert site.json("/api/v1/events?count=1")[0]["text"] == "something"


def test_prototypes_come_whole_or_as_the_busiest(site: Site) -> None:
    site.step()
    assert site.json("/api/v1/prototypes")["usage"] == [0.25] * 4
    body = site.json("/api/v1/prototypes?top=2")
    assert len(body["busiest"]) == 2
    assert sum(body["histogram"]) == 4


def test_pictures_of_a_prototype_are_a_png_that_may_be_kept_under_its_number(site: Site) -> None:
    site.step()
    status, body, headers = site.ask("/api/v1/prototypes/0.png?v=1.1")
    assert status == 200
    assert headers["Content-Type"] == "image/png"
    assert "max-age" in headers["Cache-Control"]
    assert Image.open(io.BytesIO(body)).size == (48, 16)
    assert site.ask("/api/v1/prototypes/9.png")[0] == 404
    assert site.ask("/api/v1/prototypes/..%2f..%2fetc.png")[0] == 404


def test_prototypes_are_sorted_and_paged(site: Site) -> None:
    site.step()
    site.live.usage(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    body = site.json("/api/v1/prototypes?sort=size&rising=1&offset=1&count=2")
    assert [row["id"] for row in body["rows"]] == [1, 2]
    assert body["prototypes"] == 4
    assert site.ask("/api/v1/prototypes?sort=colour")[0] == 400
    assert site.ask("/api/v1/prototypes?sort=size&count=1000")[0] == 400


def test_one_prototype_is_told_of_from_close_by(site: Site) -> None:
    site.step()
    body = site.json("/api/v1/prototypes/2")
    assert (body["id"], body["usage"]) == (2, 0.25)
    for unknown in ("9", "-1", "x", "%C2%B2", "1" * 40):
        assert site.ask(f"/api/v1/prototypes/{unknown}")[0] == 404


def test_the_heatmap_is_of_either_order_and_no_other(site: Site) -> None:
    site.step()
    for query in ("", "?order=size", "?order=number"):
        assert site.json(f"/api/v1/heatmap{query}")["samples"] == [64]
    assert site.ask("/api/v1/heatmap?order=colour")[0] == 400


def test_numbers_that_are_not_finite_become_null(site: Site) -> None:
    site.live.remember({"samples": 1, "time": 1.0, "loss": float("nan")})
    assert site.json("/api/v1/history")["loss"] == [None]


def test_an_unknown_address_names_the_known_ones(site: Site) -> None:
    status, body, _ = site.ask("/nothing")
    assert status == 404
    assert "/api/v1/status" in json.loads(body)["known"]


@pytest.mark.parametrize("query", ["top=x", "top=-1", "top=100000"])
def test_a_number_that_does_not_fit_is_refused(site: Site, query: str) -> None:
    assert site.ask(f"/api/v1/prototypes?{query}")[0] == 400


def test_the_page_fetches_nothing_from_elsewhere(site: Site) -> None:
    _, body, headers = site.ask("/")
    text = body.decode()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe-inline" not in headers["Content-Security-Policy"]
    outside = [part for part in text.split("http")[1:] if not part.startswith("://www.w3.org/2000/svg")]
    assert outside == []
    assert "STYLE*/" not in text
    assert len(body) < 120_000
    assert "SCRIPT*/" not in text


def test_a_page_of_another_site_cannot_read_a_server_on_this_machine(site: Site) -> None:
    assert site.ask("/api/v1/status", Host="evil.example")[0] == 403
    for good in ("localhost:1", "127.0.0.1", "[::1]:8000", "run.localhost"):
        assert site.ask("/api/v1/status", Host=good)[0] == 200


def test_head_answers_without_a_body(site: Site) -> None:
    status, body, headers = site.ask("/", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_writing_is_not_offered(site: Site) -> None:
    assert site.ask("/api/v1/status", method="POST")[0] == 501


def test_a_client_that_says_nothing_holds_no_other_up(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.server.port)) as silent:
        silent.send(b"GET /metrics HTT")
        site.step()
        assert site.ask("/metrics")[0] == 200


def test_many_at_once_are_answered_while_the_learner_steps(site: Site) -> None:
    site.step()
    codes: list[int] = []

    def browse() -> None:
        api = [f"/api/v1/{what}" for what in ("status", "heatmap", "prototypes?sort=size")]
        for path in ("/", "/metrics", *api) * 4:
            codes.append(site.ask(path)[0])

    threads = [threading.Thread(target=browse) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(50):
        site.step(64 * number)
    for thread in threads:
        thread.join()
    assert codes == [200] * 120


def test_after_close_the_port_is_free_and_kept_connections_end(site: Site) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=LIMIT_S)
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    port = site.server.port
    site.server.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        _ask_again(kept)
    kept.close()
    again = Server(site.live, site.metrics, port=port)
    again.start()
    again.close()


def _ask_again(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/healthz")
    connection.getresponse()


def test_every_interface_is_served_only_when_told(site: Site) -> None:
    wide = Server(site.live, site.metrics, host="0.0.0.0")
    wide.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", wide.port, timeout=LIMIT_S)
        connection.request("GET", "/healthz", headers={"Host": "some.machine"})
        assert connection.getresponse().status == 200
        connection.close()
        assert "0.0.0.0" not in wide.url
    finally:
        wide.close()


def test_the_name_of_the_host_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: str = "") -> str:
        raise AssertionError("a name server that does not answer would hold up the start")

    monkeypatch.setattr(socket, "getfqdn", slow)
    site = Site()
    assert site.server.port > 0
    site.server.close()


def test_whoever_looks_regularly_is_expected_once_more() -> None:
    now = [0.0]
    scrapes = Scrapes(clock=lambda: now[0])
    assert scrapes.expected_within() == 0
    scrapes.note()
    now[0] = 15.0
    assert scrapes.expected_within() == 0, "once is not regularly"
    scrapes.note()
    assert scrapes.expected_within() == 30.0
    now[0] = 40.0
    assert scrapes.expected_within() == 5.0
    now[0] = 46.0
    assert scrapes.expected_within() == 0, "it has not come for so long that it will not"


def test_the_wait_for_the_last_look_ends_with_it() -> None:
    now = [0.0]
    scrapes = Scrapes(clock=lambda: now[0])
    for at in (0.0, 1000.0):
        now[0] = at
        scrapes.note()
    waits = threading.Thread(target=scrapes.await_next, args=(600,), daemon=True)
    waits.start()
    now[0] = 1001.0
    while waits.is_alive():  # the look may come before the other thread has begun to wait for it
        now[0] += 1
        scrapes.note()
        waits.join(0.05)


def test_a_look_at_the_metrics_is_noted_and_no_other(site: Site) -> None:
    server = site.server._server
    assert server is not None
    for path in ("/healthz", "/metrics", "/api/v1/status", "/metrics"):
        site.ask(path)
    wait_for(lambda: len(server.scrapes._asked) == 2)  # it is noted once the answer has been sent


def test_a_server_without_clients_closes_at_once(site: Site) -> None:
    site.ask("/metrics")
    site.server.await_scrape(10_000)  # the limit of a test is far below
