"""Options and arguments that several commands share, and the settings that `--config` names.

Like the commands' modules it loads in a moment: `--help` and completion wait for both.
"""

import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click
from click import argument, option

if TYPE_CHECKING:
    from etl.cli.session import Session

P = ParamSpec("P")

CONFIG_FILE = "etl.config_file"
LOG_LEVEL = "etl.log_level"
"""The keys of the path and the level in the context that all commands share."""


class NumberRange(click.FloatRange):
    """A number in a range. Click takes NaN for one: it is neither below nor above any limit.

    A gate with NaN as its limit would never fail.
    """

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number that the text `value` says."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


FILE = click.Path(path_type=Path)
SHARE = NumberRange(0, 1)
NUMBER = click.IntRange(min=0)

run_ids = argument("run_ids", metavar="[RUN_ID]...", nargs=-1, help="Run IDs.")
run_id = argument("run_id", metavar="[RUN_ID]", required=False, help="A run ID.")
lists = option(
    "--from",
    "lists",
    metavar="FILE",
    multiple=True,
    help="A list of run IDs (- is standard input): plain lines, CSV, JSON, JSON Lines,"
    " or the execute call's answer. Can be given repeatedly.",
)
source = option("--source", metavar="NAME", help="The account of the runs: [sources.NAME].")
of_source = option("--source", metavar="NAME", help="Only runs of this account.")
application = option("--application", metavar="NAME", help="Only runs of this application.")
plan = option("--plan", metavar="NAME", help="Only runs of this plan.")
labels = option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    help="Only runs with this label. Can be given repeatedly.",
)
as_of = option(
    "--as-of", metavar="TIME", help="The archive as it was at this time, or at this day's end."
)
workers = option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 64),
    help="Do the work by N processes of this machine.",
)
as_json = option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
raw = option(
    "--raw",
    is_flag=True,
    help="CSV: do not escape cells that a spreadsheet would evaluate as formulas.",
)


class OrderedGroup(click.Group):
    """Lists its commands in the order in which they are declared."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  Click's signature
        """Return the names of the commands."""
        return list(self.commands)


def _remember_config_file(
    context: click.Context, _parameter: click.Parameter, path: Path | None
) -> None:
    """Keep the path for the command, which may stand before or after the option."""
    if path is not None:
        context.meta[CONFIG_FILE] = path


config_file = option(
    "--config",
    type=FILE,
    metavar="FILE",
    expose_value=False,
    callback=_remember_config_file,
    help="The settings; default: ./config.toml if it exists.",
)


def _remember_log_level(
    context: click.Context, _parameter: click.Parameter, level: str | None
) -> None:
    """Keep the level for the logs, which are set up before the command begins."""
    if level is not None:
        context.meta[LOG_LEVEL] = level


quiet = option(
    "--quiet",
    "-q",
    flag_value="warning",
    expose_value=False,
    callback=_remember_log_level,
    help="Print only warnings and errors; overrides log.level.",
)
verbose = option(
    "--verbose",
    "-v",
    flag_value="debug",
    expose_value=False,
    callback=_remember_log_level,
    help="Print debug messages as well; overrides log.level.",
)


def pass_config_file(command: Callable[Concatenate[Path | None, P], int]) -> Callable[P, int]:
    """Add `--config`, and pass the path to the command; None stands for the default."""

    @config_file
    @wraps(command)
    def with_config_file(*arguments: P.args, **options: P.kwargs) -> int:
        path: Path | None = click.get_current_context().meta.get(CONFIG_FILE)
        return command(path, *arguments, **options)

    return with_config_file


def pass_session(command: Callable[Concatenate["Session", P], int]) -> Callable[P, int]:
    """Add `--config`, set up the logs, and pass settings and time to the command."""

    @pass_config_file
    @wraps(command)
    def with_session(path: Path | None, /, *arguments: P.args, **options: P.kwargs) -> int:
        from etl.cli.session import begin
        from etl.runtime import relax_garbage_collection

        relax_garbage_collection()
        context = click.get_current_context()
        session = begin(path, context.meta.get(LOG_LEVEL), context.find_root().obj)
        return command(session, *arguments, **options)

    return with_session
