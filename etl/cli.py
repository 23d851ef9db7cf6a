"""The command line: what can be asked for, with its help. `commands` does the work.

Each command imports its part when it is called, so that `--help` is there at once.
"""

import signal
from pathlib import Path
from typing import Annotated

import typer

from etl import __version__
from etl.errors import ArchiverError, UsageError

app = typer.Typer(
    name="result-archiver",
    help="Keep the results of Applitools Autonomous runs for good, in your own SQL database.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)
db = typer.Typer(
    help="Create, update or take back the tables; let a BI tool read the views.",
    epilog="Example: result-archiver db upgrade",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(db, name="db")
aliases = typer.Typer(
    help="Join the history of a renamed test, and take that back.",
    epilog='Example: result-archiver alias add "Pays" "Pays by card" --application Shop',
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(aliases, name="alias")

RunIds = Annotated[list[str] | None, typer.Argument(metavar="[RUN_ID]...", help="Run IDs.")]
Lists = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="A list of run IDs (- is standard input): plain lines, CSV, JSON, JSON Lines,"
        " or the execute call's answer. May be given more than once.",
    ),
]
SourceName = Annotated[
    str | None, typer.Option(metavar="NAME", help="The account the runs belong to: [sources.NAME].")
]
Application = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only runs of this application.")
]
PlanName = Annotated[
    str | None, typer.Option("--plan", metavar="NAME", help="Only runs of this plan.")
]
TestName = Annotated[
    str | None, typer.Option("--test", metavar="NAME", help="Only tests of this name.")
]
LabelFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", help="Only runs with this label. Can be given repeatedly."
    ),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="What the archive knew at this time, or at the end of this day."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


def main() -> int:
    """Run the command line; return the process's exit code."""
    try:
        code: int | None = app(standalone_mode=False)
    except typer.TyperException as error:
        return _misused(error)
    except (typer.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except SystemExit:  # Typer's and rich's way to end when stdout is a pipe that was closed
        return 0  # whoever read our output has seen enough
    except ArchiverError as error:
        return _complain(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  a bug must not spill a traceback with secrets in it
        return _complain(_bug(error), 1)
    else:
        return code or 0


def _misused(error: typer.TyperException) -> int:
    """Say in one line what is wrong with the command line; without a command, show the help."""
    text = error.format_message()
    if text.startswith("Usage: "):
        typer.echo(text, err=True)
        return error.exit_code
    return _complain(f"{' '.join(text.split())} (see --help)", error.exit_code)


def _complain(message: str, exit_code: int) -> int:
    from etl.display import note
    from etl.secrets import mask

    for line in message.splitlines():
        note(f"error: {mask(line)}")
    return exit_code


def _bug(error: Exception) -> str:
    """Say where a bug of ours is, without the values that a traceback may show."""
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"internal error at {where}: {type(error).__name__}; please report it"


def _show_version(wanted: bool) -> None:  # noqa: FBT001  Typer calls it so
    if wanted:
        typer.echo(f"result-archiver {__version__}")
        raise typer.Exit


@app.callback(epilog="Try it without a key or a network: result-archiver demo")
def options(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The settings; default: ./config.toml if it exists."),
    ] = None,
    version: Annotated[  # noqa: ARG001  Typer handles it in the callback
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Keep the results of Applitools Autonomous runs for good, in your own SQL database."""
    context.obj = config


@app.command(epilog="Example: result-archiver demo")
def demo(
    file: Annotated[Path, typer.Option(metavar="FILE", help="The archive to make.")] = Path(
        "demo.db"
    ),
) -> int:
    """Show the whole job on made-up runs, without a key or a network."""
    from etl import demo as show

    return show.run(file)


@app.command(epilog="Example: result-archiver init")
def init(context: typer.Context) -> int:
    """Write a commented config.toml (or the file given by --config)."""
    from etl.commands import setup

    return setup.init(context.obj)


@db.command("upgrade", epilog="Example: result-archiver db upgrade")
def db_upgrade(context: typer.Context) -> int:
    """Bring the tables to what this version needs; creates them in a new database."""
    from etl.commands import setup

    return setup.upgrade(context.obj)


@db.command(
    "downgrade",
    epilog="Example: result-archiver db downgrade 0001",
    context_settings={"ignore_unknown_options": True},
)
def db_downgrade(
    context: typer.Context,
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="A revision such as 0001, or -1, or base.")
    ],
) -> int:
    """Take the tables back to an older revision."""
    from etl.commands import setup

    return setup.downgrade(context.obj, revision)


@db.command("current", epilog="Example: result-archiver db current --json")
def db_current(context: typer.Context, as_json: AsJson = False) -> int:
    """Say which revision the tables are at, and which one this version needs."""
    from etl.commands import setup

    return setup.current(context.obj, as_json=as_json)


@db.command("grant-reader", epilog="Example: result-archiver db grant-reader bi")
def db_grant_reader(
    context: typer.Context,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="A role of PostgreSQL.")],
) -> int:
    """Let a role read the views for BI, those of later versions too, and nothing else."""
    from etl.commands import setup

    return setup.grant_reader(context.obj, role)


@app.command(epilog="Example: result-archiver track --from runs.csv --label branch=main")
def track(
    context: typer.Context,
    run_ids: RunIds = None,
    lists: Lists = None,
    source: SourceName = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A label for all these runs, such as commit=1f3c."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Add runs to the ledger; the next ingest fetches them."""
    from etl.commands import archive, intake

    wanted = intake.Wanted(run_ids or [], lists or [], source, label or [])
    return archive.track(context.obj, wanted, as_json=as_json)


@app.command(epilog="Example: result-archiver ingest --from runs.csv")
def ingest(
    context: typer.Context,
    run_ids: RunIds = None,
    lists: Lists = None,
    source: SourceName = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Fetch the given runs (or all) even if final.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Go on until no run is going any more.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which runs would be fetched.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Do one pass: track the given runs, fetch all that is due, store it."""
    from etl.commands import archive, intake

    wanted = intake.Wanted(run_ids or [], lists or [], source, [])
    if dry_run:
        return archive.preview(context.obj, wanted, refresh=refresh, as_json=as_json)
    return archive.ingest(context.obj, wanted, refresh=refresh, wait=wait, as_json=as_json)


@app.command(epilog="Example: result-archiver schedule")
def schedule(context: typer.Context) -> int:
    """Run as a service: do a pass now, and then as [schedule] says, until SIGTERM."""
    from etl.commands import archive

    return archive.schedule(context.obj)


@app.command(epilog="Example: result-archiver doctor")
def doctor(context: typer.Context, as_json: AsJson = False) -> int:
    """Check keys, API and database, and say for each problem what to do."""
    from etl.commands import doctor as examination

    return examination.examine(context.obj, as_json=as_json)


@app.command(epilog="Example: result-archiver status")
def status(context: typer.Context, as_json: AsJson = False) -> int:
    """Show the ledger at a glance: what is due, what failed, how the last passes went."""
    from etl.commands import inspection

    return inspection.status(context.obj, as_json=as_json)


@app.command(epilog="Example: result-archiver show ac247a18-75d5-4094-8ab3-56788d6d2ff9")
def show(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN_ID]", help="A run ID.")] = None,
    test: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of a run: a test's history.")
    ] = None,
    application: Application = None,
    plan: PlanName = None,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> int:
    """Show one run with its environments, tests and history; or all results of a test."""
    from etl.commands import histories, inspection
    from etl.commands.reports import Options

    if (run_id is None) == (test is None):
        raise UsageError("show: give a run ID, or --test NAME")
    if run_id is None:
        options = Options(application, plan, test, as_of=as_of)
        return histories.show(context.obj, options, as_json=as_json)
    if application or plan or as_of:
        raise UsageError("show RUN_ID: --application, --plan and --as-of go with --test")
    return inspection.show(context.obj, run_id, as_json=as_json)


@app.command(epilog="Example: result-archiver compare RUN_A RUN_B --json")
def compare(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="RUN_A", help="The run before.")],
    after: Annotated[str, typer.Argument(metavar="RUN_B", help="The run after.")],
    as_json: AsJson = False,
) -> int:
    """Show what became of each test from one run to another."""
    from etl.commands import comparison

    return comparison.compare_runs(context.obj, (before, after), as_json=as_json)


@app.command(
    epilog="Example: result-archiver gate --application Storefront --plan Nightly"
    " --min-pass-rate 0.95 --max-new-failures 0"
)
def gate(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN_ID]", help="A run ID.")] = None,
    application: Application = None,
    plan: PlanName = None,
    label: LabelFilter = None,
    min_pass_rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="SHARE", help="passed / (passed + failed)."),
    ] = None,
    min_decided_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="SHARE", help="Tests that passed or failed, of all."),
    ] = None,
    max_failed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Failed tests.")
    ] = None,
    max_new_failures: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Failed tests that passed the time before, or are new."
        ),
    ] = None,
    max_unresolved: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Tests that wait for a person.")
    ] = None,
    max_aborted: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Tests that were broken off.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Fail (exit code 1) when a run, or the newest of a plan, is not good enough or not over."""
    from etl.commands import comparison
    from etl.commands.reports import Options
    from etl.reports.gate import Limits

    limits = Limits(
        min_pass_rate,
        min_decided_share,
        max_failed,
        max_new_failures,
        max_unresolved,
        max_aborted,
    )
    options = Options(application, plan, labels=label or [])
    return comparison.gate(context.obj, run_id, options, limits, as_json=as_json)


@app.command(epilog="Example: result-archiver report flaky --application Storefront --rows 5")
def report(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A report; without one, all are listed.")
    ] = None,
    application: Application = None,
    plan: PlanName = None,
    test: TestName = None,
    label: LabelFilter = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TIME",
            help="Only runs that started then or later: a day or an ISO 8601 time, in"
            " reporting.time_zone unless it says otherwise.",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME", help="Only runs before that; a day is included."),
    ] = None,
    as_of: AsOf = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=0, help="At most so many rows, 0 is all. Default: 20 for people, all for programs."
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORM", help="table, csv, json, markdown or html.")
    ] = "table",
    raw: Annotated[
        bool, typer.Option("--raw", help="CSV: leave texts alone that a spreadsheet would run.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the answer to a file, whole or not at all."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Answer a question about the archive, now or as of any moment (docs/REPORTS.md).

    --format html makes one page of it to send around; without a NAME, of the whole archive.
    """
    from etl.commands import reports

    options = reports.Options(application, plan, test, label or [], since, until, as_of, rows)
    wanted = reports.as_form("json" if as_json else form)
    with reports.written_to(output):
        if wanted is reports.Form.HTML:
            return reports.page(context.obj, name, options)
        if name is None:
            return reports.names()
        return reports.report(context.obj, name, options, wanted, raw=raw)


@app.command(epilog="Example: result-archiver retry")
def retry(context: typer.Context, run_ids: RunIds = None, as_json: AsJson = False) -> int:
    """Make failed runs (the given ones, or all) due again."""
    from etl.commands import archive

    return archive.retry(context.obj, run_ids or [], as_json=as_json)


OldName = Annotated[str, typer.Argument(metavar="OLD", help="What the test was called before.")]
OfApplication = Annotated[str, typer.Option(metavar="NAME", help="The application of the test.")]
OfPlan = Annotated[
    str, typer.Option(metavar="NAME", help="The plan; default: every plan of the application.")
]


@aliases.command(
    "add", epilog='Example: result-archiver alias add "Pays" "Pays by card" --application Shop'
)
def alias_add(
    context: typer.Context,
    old: OldName,
    new: Annotated[str, typer.Argument(metavar="NEW", help="What it is called now.")],
    application: OfApplication,
    plan: OfPlan = "",
) -> int:
    """Count the results of a test under its old name as those of the new one."""
    from etl.commands import alias
    from etl.naming import Renaming

    return alias.add(context.obj, Renaming(application, plan, old, new))


@aliases.command("remove", epilog='Example: result-archiver alias remove "Pays" --application Shop')
def alias_remove(
    context: typer.Context, old: OldName, application: OfApplication, plan: OfPlan = ""
) -> int:
    """Count the old name by itself again."""
    from etl.commands import alias
    from etl.naming import Renaming

    return alias.remove(context.obj, Renaming(application, plan, old, ""))


@aliases.command("list", epilog="Example: result-archiver alias list --json")
def alias_list(context: typer.Context, as_json: AsJson = False) -> int:
    """List the aliases that stand."""
    from etl.commands import alias

    return alias.show(context.obj, as_json=as_json)


@app.command(epilog="Example: result-archiver replay --dry-run")
def replay(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which rows would change, and why.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Rebuild all derived tables from the payloads; needs no key and no network."""
    from etl.commands import truth

    if dry_run:
        return truth.preview(context.obj, as_json=as_json)
    return truth.replay(context.obj, as_json=as_json)


@app.command(epilog="Example: result-archiver verify")
def verify(context: typer.Context, as_json: AsJson = False) -> int:
    """Prove that tables, history and payloads agree, or name each row that does not."""
    from etl.commands import truth

    return truth.verify(context.obj, as_json=as_json)


@app.command(epilog="Example: result-archiver export --csv results")
def export(
    context: typer.Context,
    sqlite: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A copy of an archive in SQLite.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A CSV file for each view and table.")
    ] = None,
    jsonl: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The same in JSON Lines.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="CSV: leave texts alone that a spreadsheet would run.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Write the archive to files for other programs, all at once; without tokens."""
    from etl.commands import export as exporting

    wanted = {"sqlite": sqlite, "csv": csv, "jsonl": jsonl}
    return exporting.to(context.obj, wanted, raw=raw, as_json=as_json)


@app.command(epilog="Example: result-archiver sandbox --port 8642 --speed 60")
def sandbox(
    port: Annotated[int, typer.Option(help="The port on loopback; 0 is any free one.")] = 8642,
    seed: Annotated[int, typer.Option(help="Which made-up world to serve.")] = 1,
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many runs it has.")] = 300,
    now: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="ISO 8601: what its clock shows at the start."),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0, help="Seconds that pass in it for each real one.")
    ] = 1.0,
    latency_ms: Annotated[float, typer.Option(min=0, help="Delay of each answer.")] = 0.0,
    run_list: Annotated[
        str | None,
        typer.Option(
            "--list", metavar="FORMAT", help="Only print its run IDs: txt, csv, json or jsonl."
        ),
    ] = None,
) -> int:
    """Serve the API on loopback, with made-up runs that progress, fail and are resolved."""
    from etl.commands import playground

    world = playground.World(seed, runs, now)
    if run_list:
        return playground.print_list(world, run_list)
    return playground.serve(world, playground.Serving(port, speed, latency_ms))
