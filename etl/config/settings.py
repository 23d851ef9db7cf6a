"""The settings and their defaults, as pure values: config.example.toml explains each.

Secrets are not among them, only the places where secrets are stored.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct

VENDOR_URL = "https://autonomous.applitools.com"

LogLevel = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Database(Struct, frozen=True):
    """The archive's database: an SQLAlchemy URL of SQLite or PostgreSQL.

    `reporting_schema` is the schema of the views on PostgreSQL.
    """

    url: str = "sqlite:///results.db"
    reporting_schema: str = "reporting"


class Api(Struct, frozen=True):
    """The default account, and the limits of requests to every account's API."""

    base_url: str = VENDOR_URL
    key_file: str | None = None
    connections: Annotated[int, Meta(ge=1, le=256)] = 8
    max_requests_per_second: Annotated[float, Meta(ge=0, le=10_000)] = 50.0
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    connect_timeout_s: Seconds = 10.0
    read_timeout_s: Seconds = 30.0
    total_timeout_s: Seconds = 120.0
    max_wait_s: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    max_body_mb: Annotated[float, Meta(gt=0, le=1024)] = 64.0


class Source(Struct, frozen=True):
    """One account: its API and the place of its key (`key_env` or `key_file`)."""

    base_url: str = VENDOR_URL
    key_env: str | None = None
    key_file: str | None = None


class Runs(Struct, frozen=True):
    """Run lists that each pass reads: absolute patterns, see `glob`."""

    sources: list[str] = []


class Schedule(Struct, frozen=True):
    """The times of the service's passes: `cron` if it is given, else the interval `every`."""

    every: timedelta = timedelta(minutes=5)
    cron: str = ""
    time_zone: str = "UTC"
    misfire_grace: timedelta = timedelta(hours=1)


class Telemetry(Struct, frozen=True):
    """Monitoring: metrics for Prometheus, and pings to a dead man's switch."""

    metrics_file: str | None = None
    metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    metrics_host: str = "127.0.0.1"
    ping_url: str | None = None
    ping_timeout_s: Seconds = 3.0


class Rules(NamedTuple):
    """The windows and flaky thresholds of [reporting]."""

    window_results: int = 10
    window_days: int = 30
    flaky_min_results: int = 5
    flaky_min_flips: int = 2
    flaky_min_flip_rate: float = 0.3


DEFAULT_RULES = Rules()


class Reporting(Struct, frozen=True):
    """The time zone, windows and flaky thresholds of reports."""

    time_zone: str = "UTC"
    window_results: Annotated[int, Meta(ge=2, le=100)] = 10
    window_days: Annotated[int, Meta(ge=1, le=3660)] = 30
    flaky_min_results: Annotated[int, Meta(ge=2, le=100)] = 5
    flaky_min_flips: Annotated[int, Meta(ge=1, le=99)] = 2
    flaky_min_flip_rate: Annotated[float, Meta(ge=0, le=1)] = 0.3

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the days in `runs.started_on`."""
        return ZoneInfo(self.time_zone)

    @property
    def rules(self) -> Rules:
        """The windows and flaky thresholds."""
        return Rules(*[getattr(self, name) for name in Rules._fields])


class StoredSettings(NamedTuple):
    """The settings that an archive keeps: those of its derived rows, and its views' schema."""

    reporting: Reporting = Reporting()
    reporting_schema: str = Database().reporting_schema


DEFAULT_TO_STORE = StoredSettings()


class Security(Struct, frozen=True):
    """The place of the key that encrypts read tokens at rest."""

    token_key_file: str = "~/.config/result-archiver/token.key"  # noqa: S105  a path, not a secret


class Log(Struct, frozen=True):
    """The level and format of logs to stderr."""

    level: LogLevel = "info"
    format: Literal["text", "json"] = "text"


class Polling(Struct, frozen=True):
    """When a run is fetched again, and when it is given up."""

    running_every: timedelta = timedelta(minutes=2)
    give_up_after: timedelta = timedelta(days=7)
    settle_after: timedelta = timedelta(hours=1)
    watch_every: timedelta = timedelta(hours=1)
    watch_for: timedelta = timedelta(days=30)
    growth: Annotated[float, Meta(ge=0, le=1)] = 0.1
    retry_every: timedelta = timedelta(minutes=1)
    retry_at_most_every: timedelta = timedelta(hours=6)
    max_attempts: Annotated[int, Meta(ge=1)] = 10
    max_requests_per_pass: Annotated[int, Meta(ge=0)] = 0
    lease_for: timedelta = timedelta(minutes=10)


SECTIONS: Mapping[str, type[Struct]] = {
    "database": Database,
    "api": Api,
    "runs": Runs,
    "polling": Polling,
    "schedule": Schedule,
    "telemetry": Telemetry,
    "reporting": Reporting,
    "security": Security,
    "log": Log,
}


class Config(Struct, frozen=True):
    """All settings. `sources` has the `[api]` account as "default" beside the further ones."""

    sources: Mapping[str, Source]
    database: Database = Database()
    api: Api = Api()
    runs: Runs = Runs()
    polling: Polling = Polling()
    schedule: Schedule = Schedule()
    telemetry: Telemetry = Telemetry()
    reporting: Reporting = Reporting()
    security: Security = Security()
    log: Log = Log()

    @property
    def to_store(self) -> StoredSettings:
        """The settings that a new archive keeps."""
        return StoredSettings(self.reporting, self.database.reporting_schema)
