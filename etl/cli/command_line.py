"""The command line: its commands by name, and how each of them ends.

The module of a command is loaded when it is asked for, and libraries that take long to load when
it is called: `--help` and completion are there at once.
"""

import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import __version__, display
from etl.cli import options
from etl.errors import ArchiverError, OutOfFilesError, UsageError, is_out_of_files
from etl.secrets.masking import mask

if TYPE_CHECKING:
    from etl.cli.session import Wiring

COMMANDS = {
    "demo": ("demo_command", "Show the whole job on made-up runs, without a key or a network."),
    "init": ("init_command", "Write a commented config.toml (or the file given by --config)."),
    "track": ("track_command", "Add runs to the ledger; the next ingest fetches them."),
    "ingest": ("ingest_command", "Do one pass: fetch and store all runs that are due."),
    "work": ("work_command", "Work for a pass that another process has begun."),
    "schedule": ("schedule_command", "Run as a service: a pass now, then as [schedule] says."),
    "doctor": ("doctor_command", "Check all that a pass needs; name each problem with its remedy."),
    "status": ("status_command", "Show the ledger at a glance: states, failures, last passes."),
    "passes": ("passes_command", "List the last passes: trigger, length, counts, exit code."),
    "show": (
        "show_command",
        "Show one run with its tests and history, or a test's results.",
    ),
    "compare": ("compare_command", "Show how each test changed from one run to another."),
    "gate": ("gate_command", "Exit with 1 if a run breaks a limit, or has not finished."),
    "report": ("report_command", "Answer a question about the archive (docs/REPORTS.md)."),
    "retry": ("retry_command", "Make failed runs (the given ones, or all) due again."),
    "drop": ("drop_command", "Take runs out of the archive; lists do not bring them back."),
    "refresh": ("refresh_command", "Recompute the derived tables that commits have marked."),
    "replay": ("rebuild_commands", "Rebuild all derived tables from the payloads, offline."),
    "verify": ("rebuild_commands", "Check tables and history against the payloads, row by row."),
    "export": ("export_command", "Write the archive to files for other programs, without tokens."),
    "bi": ("bi_command", "Write dashboards and queries for a BI tool (docs/BI.md)."),
    "sandbox": ("sandbox_command", "Serve the API on loopback, with made-up runs."),
    "db": ("db_commands", "Create, upgrade or downgrade the tables; give a BI tool access."),
    "alias": ("alias_commands", "Join the history of a renamed test, or separate it again."),
}
"""Module and summary of each command, in the order in which a user needs them."""


class LazyGroup(options.OrderedGroup):
    """Lists the commands of the table, and loads the module of the one that is asked for."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command's name, the command, and its arguments."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name and listed else None, rest


def load_command(name: str) -> click.Command:
    """Return the command of the table called `name`."""
    module, _summary = COMMANDS[name]
    command: click.Command = getattr(import_module(f"etl.cli.{module}"), name)
    return command


@click.group(
    name="result-archiver",
    cls=LazyGroup,
    commands=[click.Command(name, short_help=text) for name, (_, text) in COMMANDS.items()],
    epilog="Try it without a key or a network: result-archiver demo",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@options.config_file
@click.version_option(__version__, message="result-archiver %(version)s", help="Show the version.")
def app() -> None:
    """Keep the results of Applitools Autonomous runs for good, in your own SQL database."""


def main(commands: click.Command = app, wiring: "Wiring | None" = None) -> int:
    """Run the command line; return the process's exit code."""
    try:
        _refuse_undecodable(sys.argv)
        code: int | None = commands(prog_name="result-archiver", standalone_mode=False, obj=wiring)
        sys.stdout.flush()
    except click.ClickException as error:
        return _report_misuse(error)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except SystemExit as end:  # shell completion
        return end.code if isinstance(end.code, int) else 0
    except ArchiverError as error:
        return _report_error(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  a bug must not spill a traceback with secrets in it
        return _report_error(_describe(error), 1)
    else:
        return code or 0


def _refuse_undecodable(arguments: list[str]) -> None:
    """Raise UsageError for an argument that is no text in the locale's encoding."""
    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= each <= "\udfff" for each in argument):
            raise UsageError(
                f"the argument {os.fsencode(argument)!r} is not text in"
                f" {sys.getfilesystemencoding().upper()}, the encoding of this locale",
                "give it in this encoding; rename a file that has such a name",
            )


def _report_misuse(error: click.ClickException) -> int:
    """Print the usage error in one line; print the help if no command is given."""
    text = error.format_message()
    if text.startswith("Usage: "):
        click.echo(text, err=True)
        return error.exit_code
    return _report_error(f"{' '.join(text.split())} (see --help)", error.exit_code)


def _report_error(message: str, exit_code: int) -> int:
    for line in message.splitlines():
        display.note(f"error: {mask(line)}")
    return exit_code


def _describe(error: Exception) -> str:
    """Name the cause: the limit of open files, or the place of a bug of ours.

    Without the values that a traceback may show.
    """
    if is_out_of_files(error):  # not even a module can be loaded
        return str(OutOfFilesError())
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"internal error at {where}: {type(error).__name__}; please report it"
