"""A real Apache Kafka for the tests: a cluster that a variable names, or one node that is started here.

SWAVSTREAM_TEST_KAFKA=host:port uses that cluster (topics with random names are left behind on it). Else Java
17 and Maven are needed: the broker comes from Maven Central once, into ~/.cache/swavstream/kafka-VERSION, and
one KRaft node is started for each test session (about 5 s). By hand:

    mvn -q -B dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=LIBS   # with POM below
    java -cp 'LIBS/*' kafka.tools.StorageTool format --standalone -t UUID -c server.properties
    java -cp 'LIBS/*' kafka.Kafka server.properties                                      # PROPERTIES below
"""

import base64
import contextlib
import gc
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.waiting import LIMIT_S, freeze, wait_for

VERSION = "4.3.1"
VARIABLE = "SWAVSTREAM_TEST_KAFKA"
REQUIRED = "kafka" in os.environ.get("SWAVSTREAM_REQUIRE", "").split(",")
USER, PASSWORD = "learner", "pass-2f6b91-word"
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
SCRAM_PASSWORD, KEY_PASSWORD = "scram-83c0d7-word", "key-5a11e4-word"
LISTENERS = ("plain", "secure", "open", "mutual", "controller")
"""Open; TLS and a password; a password alone; TLS with a certificate of the client; not for clients."""

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>swavstream.tests</groupId><artifactId>kafka</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners={clients},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={clients}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,SECURE:SASL_SSL,OPEN:SASL_PLAINTEXT,MUTUAL:SSL
inter.broker.listener.name=PLAIN
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \\
    required user_{user}="{password}";
listener.name.secure.scram-sha-256.sasl.jaas.config={scram_login}
listener.name.secure.scram-sha-512.sasl.jaas.config={scram_login}
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={folder}/server.pem
listener.name.open.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512
listener.name.open.scram-sha-256.sasl.jaas.config={scram_login}
listener.name.open.scram-sha-512.sasl.jaas.config={scram_login}
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.keystore.type=PEM
listener.name.mutual.ssl.keystore.location={folder}/server.pem
listener.name.mutual.ssl.truststore.type=PEM
listener.name.mutual.ssl.truststore.location={folder}/client.pem
log.dirs={folder}/data
num.partitions=1
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# Compaction is waited for by tests.
log.cleaner.backoff.ms=100
# A killed broker is let in again when its last session is over.
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=300
"""
# Small and quick to start rather than fast.
JVM = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")

_CERTIFICATE = (
    "openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=test",
    "-addext", "subjectAltName=IP:127.0.0.1",
)  # fmt: skip
_FETCH = ("mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime")


class Broker:
    """One Kafka; `folder` is None for a cluster that is not ours to stop or to damage."""

    def __init__(self, server: str, *, folder: Path | None = None, libs: Path | None = None) -> None:
        self.server = server
        self.secure = self.open = self.mutual = ""
        self.disturbed = False
        self.folder, self._libs = folder, libs
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, topic: str) -> str:
        return f"kafka://{self.server}/{topic}"

    def new_topic(self) -> str:
        return f"test-{uuid.uuid4().hex[:12]}"

    def own(self) -> Path:
        """The folder of a broker that may be stopped and damaged; else the test is skipped."""
        if self.folder is None:
            pytest.skip(f"stops or damages the broker, and {VARIABLE} names one that is not ours")
        return self.folder

    @classmethod
    def prepared(cls, folder: Path, libs: Path) -> "Broker":
        """A node that is ready to be started."""
        ports = {name: free_port() for name in LISTENERS}
        _certify(folder, "key.pem", "ca.pem", "-nodes")
        _certify(folder, "client.key", "client.pem", "-passout", f"pass:{KEY_PASSWORD}")
        (folder / "server.pem").write_text((folder / "key.pem").read_text() + (folder / "ca.pem").read_text())
        clients = ",".join(f"{name.upper()}://127.0.0.1:{ports[name]}" for name in LISTENERS[:-1])
        (folder / "server.properties").write_text(
            PROPERTIES.format(
                clients=clients,
                controller=ports["controller"],
                folder=folder,
                user=USER,
                password=PASSWORD,
                scram_login="org.apache.kafka.common.security.scram.ScramLoginModule required;",
            )
        )
        broker = cls(f"127.0.0.1:{ports['plain']}", folder=folder, libs=libs)
        broker.secure, broker.open, broker.mutual = (
            f"127.0.0.1:{ports[name]}" for name in ("secure", "open", "mutual")
        )
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        users = [f"{mechanism}=[name={USER},password={SCRAM_PASSWORD}]" for mechanism in SCRAM]
        broker._java(
            *("kafka.tools.StorageTool", "format", "--standalone", "-t", cluster),
            *(word for user in users for word in ("--add-scram", user)),
            "-c",
        )
        return broker

    def start(self) -> None:
        """Start, and wait until it answers."""
        assert self.folder is not None
        with (self.folder / "broker.log").open("ab") as log:
            command = ["java", *JVM, "-cp", f"{self._libs}/*", "kafka.Kafka", "server.properties"]
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_for(self._answers_or_ended, "the Kafka broker")
        if self._process.poll() is not None:
            tail = (self.folder / "broker.log").read_text()[-2000:]
            raise RuntimeError(f"the Kafka broker does not start: {tail}")

    def _answers_or_ended(self) -> bool:
        assert self._process is not None
        host, _, port = self.server.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), LIMIT_S):
            return True
        return self._process.poll() is not None

    def stop(self, *, kill: bool = False) -> None:
        """End it, orderly or not; what it was given stays in its folder."""
        self.disturbed = True
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            try:
                self._process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it, and start it again."""
        self.stop(kill=True)
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The broker answers no client for a while, and loses nothing."""
        self.own()
        assert self._process is not None
        self.disturbed = True
        freeze(self._process.pid)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _java(self, *arguments: str) -> None:
        command = ["java", *JVM, "-cp", f"{self._libs}/*", *arguments, "server.properties"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)


@pytest.fixture
def kafka(kafka_of_session: Broker) -> Iterator[Broker]:
    """A Kafka for the whole session; tests use topics of their own."""
    yield kafka_of_session
    if not kafka_of_session.disturbed:
        return
    # The client library leaves the socket of each attempt to reconnect to the garbage collector.
    kafka_of_session.disturbed = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def kafka_of_session() -> Iterator[Broker]:
    """See `kafka`."""
    given = os.environ.get(VARIABLE, "")
    if given:
        yield Broker(given)
        return
    libs = _libraries()
    for last in (False, False, True):
        folder = Path(tempfile.mkdtemp(prefix="swavstream-kafka-"))
        broker = Broker.prepared(folder, libs)
        try:
            broker.start()
            break
        except RuntimeError:  # another program may have taken a port in between: others then
            broker.stop(kill=True)
            shutil.rmtree(folder, ignore_errors=True)
            if last:
                raise
    try:
        yield broker
    finally:
        broker.stop(kill=True)
        shutil.rmtree(folder, ignore_errors=True)


def _certify(folder: Path, key: str, certificate: str, *options: str) -> None:
    """A key, and a certificate that it signs for itself."""
    command = [*_CERTIFICATE, *options, "-keyout", key, "-out", certificate]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _libraries() -> Path:
    """Folder of the broker's jars, fetched when they are not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swavstream"
    libs = cache / f"kafka-{VERSION}"
    for tool in ("java", "openssl", *(() if libs.is_dir() else ("mvn",))):
        if shutil.which(tool) is None:
            _missing(f"{tool} is not installed")
    if not libs.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as aside:
            (Path(aside) / "pom.xml").write_text(POM)
            fetched = subprocess.run(
                [*_FETCH, "-DoutputDirectory=libs"],
                cwd=aside,
                capture_output=True,
                text=True,
                check=False,
            )
            if fetched.returncode:
                _missing(f"Maven cannot fetch it: {(fetched.stdout + fetched.stderr).strip()[-300:]}")
            with contextlib.suppress(OSError):  # another process was quicker
                (Path(aside) / "libs").rename(libs)
    return libs


def _missing(what: str) -> None:
    if REQUIRED:
        pytest.fail(f"SWAVSTREAM_REQUIRE asks for kafka, but {what}")
    pytest.skip(f"needs a Kafka: set {VARIABLE}=host:port, or install Java 17 and Maven ({what})")
