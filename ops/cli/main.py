"""The command line: `swavstream`. Each command lives in `ops/cli/` and is imported when it is called."""

import contextlib
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ops.errors import EXIT_FAILED, EXIT_SIGINT, RankFailed, exit_code_of

# Name -> one line of help, so that `swavstream --help` imports none of the commands.
COMMANDS = {
    "demo": "Watch it work: drawn images become shards, prototypes, metrics and a contact sheet.",
    "ingest": "Bring images onto a stream: folders and tars become committed shards, or Kafka messages.",
    "seal": "Give an open stream its end.",
    "stream": "Look at a stream, let its old shards go, see whether it is whole.",
    "learn": "Learn from a stream in one pass; goes on where it was.",
    "anneal": "Make an annealed copy of a run for release; the run itself goes on.",
    "status": "Say how a run stands: running or not, samples, loss, where things are.",
    "doctor": "Say what is wrong with a run, and which setting to change.",
    "snapshots": "Look at, compare, fetch, name and prune the published snapshots of a run.",
    "evaluate": "Measure the features of a run on labelled streams.",
    "assign": "Give each image of a folder or stream its prototype.",
    "recipes": "List and show the settings that ship with the program.",
    "dashboards": "Write Grafana dashboards, Prometheus rules and manifests.",
}
DEBUG_VARIABLE = "SWAVSTREAM_DEBUG"


class LazyGroup(click.Group):
    """A group whose commands are modules `ops.cli.<name>` with a `command`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one command that is called."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"ops.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but a misspelt command names the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="swavstream", prog_name="swavstream")
@click.option("-v", "--verbose", is_flag=True, help="Also say what goes well, on stderr.")
def cli(verbose: bool) -> None:
    """Learn a visual encoder and balanced clusters from an endless image stream, in one pass.

    \b
    Examples:
        swavstream demo
        swavstream ingest PICTURES/ STREAM/
        swavstream learn STREAM/ --run RUN/ --recipe smoke
        swavstream assign RUN/ PICTURES/
    """  # noqa: D301  click reads the escape as "do not rewrap"
    if verbose:
        logging.getLogger().setLevel(logging.INFO)


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return f"Error: {' '.join(str(error).split()) or type(error).__name__}"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit code: 0; 1 for an error; 2 for a wrong command line; 78 for an error that a restart would
        meet again; 130 after Ctrl-C, where the command does not say otherwise.
    """
    try:
        result: Any = cli.main(args=arguments, prog_name="swavstream", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        return EXIT_SIGINT
    except BrokenPipeError:
        # The reader of our output (head, less) has left. What is still buffered must not raise again at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except RankFailed as error:
        logging.getLogger("swavstream").info("%s", error)  # that rank has said so itself
        return error.exit_code
    except Exception as error:  # the last line of the program
        code = exit_code_of(error)
        if code is None or os.environ.get(DEBUG_VARIABLE):
            logging.getLogger("swavstream").exception("this is a fault of the program, or asked for")
        click.echo(one_line(error), err=True)
        return EXIT_FAILED if code is None else code
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """Entry of the `swavstream` program."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    sys.exit(run())
