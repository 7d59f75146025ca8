"""`--recipe auto` on the command line: what it looks at, tries, says and writes down; it chooses once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learner.augment import Views
from learner.learner import Learner
from ops.cli.main import run
from ops.config.auto import NETS, beforehand
from ops.config.load import build, load_values
from ops.rundir.checkpoint import load_newest
from ops.rundir.files import read_json, read_run
from ops.train.auto_trial import Trial, choice_for, look, this_host
from stream.shards.manifest import Manifest
from tests.ops.small_runs import bits, write_stream
from tests.ops.small_runs import run as learn_plainly

pytestmark = pytest.mark.usefixtures("one_thread")

LITTLE = ("--budget-minutes", "0.01")
QUIET = ("--set", "server.port=-1", "--set", "workers=0", "--set", "device=cpu", "--set", "precision=float32",
         "--set", "model.branch_centres=12")  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_stream(tmp_path_factory.mktemp("auto") / "stream", 150, bad_every=50)


def learn(stream: str, run_dir: Path, *more: str) -> int:
    return run(["learn", stream, "--run", str(run_dir), "--recipe", "auto", *QUIET, *more])


def test_a_look_finds_number_and_size_of_the_images(stream: str) -> None:
    found = look(stream, beforehand(()))
    assert (found.records, found.sealed, found.shards, found.partitions) == (150, True, 3, 0)
    assert (found.short_side_px, found.sampled) == (24, 22)  # two of 24 cannot be decoded
    assert 0 < found.decode_s < 1


def test_a_look_leaves_out_images_that_are_larger_than_was_given(
    stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(stream, beforehand(("reader.max_pixels=576",))).sampled == 22
    assert look(stream, beforehand(("reader.max_pixels=575",))).sampled == 0
    assert run(["recipes", "show", "auto", "--stream", stream, "--set", "reader.max_pixels=575"]) == 78
    assert "none of the first records can be decoded" in capsys.readouterr().err


def test_a_look_changes_neither_threads_nor_random_numbers(stream: str) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()
    choice_for(stream, given=("device=cpu",), budget_minutes=0.01)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_trial_is_made_once_a_machine() -> None:
    host, device = this_host(beforehand(("device=cpu",)))
    told: list[str] = []
    first = Trial(host, device, precision="float32", say=told.append)(NETS[0])
    assert first is not None
    assert 0 < first < 1
    assert told == ["auto: trying resnet8-w16 with views of 32 and 16 pixels"]
    assert Trial(host, device, precision="float32", say=told.append)(NETS[0]) == first
    assert len(told) == 1


def test_a_net_that_is_too_large_for_the_memory_is_too_dear_and_tried_again_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(_learner: Learner, _views: Views) -> None:
        raise torch.OutOfMemoryError("no room on the device")

    host, device = this_host(beforehand(("device=cpu",)))
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", step)
        assert Trial(host, device, precision="float32", say=told.append)(NETS[0]) is None
    assert told[1:] == ["auto: resnet8-w16 needs more memory than there is"]
    assert Trial(host, device, precision="float32", say=told.append)(NETS[0]) is not None


@pytest.mark.parametrize(("capability", "quick"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_is_for_gpus_that_compute_in_it(
    capability: tuple[int, int], quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    host, _ = this_host(beforehand(("device=cuda",)))
    assert host.bfloat16 is quick


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_trial_leaves_the_memory_of_a_gpu_free() -> None:
    host, device = this_host(beforehand(("device=cuda",)))
    trial = Trial(host, device, precision="float32", say=lambda _text: None, cached=False)
    assert trial(NETS[0]) is not None
    before = torch.cuda.memory_reserved(device)  # by libraries, which keep theirs
    assert trial(NETS[-1]) is not None
    assert torch.cuda.memory_reserved(device) <= before + (64 << 20)  # its weights alone are more
    torch.cuda.set_per_process_memory_fraction(1e-4, device)
    try:
        assert trial(NETS[-1]) is None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.parametrize("command", ["learn", "recipes"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_tried(
    command: str, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "learn":
        code = learn(stream, tmp_path / "run", "--set", "device=cuda:99")
    else:
        code = run(["recipes", "show", "auto", "--stream", stream, "--set", "device=cuda:99"])
    said = capsys.readouterr().err
    assert code == 78
    assert "Error: device cuda:99 is not there" in said
    assert "auto: trying" not in said


def test_what_is_shown_is_what_a_program_can_rely_on(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "auto", "--stream", stream, "--json", *LITTLE, *QUIET]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["name"] == "auto"
    assert body.keys() >= {
        "chosen", "images", "machine", "budget_minutes", "samples", "steps", "updates", "memory_bytes",
        "stream", "config", "warnings",
    }  # fmt: skip
    assert [choice["setting"] for choice in body["chosen"]] == [
        "precision", "workers", "batch", "lanes", "window", "swav.prototypes", "model.backbone", "crops",
        "reader.thumbnail_px", "passes", "replay.updates", "optim.schedule", "optim.learning_rate",
        "optim.warmup_samples, swav.freeze_samples", "model.branch_centres",
    ]  # fmt: skip
    assert body["images"].keys() == {
        "records", "sealed", "shards", "partitions", "short_side_px", "sampled", "decode_s",
    }  # fmt: skip
    assert body["machine"].keys() == {"cores", "memory_bytes", "bfloat16", "gpu_bytes", "name"}
    assert body["budget_minutes"] == 0.01
    assert body["samples"] == body["config"]["passes"] * 128


def test_what_is_shown_as_text_is_a_config_file_with_the_reasons_before_it(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recipes", "show", "auto", "--stream", stream, *LITTLE, "--set", "seed=5"]) == 0
    text = capsys.readouterr().out
    assert "# batch = 32: at least 8 batches of 150 images\n" in text
    (tmp_path / "shown.toml").write_text(text)
    assert build(load_values(tmp_path / "shown.toml")).seed == 5


def test_a_run_says_what_it_chose_and_writes_it_down(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learn(stream, tmp_path / "run", *LITTLE, "--set", "swav.prototypes=24", "--json") == 0
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert summary["status"] == "finished"
    assert summary["prototypes"] == 24
    assert "auto: images: 150 images in 3 shards, sealed; short side 24 pixels" in said.err
    assert "auto: swav.prototypes = [24]: as given" in said.err.replace("(24,)", "[24]")
    kept = read_json(tmp_path / "run" / "auto.json")
    assert kept is not None
    assert kept["stream"] == stream
    assert kept["config"] == read_run(tmp_path / "run").config
    assert kept["config"]["swav"]["prototypes"] == [24]


def test_a_run_that_goes_on_never_chooses_again(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--set", "end_samples=64", "--set", "checkpoint.every_samples=32")
    assert learn(stream, tmp_path / "run", *LITTLE, *more) == 0
    began = read_json(tmp_path / "run" / "auto.json")
    capsys.readouterr()
    # Another budget and a free cache would give another choice.
    more = ("--budget-minutes", "9", "--set", "end_samples=96")
    assert learn(stream, tmp_path / "run", *more) == 0
    assert "auto: the run goes on as was chosen when it began" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "auto.json") == began
    saved = load_newest(tmp_path / "run")
    assert saved is not None
    assert saved.cursor.samples == 96


def test_a_chosen_run_is_the_run_of_its_plain_settings_to_the_bit(stream: str, tmp_path: Path) -> None:
    assert learn(stream, tmp_path / "chosen", *LITTLE) == 0
    config = build(read_run(tmp_path / "chosen").config)
    learn_plainly(stream, tmp_path / "plain", config)
    assert bits(tmp_path / "plain") == bits(tmp_path / "chosen")


def test_a_run_that_began_otherwise_is_not_chosen_for(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--recipe", "smoke", "--set", "lanes=8", "--set", "batch=32", *QUIET)
    assert run(["learn", stream, "--run", str(tmp_path / "run"), *small]) == 0
    assert learn(stream, tmp_path / "run") == 78
    assert "did not begin with --recipe auto: leave out --recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("records", "seal", "code", "message"),
    [
        (0, False, 1, "auto has nothing to choose from yet; bring some with `swavstream ingest`"),
        (40, True, 78, "sealed with 40 images, and auto needs at least 64"),
    ],
)
def test_what_cannot_be_chosen_leaves_no_run_behind(
    records: int, seal: bool, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if records:
        write_stream(tmp_path / "stream", records, seal=seal)
    else:
        Manifest.open(str(tmp_path / "stream"), create=True)
    assert learn(str(tmp_path / "stream"), tmp_path / "run") == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def learn_and_wait(stream: Path, run_dir: Path, *more: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "ops.cli", "learn", str(stream), "--run", str(run_dir), "--wait"]
    more = ("--recipe", "auto", *QUIET, *LITTLE, "--set", "end_samples=32", *more)
    return subprocess.Popen([*program, *more], stderr=subprocess.PIPE, text=True)


def line_with(learner: subprocess.Popen[str], text: str) -> None:
    """Read what it says until it says this."""
    assert learner.stderr is not None
    assert any(text in line for line in learner.stderr)


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_that_is_to_come_is_waited_for_until_it_can_be_chosen_by(ranks: int, tmp_path: Path) -> None:
    place = tmp_path / "stream"
    with learn_and_wait(place, tmp_path / "run", "--nproc", str(ranks)) as learner:
        line_with(learner, f"auto: waiting for a stream at {place}")
        Manifest.open(str(place), create=True)
        line_with(learner, "auto: waiting for the stream to hold 64 images, or to be sealed")
        write_stream(place, 100)
        line_with(learner, "auto: images: ")
        said = learner.communicate(timeout=180)[1]
    assert learner.returncode == 0, said
    saved = load_newest(tmp_path / "run")
    assert saved is not None
    assert saved.cursor.samples == 32


def test_a_stream_that_was_waited_for_and_ends_with_too_few_images_is_refused(tmp_path: Path) -> None:
    with learn_and_wait(tmp_path / "stream", tmp_path / "run") as learner:
        line_with(learner, "auto: waiting for a stream")
        write_stream(tmp_path / "stream", 10)
        line_with(learner, "sealed with 10 images, and auto needs at least 64")
        learner.communicate(timeout=60)
    assert learner.returncode == 78


def test_a_refused_start_takes_its_choice_back(stream: str, tmp_path: Path) -> None:
    assert learn(stream, tmp_path / "run", *LITTLE, "--set", "snapshot.url=nonsense://") != 0
    assert not (tmp_path / "run").exists()


def test_auto_needs_a_stream_and_its_budget_is_of_no_other_recipe(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["recipes", "show", "auto"]) == 78
    assert "is chosen from a stream: give its address" in capsys.readouterr().err
    assert run(["recipes", "show", "smoke", "--budget-minutes", "3"]) == 2
    assert "--budget-minutes is for the recipe auto" in capsys.readouterr().err
    assert run(["learn", stream, "--run", str(tmp_path / "run"), "--recipe", "smoke", *LITTLE]) == 2
    assert "--budget-minutes is for --recipe auto" in capsys.readouterr().err


def test_the_list_of_recipes_has_auto(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[0] == "auto"
    assert run(["recipes", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "auto"


@pytest.mark.slow
def test_two_ranks_choose_once_and_learn_what_one_does(stream: str, tmp_path: Path) -> None:
    more = [*QUIET, *LITTLE, "--set", "end_samples=64"]
    program = [sys.executable, "-m", "ops.cli", "learn", stream, "--run", str(tmp_path / "two")]
    done = subprocess.run(
        [*program, "--recipe", "auto", "--nproc", "2", *more],
        capture_output=True, text=True, timeout=180, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("auto: batch = ") == 1
    kept = read_json(tmp_path / "two" / "auto.json")
    assert kept is not None
    assert kept["config"] == read_run(tmp_path / "two").config
    saved = load_newest(tmp_path / "two")
    assert saved is not None
    assert saved.cursor.samples == 64
