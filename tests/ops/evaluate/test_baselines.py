import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from learner.patches import encode
from ops.cli.evaluate import command
from ops.evaluate import baseline_cache, baselines, protocol
from ops.evaluate.baselines import BankViews
from ops.evaluate.features import ChannelMoments, LabelledImages, raw_view
from ops.evaluate.knn import TEMPERATURE, PlainAndWhitened
from stream.record import Record, sha256_of
from tests.labelled_tars import labelled_images
from tests.ops.drawn_runs import begun_run, drawn, tiny_config, write_stream
from tests.oracles import nearest, patches


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begun_run(tmp_path_factory.mktemp("baselines") / "run")[0]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_stream(tmp_path_factory.mktemp("train") / "stream", _bank())


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_stream(
        tmp_path_factory.mktemp("test") / "stream", [drawn(number) for number in range(1000, 1040)]
    )


def _bank() -> list[Record]:
    return [drawn(number) for number in range(160)]


def _read(url: str, *, size: int = 32, limit: int = 0) -> tuple[Tensor, Tensor]:
    pieces = list(LabelledImages(url, size=size, limit=limit, max_pixels=10**6))
    labels = [int(label) for piece in pieces for label in piece.labels]
    return torch.cat([piece.views_B3SS for piece in pieces]), torch.tensor(labels)


def _whole(views: Tensor, piece: int = 64) -> BankViews:
    """Views as a bank shows them."""

    def passing(_what: str) -> Iterator[Tensor]:
        yield from torch.split(views, piece)

    return BankViews(len(views), passing)


def _share(bank: Tensor, labels: Tensor, queries: Tensor, wanted: Tensor, k: int) -> float:
    answers = nearest.predict(bank.double().numpy(), labels.numpy(), queries.double().numpy(), k, TEMPERATURE)
    return float(100 * np.mean(np.array(answers) == wanted.numpy()))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the rows that were computed, in turn."""
    names: list[str] = []
    row = protocol._Comparison.row

    def noted(self: protocol._Comparison, what: str, prepare: Callable[..., object]) -> protocol.Row:
        names.append(what)
        return row(self, what, prepare)  # type: ignore[arg-type]

    monkeypatch.setattr(protocol._Comparison, "row", noted)
    return names


def test_whitened_votes_are_those_of_numpy_in_float64(run_dir: Path, train: str, test: str) -> None:
    report = protocol.evaluate_knn(
        run_dir, train_url=train, test_url=test, baselines=("raw_pixels", "kmeans_400")
    )
    (bank, labels), (queries, wanted) = _read(train), _read(test)
    moments = ChannelMoments()
    moments.add(bank)
    kmeans = baselines.patch_kmeans(400).prepare(_whole(bank))
    for name, describe in (("raw_pixels", moments.standardised), ("kmeans_400", kmeans)):
        known, asked = describe(bank).double(), describe(queries).double()
        row = report.baselines[name]
        white = [
            torch.from_numpy(patches.pca_whitened(known.numpy(), rows.numpy(), 128))
            for rows in (known, asked)
        ]
        for k in (20, 200):
            assert row.plain[k] == pytest.approx(_share(known, labels, asked, wanted, k))
            assert row.whitened[k] == pytest.approx(_share(white[0], labels, white[1], wanted, k))
        assert row.cpu_seconds > 0


def test_the_whitening_is_estimated_on_the_first_images_of_the_bank_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ops.evaluate.knn.WHITENED_FROM", 90)
    draw = torch.Generator().manual_seed(0)
    stretch = torch.rand(12, generator=draw) * 9
    bank, queries = torch.randn(300, 12, generator=draw) * stretch, torch.randn(40, 12, generator=draw)
    labels, wanted = torch.randint(4, (300,), generator=draw), torch.randint(4, (40,), generator=draw)
    search = PlainAndWhitened(queries, k=20)
    for rows, names in zip(torch.split(bank, 50), torch.split(labels, 50), strict=True):
        search.add(rows, names)
    white = [
        torch.from_numpy(patches.pca_whitened(bank[:90].double().numpy(), rows.double().numpy(), 128))
        for rows in (bank, queries)
    ]
    found = search.top1(20, wanted)
    assert found[0] == pytest.approx(_share(bank, labels, queries, wanted, 20))
    assert found[1] == pytest.approx(_share(white[0], labels, white[1], wanted, 20))
    assert found[0] != found[1]


def test_a_second_evaluation_reads_its_baselines_and_computes_none(
    run_dir: Path, train: str, test: str, computed: list[str], cache_home: Path
) -> None:
    first = protocol.evaluate_knn(run_dir, train_url=train, test_url=test)
    assert computed == ["trained", "untrained", "raw pixels", "kmeans 400", "kmeans 1600"]
    assert first.cached == ()
    assert len(list((cache_home / "swavstream" / "baselines").iterdir())) == 4
    computed.clear()
    told: list[str] = []
    second = protocol.evaluate_knn(
        run_dir, train_url=train, test_url=test, progress=lambda what, _done, _total: told.append(what)
    )
    assert computed == ["trained"]
    assert {what.partition(":")[0] for what in told} == {"reading", "trained"}
    assert second.cached == ("untrained", "raw_pixels", "kmeans_400", "kmeans_1600")
    one, other = first.to_json(), second.to_json()
    for name in second.cached:
        assert one[name] == other[name]


def test_other_images_labels_queries_views_or_order_are_other_baselines(
    run_dir: Path, train: str, test: str, tmp_path: Path, computed: list[str]
) -> None:
    def computes(run: Path = run_dir, train: str = train, test: str = test) -> bool:
        computed.clear()
        protocol.evaluate_knn(run, train_url=train, test_url=test, baselines=("raw_pixels",))
        return "raw pixels" in computed

    bank = _bank()
    relabelled = [*bank[:-1], replace(bank[-1], label=(bank[-1].label or 0) + 1)]
    large = begun_run(tmp_path / "large", tiny_config(["crops.0.size=24"]))[0]
    assert computes()
    assert not computes()
    assert not computes(train=write_stream(tmp_path / "same", bank))
    assert computes(train=write_stream(tmp_path / "fewer", bank[:-1]))
    assert computes(train=write_stream(tmp_path / "other", [*bank[:-1], drawn(999)]))
    assert computes(train=write_stream(tmp_path / "relabelled", relabelled))
    assert computes(train=write_stream(tmp_path / "turned", bank[::-1]))
    assert computes(test=train)
    assert computes(run=large)


def test_the_untrained_network_is_cached_by_its_weights(
    run_dir: Path, train: str, test: str, tmp_path: Path, computed: list[str]
) -> None:
    same = begun_run(tmp_path / "same")[0]
    other = begun_run(tmp_path / "other", tiny_config(["seed=5"]))[0]
    found = [
        protocol.evaluate_knn(run, train_url=train, test_url=test, baselines=("untrained",))
        for run in (run_dir, same, other)
    ]
    assert [report.cached for report in found] == [(), ("untrained",), ()]
    assert found[0].baselines == found[1].baselines


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"scores": {"k20": 3}}', b'{"scores": {"k20": "x"}}'])
def test_a_damaged_entry_is_computed_again(
    run_dir: Path, train: str, test: str, cache_home: Path, content: bytes
) -> None:
    def row() -> protocol.KnnReport:
        return protocol.evaluate_knn(run_dir, train_url=train, test_url=test, baselines=("raw_pixels",))

    first = row()
    (entry,) = (cache_home / "swavstream" / "baselines").iterdir()
    entry.write_bytes(content)
    again = row()
    assert again.cached == ()
    assert again.baselines["raw_pixels"].plain == first.baselines["raw_pixels"].plain
    assert row().cached == ("raw_pixels",)


def test_a_cache_that_cannot_be_written_is_a_warning(
    run_dir: Path, train: str, test: str, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_home.write_bytes(b"a file, where the folder should be")
    report = protocol.evaluate_knn(run_dir, train_url=train, test_url=test, baselines=("raw_pixels",))
    assert report.baselines["raw_pixels"].plain
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("value", ["", "relative/place"])
def test_the_cache_is_at_home_where_the_variable_names_no_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert baseline_cache.cache_folder() == tmp_path / ".cache" / "swavstream"


def test_patches_are_the_same_each_time_however_the_bank_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "PATCHES", 2000)
    views = torch.randint(256, (50, 3, 48, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, same = (baselines.learn_patches(_whole(views, piece), 12) for piece in (50, 7))
    assert torch.equal(one.centres_KD, same.centres_KD)
    # Large views are compared as raw pixels are.
    features = baselines.patch_kmeans(12).prepare(_whole(views, 50))(views)
    assert torch.equal(features, encode(raw_view(views), one))
    assert features.shape == (50, 48)


def test_the_command_prints_the_rows_that_are_asked_for(run_dir: Path, train: str, test: str) -> None:
    def printed(*options: str) -> str:
        arguments = ["knn", str(run_dir), "--train", train, "--test", test, *options]
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    body = json.loads(printed("--json"))
    for name in ("trained", "untrained", "raw_pixels", "kmeans_400", "kmeans_1600"):
        assert set(body[name]) == {"k20", "k200", "whitened", "cpu_seconds"}
        assert set(body[name]["whitened"]) == {"k20", "k200"}
        assert body[name]["cpu_seconds"] > 0
    some = json.loads(printed("--json", "--baselines", "kmeans_400, raw_pixels"))
    assert [some[name] is None for name in baselines.BASELINES] == [True, False, False, True]
    assert some["cached"] == ["raw_pixels", "kmeans_400"]
    none = json.loads(printed("--json", "--baselines", "none"))
    assert none["trained"]["k20"] == body["trained"]["k20"]
    assert none["raw_pixels"] is None
    table = printed()
    assert f"{body['kmeans_1600']['whitened']['k200']:.2f} %" in table
    assert table.count("cached") == 4
    wrong = CliRunner().invoke(
        command, ["knn", str(run_dir), "--train", train, "--test", test, "--baselines", "raw"]
    )
    assert isinstance(wrong.exception, ValueError)
    assert "no baseline is called 'raw'" in str(wrong.exception)


def _photographs(tars: list[Path]) -> Iterator[Record]:
    """Labelled images of WebDataset tars."""
    for label, payload in labelled_images(tars):
        yield replace(drawn(0), payload=payload, sha256=sha256_of(payload), label=label, label_name=None)


def test_kmeans_of_patches_sees_more_in_photographs_than_raw_pixels(
    run_dir: Path, test_data: Path, tmp_path: Path
) -> None:
    folder = test_data / "mini10-84"
    train, test = (
        write_stream(
            tmp_path / split, _photographs(sorted(folder.glob(f"mini10-84-{split}-*.tar"))), shard=500
        )
        for split in ("train", "test")
    )
    report = protocol.evaluate_knn(
        run_dir,
        train_url=train,
        test_url=test,
        max_bank=1000,
        baselines=("raw_pixels", "kmeans_400"),
    )
    raw, kmeans = report.baselines["raw_pixels"], report.baselines["kmeans_400"]
    assert kmeans.plain[20] > raw.plain[20]
    assert kmeans.whitened[20] > raw.plain[20] + 5


def test_a_user_without_a_home_has_the_cache_among_the_temporary_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert (
        baseline_cache.cache_folder() == Path(tempfile.gettempdir()) / f"swavstream-{os.getuid()}" / "cache"
    )
