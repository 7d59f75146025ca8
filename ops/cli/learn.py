"""`swavstream learn`: learn from a stream."""

import json
import sys
from functools import partial
from pathlib import Path

import click

from ops.config import auto, recipes
from ops.config.checks import advice
from ops.config.load import build, load_values
from ops.config.schema import RunConfig
from ops.distributed.environment import Launched, Nodes, launched, nodes_of, quiet_torch
from ops.errors import ConfigError, RunNotFound
from ops.rundir.files import read_run
from ops.train.signals import RANK_NOTE, StopRequest


@click.command()
@click.argument("stream")
@click.option(
    "--run", "run_dir", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Run directory; made when missing. A run that is there goes on where it was.",
)  # fmt: skip
@click.option(
    "-c", "--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="Settings, TOML."
)
@click.option("--recipe", metavar="NAME", help="Settings that ship with the program.")
@click.option(
    "--set", "assignments", multiple=True, metavar="A.B=V", help="Change a setting; may be repeated."
)
@click.option(
    "--nproc", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
    help="Ranks on this machine: one for each GPU. Under torchrun leave it out.",
)  # fmt: skip
@click.option(
    "--nnodes", default="", metavar="N",
    help="Machines of the run, each given the same command; LEAST:MOST where they may come and go.",
)  # fmt: skip
@click.option(
    "--rdzv-endpoint", "endpoint", default="", metavar="HOST:PORT",
    help="Where they meet: one of the machines, and a free port of it.",
)  # fmt: skip
@click.option(
    "--init-from", metavar="SNAPSHOT",
    help="Begin a new run with weights of another: RUN, RUN:VERSION, RUN:stable, RUN/checkpoints/ckpt-...",
)  # fmt: skip
@click.option(
    "--until", default="", metavar="END",
    help="Where a Kafka topic ends for this run: now, an offset, or a time (2026-05-01T12:00:00+00:00).",
)  # fmt: skip
@click.option(
    "--budget-minutes", type=click.FloatRange(min=0, min_open=True), metavar="M",
    help="Of --recipe auto: time for a sealed stream, of processors or GPUs; 30 where it is not given.",
)  # fmt: skip
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for a stream that does not exist yet; with --recipe auto also for images to choose by.",
)
@click.option(
    "--accept-bad-until", metavar="RECORDS", default="",
    help="Go on although too many records are unusable, until the run has read so many; or `now`.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, the last line.")
def command(
    stream: str,
    run_dir: Path,
    file: Path | None,
    recipe: str | None,
    assignments: tuple[str, ...],
    nproc: int,
    nnodes: str,
    endpoint: str,
    init_from: str | None,
    until: str,
    budget_minutes: float | None,
    wait: bool,
    accept_bad_until: str,
    as_json: bool,
) -> int:
    """Learn from STREAM, a directory or URL of shards or kafka://HOST:PORT/TOPIC, in one pass.

    A sealed stream ends; an open one is waited on for ever. A topic is open unless --until says where it ends
    for this run; its partitions are the lanes. Ctrl-C and SIGTERM save, and the same command
    goes on from there. SIGUSR1 and SIGUSR2, by which schedulers warn a job, save and learn on; with
    --set signals.usr1=end that one ends the run as SIGTERM does. Progress is written to stderr, the summary
    to stdout.

    Several ranks learn the same as one: --nproc starts them here; with --nnodes and --rdzv-endpoint the same
    command on many machines starts them everywhere. A run may go on with another number of ranks; `lanes` is
    their most. Every launcher ends with the exit code of its ranks; torchrun works too, but ends with 1.

    With --recipe auto the settings follow from the images of the stream and from this machine: a trial of
    some 20 seconds measures how quick nets are here. It says what was chosen and why, also in auto.json of
    the run. A run never chooses again.

    A run that has stopped because too many records were unusable goes past them with --accept-bad-until: the
    budget counts again once the run has read so many records, used or not (`now`: all that the stream has).

    \b
    Examples:
        swavstream learn TRAIN/ --run RUN/ --recipe cifar10-onepass
        swavstream learn TRAIN/ --run RUN/ --recipe auto
        swavstream learn TRAIN/ --run RUN/ --config mine.toml --set optim.learning_rate=1e-3
        swavstream learn TRAIN/ --run RUN/ --recipe smoke --set server.port=0 --json
        swavstream learn TRAIN/ --run RUN/ --recipe smoke --nproc 2
        swavstream learn TRAIN/ --run RUN/ --recipe smoke --nproc 8 --nnodes 2 --rdzv-endpoint HOST:29500
        swavstream learn kafka://HOST:9092/images --run RUN/ --recipe smoke --set lanes=8 --until now
    """  # noqa: D301
    place = launched()
    nodes = _nodes(nnodes, endpoint)
    # On other machines than the first rank's, the run directory, which has the settings, need not be there.
    is_main = nodes is None if place is None else place.rank == 0
    given = file.exists() if file is not None else recipe is not None or (run_dir / "run.json").exists()
    if is_main and not given and file is None:
        raise click.UsageError(f"give --config FILE or --recipe NAME, one of\n{recipes.overview()}")
    if budget_minutes is not None and recipe != auto.NAME:
        raise click.UsageError("--budget-minutes is for --recipe auto")
    launches, choice = nproc > 1 or nodes is not None, None
    # Of several ranks the first one chooses, and tells the others.
    told = recipe == auto.NAME and (launches if place is None else place.rank > 0)
    known = (is_main or given) and not told
    if recipe == auto.NAME and file is None and wait:
        if told:
            quiet_torch()
        _await_images(stream, run_dir, assignments, until)
    if not known:
        config = auto.beforehand(assignments) if told else build({}, assignments)
    elif recipe == auto.NAME and file is None:
        config, choice = _auto(
            stream, run_dir, assignments, until=until, budget_minutes=budget_minutes, place=place
        )
    else:
        config = _choose_config(run_dir, file=file, recipe=recipe, assignments=assignments)
    _check_ranks(config if known else None, place, nproc=nproc, nodes=nodes)
    if place is None:
        for sentence in advice(config) if known else ():
            click.echo(f"warning: {sentence}", err=True)
    if launches:
        quiet_torch()
        from ops.distributed.launcher import launch

        return launch(_as_rank(click.get_current_context()), nproc=nproc, nodes=nodes)
    from ops.train.start import learn

    stop = StopRequest() if place is None else StopRequest(note=RANK_NOTE if is_main else b"", keep=True)
    summary = learn(
        stream,
        run_dir,
        config,
        until=until,
        wait=wait,
        init_from=init_from,
        accept_bad_until=accept_bad_until,
        choice=choice,
        stop=stop,
        out=sys.stderr,
    )
    if is_main:
        click.echo(json.dumps(summary.to_json()) if as_json else summary.render())
    return stop.exit_code


def _nodes(nnodes: str, endpoint: str) -> Nodes | None:
    try:
        return nodes_of(nnodes, endpoint)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _check_ranks(
    config: RunConfig | None, place: Launched | None, *, nproc: int, nodes: Nodes | None
) -> None:
    """Refuse a number of ranks that this process, or the lanes of the run, cannot have."""
    if place is not None and (nproc > 1 or nodes is not None):
        raise click.UsageError(
            f"this process is one of {place.world_size} ranks already: leave out --nproc and --nnodes"
        )
    least = nproc * (nodes.least if nodes else 1)
    if config is not None and least > config.lanes:
        raise click.UsageError(
            f"{least} ranks are more than {config.lanes} lanes: every rank needs one; raise lanes, or lower "
            "--nproc or --nnodes"
        )


def _as_rank(context: click.Context) -> list[str]:
    """The command line of one rank: what was given here, without the number of ranks and machines."""
    given = context.params
    options = [f"--set={assignment}" for assignment in given["assignments"]]
    for option, name in (
        ("run", "run_dir"),
        ("config", "file"),
        ("recipe", "recipe"),
        ("init-from", "init_from"),
        ("accept-bad-until", "accept_bad_until"),
        ("until", "until"),
        ("budget-minutes", "budget_minutes"),
    ):
        options += [f"--{option}={given[name]}"] if given[name] else []
    options += [f"--{flag}" for flag, name in (("wait", "wait"), ("json", "as_json")) if given[name]]
    verbose = ["--verbose"] if context.find_root().params.get("verbose") else []
    return [*verbose, "learn", *options, "--", given["stream"]]


def _choose_config(
    run_dir: Path, *, file: Path | None, recipe: str | None, assignments: tuple[str, ...]
) -> RunConfig:
    """The settings that a command line asks for.

    A config file or a recipe, with the assignments over it. A run that exists needs neither: then its own
    settings are the base.

    Raises:
        ConfigError: both, or neither and there is no run yet; an unknown key; a value that does not fit.
    """
    if file is not None and recipe is not None:
        raise ConfigError("give --config or --recipe, not both")
    if file is not None:
        return build(load_values(file), assignments)
    if recipe is not None:
        return build(recipes.load(recipe).values, assignments)
    try:
        return build(read_run(run_dir).config, assignments)
    except RunNotFound as error:
        raise ConfigError("a new run needs --config FILE or --recipe NAME") from error


def _await_images(stream: str, run_dir: Path, assignments: tuple[str, ...], until: str) -> None:
    """Before a run of `--recipe auto` is begun, in launchers and in all ranks: none waits for another then.

    Raises:
        ConfigError: a run that was begun otherwise.
        StreamError: the stream cannot be read.
    """
    from ops.train import auto_trial

    if auto_trial.kept_settings(run_dir, stream) is None:
        say = partial(click.echo, err=True)
        auto_trial.await_images(stream, given=assignments, until=until, say=say)


def _auto(
    stream: str,
    run_dir: Path,
    assignments: tuple[str, ...],
    *,
    until: str,
    budget_minutes: float | None,
    place: Launched | None,
) -> tuple[RunConfig, "auto.Choice | None"]:
    """The settings of `--recipe auto`: chosen now, or when the run began, and then there is no choice.

    Raises:
        ConfigError: nothing to choose from; a run that was begun otherwise.
        NoImagesYet: an open stream holds nothing yet.
        StreamError: the stream cannot be read.
    """
    from ops.train import auto_trial

    kept = auto_trial.kept_settings(run_dir, stream)
    if kept is not None:
        click.echo(
            f"auto: the run goes on as was chosen when it began ({run_dir / auto_trial.FILE})", err=True
        )
        return build(kept, assignments), None
    choice = auto_trial.choice_for(
        stream,
        given=assignments,
        until=until,
        budget_minutes=budget_minutes,
        ranks=place.world_size if place else 1,
        say=lambda text: click.echo(text, err=True),
    )
    for line in choice.lines():
        click.echo(f"auto: {line}", err=True)
    return choice.config, choice
