"""Addresses of streams with a password in them are refused, and no part of it is repeated."""

from pathlib import Path

import pytest

from ops.cli.main import run
from stream.secrets import check_no_password
from stream.shards.manifest import Manifest
from stream.storage import open_bytes, open_store

SECRETS = [
    "s3://AKIAKEY:hush-31@bucket/stream",
    "s3://AKIAKEY:hush/31@bucket/stream",
    "s3://AKIAKEY:hush@31/x@bucket/stream",
    "sftp://user:hush?31@host/stream",
    "sftp://user:hush#31@host:22/stream",
    "sftp://:hush-31@host/stream",
    "https://user:hush-31@host:8080/stream",
    "simplecache::s3://AKIAKEY:hush-31@bucket/stream",
    "Kafka://user:hush-31@host:9092/topic",
    "kafka://user:hush-31@host:9092/topic",
    "kafka://user:hush/31@host:9092/topic",
]
FINE = [
    "s3://bucket/stream", "s3://bucket/a@b/stream", "sftp://user@host:22/stream", "/data/me:you@home/stream",
    "http://host:8080/a@b", "http://[::1]:80/a@b", "gs://bucket/a:b", "me:you@home/stream",
]  # fmt: skip


@pytest.mark.parametrize("url", FINE)
def test_an_address_without_a_password_is_taken(url: str) -> None:
    check_no_password(url)


@pytest.mark.parametrize("url", [url for url in SECRETS if not url.startswith("kafka")])
def test_a_store_with_a_password_in_its_address_is_refused_and_the_password_not_repeated(url: str) -> None:
    for opening in (open_store, open_bytes, Manifest.open):
        with pytest.raises(ValueError, match="must not hold a password") as caught:
            opening(url)
        assert "hush" not in str(caught.value)
        assert "31" not in str(caught.value)


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize(
    "words",
    [
        ["learn", "URL", "--run", "RUN", "--recipe", "smoke"],
        ["learn", "URL", "--run", "RUN", "--recipe", "smoke", "--wait"],
        ["ingest", "IMAGES", "URL"],
        ["ingest", "IMAGES", "URL", "--state", "RUN"],
        ["stream", "show", "URL"],
        ["stream", "verify", "URL"],
        ["seal", "URL"],
        ["recipes", "show", "smoke", "--stream", "URL"],
    ],
    ids=lambda words: "-".join(word for word in words if word.islower()),
)
def test_no_command_shows_or_writes_a_password_of_an_address(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    url: str,
    words: list[str],
) -> None:
    (tmp_path / "images").mkdir()
    names = {"URL": url, "RUN": str(tmp_path / "run"), "IMAGES": str(tmp_path / "images")}
    assert run([names.get(word, word) for word in words]) != 0
    printed = capsys.readouterr()
    told = printed.out + printed.err + caplog.text
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "hush" not in told
    assert "hush" not in written
