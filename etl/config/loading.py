"""Load the settings: defaults, then config.toml, then the environment, checked as a whole.

`load` either returns a complete `Config` or raises one `ConfigError` with a line for every
setting that is wrong.
"""

import glob
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import quote, urlsplit
from zoneinfo import available_timezones

import msgspec
from msgspec import Meta, Struct

from etl.config.settings import (
    SECTIONS,
    Api,
    Config,
    Database,
    Log,
    Polling,
    Reporting,
    Runs,
    Schedule,
    Security,
    Source,
    Telemetry,
)
from etl.errors import ConfigError
from etl.secrets.keys import DEFAULT_SOURCE
from etl.secrets.masking import API_KEY_ENV, MASK, mask_url_password

DEFAULT_PATH = Path("config.toml")
ENV_PREFIX = "RESULT_ARCHIVER__"

LONGEST_DURATION = timedelta(days=36_500)  # a due time beyond it would leave the calendar


class Setting(Struct, frozen=True):
    """One given value: where it came from, its dotted key, and whether it is environment text."""

    origin: str
    section: str
    name: str
    value: Any
    folder: Path
    is_text: bool

    @property
    def key(self) -> str:
        """The dotted name that messages use: "api.attempts"."""
        return f"{self.section}.{self.name}"


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the settings of `path` (default: ./config.toml, if there is one) and `environ`.

    Relative paths in the file are taken from the file's folder, those in the environment from
    the current one.

    Raises:
        ConfigError: a line for each setting that is unknown or wrong.
    """
    if path is None and DEFAULT_PATH.exists():
        path = DEFAULT_PATH
    problems: list[str] = []
    in_file = [*_from_file(path, problems)] if path else []
    sections = {setting.section.lower(): setting.section for setting in in_file}
    given = [*in_file, *_from_environment(environ, sections, problems)]
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for setting in given:
        try:
            value = _checked(setting)
        except ValueError as error:
            problems.append(f"{setting.origin}: {setting.key} {error}")
        else:
            values.setdefault(setting.section, {})[setting.name] = value
            origins[setting.key] = origins[setting.section] = setting.origin
    config = _assembled(values)
    for section, name, problem in _clashes(config):
        key = f"{section}.{name}"
        problems.append(f"{origins.get(key) or origins[section]}: {key} {problem}")
    if problems:
        raise ConfigError("\n".join(map(_one_line, problems)))
    return config


def _one_line(problem: str) -> str:
    """Escape control characters, which the name of a key can contain."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], problem)


def _from_file(path: Path, problems: list[str]) -> Iterator[Setting]:
    folder = path.absolute().parent
    for section, body in _read_toml(path).items():
        if not isinstance(body, dict):
            problems.append(f"{path}: {section} stands outside a section; {_known_sections()}")
        elif section == "sources":
            for name, source in body.items():
                if problem := _source_problem(name, source):
                    problems.append(f"{path}: {problem}")
                else:
                    yield from _members(f"sources.{name}", source, str(path), folder)
        elif section in SECTIONS:
            yield from _members(section, body, str(path), folder)
        else:
            problems.append(f"{path}: [{section}] is not a section; {_known_sections()}")


def _source_problem(name: str, source: object) -> str | None:
    if not isinstance(source, dict):
        return f"sources.{name} is not a section; write [sources.{name}]"
    if name == DEFAULT_SOURCE:
        return f"[sources.{name}] is the account of [api]; write its settings there"
    if not re.fullmatch(r"[\w-]+", name):
        return f"[sources.{name}] has a name with more than letters, digits, - and _; rename it"
    if not source:
        return f"[sources.{name}] is empty; give key_env or key_file"
    return None


def _members(section: str, body: Mapping[str, Any], origin: str, folder: Path) -> Iterator[Setting]:
    for name, value in body.items():
        yield Setting(origin, section, name, value, folder, is_text=False)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; `result-archiver init` writes one"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:  # beside TOML's own: huge numbers, deep nesting
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def _from_environment(
    environ: Mapping[str, str], sections: Mapping[str, str], problems: list[str]
) -> Iterator[Setting]:
    """Yield the settings of variables. `sections` maps lower case to the file's spelling."""
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or not text:
            continue
        origin = f"environment: {variable}"
        *words, name = variable.removeprefix(ENV_PREFIX).lower().split("__")
        section = ".".join(words)
        if section == f"sources.{DEFAULT_SOURCE}":
            problems.append(f"{origin} is the account of [api]; write {ENV_PREFIX}API__KEY_FILE")
        elif section in SECTIONS or re.fullmatch(r"sources\.[\w-]+", section):
            section = sections.get(section, section)
            yield Setting(origin, section, name, text, Path.cwd(), is_text=True)
        else:
            problems.append(f"{origin} names no setting; write {ENV_PREFIX}SECTION__KEY")


def _checked(setting: Setting) -> Any:
    """Return the setting's value as its type. Raises ValueError with the problem and remedy."""
    model = SECTIONS.get(setting.section, Source)
    fields = {field.name: field for field in msgspec.structs.fields(model)}
    if setting.name not in fields:
        raise ValueError(_unknown(setting.name, list(fields)))
    kind = fields[setting.name].type
    try:
        value = msgspec.convert(_prepared(setting, kind), kind, strict=not setting.is_text)
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise ValueError(f"is {_shown(setting.value)}; give {_expected(kind)}") from None
    if kind is timedelta and not timedelta(0) < value <= LONGEST_DURATION:
        raise ValueError(f"is {_shown(value)}; give {_expected(kind)}, above 0 and up to 36500d")
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and _CONTROL.search(text) for text in texts):
        raise ValueError("has a control character or half a character in it; remove it")
    return _anchored(setting, value)


def _shown(value: object) -> str:
    """Return a wrong value for a message, with passwords and keys masked."""
    if isinstance(value, dict | list):
        return f"a {'section' if isinstance(value, dict) else 'list'}"
    return repr(mask_url_password(str(value)))


def _prepared(setting: Setting, kind: Any) -> Any:
    """Parse durations, and lists in the environment: TOML and the environment lack these types."""
    value = setting.value
    if kind is timedelta:
        return parse_duration(value)
    if setting.is_text and get_origin(kind) is list:
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _anchored(setting: Setting, value: Any) -> Any:
    """Resolve the relative paths among the values against the folder they were written in."""
    if setting.name in {"key_file", "token_key_file", "metrics_file"}:
        return _resolved(value, setting.folder)
    if setting.key == "runs.sources":
        return [_resolved(pattern, setting.folder, glob.escape) for pattern in value]
    if setting.key == "database.url":
        return _database_url(value, setting.folder)
    return value


def _resolved(path: str, folder: Path, escape: Callable[[str], str] = str) -> str:
    """Resolve `path` against `folder`, or a home folder, whose own name `escape` spells."""
    if not path:
        raise ValueError("is empty; give the path of a file, or leave it out")
    if not path.startswith("~"):
        return str(Path(escape(str(folder))) / path)
    home, _, rest = path.partition("/")
    try:
        return str(Path(escape(str(Path(home).expanduser()))) / rest.lstrip("/"))
    except RuntimeError:
        raise ValueError(f"is {path!r}; there is no such home folder, give a whole path") from None


def _database_url(url: str, folder: Path) -> str:
    """Name our driver, and resolve an SQLite file. Raises ValueError for other databases."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in {"postgresql", "postgres", "postgresql+psycopg"}:
        if _has_raw_at(rest):
            raise ValueError(
                f"is {mask_url_password(url)!r}; write an @ of the user's name or password as %40"
            )
        return f"postgresql+psycopg://{rest}"
    if separator and scheme in {"sqlite", "sqlite+pysqlite"} and rest.startswith("/"):
        path = rest[1:].partition("?")[0]
        if path and path != ":memory:":
            return f"sqlite:///{_resolved(path, folder, quote)}{rest[1 + len(path) :]}"
    raise ValueError(
        f"is {mask_url_password(url)!r}; give sqlite:///FILE or"
        " postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    )


def _has_raw_at(rest: str) -> bool:
    """Tell whether a URL has an `@` before the one that ends the password.

    The driver would end the password at the first one, and print what follows as the host.
    """
    authority, _, query = rest.partition("?")
    if "@" not in authority and re.match("[^:/]+:", authority):  # the ? is one of the password
        authority += query
    return authority.count("@") > 1


def _assembled(values: Mapping[str, Mapping[str, Any]]) -> Config:
    api = Api(**values.get("api", {}))
    sources = {DEFAULT_SOURCE: Source(api.base_url, API_KEY_ENV, api.key_file)}
    for section, body in values.items():
        if section.startswith("sources."):
            sources.setdefault(section.removeprefix("sources."), Source(**body))
    return Config(
        sources=sources,
        database=Database(**values.get("database", {})),
        api=api,
        runs=Runs(**values.get("runs", {})),
        polling=Polling(**values.get("polling", {})),
        schedule=Schedule(**values.get("schedule", {})),
        telemetry=Telemetry(**values.get("telemetry", {})),
        reporting=Reporting(**values.get("reporting", {})),
        security=Security(**values.get("security", {})),
        log=Log(**values.get("log", {})),
    )


def _clashes(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield (section, name, problem) for values that their type allows and that cannot work."""
    for name, source in config.sources.items():
        section = "api" if name == DEFAULT_SOURCE else f"sources.{name}"
        if problem := _base_url_problem(source.base_url):
            yield section, "base_url", problem
        if name != DEFAULT_SOURCE and (source.key_env is None) == (source.key_file is None):
            yield section, "key_env", "or key_file must say where the key is: give exactly one"
        if source.key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", source.key_env):
            problem = "is not the name of a variable; write one in capitals, never the key itself"
            yield section, "key_env", problem
    for section, zone in (
        ("reporting", config.reporting.time_zone),
        ("schedule", config.schedule.time_zone),
    ):
        if zone != "UTC" and zone not in available_timezones():  # lists hundreds of files
            problem = f"is {zone!r}; give a name such as 'Europe/Berlin' or 'UTC'"
            yield section, "time_zone", problem
    schema = config.database.reporting_schema
    if not re.fullmatch(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}", schema):
        problem = f"is {schema!r}; give a name of lower-case letters, digits and _, not pg_..."
        yield "database", "reporting_schema", problem
    polling = config.polling
    if polling.retry_at_most_every < polling.retry_every:
        yield (
            "polling",
            "retry_at_most_every",
            "is shorter than polling.retry_every; make it longer",
        )
    if polling.watch_for < polling.watch_every:
        yield "polling", "watch_for", "is shorter than polling.watch_every; make it longer"


def _base_url_problem(url: str) -> str | None:
    shown = f"is {_masked_base_url(url)!r}"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return f"{shown}, which is not a URL; give https://HOST"
    if re.search(r"[\s?#@]", url):  # an @ ends a user's name or password
        return f"{shown}, which has more than scheme, host and path; give https://HOST"
    if re.search(r"/api/(result|plan)\b", parts.path):
        return f"{shown}, which is the address of a call; leave out the path from /api on"
    if parts.scheme == "http" and host and not is_loopback(host):
        return f"{shown}; plain http would show the key to the network, give https://{host}"
    return None if parts.scheme in {"http", "https"} and host else f"{shown}; give https://HOST"


def _masked_base_url(url: str) -> str:
    """Mask all that could be a secret: a user's name, too, and each parameter."""
    shown = re.sub(r"(?s)^([a-z+.-]*://)?.*@", rf"\1{MASK}@", url)
    return re.sub(r"(?s)([?#]).+", rf"\1{MASK}", shown)


def is_loopback(host: str) -> bool:
    """Tell whether `host` can only be this machine, to which plain http is safe."""
    return host in {"localhost", "::1"} or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode categories Cc and Cs
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def parse_duration(value: object) -> timedelta:
    """Return "90s", "5m", "1h30m", "14d" or a number of seconds as a timedelta.

    Raises:
        ValueError: another text.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value)
    text = str(value).strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return timedelta(seconds=float(text))
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", "", text):
        raise ValueError("not a duration")
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


def _expected(kind: Any) -> str:
    """Describe the values that a setting of this type accepts."""
    if kind is timedelta:
        return 'a duration such as "90s", "5m", "2h" or "14d"'
    if get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(kind))
    if get_origin(kind) is list:
        return "a list of texts"
    if get_origin(kind) is Annotated:
        base, meta = get_args(kind)
        return "a whole number" + _range(meta) if base is int else "a number" + _range(meta)
    return "a text"


def _range(meta: Meta) -> str:
    low = f", {meta.ge} or more" if meta.ge is not None else ""
    above = f" above {meta.gt}" if meta.gt is not None else ""
    high = f", {meta.le} at most" if meta.le is not None else ""
    return low + above + high


def _unknown(name: str, known: list[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  loaded for a misspelt name alone

    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"is not a setting; {hint}"


def _known_sections() -> str:
    return f"there are {', '.join([*SECTIONS, 'sources.NAME'])}"
