import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ingest.errors import IngestError
from ops.cli.assign import command
from ops.demo.drawings.pictures import draw
from ops.demo.feed import encoded
from ops.errors import RunNotFound
from ops.inference import assign, load_model
from ops.inference.assign import Assignment
from ops.inference.images import centre_view
from tests.ops.drawn_runs import begun_run, drawn, write_stream


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> load_model.Network:
    run_dir, _ = begun_run(tmp_path_factory.mktemp("assign") / "run")
    return load_model.load(run_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        (place / f"{number:02}.jpg").write_bytes(encoded(0, number, 48)[0])
    return place


def _answers(network: load_model.Network, source: str | Path) -> list[Assignment]:
    return list(assign.assign(network, str(source)))


def test_the_answer_is_the_largest_raw_score_and_its_lead(network: load_model.Network, folder: Path) -> None:
    answers = _answers(network, folder)
    assert [Path(answer.name).name for answer in answers] == [f"{number:02}.jpg" for number in range(12)]
    from stream.images.decode import decode_image

    payloads = [encoded(0, number, 48)[0] for number in range(12)]
    views = torch.stack([centre_view(decode_image(one, max_pixels=10**6), 32) for one in payloads])
    best, place = network.learner.scores(views).sort(dim=1, descending=True)
    assert [answer.prototype for answer in answers] == place[:, 0].tolist()
    assert [answer.score for answer in answers] == pytest.approx(best[:, 0].tolist(), abs=1e-5)
    assert [answer.margin for answer in answers] == pytest.approx(
        (best[:, 0] - best[:, 1]).tolist(), abs=1e-5
    )


def test_company_does_not_change_an_answer(network: load_model.Network, folder: Path) -> None:
    together = _answers(network, folder)
    alone = [_answers(network, Path(one.name))[0] for one in together[:3]]
    for one, other in zip(together, alone, strict=False):
        assert (one.name, one.prototype) == (other.name, other.prototype)
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_a_tar_a_glob_and_a_stream_give_the_same_answers(
    network: load_model.Network, folder: Path, tmp_path: Path
) -> None:
    expected = [answer.prototype for answer in _answers(network, folder)]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    assert [answer.prototype for answer in _answers(network, tmp_path / "all.tar")] == expected
    assert [answer.prototype for answer in _answers(network, folder / "*.jpg")] == expected
    url = write_stream(tmp_path / "stream", [drawn(number, size=48) for number in range(12)], shard=5)
    of_stream = {answer.name: answer.prototype for answer in _answers(network, url)}
    assert [of_stream[f"drawn#{number}"] for number in range(12)] == expected


def test_bad_files_are_answered_with_their_reason(network: load_model.Network, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(0, 1, 32)[0])
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.jpg").write_bytes(b"GIF89a is cut short")
    (tmp_path / "d.jpg").write_bytes(b"no image at all")
    found = {Path(answer.name).name: answer for answer in _answers(network, tmp_path)}
    assert found["a.jpg"].prototype is not None
    reasons = {name: answer.reason for name, answer in found.items() if answer.prototype is None}
    assert reasons == {"b.png": "empty", "c.jpg": "undecodable", "d.jpg": "not_an_image"}


def test_a_source_that_is_not_there_is_an_error(network: load_model.Network, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="nothing is at"):
        _answers(network, tmp_path / "nothing")
    with pytest.raises(IngestError, match="nothing to ingest"):
        _answers(network, tmp_path)


def test_the_command_prints_a_json_object_for_each_image(folder: Path, tmp_path: Path) -> None:
    run_dir, _ = begun_run(tmp_path / "run")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    done = CliRunner().invoke(command, [str(run_dir), str(folder), "--json"])
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 12
    assert all(set(line) == {"name", "prototype", "score", "margin"} for line in lines)
    assert all(-1 <= line["score"] <= 1 and 0 <= line["margin"] <= 2 for line in lines)
    assert "12 images assigned" in done.stderr
    bad = CliRunner().invoke(command, [str(run_dir), str(tmp_path / "bad.jpg"), "--json"])
    line = json.loads(bad.stdout)
    assert (line["reason"], Path(line["name"]).name) == ("not_an_image", "bad.jpg")


def test_the_command_prints_a_table_for_people(folder: Path, tmp_path: Path) -> None:
    run_dir, _ = begun_run(tmp_path / "run")
    done = CliRunner().invoke(command, [str(run_dir), str(folder)])
    assert len(done.stdout.splitlines()) == 12
    assert "03.jpg" in done.stdout


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="no run in"):
        load_model.load(tmp_path)
    run_dir, _ = begun_run(tmp_path / "run")
    for path in (run_dir / "checkpoints").rglob("*"):
        if path.is_file():
            path.unlink()
    for path in (run_dir / "checkpoints").iterdir():
        path.rmdir()
    with pytest.raises(RunNotFound, match="no checkpoint yet"):
        load_model.load(run_dir)


def test_the_untrained_network_has_the_first_weights_of_the_run(tmp_path: Path) -> None:
    _, learner = begun_run(tmp_path / "run")
    network = load_model.load(tmp_path / "run")
    views = torch.stack(
        [centre_view(torch.from_numpy(draw(0, number, 32)[0]).permute(2, 0, 1), 32) for number in range(8)]
    )
    initial = load_model.untrained(network)
    assert torch.equal(initial.scores(views), learner.scores(views))
    assert torch.equal(network.learner.features(views), learner.features(views))


def test_a_png_with_transparency_and_a_jpeg_are_seen_alike(
    network: load_model.Network, tmp_path: Path
) -> None:
    from PIL import Image

    pixels, _ = draw(0, 3, 32)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "plain.png")
    image.putalpha(255)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "alpha.png").write_bytes(buffer.getvalue())
    alpha, plain = _answers(network, tmp_path)
    assert alpha.prototype == plain.prototype
    assert alpha.score == plain.score


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device of the run is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_run_of_another_machine_s_device_can_be_used_here(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    run_dir, learner = begun_run(tmp_path / "run")
    place = run_dir / "run.json"
    record = json.loads(place.read_text())
    record["config"]["device"] = device
    place.write_text(json.dumps(record))
    network = load_model.load(run_dir)
    views = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(network.learner.scores(views), learner.scores(views))
    assert torch.equal(load_model.untrained(network).scores(views), learner.scores(views))
    assert caplog.text.count(f"the run was on {device}, which this machine does not have") == 1
