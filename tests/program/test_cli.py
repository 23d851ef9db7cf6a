"""Each command as users meet it: what it prints, where, and the exit code it ends with."""

import errno
import json
import re
import signal
import socket
import subprocess
import sys
import unicodedata
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import click
import pytest

from etl.cli import command_line
from etl.db import database
from etl.sandbox.api import READ_KEY
from tests.support import fake_api
from tests.support.dump import Row, dump
from tests.support.fake_api import Answer, FakeApi, result
from tests.support.postgres import free_port
from tests.support.program import Program, bare_program, program


def _leaves(name: str) -> list[str]:
    command = command_line.load_command(name)
    if isinstance(command, click.Group):
        return [f"{name} {each}" for each in command.commands]
    return [name]


COMMANDS = [leaf for name in command_line.COMMANDS for leaf in _leaves(name)]
HEAVY = (
    "alembic", "apscheduler", "msgspec", "psycopg", "pydantic", "requests", "rich", "sqlalchemy"
)  # fmt: skip


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """An API that knows r-1 and r-2, and nothing else."""
    with fake_api.serving() as api:
        api.answers = {"r-1": [result()], "r-2": [result()]}
        yield api


@pytest.fixture
def archiver(tmp_path: Path, sqlite_url: str, api: FakeApi) -> Program:
    return program(tmp_path, sqlite_url, api.url)


@pytest.fixture
def bare(tmp_path: Path) -> Program:
    return bare_program(tmp_path)


def everything(database_url: str) -> dict[str, list[Row]]:
    """Return all rows of all tables."""
    engine = database.connect(database_url)
    with database.reading(engine) as connection:
        found = dump(connection)
    engine.dispose()
    return found


def modules_of(program: Program, *arguments: str, of: str = "etl") -> set[str]:
    """Return the modules that a command loads."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", of, *arguments],
        stdin=subprocess.DEVNULL,
        cwd=program.folder,
        env=program.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


# --- help ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_fits_80_columns(bare: Program, command: str) -> None:
    done = bare.call(*command.split(), "--help")
    assert (done.exit_code, done.stderr) == (0, "")
    assert f"Example: result-archiver {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_names_every_command(bare: Program) -> None:
    words = bare.call("--help").stdout.split()
    assert {command.split()[0] for command in COMMANDS} <= set(words)


@pytest.mark.parametrize("command", ["", *COMMANDS, "db", "alias"])
def test_no_summary_is_cut_off_or_folded(bare: Program, command: str) -> None:
    done = bare.call(*command.split(), "--help")
    assert "..." not in done.stdout.partition("\n")[2].replace("[RUN_ID]...", "")
    _, _, listed = done.stdout.partition("Commands:\n")
    names = {line.split()[0] for line in listed.partition("\n\n")[0].splitlines()}
    assert names <= {word for name in COMMANDS for word in name.split()}


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_the_table_has_the_summary_of_each_command(name: str) -> None:
    text = command_line.load_command(name).help or ""
    assert command_line.COMMANDS[name][1] == text.partition("\n")[0]


def test_completion_knows_commands_and_options(bare: Program) -> None:
    def complete(words: str) -> set[str]:
        shell = bare.given(
            _RESULT_ARCHIVER_COMPLETE="bash_complete",
            COMP_WORDS=words,
            COMP_CWORD=str(words.count(" ")),
        )
        done = shell.call()
        assert (done.exit_code, done.stderr) == (0, "")
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert complete("result-archiver sta") == {"status"}
    assert complete("result-archiver db up") == {"upgrade"}
    assert complete("result-archiver status --co") == {"--config"}
    assert complete("result-archiver ingest --re") == {"--refresh"}


# --- the settings file, named before or after the command ---


@pytest.mark.parametrize(
    "command",
    [
        "--config mine.toml db current --json",
        "db current --config mine.toml --json",
        "db current --json --config mine.toml",
        "--config other.toml db current --config mine.toml --json",
    ],
)
def test_the_settings_can_be_named_before_and_after_the_command(
    bare: Program, command: str
) -> None:
    bare.write("mine.toml", '[database]\nurl = "sqlite:///mine.db"')
    assert bare.call("--config", "mine.toml", "db", "upgrade").exit_code == 0
    assert bare.call(*command.split()).json()["current"] == database.HEAD
    assert bare.call("db", "current", "--json").json()["current"] is None


@pytest.mark.parametrize("command", [each for each in COMMANDS if each not in {"demo", "sandbox"}])
def test_each_command_with_settings_takes_them(bare: Program, command: str) -> None:
    given = {
        "show": ["r-1"],
        "compare": ["r-1", "r-2"],
        "gate": ["r-1", "--max-failed", "0"],
        "work": ["--pass", "1"],
    }
    given |= {"db downgrade": ["base"], "db grant-reader": ["bi"]}
    given |= {"alias add": ["a", "b", "--application", "c"]}
    given |= {"alias remove": ["a", "--application", "c"]}
    arguments = [*command.split(), *given.get(command, []), "--config", "no/settings.toml"]
    done = bare.call(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: no/settings.toml: ")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_that_takes_time(bare: Program, command: str) -> None:
    loaded = modules_of(bare, *command.split(), "--help")
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_pass_loads_neither_another_database_nor_pydantic(archiver: Program) -> None:
    archiver.call("ingest", "r-1")  # whose migrations may load what they like
    loaded = modules_of(archiver, "ingest", "r-2")
    assert "sqlalchemy.dialects.sqlite" in loaded
    assert loaded.isdisjoint({"sqlalchemy.dialects.postgresql", "psycopg", "alembic", "pydantic"})


def test_of_the_two_processes_of_a_pass_one_has_the_database_and_the_other_the_network(
    archiver: Program,
) -> None:
    storing = modules_of(archiver, "ingest")
    assert "sqlalchemy" in storing
    assert storing.isdisjoint({"requests", "urllib3"})
    fetching = modules_of(archiver, "0", of="etl.fetch.child_main")
    assert "requests" in fetching
    assert fetching.isdisjoint({"sqlalchemy", "structlog", "click", "asyncio"})


def test_version_is_one_line_for_programs(bare: Program) -> None:
    assert re.fullmatch(r"result-archiver \d+\.\d+\.\d+\S*\n", bare.call("--version").stdout)


@pytest.mark.parametrize("arguments", [[], ["db"]])
def test_without_a_command_the_help_is_on_stderr(bare: Program, arguments: list[str]) -> None:
    done = bare.call(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")


# --- bad usage: exit code 2, one line on stderr, nothing done ---


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("statsu", "No such command 'statsu'. Did you mean 'status'? (see --help)"),
        ("track --form x", "No such option '--form'. Did you mean '--from'? (see --help)"),
        ("show", "show: give a run ID, or --test NAME"),
        (
            "sandbox --port x",
            "Invalid value for '--port': 'x' is not a valid integer. (see --help)",
        ),
        *(
            (
                f"{command} {option} nan",
                f"Invalid value for '{option}': 'nan' is not a number. (see --help)",
            )
            for command, option in [
                ("gate r-1", "--min-pass-rate"),
                ("gate r-1", "--min-decided-share"),
                ("sandbox", "--speed"),
                ("sandbox", "--latency-ms"),
            ]
        ),
        ("track", "no runs were given; name run IDs, or a list with --from FILE"),
        ("track --from no.txt", "no.txt: cannot be read: No such file or directory"),
        ("track --from .", ".: cannot be read: Is a directory"),
        ("track --source b r-1", "--source: source b is not configured; there are default"),
        ("track --label main r-1", "--label 'main': give NAME=VALUE, such as branch=main"),
        ("track ..", "run ID '..': a run ID cannot be . or .."),
        (
            "track r\x1b[1m",
            r"run ID 'r\x1b[1m': the run ID has a control character or half a character in it",
        ),
        ("sandbox --list xml", "--list xml: give one of txt, csv, json, jsonl"),
        ("sandbox --now noon", "--now noon: give ISO 8601, such as 2026-01-31T12:00Z"),
        ("sandbox --speed 2e6", "--speed 2000000.0 is not from 0 to 1000000"),
        (
            "sandbox --port 65536",
            (
                "port 65536 on 127.0.0.1 cannot be used (there is no such port);"
                " give another, or 0 for any free one"
            ),
        ),
        (
            "--config no.toml status",
            "no.toml: there is no such file; `result-archiver init` writes one",
        ),
        ("db downgrade", "Missing argument 'REVISION'. (see --help)"),
    ],
)
def test_bad_usage_is_one_line(bare: Program, command: str, message: str) -> None:
    assert bare.call(*command.split(" ")) == (2, "", f"error: {message}\n")
    assert [path.name for path in bare.folder.iterdir()] == ["home"]


@pytest.mark.parametrize("command", ["ingest r-1", "ingest"])
def test_without_a_key_nothing_is_begun(bare: Program, command: str) -> None:
    assert bare.call(*command.split()) == (
        2, "", "error: no API key: set APPLITOOLS_API_KEY, or api.key_file in config.toml\n"
    )  # fmt: skip
    assert not (bare.folder / "results.db").exists()


def test_show_wants_a_run_that_is_tracked(archiver: Program) -> None:
    archiver.call("track", "r-1")
    assert archiver.call("show", "r-3", "--json") == (
        2, "", "error: run r-3: is not tracked; `result-archiver track` adds it\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "[api]\nattempts = 0",
            "config.toml: api.attempts is '0'; give a whole number, 1 or more, 10 at most",
        ),
        ("[api]\natempts = 1", "config.toml: api.atempts is not a setting; did you mean attempts?"),
        ("[apl]", None),
        ("[api", None),
    ],
)
def test_a_bad_setting_is_one_line(bare: Program, settings: str, message: str | None) -> None:
    bare.write("config.toml", settings)
    done = bare.call("status")
    assert (done.exit_code, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {message or 'config.toml: '}")


def test_each_of_several_bad_settings_has_a_line(bare: Program) -> None:
    bare.write("config.toml", '[api]\nattempts = 0\n[log]\nlevel = "loud"\n')
    done = bare.given(RESULT_ARCHIVER__POLLING__GROWTH="fast").call("status")
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        "config.toml:", "config.toml:", "environment:"
    ]  # fmt: skip


def test_a_database_password_is_not_shown(bare: Program) -> None:
    url = f"postgresql://user:pass-word@127.0.0.1:{free_port()}/archive"
    done = bare.given(RESULT_ARCHIVER__DATABASE__URL=url).call("status")
    assert done.exit_code == 4
    assert done.stderr.startswith("error: postgresql://user:***@127.0.0.1:")
    assert "pass-word" not in done.stderr
    assert done.stderr.endswith(
        "; check database.url, and that the database runs and lets this user in\n"
    )
    assert len(done.stderr.splitlines()) == 1


# --- databases that cannot be used: exit code 4, nothing written ---

USES = ["ingest", "track r-1", "status --json", "show r-1 --json", "retry --json"]


@pytest.mark.parametrize("command", USES)
@pytest.mark.parametrize(
    ("revision", "message"),
    [
        (
            "0000",
            (
                "its tables are at revision 0000, this version needs {}; run `result-archiver db"
                " upgrade`"
            ),
        ),
        (
            "9999",
            (
                "its tables are at revision 9999, which is newer than this version ({}); install"
                " the newer result-archiver"
            ),
        ),
    ],
)
def test_tables_of_another_revision_are_left_alone(
    archiver: Program, sqlite_url: str, command: str, revision: str, message: str
) -> None:
    archiver.call("ingest", "r-1")
    with closing(connect(archiver.folder / "archive.db")) as connection:
        connection.execute("UPDATE result_archiver_version SET version_num = ?", [revision])
        connection.commit()
    before = everything(sqlite_url)
    done = archiver.call(*command.split())
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr.endswith(f"error: {sqlite_url}: {message.format(database.HEAD)}\n")
    assert done.stderr.count("\n") == 1
    assert everything(sqlite_url) == before


@pytest.mark.parametrize("command", USES)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text.db", "file is not a database"),
        ("folder", "unable to open database file"),
        ("text.db/archive.db", None),
    ],
)
def test_a_place_that_is_no_database_is_left_alone(
    archiver: Program, command: str, name: str, reason: str | None
) -> None:
    text = archiver.write("text.db", "This is a text. " * 1000)
    (archiver.folder / "folder").mkdir()
    url = f"sqlite:///{archiver.folder / name}"
    done = archiver.given(RESULT_ARCHIVER__DATABASE__URL=url).call(*command.split())
    assert (done.exit_code, done.stdout) == (4, "")
    [line] = done.stderr.splitlines()
    assert (reason or str(archiver.folder / name)) in line
    assert text.read_text(encoding="utf-8") == "This is a text. " * 1000


@pytest.mark.parametrize("command", ["status", "show r-1", "retry"])
def test_reading_makes_no_archive(bare: Program, command: str) -> None:
    assert bare.call(*command.split()) == (
        4,
        "",
        "error: sqlite:///results.db: has no archive yet; `result-archiver ingest` makes one\n",
    )
    assert not (bare.folder / "results.db").exists()


# --- no traceback, whatever happens ---


def test_a_bug_is_one_line_without_the_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def broken() -> int:
        raise RuntimeError(READ_KEY)

    monkeypatch.setattr(sys, "argv", ["result-archiver"])
    exit_code = command_line.main(broken)
    stdout, stderr = capsys.readouterr()
    assert (exit_code, stdout) == (1, "")
    assert re.fullmatch(
        r"error: internal error at test_cli.py:\d+: RuntimeError; please report it\n", stderr
    )


def test_a_module_that_cannot_be_loaded_for_lack_of_files_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def limited() -> int:
        raise OSError(errno.EMFILE, "Too many open files", "module.py")

    monkeypatch.setattr(sys, "argv", ["result-archiver"])
    assert command_line.main(limited) == 1
    assert capsys.readouterr().err == (
        "error: no more files can be opened (too many open files); raise the limit (`ulimit -n`,"
        " LimitNOFILE= of systemd) or lower api.connections\n"
    )


def test_a_reader_that_goes_away_is_no_failure(archiver: Program) -> None:
    archiver.call("track", "r-1")
    with archiver.started("show", "r-1") as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert (process.stderr.read(), process.wait()) == ("", 0)


# --- init and db ---


def test_init_writes_settings_that_load(bare: Program) -> None:
    assert bare.call("init").exit_code == 0
    assert bare.call("db", "upgrade").exit_code == 0
    assert (bare.folder / "results.db").exists()


def test_init_leaves_a_file_as_it_is(bare: Program) -> None:
    mine = bare.write("mine.toml", "# mine\n")
    refusal = (
        "error: mine.toml: exists already, and was left as it is; "
        "`result-archiver --config FILE init` writes another\n"
    )
    assert bare.call("--config", "mine.toml", "init") == (2, "", refusal)
    assert mine.read_text(encoding="utf-8") == "# mine\n"


def test_the_tables_can_be_made_and_taken_back(
    tmp_path: Path, database_url: str, api: FakeApi
) -> None:
    archiver = program(tmp_path, database_url, api.url)

    def current() -> str | None:
        answer = archiver.call("db", "current", "--json").json()
        assert answer["needed"] == database.HEAD
        revision: str | None = answer["current"]
        return revision

    assert current() is None
    assert archiver.call("db", "upgrade").exit_code == 0
    assert current() == database.HEAD
    assert archiver.call("db", "upgrade").exit_code == 0  # and again, which does nothing
    assert archiver.call("db", "downgrade", "base").exit_code == 0
    assert current() is None


def test_a_revision_that_does_not_exist_is_one_line(archiver: Program, sqlite_url: str) -> None:
    archiver.call("db", "upgrade")
    done = archiver.call("db", "downgrade", "7777")
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == f"error: {sqlite_url}: Can't locate revision identified by '7777'\n"


# --- track, retry, ingest ---


def test_bad_lines_are_named_and_the_rest_goes_on(archiver: Program, sqlite_url: str) -> None:
    archiver.write("runs.csv", "run_id,source\nr-1,\n..,\nr-2,elsewhere\nr-3,\n")
    done = archiver.call("track", "--from", "runs.csv", "--json")
    assert done.exit_code == 1
    assert done.json() == {"new": 2, "known": 0, "dropped": 0, "taken_back": 0, "bad_lines": 2}
    first, second = done.stderr.splitlines()
    assert first == "runs.csv:3: a run ID cannot be . or .."
    assert second.startswith("runs.csv:4: run r-2: source elsewhere is not configured")
    assert [row["run_id"] for row in everything(sqlite_url)["tracked_runs"]] == ["r-1", "r-3"]


def test_bad_lines_do_not_stop_a_pass(archiver: Program) -> None:
    archiver.write("runs.txt", "r-1\n..\n")
    done = archiver.call("ingest", "--from", "runs.txt", "--json")
    assert (done.exit_code, done.json()["exit_code"], done.json()["new"]) == (1, 1, 1)
    [line] = done.stderr.splitlines()
    assert re.fullmatch(r"[-0-9]+T[:0-9]+Z runs.txt:2: a run ID cannot be . or ..", line)


def test_labels_come_from_the_list_and_from_the_command(archiver: Program) -> None:
    archiver.write("runs.csv", "run_id,branch,build\nr-1,größe,7\nr-2,,\n")
    archiver.call("track", "--from", "runs.csv", "--label", "commit=1f3c", "--label", "build=1")
    labels = [archiver.call("show", run_id, "--json").json()["labels"] for run_id in ("r-1", "r-2")]
    assert labels == [
        {"branch": "größe", "build": "7", "commit": "1f3c"},
        {"build": "1", "commit": "1f3c"},
    ]


def test_retry_makes_a_failed_run_due_again(archiver: Program, api: FakeApi) -> None:
    assert archiver.call("ingest", "r-3").exit_code == 1
    api.answers["r-3"] = [result()]
    assert archiver.call("ingest", "--json").json()["requests"] == 0
    assert archiver.call("retry", "r-3", "--json").json() == {"retrying": 1, "unknown": []}
    assert archiver.call("ingest", "--json").json()["new"] == 1


def test_retry_names_a_run_that_is_not_tracked(archiver: Program) -> None:
    archiver.call("track", "r-1")
    assert archiver.call("retry", "r-3") == (
        1,
        "0 failed runs are due again\n",
        "run r-3: is not tracked; `result-archiver track` adds it\n",
    )


def test_a_final_run_is_asked_for_again_only_by_refresh(archiver: Program, api: FakeApi) -> None:
    for arguments in (["r-1", "r-2"], ["r-1"], ["--refresh", "r-1"], ["--refresh"]):
        archiver.call("ingest", *arguments)
    assert api.requests == {"r-1": 3, "r-2": 2}


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["r-2", "r-4"], {"r-3": "queued", "r-4": "new"}),
        (["--refresh", "r-1"], {"r-1": "settled", "r-3": "queued"}),
        (["--refresh"], {"r-1": "settled", "r-2": "settled", "r-3": "queued"}),
    ],
)
def test_a_dry_run_only_says_what_would_be_fetched(
    archiver: Program, api: FakeApi, sqlite_url: str, arguments: list[str], runs: dict[str, str]
) -> None:
    archiver.call("ingest", "r-1", "r-2")
    archiver.call("track", "r-3")
    before, asked = everything(sqlite_url), api.requests.total()
    done = archiver.call("ingest", "--dry-run", "--json", *arguments)
    assert {run["run_id"]: run["state"] for run in done.json()["would_fetch"]} == runs
    assert (everything(sqlite_url), api.requests.total()) == (before, asked)


def test_a_dry_run_makes_no_archive(archiver: Program) -> None:
    assert archiver.call("ingest", "--dry-run", "r-1").stdout == "r-1  new\n"
    assert not (archiver.folder / "archive.db").exists()


# --- what is shown ---

STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories
EVIL = "\x1b[31m[bold]red[/bold]\x1b]0;title\x07 \x9b2J \u202egnp.exe \u2066\n\r\t日本語 " * 3


@pytest.fixture
def evil(archiver: Program, api: FakeApi) -> Program:
    """An archive with names that would like to steer the terminal."""
    tests = [{"id": EVIL, "name": EVIL, "status": EVIL, "results": {}, EVIL: EVIL}]
    environments = [{"name": EVIL, "os": EVIL, "viewport": EVIL, "browser": EVIL}]
    api.answers["r-1"] = [
        result(name=EVIL, application=EVIL, tests=tests, environments=environments, duration=EVIL),
        result(name=EVIL),
    ]
    api.answers["x\u2028r-2"] = [Answer(json.dumps({EVIL: EVIL}).encode())]
    archiver.call("ingest", "r-1", "x\u2028r-2", "x\u2028r-3")
    archiver.call("ingest", "--refresh", "r-1")
    archiver.call("track", "r-1", "--label", f"branch={EVIL}")
    return archiver


@pytest.mark.parametrize(
    "command", ["status", "show r-1", "show x\u2028r-2", "ingest --dry-run --refresh"]
)
@pytest.mark.parametrize("form", ["", " --json"])
def test_nothing_that_is_shown_can_steer_the_terminal(
    evil: Program, command: str, form: str
) -> None:
    done = evil.call(*f"{command}{form}".split(" "))
    assert done.exit_code == 0
    assert kinds(done.stdout).isdisjoint(STEERING)


@pytest.mark.parametrize("run_id", ["x\u2028r-4", "\u202er-4"])
def test_no_message_can_steer_the_terminal(evil: Program, run_id: str) -> None:
    done = evil.call("ingest", run_id)
    assert "r-4" in done.stderr
    assert kinds(done.stderr).isdisjoint(STEERING)


def kinds(text: str) -> set[str]:
    """Return the Unicode categories of what stands in the lines."""
    return {unicodedata.category(character) for character in text.replace("\n", "")}


@pytest.mark.parametrize("command", ["status", "show r-1", "show x\u2028r-2"])
def test_tables_fit_80_columns(evil: Program, command: str) -> None:
    lines = evil.call(*command.split(" ")).stdout.splitlines()
    assert max(map(columns, lines)) <= 80


def columns(line: str) -> int:
    """Return how many columns of a terminal a line takes."""
    return sum(2 if unicodedata.east_asian_width(each) in {"F", "W"} else 1 for each in line)


def test_markup_is_shown_as_it_is(evil: Program) -> None:
    assert "[bold]red[/bold]" in evil.call("show", "r-1").stdout


def test_show_has_every_counter_of_every_revision(evil: Program) -> None:
    lines = evil.call("show", "r-1").stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("revision obs"))
    assert lines[start].split() == [
        "revision", "observed_at", "status", "failed", "passed", "aborted", "pending", "unresolved"
    ]  # fmt: skip
    assert lines[start + 3].split()[-6:] == ["passed", "3", "12", "0", "0", "0"]


@pytest.mark.parametrize("command", ["db current", "status", "show r-1", "retry", "track r-1"])
def test_json_is_all_that_stdout_has(archiver: Program, command: str) -> None:
    archiver.call("ingest", "r-1")
    done = archiver.call(*command.split(), "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert isinstance(done.json(), dict)


def test_status_says_how_the_ledger_stands(archiver: Program) -> None:
    archiver.call("ingest", "r-1", "r-3")
    archiver.call("track", "r-4")
    found = archiver.call("status", "--json").json()
    assert found["by_state"] == {
        "queued": 1, "running": 0, "watching": 0, "settled": 1, "retrying": 0, "failed": 1,
        "dropped": 0,
    }  # fmt: skip
    assert (found["due"], found["leased"]) == (1, 0)
    assert [(each["new"], each["failed"], each["exit_code"]) for each in found["passes"]] == [
        (1, 1, 1)
    ]
    assert [each["run_id"] for each in found["failures"]] == ["r-3"]


# --- the sandbox ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_sandbox_serves_until_a_signal(bare: Program, number: signal.Signals) -> None:
    with bare.started("sandbox", "--port", "0", "--runs", "20") as process:
        assert process.stdout
        url = process.stdout.readline().split()[1]
        with urllib.request.urlopen(f"{url}/sandbox/runs.txt") as response:
            assert response.status == 200
        process.send_signal(number)
        _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (0, "")


@pytest.mark.parametrize("form", ["txt", "csv", "json", "jsonl"])
def test_the_sandboxes_list_can_be_tracked(archiver: Program, form: str) -> None:
    done = archiver.call("sandbox", "--list", form, "--runs", "30", "--now", "2026-11-02T09:00Z")
    assert (done.exit_code, done.stderr) == (0, "")
    archiver.write("runs", done.stdout)
    assert archiver.call("track", "--from", "runs").stdout == "29 new, 0 known already\n"


def test_a_port_in_use_is_one_line(bare: Program) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = bare.call("sandbox", "--port", str(port))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: port {port} on 127.0.0.1 cannot be used (Address already in use); give another,"
        " or 0 for any free one\n"
    )
