"""The command line: what can be asked for, with its help. `commands` does the work.

Each command imports its part when it is called, so that `--help` is there at once.
"""

import math
import signal
from pathlib import Path
from typing import Any

import click
from click import argument, option, pass_obj

from etl import __version__
from etl.errors import ArchiverError, UsageError


class Within(click.FloatRange):
    """A number in a range. NaN is in none, though Click lets it pass: it is not below or above any.

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
SHARE = Within(0, 1)
NUMBER = click.IntRange(min=0)

run_ids = argument("run_ids", metavar="[RUN_ID]...", nargs=-1, help="Run IDs.")
run_id = argument("run_id", metavar="[RUN_ID]", required=False, help="A run ID.")
lists = option(
    "--from",
    "lists",
    metavar="FILE",
    multiple=True,
    help="A list of run IDs (- is standard input): plain lines, CSV, JSON, JSON Lines,"
    " or the execute call's answer. May be given more than once.",
)
source = option("--source", metavar="NAME", help="The account the runs belong to: [sources.NAME].")
application = option("--application", metavar="NAME", help="Only runs of this application.")
plan = option("--plan", metavar="NAME", help="Only runs of this plan.")
label = option(
    "--label",
    metavar="NAME=VALUE",
    multiple=True,
    help="Only runs with this label. Can be given repeatedly.",
)
as_of = option(
    "--as-of",
    metavar="TIME",
    help="What the archive knew at this time, or at the end of this day.",
)
as_json = option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
raw = option("--raw", is_flag=True, help="CSV: leave texts alone that a spreadsheet would run.")


def main() -> int:
    """Run the command line; return the process's exit code."""
    try:
        code: int | None = app(standalone_mode=False)
    except click.ClickException as error:
        return _misused(error)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except SystemExit:  # Click's and rich's way to end when stdout is a pipe that was closed
        return 0  # whoever read our output has seen enough
    except ArchiverError as error:
        return _complain(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  a bug must not spill a traceback with secrets in it
        return _complain(_bug(error), 1)
    else:
        return code or 0


def _misused(error: click.ClickException) -> int:
    """Say in one line what is wrong with the command line; without a command, show the help."""
    text = error.format_message()
    if text.startswith("Usage: "):
        click.echo(text, err=True)
        return error.exit_code
    return _complain(f"{' '.join(text.split())} (see --help)", error.exit_code)


def _complain(message: str, exit_code: int) -> int:
    from etl.display import note
    from etl.secrets.masking import mask

    for line in message.splitlines():
        note(f"error: {mask(line)}")
    return exit_code


def _bug(error: Exception) -> str:
    """Say where a bug of ours is, without the values that a traceback may show."""
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"internal error at {where}: {type(error).__name__}; please report it"


class InOrder(click.Group):
    """Lists its commands as they are declared here, in the order in which one needs them."""

    group_class = type  # of those inside, too

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  Click's signature
        """Return the names of the commands."""
        return list(self.commands)


@click.group(
    name="result-archiver",
    cls=InOrder,
    epilog="Try it without a key or a network: result-archiver demo",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
@option(
    "--config",
    type=FILE,
    metavar="FILE",
    help="The settings; default: ./config.toml if it exists.",
)
@click.version_option(__version__, message="result-archiver %(version)s", help="Show the version.")
@click.pass_context
def app(context: click.Context, config: Path | None) -> None:
    """Keep the results of Applitools Autonomous runs for good, in your own SQL database."""
    context.obj = config


@app.command(epilog="Example: result-archiver demo")
@option(
    "--file",
    type=FILE,
    metavar="FILE",
    default="demo.db",
    show_default=True,
    help="The archive to make.",
)
def demo(file: Path) -> int:
    """Show the whole job on made-up runs, without a key or a network."""
    from etl.cli import demo_command as show

    return show.run(file)


@app.command(epilog="Example: result-archiver init")
@pass_obj
def init(config: Path | None) -> int:
    """Write a commented config.toml (or the file given by --config)."""
    from etl.cli import database_commands

    return database_commands.init(config)


@app.command(epilog="Example: result-archiver track --from runs.csv --label branch=main")
@run_ids
@lists
@source
@option(
    "--label",
    metavar="NAME=VALUE",
    multiple=True,
    help="A label for all these runs, such as commit=1f3c.",
)
@as_json
@pass_obj
def track(
    config: Path | None,
    *,
    run_ids: tuple[str, ...],
    lists: tuple[str, ...],
    source: str | None,
    label: tuple[str, ...],
    as_json: bool,
) -> int:
    """Add runs to the ledger; the next ingest fetches them."""
    from etl.cli import pass_commands
    from etl.intake import arguments

    return pass_commands.track(
        config, arguments.Wanted(run_ids, lists, source, label), as_json=as_json
    )


@app.command(epilog="Example: result-archiver ingest --from runs.csv")
@run_ids
@lists
@source
@option("--refresh", is_flag=True, help="Fetch the given runs (or all) even if final.")
@option("--wait", is_flag=True, help="Go on until no run is going any more.")
@option("--dry-run", is_flag=True, help="Only say which runs would be fetched.")
@as_json
@pass_obj
def ingest(
    config: Path | None,
    *,
    run_ids: tuple[str, ...],
    lists: tuple[str, ...],
    source: str | None,
    refresh: bool,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Do one pass: track the given runs, fetch all that is due, store it."""
    from etl.cli import pass_commands
    from etl.intake import arguments

    wanted = arguments.Wanted(run_ids, lists, source, (), refresh)
    if dry_run:
        return pass_commands.preview(config, wanted, as_json=as_json)
    return pass_commands.ingest(config, wanted, wait=wait, as_json=as_json)


@app.command(epilog="Example: result-archiver schedule")
@pass_obj
def schedule(config: Path | None) -> int:
    """Run as a service: do a pass now, and then as [schedule] says, until SIGTERM."""
    from etl.cli import pass_commands

    return pass_commands.schedule(config)


@app.command(epilog="Example: result-archiver doctor")
@as_json
@pass_obj
def doctor(config: Path | None, *, as_json: bool) -> int:
    """Check keys, API and database, and say for each problem what to do."""
    from etl.cli import doctor_command as examination

    return examination.examine(config, as_json=as_json)


@app.command(epilog="Example: result-archiver status")
@as_json
@pass_obj
def status(config: Path | None, *, as_json: bool) -> int:
    """Show the ledger at a glance: what is due, what failed, how the last passes went."""
    from etl.cli import status_commands

    return status_commands.status(config, as_json=as_json)


@app.command(epilog="Example: result-archiver show ac247a18-75d5-4094-8ab3-56788d6d2ff9")
@run_id
@option("--test", metavar="NAME", help="Instead of a run: a test's history.")
@application
@plan
@as_of
@as_json
@pass_obj
def show(
    config: Path | None,
    *,
    run_id: str | None,
    test: str | None,
    application: str | None,
    plan: str | None,
    as_of: str | None,
    as_json: bool,
) -> int:
    """Show one run with its environments, tests and history; or all results of a test."""
    from etl.cli import status_commands, test_history
    from etl.cli.report_command import Options

    if (run_id is None) == (test is None):
        raise UsageError("show: give a run ID, or --test NAME")
    if run_id is None:
        options = Options(application, plan, test, as_of=as_of)
        return test_history.show(config, options, as_json=as_json)
    if application or plan or as_of:
        raise UsageError("show RUN_ID: --application, --plan and --as-of go with --test")
    return status_commands.show(config, run_id, as_json=as_json)


@app.command(epilog="Example: result-archiver compare RUN_A RUN_B --json")
@argument("before", metavar="RUN_A", help="The run before.")
@argument("after", metavar="RUN_B", help="The run after.")
@as_json
@pass_obj
def compare(config: Path | None, *, before: str, after: str, as_json: bool) -> int:
    """Show what became of each test from one run to another."""
    from etl.cli import compare_commands

    return compare_commands.compare_runs(config, (before, after), as_json=as_json)


@app.command(
    epilog="Example: result-archiver gate --application Storefront --plan Nightly"
    " --min-pass-rate 0.95 --max-new-failures 0"
)
@run_id
@application
@plan
@label
@option("--min-pass-rate", type=SHARE, metavar="SHARE", help="passed / (passed + failed).")
@option(
    "--min-decided-share",
    type=SHARE,
    metavar="SHARE",
    help="Tests that passed or failed, of all.",
)
@option("--max-failed", type=NUMBER, metavar="N", help="Failed tests.")
@option(
    "--max-new-failures",
    type=NUMBER,
    metavar="N",
    help="Failed tests that passed the time before, or are new.",
)
@option("--max-unresolved", type=NUMBER, metavar="N", help="Tests that wait for a person.")
@option("--max-aborted", type=NUMBER, metavar="N", help="Tests that were broken off.")
@as_json
@pass_obj
def gate(
    config: Path | None,
    *,
    run_id: str | None,
    application: str | None,
    plan: str | None,
    label: tuple[str, ...],
    min_pass_rate: float | None,
    min_decided_share: float | None,
    max_failed: int | None,
    max_new_failures: int | None,
    max_unresolved: int | None,
    max_aborted: int | None,
    as_json: bool,
) -> int:
    """Fail (exit code 1) when a run, or the newest of a plan, is not good enough or not over."""
    from etl.cli import compare_commands
    from etl.cli.report_command import Options
    from etl.reports.gate import Limits

    limits = Limits(
        min_pass_rate,
        min_decided_share,
        max_failed,
        max_new_failures,
        max_unresolved,
        max_aborted,
    )
    options = Options(application, plan, labels=label)
    return compare_commands.gate(config, run_id, options, limits, as_json=as_json)


@app.command(epilog="Example: result-archiver report flaky --application Storefront --rows 5")
@argument("name", metavar="[NAME]", required=False, help="A report; without one, all are listed.")
@application
@plan
@option("--test", metavar="NAME", help="Only tests of this name.")
@label
@option(
    "--from",
    "since",
    metavar="TIME",
    help="Only runs that started then or later: a day or an ISO 8601 time, in"
    " reporting.time_zone unless it says otherwise.",
)
@option("--to", "until", metavar="TIME", help="Only runs before that; a day is included.")
@as_of
@option(
    "--rows",
    type=NUMBER,
    metavar="N",
    help="At most so many rows, 0 is all. Default: 20 for people, all for programs.",
)
@option(
    "--format",
    "form",
    metavar="FORM",
    default="table",
    show_default=True,
    help="table, csv, json, markdown or html.",
)
@raw
@option(
    "--output",
    type=FILE,
    metavar="FILE",
    help="Write the answer to a file, whole or not at all.",
)
@as_json
@pass_obj
def report(
    config: Path | None,
    *,
    name: str | None,
    application: str | None,
    plan: str | None,
    test: str | None,
    label: tuple[str, ...],
    since: str | None,
    until: str | None,
    as_of: str | None,
    rows: int | None,
    form: str,
    raw: bool,
    output: Path | None,
    as_json: bool,
) -> int:
    """Answer a question about the archive, now or as of any moment (docs/REPORTS.md).

    --format html makes one page of it to send around; without a NAME, of the whole archive.
    """
    from etl.cli import report_command

    options = report_command.Options(application, plan, test, label, since, until, as_of, rows)
    wanted = report_command.as_form("json" if as_json else form)
    with report_command.written_to(output):
        if wanted is report_command.Form.HTML:
            return report_command.page(config, name, options)
        if name is None:
            return report_command.names()
        return report_command.report(config, name, options, wanted, raw=raw)


@app.command(epilog="Example: result-archiver retry")
@run_ids
@as_json
@pass_obj
def retry(config: Path | None, *, run_ids: tuple[str, ...], as_json: bool) -> int:
    """Make failed runs (the given ones, or all) due again."""
    from etl.cli import pass_commands

    return pass_commands.retry(config, run_ids, as_json=as_json)


@app.command(epilog="Example: result-archiver replay --dry-run")
@option("--dry-run", is_flag=True, help="Only say which rows would change, and why.")
@as_json
@pass_obj
def replay(config: Path | None, *, dry_run: bool, as_json: bool) -> int:
    """Rebuild all derived tables from the payloads; needs no key and no network."""
    from etl.cli import rebuild_commands

    if dry_run:
        return rebuild_commands.preview(config, as_json=as_json)
    return rebuild_commands.replay(config, as_json=as_json)


@app.command(epilog="Example: result-archiver verify")
@as_json
@pass_obj
def verify(config: Path | None, *, as_json: bool) -> int:
    """Prove that tables, history and payloads agree, or name each row that does not."""
    from etl.cli import rebuild_commands

    return rebuild_commands.verify(config, as_json=as_json)


@app.command(epilog="Example: result-archiver export --csv results")
@option("--sqlite", type=FILE, metavar="FILE", help="A copy of an archive in SQLite.")
@option("--csv", type=FILE, metavar="FOLDER", help="A CSV file for each view and table.")
@option("--jsonl", type=FILE, metavar="FOLDER", help="The same in JSON Lines.")
@raw
@as_json
@pass_obj
def export(
    config: Path | None,
    *,
    sqlite: Path | None,
    csv: Path | None,
    jsonl: Path | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Write the archive to files for other programs, all at once; without tokens."""
    from etl.cli import export_command as exporting

    wanted = {"sqlite": sqlite, "csv": csv, "jsonl": jsonl}
    return exporting.to(config, wanted, raw=raw, as_json=as_json)


@app.command(epilog="Example: result-archiver sandbox --port 8642 --speed 60")
@option(
    "--port",
    type=int,
    metavar="PORT",
    default=8642,
    show_default=True,
    help="The port on loopback; 0 is any free one.",
)
@option(
    "--seed",
    type=int,
    metavar="N",
    default=1,
    show_default=True,
    help="Which made-up world to serve.",
)
@option(
    "--runs",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=300,
    show_default=True,
    help="How many runs it has.",
)
@option("--now", metavar="TIME", help="ISO 8601: what its clock shows at the start.")
@option(
    "--speed",
    type=Within(min=0),
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    help="Seconds that pass in it for each real one.",
)
@option(
    "--latency-ms",
    type=Within(min=0),
    metavar="MS",
    default=0.0,
    show_default=True,
    help="Delay of each answer.",
)
@option(
    "--list",
    "run_list",
    metavar="FORMAT",
    help="Only print its run IDs: txt, csv, json or jsonl.",
)
def sandbox(
    *,
    port: int,
    seed: int,
    runs: int,
    now: str | None,
    speed: float,
    latency_ms: float,
    run_list: str | None,
) -> int:
    """Serve the API on loopback, with made-up runs that progress, fail and are resolved."""
    from etl.cli import sandbox_command

    world = sandbox_command.World(seed, runs, now)
    if run_list:
        return sandbox_command.print_list(world, run_list)
    return sandbox_command.serve(world, sandbox_command.Serving(port, speed, latency_ms))


@app.group(epilog="Example: result-archiver db upgrade")
def db() -> None:
    """Create, update or take back the tables; let a BI tool read the views."""


@db.command("upgrade", epilog="Example: result-archiver db upgrade")
@pass_obj
def db_upgrade(config: Path | None) -> int:
    """Bring the tables to what this version needs; creates them in a new database."""
    from etl.cli import database_commands

    return database_commands.upgrade(config)


@db.command(
    "downgrade",
    epilog="Example: result-archiver db downgrade 0001",
    context_settings={"ignore_unknown_options": True},  # such as -1
)
@argument("revision", metavar="REVISION", help="A revision such as 0001, or -1, or base.")
@pass_obj
def db_downgrade(config: Path | None, *, revision: str) -> int:
    """Take the tables back to an older revision."""
    from etl.cli import database_commands

    return database_commands.downgrade(config, revision)


@db.command("current", epilog="Example: result-archiver db current --json")
@as_json
@pass_obj
def db_current(config: Path | None, *, as_json: bool) -> int:
    """Say which revision the tables are at, and which one this version needs."""
    from etl.cli import database_commands

    return database_commands.current(config, as_json=as_json)


@db.command("grant-reader", epilog="Example: result-archiver db grant-reader bi")
@argument("role", metavar="ROLE", help="A role of PostgreSQL.")
@pass_obj
def db_grant_reader(config: Path | None, *, role: str) -> int:
    """Let a role read the views for BI, those of later versions too, and nothing else."""
    from etl.cli import database_commands

    return database_commands.grant_reader(config, role)


@app.group(
    epilog='Example: result-archiver alias add "Pays" "Pays by card" --application Shop',
)
def alias() -> None:
    """Join the history of a renamed test, and take that back."""


old_name = argument("old", metavar="OLD", help="What the test was called before.")
of_application = option(
    "--application", metavar="NAME", required=True, help="The application of the test."
)
of_plan = option(
    "--plan", metavar="NAME", default="", help="The plan; default: every plan of the application."
)


@alias.command(
    "add", epilog='Example: result-archiver alias add "Pays" "Pays by card" --application Shop'
)
@old_name
@argument("new", metavar="NEW", help="What it is called now.")
@of_application
@of_plan
@pass_obj
def alias_add(config: Path | None, *, old: str, new: str, application: str, plan: str) -> int:
    """Count the results of a test under its old name as those of the new one."""
    from etl.cli import alias_commands as aliases
    from etl.derived.naming import Renaming

    return aliases.add(config, Renaming(application, plan, old, new))


@alias.command("remove", epilog='Example: result-archiver alias remove "Pays" --application Shop')
@old_name
@of_application
@of_plan
@pass_obj
def alias_remove(config: Path | None, *, old: str, application: str, plan: str) -> int:
    """Count the old name by itself again."""
    from etl.cli import alias_commands as aliases
    from etl.derived.naming import Renaming

    return aliases.remove(config, Renaming(application, plan, old, ""))


@alias.command("list", epilog="Example: result-archiver alias list --json")
@as_json
@pass_obj
def alias_list(config: Path | None, *, as_json: bool) -> int:
    """List the aliases that stand."""
    from etl.cli import alias_commands as aliases

    return aliases.show(config, as_json=as_json)
