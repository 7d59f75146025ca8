"""Dashboards against Grafana's schema, and every expression against a Prometheus that scrapes a real run."""

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from ingest.sources import open_source
from ingest.worker import run_ingest
from ops.cli.learn import command as learn
from ops.cli.main import cli
from ops.config import recipes
from ops.distributed.environment import nodes_of
from ops.distributed.launcher import SHUTDOWN_S
from ops.errors import EXIT_AGAIN, EXIT_SIGTERM
from ops.monitoring import alerts
from ops.monitoring.catalog import METRICS, PREFIX
from ops.monitoring.conditions import Scale
from ops.monitoring.export import DASHBOARDS, MARKS, NOT_SHOWN, Mark, body_of, files
from ops.monitoring.grafana import COLUMNS, Dashboard, Panel
from ops.monitoring.metrics import IngestMetrics
from ops.train.signals import StopRequest
from tests.ingest.made import folder_of, settings
from tests.ops.prometheus import Prometheus, promtool, running
from tests.ops.small_runs import config_of, run, write_stream
from tests.ports import free_port
from tests.waiting import LIMIT_S, wait_for

SCHEMAS = Path(__file__).parents[1] / "schemas"
PANELS = [(board, panel) for board in DASHBOARDS for panel in board.panels]
EXPORTED = files(targets=("learner:9464",), prometheus="http://prometheus:9090", runbooks="runbooks/")


def schema(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return body


def check(body: Any, against: dict[str, Any]) -> None:
    """All of them are of draft 7, or use nothing that came after it."""
    jsonschema.Draft7Validator(against).validate(body)


def part(name: str, kind: str) -> dict[str, Any]:
    """The schema of one definition within a file."""
    return {**schema(name), "$ref": f"#/definitions/{kind}"}


def named_in(expression: str) -> set[str]:
    """Metrics of ours that an expression reads, as the table names them."""
    found = set(re.findall(rf"\b{PREFIX}([a-z_]+)", expression))
    known = {metric.name for metric in METRICS}
    return {name if name in known else re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def expressions() -> list[str]:
    return [query.expression for _, panel in PANELS for query in panel.queries]


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_a_dashboard_and_its_panels_fit_the_schema_of_grafana(board: Dashboard) -> None:
    body = body_of(board)
    # What Prometheus' own editor of annotations adds is not in the schema of all data sources.
    own = {"expr", "step", "titleFormat", "textFormat", "useValueForTime"}
    known = [{k: v for k, v in one.items() if k not in own} for one in body["annotations"]["list"]]
    assert all(own <= one.keys() for one in body["annotations"]["list"])
    check({**body, "panels": [], "annotations": {"list": known}}, schema("grafana-dashboard"))
    for panel in body["panels"]:
        if panel["type"] == "row":
            check(panel, part("grafana-dashboard", "RowPanel"))
        else:
            check(panel, part("grafana-dashboard", "Panel"))
            check(panel["options"], schema(f"grafana-{panel['type']}"))


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_panels_are_numbered_do_not_overlap_and_stay_within_the_width(board: Dashboard) -> None:
    placed = body_of(board)["panels"]
    assert len({panel["id"] for panel in placed}) == len(placed)
    taken: set[tuple[int, int]] = set()
    for panel in placed:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_titles_within_a_dashboard_and_addresses_are_their_own() -> None:
    assert len({board.name for board in DASHBOARDS}) == len(DASHBOARDS)
    for board in DASHBOARDS:
        for row in board.rows:
            assert len({panel.title for panel in row.panels}) == len(row.panels)
    assert {alert.dashboard for alert in alerts.alerts(Scale())} <= {board.name for board in DASHBOARDS}


def test_expressions_name_metrics_of_the_table_only() -> None:
    known = {metric.name for metric in METRICS}
    for expression in expressions():
        assert named_in(expression) <= known, expression


def test_no_metric_is_without_a_panel_or_a_reason() -> None:
    shown = set().union(*(named_in(expression) for expression in expressions()))
    for metric in METRICS:
        assert metric.name in shown or metric.name in NOT_SHOWN, (
            f"no panel shows {metric.name}: add a line to a table in ops/monitoring/panels.py, "
            "or its reason to NOT_SHOWN in ops/monitoring/export.py"
        )
    assert not NOT_SHOWN.keys() & shown


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a small run for some seconds; both still go on."""
    folder = tmp_path_factory.mktemp("scraped")
    port = free_port()
    stop = StopRequest()
    # 40 of 1,000 pictures cannot be read; the stream stays open, so the learner waits at its end.
    stream = write_stream(folder / "stream", 1000, seal=False, bad_every=25)
    config = config_of(
        f"server.port={port}", "snapshot.every_samples=128", "health.interval_samples=32",
        "swav.queue_samples=128",
    )  # fmt: skip
    learner = threading.Thread(
        target=run, args=(stream, folder / "run", config), kwargs={"stop": stop}, daemon=True
    )
    rules = alerts.rules(Scale(factor=1 / 300))
    brought = IngestMetrics()
    targets = {"learner": port, "ingest": int(brought.serve(0).split(":")[2].split("/")[0])}
    with running(folder / "prometheus", targets=targets, rules=rules) as server:
        learner.start()
        source = open_source(str(folder_of(folder / "images", 0, 12)))
        run_ingest(source, str(folder / "brought"), settings(workers=0), progress=brought.show)
        waiting = f"{PREFIX}learner_waiting == 1"
        # Rates need series that were scraped more than once; the last of them come with this one.
        wait_for(
            lambda: server.query(f"count_over_time(({waiting})[5m:200ms]) >= 4"), "the end of the stream"
        )
        yield server
        stop.ask()
        learner.join(LIMIT_S)
        brought.close()


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{b.name}-{p.title}" for b, p in PANELS])
def test_every_panel_shows_data_of_a_real_run(scraped: Prometheus, board: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        expression = query.expression.replace("$__rate_interval", "60s").replace("$instance", ".*")
        found = scraped.query(expression)
        assert found or query.may_be_empty, f"{board.title} / {panel.title}: no data for {expression}"


@pytest.mark.parametrize("mark", MARKS, ids=lambda mark: mark.name)
def test_every_mark_is_of_series_that_a_real_run_has_or_of_an_alert(scraped: Prometheus, mark: Mark) -> None:
    expression = mark.expression.replace("$__interval", "5m").replace("$instance", ".*")
    if expression.startswith("ALERTS"):
        assert scraped.query(expression) == []
        assert mark.expression.split('"')[1] in {alert.name for alert in alerts.alerts(Scale())}
    else:
        assert expression.endswith(" > 0")
        assert scraped.query(expression.removesuffix(" > 0"))


def test_unusable_is_the_same_share_in_panel_and_alert() -> None:
    (panel,) = [panel for _, panel in PANELS if panel.title == "Unusable"]
    recorded = alerts.recordings(Scale())["instance:swavstream_records_unusable:ratio_rate5m"]

    def left_out(expression: str) -> list[str]:
        return re.findall(r'reason!="\w+"', expression)

    assert left_out(panel.queries[0].expression) == left_out(recorded)


def test_the_shares_by_rank_lead_to_the_clusters_of_the_live_page() -> None:
    (board,) = [board for board in DASHBOARDS if board.name == "balance"]
    body = body_of(board, page="http://gpu1:9464")
    links = {panel["title"]: panel["links"][0]["url"] for panel in body["panels"] if panel.get("links")}
    assert links == dict.fromkeys(["Largest shares", "Smallest shares"], "${page}/#h-clusters")
    assert body["templating"]["list"][-1]["query"] == "http://gpu1:9464"
    assert (
        'id="h-clusters"' in resources.files("ops").joinpath("live_page", "static", "page.html").read_text()
    )


def test_alerts_lead_to_the_runbooks_that_were_exported_unless_told_otherwise(tmp_path: Path) -> None:
    for more, expected in (
        ([], (tmp_path / "runbooks").as_uri()),
        (["--runbooks", "https://wiki/swavstream"], "https://wiki/swavstream"),
    ):
        assert CliRunner().invoke(cli, ["dashboards", "export", str(tmp_path), *more]).exit_code == 0
        written = yaml.safe_load((tmp_path / "prometheus/rules/swavstream.rules.yml").read_text())
        for rule in written["groups"][-1]["rules"]:
            page = rule["annotations"]["runbook_url"]
            assert page == f"{expected}/{rule['alert']}.md"
            assert (tmp_path / "runbooks" / page.rpartition("/")[2]).is_file()


def test_recorded_series_have_data_and_alerts_are_loaded(scraped: Prometheus) -> None:
    for name in alerts.recordings(Scale()):
        assert scraped.query(name), name
    assert scraped.query("up == 1")


def test_export_writes_what_promtool_accepts_and_grafana_provisions(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["dashboards", "export", str(tmp_path / "out"), "--target", "gpu1:9464"])
    assert done.exit_code == 0, done.output
    written = {str(Path(line).relative_to(tmp_path / "out")) for line in done.output.splitlines()}
    assert written == EXPORTED.keys()
    checked = promtool("check", "config", tmp_path / "out/prometheus/prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "gpu1:9464" in (tmp_path / "out/prometheus/prometheus.yml").read_text()


def test_a_target_without_a_port_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["dashboards", "export", str(tmp_path), "--target", "gpu1"])
    assert done.exit_code == 2
    assert "HOST:PORT" in done.output


def test_the_compose_file_fits_the_schema_and_its_mounts_are_exported() -> None:
    body = yaml.safe_load(EXPORTED["compose.yaml"])
    check(body, schema("compose-spec"))
    assert set(body["services"]) == {"learner", "ingest", "redis", "kafka", "prometheus", "grafana"}
    for service in body["services"].values():
        for mount in service.get("volumes", []):
            place = mount.split(":")[0]
            if place.startswith("./"):
                assert any(name.startswith(place[2:]) for name in EXPORTED), place


def test_volumes_of_our_image_are_mounted_where_it_has_a_folder_of_its_user() -> None:
    image = EXPORTED["Dockerfile"]
    (made,) = re.findall(r"mkdir (.*?) \\\n", image)
    (owned,) = re.findall(r"chown swavstream:swavstream (.*)\n", image)
    assert image.index("chown") < image.index("\nUSER swavstream")
    volumes = set(yaml.safe_load(EXPORTED["compose.yaml"])["volumes"])
    for service in ("learner", "ingest"):
        for mount in yaml.safe_load(EXPORTED["compose.yaml"])["services"][service]["volumes"]:
            source, _, place = mount.removesuffix(":ro").rpartition(":")
            if source in volumes or any(source.endswith(f":-{name}}}") for name in volumes):
                assert place in made.split(), mount
                assert place in owned.split(), mount


def test_what_a_run_learns_from_can_be_written_since_it_leaves_a_note_there() -> None:
    for mount in yaml.safe_load(EXPORTED["compose.yaml"])["services"]["learner"]["volumes"]:
        assert not mount.endswith(":ro")
    pod = kubernetes_job()["template"]["spec"]
    assert not any(mount.get("readOnly") for mount in pod["containers"][0]["volumeMounts"])
    claims = [
        volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume
    ]
    assert claims
    assert not any(claim.get("readOnly") for claim in claims)


def test_kafka_keeps_its_topics_in_its_volume_and_is_reached_from_this_machine() -> None:
    kafka = yaml.safe_load(EXPORTED["compose.yaml"])["services"]["kafka"]
    assert kafka["environment"]["KAFKA_LOG_DIRS"] in [mount.split(":")[1] for mount in kafka["volumes"]]
    (published,) = kafka["ports"]
    host, port, inside = published.split(":")
    advertised = kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"HOST://{host}:{port}" in advertised
    assert f"HOST://:{inside}" in kafka["environment"]["KAFKA_LISTENERS"].split(",")
    secured = kafka["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    for listener in kafka["environment"]["KAFKA_LISTENERS"].split(","):
        assert listener.partition(":")[0] in [pair.partition(":")[0] for pair in secured]


def test_a_container_that_must_not_be_restarted_for_ever_is_not() -> None:
    learner = yaml.safe_load(EXPORTED["compose.yaml"])["services"]["learner"]
    assert re.fullmatch(r"on-failure:\d+", learner["restart"])


def kubernetes_job() -> dict[str, Any]:
    (job,) = [one for one in yaml.safe_load_all(EXPORTED["kubernetes.yaml"]) if one["kind"] == "Job"]
    spec: dict[str, Any] = job["spec"]
    return spec


def test_every_object_of_the_kubernetes_manifest_fits_the_schema() -> None:
    objects = list(yaml.safe_load_all(EXPORTED["kubernetes.yaml"]))
    assert [one["kind"] for one in objects] == ["Service", "Service", "Job", "Service", "StatefulSet"]
    for one in objects:
        kubernetes_validate.validate(one, "1.32", strict=True)


def test_the_job_has_a_node_for_each_completion_and_fails_by_the_launchers_codes() -> None:
    job = kubernetes_job()
    assert job["completions"] == job["parallelism"]
    (learner,) = job["template"]["spec"]["containers"]
    assert "command" not in learner, "the image's entry point, whose exit code is that of the ranks"
    rules = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {"values": []})["values"]
    }
    assert rules == {EXIT_AGAIN: "FailJob", EXIT_SIGTERM: "Ignore"}
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > SHUTDOWN_S


def test_what_the_manifests_tell_the_learner_is_understood() -> None:
    compose = yaml.safe_load(EXPORTED["compose.yaml"])["services"]["learner"]["command"]
    job = kubernetes_job()
    (container,) = job["template"]["spec"]["containers"]
    for words in (compose, container["args"]):
        given = learn.make_context("learn", words[1:]).params
        assert config_of(*given["assignments"]).server.port == 9464
        assert given["wait"]
        assert words[0] == "learn"
    assert given["stream"] == "/stream"
    nodes = nodes_of(given["nnodes"], given["endpoint"])
    assert nodes is not None
    assert nodes.least <= job["completions"] <= nodes.most
    assert nodes.most * given["nproc"] <= recipes.load(given["recipe"]).config.lanes
    assert str(given["nproc"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    service = next(yaml.safe_load_all(EXPORTED["kubernetes.yaml"]))["metadata"]["name"]
    assert nodes.host == f"swavstream-learner-0.{service}"
    assert job["template"]["spec"]["subdomain"] == service


def test_only_the_pod_of_the_first_rank_is_scraped() -> None:
    objects = list(yaml.safe_load_all(EXPORTED["kubernetes.yaml"]))
    index = "batch.kubernetes.io/job-completion-index"
    for one in objects:
        template = one["spec"].get("template", {}).get("metadata", {})
        assert "prometheus.io/scrape" not in template.get("annotations", {})
        if "prometheus.io/scrape" in one["metadata"].get("annotations", {}):
            assert one["spec"]["selector"] == {"app": "swavstream-learner", index: "0"}


@pytest.mark.parametrize(
    ("index", "port", "phase", "kept"),
    [("0", "http", "Running", True), ("1", "http", "Running", False), ("0", "rendezvous", "Running", False),
     ("0", "http", "Failed", False)],
)  # fmt: skip
def test_a_prometheus_in_the_cluster_keeps_that_pod_under_the_name_that_alerts_know(
    tmp_path: Path, index: str, port: str, phase: str, kept: bool
) -> None:
    """Not every promtool knows Kubernetes: the pod is given to it as a target with the labels of one."""
    body = yaml.safe_load(EXPORTED["prometheus/kubernetes.yml"])
    (job,) = body["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    labels = {
        "label_app": "swavstream-learner", "label_batch_kubernetes_io_job_completion_index": index,
        "name": f"swavstream-learner-{index}-x7k2p", "phase": phase, "container_port_name": port,
    }  # fmt: skip
    pod = {f"__meta_kubernetes_pod_{name}": value for name, value in labels.items()}
    job["static_configs"] = [{"targets": ["10.0.0.7:9464"], "labels": pod}]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(body))
    done = promtool("check", "service-discovery", "--timeout=1s", tmp_path / "config.yml", alerts.JOB)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout[done.stdout.index("[") :])
    if kept:
        assert found["labels"]["job"] == alerts.JOB
        assert found["labels"]["instance"] == "swavstream-learner-0"
    else:
        assert not found["labels"]


def test_the_image_is_built_from_the_packages_and_nothing_else() -> None:
    root = Path(__file__).parents[3]
    ignored = (root / ".dockerignore").read_text().splitlines()
    project = tomllib.loads((root / "pyproject.toml").read_text())
    needed = {
        "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }  # fmt: skip
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == needed
