"""The settings and their defaults, as pure values: config.example.toml explains each.

Secrets are no settings: only where they are kept is known here.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct

VENDOR_URL = "https://autonomous.applitools.com"

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Database(Struct, frozen=True):
    """Where the archive is: an SQLAlchemy URL of SQLite or PostgreSQL."""

    url: str = "sqlite:///results.db"


class Api(Struct, frozen=True):
    """The default account, and how every account's API is asked."""

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
    """One account: its API and where its key is kept (`key_env` or `key_file`)."""

    base_url: str = VENDOR_URL
    key_env: str | None = None
    key_file: str | None = None


class Runs(Struct, frozen=True):
    """Run lists that each pass reads by itself."""

    sources: list[str] = []


class Schedule(Struct, frozen=True):
    """When the service does a pass: by `cron` if it is given, else `every` so often."""

    every: timedelta = timedelta(minutes=5)
    cron: str = ""
    time_zone: str = "UTC"
    misfire_grace: timedelta = timedelta(hours=1)


class Telemetry(Struct, frozen=True):
    """How others learn that the archiver is well: Prometheus, and a dead man's switch."""

    metrics_file: str | None = None
    metrics_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    metrics_host: str = "127.0.0.1"
    ping_url: str | None = None
    ping_timeout_s: Seconds = 3.0


class Reporting(Struct, frozen=True):
    """Whose days reports count, what they look back on, and what they call flaky."""

    time_zone: str = "UTC"
    window_results: Annotated[int, Meta(ge=2, le=100)] = 10
    window_days: Annotated[int, Meta(ge=1, le=3660)] = 30
    flaky_min_results: Annotated[int, Meta(ge=2, le=100)] = 5
    flaky_min_flips: Annotated[int, Meta(ge=1, le=99)] = 2
    flaky_min_flip_rate: Annotated[float, Meta(ge=0, le=1)] = 0.3


class Security(Struct, frozen=True):
    """Where the key is kept that encrypts read tokens at rest."""

    token_key_file: str = "~/.config/result-archiver/token.key"  # noqa: S105  a path, not a secret


class Log(Struct, frozen=True):
    """What is logged to stderr, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Polling(Struct, frozen=True):
    """The `[polling]` settings: when a run is asked for again (see config.example.toml)."""

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


class Rules(NamedTuple):
    """The settings in [reporting] that decide what counts as flaky, and over which windows."""

    window_results: int = 10
    window_days: int = 30
    flaky_min_results: int = 5
    flaky_min_flips: int = 2
    flaky_min_flip_rate: float = 0.3


DEFAULT_RULES = Rules()


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
    def reporting_zone(self) -> ZoneInfo:
        """The time zone whose days `runs.started_on` counts."""
        return ZoneInfo(self.reporting.time_zone)

    @property
    def rules(self) -> Rules:
        """What reports count by."""
        return Rules(*[getattr(self.reporting, name) for name in Rules._fields])
