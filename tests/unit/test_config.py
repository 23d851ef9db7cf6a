"""Settings come from the file, then the environment; what is wrong is told, a line for each."""

import glob
import itertools
import os
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import FieldInfo
from sqlalchemy import make_url

from etl.config.loading import load, parse_duration
from etl.config.settings import SECTIONS, VENDOR_URL, Config, Source
from etl.errors import ConfigError
from etl.secrets.masking import API_KEY_ENV, mask_url_password

EXAMPLE = (Path(__file__).parents[2] / "config.example.toml").read_text()
SWITCHED_ON = re.sub(r"(?m)^#(?=[\w\[])", "", EXAMPLE)
"""The example with all that it has switched off, `key_env` and `key_file` of a source alike."""

MODELS: dict[str, type[msgspec.Struct]] = {**SECTIONS, "sources.eu": Source}
FIELDS: dict[str, dict[str, FieldInfo]] = {
    section: {field.name: field for field in msgspec.structs.fields(model)}
    for section, model in MODELS.items()
}
SETTINGS = [(section, name) for section, fields in FIELDS.items() for name in fields]
ALL_SECTIONS = "there are " + ", ".join([*SECTIONS, "sources.NAME"])

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config file into a folder that is not the current one."""

    def written(text: str) -> Path:
        path = tmp_path / "etc" / "config.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return written


def problems(path: Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {})
    return str(caught.value).splitlines()


def variable(section: str, name: str) -> str:
    return f"RESULT_ARCHIVER__{section}__{name}".replace(".", "__").upper()


def value_of(config: Config, section: str, name: str) -> Any:
    owner, _, source = section.partition(".")
    return getattr(config.sources[source] if source else getattr(config, owner), name)


# The example


def test_the_example_loads(write: Write) -> None:
    assert load(write(EXAMPLE), {}).sources.keys() == {"default"}


def test_the_example_and_the_loader_know_the_same_settings() -> None:
    body = tomllib.loads(SWITCHED_ON)
    sections = {name: content for name, content in body.items() if name != "sources"}
    sections |= {f"sources.{name}": content for name, content in body["sources"].items()}
    assert {section: [*content] for section, content in sections.items()} == {
        section: [*fields] for section, fields in FIELDS.items()
    }


def test_the_example_shows_the_defaults() -> None:
    shown = {}
    for section, fields in FIELDS.items():
        owner, _, source = section.partition(".")
        body = tomllib.loads(SWITCHED_ON)[owner]
        for name, value in (body[source] if source else body).items():
            as_loaded = parse_duration(value) if fields[name].type is timedelta else value
            shown[section, name] = as_loaded
    # What has no default is switched off in the example, and shows what it could be.
    assert [key for key, value in shown.items() if value != default_of(*key)] == [
        (section, name) for section, name in SETTINGS if default_of(section, name) is None
    ]


def default_of(section: str, name: str) -> Any:
    return getattr(MODELS[section](), name)


def test_the_example_explains_every_setting() -> None:
    lines = EXAMPLE.splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if re.match(r"#?\w+ = ", line) and not before.startswith("# ")
    ]
    assert bare == []


@pytest.mark.parametrize("dropped", ["key_env", "key_file"])
def test_the_example_of_a_source_loads_with_either_key(dropped: str, write: Write) -> None:
    text = re.sub(rf'(?m)^{dropped} = "(EU_API_KEY|eu.key)"$', "", SWITCHED_ON)
    assert load(write(text), {}).sources["eu"].base_url == VENDOR_URL


# Where settings come from


def test_without_file_and_environment_the_defaults_hold() -> None:
    assert load(None, {}) == Config(sources={"default": Source(VENDOR_URL, API_KEY_ENV)})


def test_a_config_toml_in_the_current_folder_is_read_unasked(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[api]\nattempts = 7\n")
    assert load(None, {}).api.attempts == 7


def test_the_named_file_is_read_instead_of_the_current_folders(
    tmp_path: Path, write: Write
) -> None:
    (tmp_path / "config.toml").write_text("[api]\nattempts = 7\n")
    assert load(write("[api]\nconnections = 2\n"), {}).api.attempts == 3


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_every_setting_has_a_variable_that_wins_over_the_file(
    section: str, name: str, write: Write
) -> None:
    other_key = "key_env" if name == "key_file" else "key_file"
    text = re.sub(rf'(?m)^{other_key} = "(EU_API_KEY|eu.key)"$', "", SWITCHED_ON)
    value, expected = another(section, name)
    config = load(write(text), {variable(section, name): value})
    assert value_of(config, section, name) == expected
    assert value_of(load(write(text), {}), section, name) != expected


def another(section: str, name: str) -> tuple[str, Any]:
    """Return a value that is not the default, as environment text and as it is loaded."""
    texts = {
        "url": ("postgresql://ann@db/archive", "postgresql+psycopg://ann@db/archive"),
        "base_url": ("https://api.example.com", "https://api.example.com"),
        "key_env": ("OTHER_KEY", "OTHER_KEY"),
        "time_zone": ("Europe/Berlin", "Europe/Berlin"),
        "reporting_schema": ("results", "results"),
    }
    kind = FIELDS[section][name].type
    if kind is timedelta:
        return "3h", timedelta(hours=3)
    if get_origin(kind) is Literal:
        return get_args(kind)[-1], get_args(kind)[-1]
    if get_origin(kind) is list:
        return "/lists/a.csv, /lists/b*.json,", ["/lists/a.csv", "/lists/b*.json"]
    if get_origin(kind) is Annotated:
        return ("4", 4) if get_args(kind)[0] is int else ("0.5", 0.5)
    return texts.get(name, ("/etc/some.key", "/etc/some.key"))


def test_an_empty_variable_is_as_good_as_none(write: Write) -> None:
    path = write("[api]\nattempts = 7\n")
    assert load(path, {"RESULT_ARCHIVER__API__ATTEMPTS": ""}).api.attempts == 7


def test_variables_of_others_are_left_alone() -> None:
    others = {"RESULT_ARCHIVER_API__ATTEMPTS": "x", "API__ATTEMPTS": "x", "PATH": "/bin"}
    assert load(None, others) == load(None, {})


def test_the_environment_alone_can_add_a_source() -> None:
    config = load(None, {"RESULT_ARCHIVER__SOURCES__EU_2__KEY_ENV": "EU_KEY"})
    assert config.sources["eu_2"] == Source(VENDOR_URL, key_env="EU_KEY")


def test_the_environment_reaches_a_source_with_capitals(write: Write) -> None:
    path = write('[sources.EU]\nkey_env = "EU_KEY"\n')
    config = load(path, {"RESULT_ARCHIVER__SOURCES__EU__KEY_ENV": "OTHER_KEY"})
    assert config.sources.keys() == {"default", "EU"}
    assert config.sources["EU"].key_env == "OTHER_KEY"


def test_the_api_section_is_the_default_source(write: Write) -> None:
    path = write('[api]\nbase_url = "https://api.example.com"\nkey_file = "/etc/some.key"\n')
    assert load(path, {}).sources == {
        "default": Source("https://api.example.com", API_KEY_ENV, "/etc/some.key")
    }


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(write: Write) -> None:
    assert load(write("\ufeff[api]\r\nattempts = 7\r\n"), {}).api.attempts == 7


def test_the_reporting_zone_is_a_time_zone(write: Write) -> None:
    config = load(write('[reporting]\ntime_zone = "Europe/Berlin"\n'), {})
    assert config.reporting.zone == ZoneInfo("Europe/Berlin")


# Paths

PATHS = [("api", "key_file"), ("sources.eu", "key_file"), ("security", "token_key_file")]


@pytest.mark.parametrize(("section", "name"), PATHS)
@pytest.mark.parametrize(
    ("path", "resolved"),
    [("a/b.key", "{folder}/a/b.key"), ("~/b.key", "{home}/b.key"), ("/b.key", "/b.key")],
)
def test_a_path_in_the_file_starts_at_the_files_folder(
    section: str, name: str, path: str, resolved: str, write: Write
) -> None:
    file = write(f'[{section}]\n{name} = "{path}"\n')
    expected = resolved.format(folder=file.parent, home=Path.home())
    assert value_of(load(file, {}), section, name) == expected


@pytest.mark.parametrize(("section", "name"), PATHS)
def test_a_path_in_the_environment_starts_at_the_current_folder(
    section: str, name: str, tmp_path: Path
) -> None:
    config = load(None, {variable(section, name): "a/b.key"})
    assert value_of(config, section, name) == f"{tmp_path}/a/b.key"


def test_run_lists_start_at_the_files_folder_or_the_current_one(
    write: Write, tmp_path: Path
) -> None:
    path = write('[runs]\nsources = ["*.csv", "/lists/a.json", "~/b.txt"]\n')
    assert load(path, {}).runs.sources == [
        f"{path.parent}/*.csv",
        "/lists/a.json",
        f"{Path.home()}/b.txt",
    ]
    environ = {"RESULT_ARCHIVER__RUNS__SOURCES": "*.csv"}
    assert load(path, environ).runs.sources == [f"{tmp_path}/*.csv"]


@pytest.mark.parametrize("name", ["conf [prod]", "a*b", "what?", "[!x]", "[[]"])
def test_the_folders_own_wildcards_are_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "runs-1.txt").touch()
    monkeypatch.setenv("HOME", str(folder))
    config_file = folder / "config.toml"
    config_file.write_text('[runs]\nsources = ["runs-?.txt", "~/runs*", "~//runs-[1].txt"]\n')
    patterns = load(config_file, {}).runs.sources
    found = [glob.glob(pattern) for pattern in patterns]  # noqa: PTH207  absolute patterns
    assert found == [[f"{folder}/runs-1.txt"]] * 3


@pytest.mark.parametrize(
    "name", ["shop_feature%2Flogin", "a%20b", "100%", "why?", "c#", "x%41", "a b+c", "ü@:x"]
)
def test_a_folders_name_is_no_part_of_the_url(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    config_file = folder / "config.toml"
    for url in ("sqlite:///a.db?timeout=5", "sqlite:///~/a.db"):
        config_file.write_text(f'[database]\nurl = "{url}"\n')
        assert make_url(load(config_file, {}).database.url).database == f"{folder}/a.db"


def test_a_relative_file_name_gives_whole_paths(write: Write, tmp_path: Path) -> None:
    write('[api]\nkey_file = "a.key"\n')
    assert load(Path("etc/config.toml"), {}).api.key_file == f"{tmp_path}/etc/a.key"


@pytest.mark.parametrize(
    ("url", "loaded"),
    [
        ("sqlite:///a.db", "sqlite:///{folder}/a.db"),
        ("sqlite:///a.db?timeout=5", "sqlite:///{folder}/a.db?timeout=5"),
        ("sqlite+pysqlite:///~/a.db", "sqlite:///{home}/a.db"),
        ("sqlite:////var/a.db", "sqlite:////var/a.db"),
        ("postgres://ann:pw@db:5433/a?sslmode=require", "{pg}ann:pw@db:5433/a?sslmode=require"),
        ("postgresql+psycopg://ann@db/a", "{pg}ann@db/a"),
        ("postgresql:///archive", "{pg}/archive"),
    ],
)
def test_a_database_url_gets_its_driver_and_a_whole_path(
    url: str, loaded: str, write: Write
) -> None:
    path = write(f'[database]\nurl = "{url}"\n')
    expected = loaded.format(folder=path.parent, home=Path.home(), pg="postgresql+psycopg://")
    assert load(path, {}).database.url == expected


# What is wrong

NO_URL = "give sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
DURATION = 'give a duration such as "90s", "5m", "2h" or "14d"'
ONE_KEY = "sources.eu.key_env or key_file must say where the key is: give exactly one"
NO_HTTP = "plain http would show the key to the network"
NO_VARIABLE = (
    "sources.eu.key_env is not the name of a variable; write one in capitals, never the key"
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[databse]", f"[databse] is not a section; {ALL_SECTIONS}"),
        ("attempts = 3", f"attempts stands outside a section; {ALL_SECTIONS}"),
        ("api = 3", f"api stands outside a section; {ALL_SECTIONS}"),
        ("[api]\nconections = 3", "api.conections is not a setting; did you mean connections?"),
        ("[log]\ncolour = 1", "log.colour is not a setting; there are level, format"),
        ('[log]\n"a\\nb" = 1', "log.a\\nb is not a setting; there are level, format"),
        (
            "[api]\nattempts = 0",
            "api.attempts is '0'; give a whole number, 1 or more, 10 at most",
        ),
        (
            '[api]\nattempts = "3"',
            "api.attempts is '3'; give a whole number, 1 or more, 10 at most",
        ),
        (
            "[api]\nattempts = 2.5",
            "api.attempts is '2.5'; give a whole number, 1 or more, 10 at most",
        ),
        (
            "[api]\nconnections = true",
            "api.connections is 'True'; give a whole number, 1 or more, 256 at most",
        ),
        (
            "[polling]\nmax_attempts = 0",
            "polling.max_attempts is '0'; give a whole number, 1 or more",
        ),
        ("[polling]\ngrowth = 2", "polling.growth is '2'; give a number, 0 or more, 1 at most"),
        (
            "[api]\nmax_body_mb = inf",
            "api.max_body_mb is 'inf'; give a number above 0, 1024 at most",
        ),
        (
            "[api]\nread_timeout_s = nan",
            "api.read_timeout_s is 'nan'; give a number above 0, 86400 at most",
        ),
        (
            "[api]\ntotal_timeout_s = 0",
            "api.total_timeout_s is '0'; give a number above 0, 86400 at most",
        ),
        ("[api]\nbase_url = 5", "api.base_url is '5'; give a text"),
        ('[api]\nkey_file = ["s3cret"]', "api.key_file is a list; give a text"),
        ('[api.key_file]\nkey = "s3cret"', "api.key_file is a section; give a text"),
        ('[api]\nkey_file = ""', "api.key_file is empty; give the path of a file, or leave it out"),
        (
            '[api]\nkey_file = "a\\u0000b"',
            "api.key_file has a control character or half a character in it; remove it",
        ),
        (
            '[api]\nkey_file = "~nobody-here/a.key"',
            "api.key_file is '~nobody-here/a.key'; there is no such home folder, give a whole path",
        ),
        (
            '[log]\nlevel = "loud"',
            'log.level is \'loud\'; give "debug" or "info" or "warning" or "error"',
        ),
        ('[runs]\nsources = "runs.csv"', "runs.sources is 'runs.csv'; give a list of texts"),
        ("[runs]\nsources = [1]", "runs.sources is a list; give a list of texts"),
        ('[polling]\nwatch_for = "soon"', f"polling.watch_for is 'soon'; {DURATION}"),
        ('[polling]\nwatch_for = "-5m"', f"polling.watch_for is '-5m'; {DURATION}"),
        ("[polling]\nwatch_for = true", f"polling.watch_for is 'True'; {DURATION}"),
        ("[polling]\nwatch_for = inf", f"polling.watch_for is 'inf'; {DURATION}"),
        (
            "[polling]\nwatch_for = 0",
            f"polling.watch_for is '0:00:00'; {DURATION}, above 0 and up to 36500d",
        ),
        (
            '[polling]\nwatch_for = "36501d"',
            f"polling.watch_for is '36501 days, 0:00:00'; {DURATION}, above 0 and up to 36500d",
        ),
        (
            '[polling]\nwatch_for = "30m"',
            "polling.watch_for is shorter than polling.watch_every; make it longer",
        ),
        (
            '[polling]\nretry_every = "7h"',
            "polling.retry_at_most_every is shorter than polling.retry_every; make it longer",
        ),
        *(
            (
                f'[{section}]\ntime_zone = "{zone}"',
                f"{section}.time_zone is '{zone}'; give a name such as 'Europe/Berlin' or 'UTC'",
            )
            for section in ("reporting", "schedule")
            for zone in ("Mars/Olympus", "Europe", "CEST", "/etc/passwd", "")
        ),
        *(
            (
                f'[api]\nbase_url = "http://{host}"',
                f"api.base_url is 'http://{host}'; {NO_HTTP}, give https://{host}",
            )
            for host in ("api.example.com", "10.0.0.1", "127.0.0.1.example.com", "localhost.de")
        ),
        ('[api]\nbase_url = "ftp://host"', "api.base_url is 'ftp://host'; give https://HOST"),
        (
            '[api]\nbase_url = "api.example.com"',
            "api.base_url is 'api.example.com'; give https://HOST",
        ),
        ('[api]\nbase_url = "https://"', "api.base_url is 'https://'; give https://HOST"),
        *(
            (
                f'[api]\nbase_url = "{url}"',
                f"api.base_url is '{url}', which is not a URL; give https://HOST",
            )
            for url in ("https://h:99999", "https://[::1", "https://h:port/base")
        ),
        *(
            (
                f'[api]\nbase_url = "https://{rest}"',
                f"api.base_url is 'https://{shown}', which has more than scheme, host and path;",
            )
            for rest, shown in [
                ("ann:s3cret@h", "***@h"),
                ("ann:s3@/s3cret@h/base", "***@h/base"),
                ("s3cret@h", "***@h"),
                ("h?apiKey=s3cret", "h?***"),
                ("h/base#s3cret?s3cret", "h/base#***"),
                ("h?", "h?"),
                ("h#", "h#"),
                ("h x", "h x"),
            ]
        ),
        *(
            (
                f'[api]\nbase_url = "https://h/{path}"',
                f"api.base_url is 'https://h/{path}', which is the address of a call;",
            )
            for path in ("api/result", "api/result/", "base/api/result/r1", "api/plan/p1/execute")
        ),
        *(
            (
                f'[database]\nurl = "postgresql://{rest}"',
                f"database.url is 'postgresql://{shown}'; write an @ of the user's name or pass",
            )
            for rest, shown in [
                ("ann:s3@cret@db:5432/a", "ann:***@db:5432/a"),
                ("ann:s3@cret/s3@db/a?sslmode=require", "ann:***@db/a?sslmode=require"),
                ("ann:s3?cret@s3@db/a", "ann:***@db/a"),
                ("ann@s3@db/a", "ann:***@db/a"),
                ("ann:s3cret@s3@@db/a", "ann:***@db/a"),
            ]
        ),
        *(
            (f'[database]\nurl = "{url}"', f"database.url is '{shown}'; {NO_URL}")
            for url, shown in [
                ("mysql://ann:s3cret@db/archive", "mysql://ann:***@db/archive"),
                ("mysql://ann:s3/c@r:et@db/archive", "mysql://ann:***@db/archive"),
                ("postgresql:ann:s3cret@db/archive", "postgresql:***@db/archive"),
                ("mysql://db/a?user=ann&password=s3cret", "mysql://db/a?user=ann&password=***"),
                ("sqlite:///:memory:", "sqlite:///:memory:"),
                ("sqlite:///", "sqlite:///"),
                ("results.db", "results.db"),
                ("", ""),
            ]
        ),
        ('[api]\nkey = "s3cret"', "api.key is not a setting; there are "),
        ('[api]\napi_key = "s3cret"', "api.api_key is not a setting; "),
        ('[sources.eu]\nkey = "s3cret"', "sources.eu.key is not a setting; "),
        ("sources = 3", f"sources stands outside a section; {ALL_SECTIONS}"),
        ("[sources]\neu = 3", "sources.eu is not a section; write [sources.eu]"),
        ("[sources.eu]", "[sources.eu] is empty; give key_env or key_file"),
        ('[sources.eu]\nbase_url = "https://h"', ONE_KEY),
        ('[sources.eu]\nkey_env = "A"\nkey_file = "b"', ONE_KEY),
        ('[sources.eu]\nkey_env = "s3cretS3cret"', NO_VARIABLE),
        ('[sources.eu]\nkey_env = ""', NO_VARIABLE),
        (
            '[sources.eu]\nkey_env = "A"\nbase_url = "http://h"',
            "sources.eu.base_url is 'http://h';",
        ),
        (
            '[sources.default]\nkey_env = "A"',
            "[sources.default] is the account of [api]; write its settings there",
        ),
        (
            '[sources."e.u"]\nkey_env = "A"',
            "[sources.e.u] has a name with more than letters, digits, - and _; rename it",
        ),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(text: str, problem: str, write: Write) -> None:
    path = write(text)
    [line] = problems(path)
    assert line.startswith(f"{path}: {problem}")
    assert "s3" not in line


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("API__ATTEMPTS", "many", ": api.attempts is 'many'; give a whole number, 1 or more, 10"),
        ("API__MAX_WAIT_S", "inf", ": api.max_wait_s is 'inf'; give a number, 0 or more, 86400"),
        ("API__ATEMPTS", "3", ": api.atempts is not a setting; did you mean attempts?"),
        ("API__KEY", "s3cret", ": api.key is not a setting; there are base_url, key_file,"),
        ("DATABASE__URL", "mysql://ann:s3cret@db", ": database.url is 'mysql://ann:***@db'; give"),
        (
            "DATABASE__REPORTING_SCHEMA",
            "My Views",
            ": database.reporting_schema is 'My Views'; give",
        ),
        (
            "DATABASE__REPORTING_SCHEMA",
            "pg_views",
            ": database.reporting_schema is 'pg_views'; give",
        ),
        ("REPORTING__TIME_ZONE", "Mars", ": reporting.time_zone is 'Mars'; give a name such as"),
        ("SOURCES__EU__BASE_URL", "https://h", f": {ONE_KEY}"),
        ("API", "s3cret", " names no setting; write RESULT_ARCHIVER__SECTION__KEY"),
        ("", "s3cret", " names no setting; write RESULT_ARCHIVER__SECTION__KEY"),
        ("APIS__ATTEMPTS", "s3cret", " names no setting; write RESULT_ARCHIVER__SECTION__KEY"),
        ("API__X__ATTEMPTS", "s3cret", " names no setting; write RESULT_ARCHIVER__SECTION__KEY"),
        ("SOURCES__KEY_ENV", "s3cret", " names no setting; write RESULT_ARCHIVER__SECTION__KEY"),
        (
            "SOURCES__DEFAULT__KEY_ENV",
            "s3cret",
            " is the account of [api]; write RESULT_ARCHIVER__API__KEY_FILE",
        ),
    ],
)
def test_a_wrong_variable_is_told_in_one_line(name: str, value: str, problem: str) -> None:
    [line] = problems(None, {f"RESULT_ARCHIVER__{name}": value})
    assert line.startswith(f"environment: RESULT_ARCHIVER__{name}{problem}")
    assert "s3cret" not in line


def test_all_problems_are_told_together(write: Write) -> None:
    path = write('[api]\nattempts = 0\nkey = "s3cret"\n[log]\nlevel = 3\n[nowhere]\n')
    assert [
        line.split(" is ")[0] for line in problems(path, {"RESULT_ARCHIVER__API__CONNECTIONS": "0"})
    ] == [
        f"{path}: [nowhere]",
        f"{path}: api.attempts",
        f"{path}: api.key",
        f"{path}: log.level",
        "environment: RESULT_ARCHIVER__API__CONNECTIONS: api.connections",
    ]


def test_a_missing_file_is_told() -> None:
    path = Path("nowhere.toml")
    assert problems(path) == [
        "nowhere.toml: there is no such file; `result-archiver init` writes one"
    ]


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.fixture
def no_root() -> Iterator[None]:
    """Go without the rights of root, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(user)


def test_an_unreadable_file_is_told(write: Write, request: pytest.FixtureRequest) -> None:
    path = write("")
    path.chmod(0)
    request.getfixturevalue("no_root")
    assert problems(path) == [f"{path}: cannot be read: Permission denied"]


def test_a_file_that_is_not_utf8_is_told(write: Write) -> None:
    path = write("")
    path.write_bytes('[api]\nkey_file = "ü"'.encode("latin-1"))
    assert problems(path) == [f"{path}: is not UTF-8 text; save it as UTF-8"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[api]\nkey = "s3cret', "Illegal character '\\n' (at line 2, column 14)"),
        ("[api]\nattempts 3", "Expected '=' after a key"),
        ("[api]\nattempts = 1\nattempts = 2", "Cannot overwrite a value"),
        ("[api]\nattempts = " + "9" * 5000, "Exceeds the limit"),
        ("[api]\nattempts = " + "[" * 5000, "maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_not_toml_is_told(text: str, reason: str, write: Write) -> None:
    path = write(text + "\n")
    [line] = problems(path)
    assert line.startswith(f"{path}: is not valid TOML: {reason}")
    assert "s3cret" not in line


ANY_URL = st.from_regex(r"\A(https?|sqlite|postgresql)://[a-z~./:@\[\]?#0-9]*\Z")
ANY_NUMBER = st.from_regex(r"\A[0-9.e+-]{1,20} ?(ms|[smhdw])?\Z")
ANY_TEXT = st.text(st.characters()) | ANY_URL | ANY_NUMBER | st.from_regex(r"\A~\w*\Z")


@given(setting=st.sampled_from(SETTINGS), text=ANY_TEXT)
def test_any_text_in_a_variable_loads_or_is_a_config_error(
    setting: tuple[str, str], text: str
) -> None:
    name = variable(*setting)
    loads_or_tells(None, {name: text}, f"environment: {name}: ")


@given(
    setting=st.sampled_from(SETTINGS),
    value=ANY_TEXT | st.integers() | st.floats() | st.booleans() | st.lists(st.text(), max_size=2),
)
def test_any_value_in_the_file_loads_or_is_a_config_error(
    setting: tuple[str, str], value: Any
) -> None:
    section, name = setting
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".toml") as file:
        file.write(f"[{section}]\n{name} = {as_toml(value)}\n")
        file.flush()
        loads_or_tells(Path(file.name), {}, f"{file.name}: ")


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        codes = (ord(character) for character in value)
        return (
            '"' + "".join(f"\\U{code:08x}" for code in codes if not 0xD800 <= code < 0xE000) + '"'
        )
    return f"[{', '.join(map(as_toml, value))}]" if isinstance(value, list) else repr(value)


def loads_or_tells(path: Path | None, environ: dict[str, str], origin: str) -> None:
    try:
        load(path, environ)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert [line for line in lines if not line.startswith(origin)] == []


# The parts


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("14d", 1_209_600),
        ("2W", 1_209_600),
        ("250ms", 0.25),
        ("1.5h", 5400),
        (" 10 s ", 10),
        ("90", 90),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_read(value: object, seconds: float) -> None:
    assert parse_duration(value) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["", "m", "5x", "5m!", "-5m", "1,5h", "1.5.5s", "1e3", True, None]
)
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "127.1.2.3", "[::1]:80"]
)
def test_plain_http_is_fine_on_this_machine(host: str) -> None:
    config = load(None, {"RESULT_ARCHIVER__API__BASE_URL": f"http://{host}/base"})
    assert config.api.base_url == f"http://{host}/base"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@db/a",
        "postgresql://ann:s3@cret@db/a",
        "postgresql://:s3cret@db/a",
        "postgresql://ann://s3cret@db/a",
        "ann:s3cret\n@db",
        "postgresql://db/a?password=s3cret s3cret",
        "postgresql://db/a?sslpassword=s3cret&x=1",
        "https://h/?apiKey=s3cret&read_token=s3cret",
        "postgresql://ann:s3@cret@s3:x@db/a",
        "postgresql://ann@s3cret@db/a",
        "postgresql://ann:s3/c?r@et@db/a?sslmode=require",
    ],
)
def test_a_password_in_a_url_is_masked(url: str) -> None:
    masked = mask_url_password(url)
    assert "***" in masked
    assert "s3" not in masked


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////var/a.db",
        "postgresql://ann@db:5432/a?sslmode=require",
        "postgresql://db/a?application_name=x",
    ],
)
def test_a_url_without_a_password_is_shown_whole(url: str) -> None:
    assert mask_url_password(url) == url
