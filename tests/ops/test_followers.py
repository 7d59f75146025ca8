from pathlib import Path

import pytest

from ops.embedded import EmbeddedRedis
from ops.errors import RedisUnavailable
from ops.followers import Followers
from ops.outcome import Progress
from ops.rundir import RunRecord
from tests.ops.drawn_runs import tiny_config


@pytest.mark.parametrize("error", [RedisUnavailable("the server is busy"), OSError(28, "no room is left")])
def test_trouble_with_the_server_at_the_very_end_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def close(_: EmbeddedRedis) -> None:
        raise error

    monkeypatch.setattr(EmbeddedRedis, "start", lambda embedded: embedded.url)
    monkeypatch.setattr(EmbeddedRedis, "ensure", lambda _: None)
    monkeypatch.setattr(EmbeddedRedis, "close", close)
    config = tiny_config(["server.port=0"])
    record = RunRecord.new(stream="nowhere", config=config.to_dict())
    with Followers(
        tmp_path, record, config, samples=0, skipped={}, history=[], total_samples=None
    ) as followers:
        followers.start_publishing(Progress())
    assert str(error) in caplog.text
    assert not (tmp_path / "server.json").exists(), "the rest is let go of all the same"
