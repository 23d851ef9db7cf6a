"""The charts and measures of charts.toml."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct, convert

CATALOG = Path(__file__).with_name("charts.toml")


class Measure(Struct, frozen=True, forbid_unknown_fields=True):
    """A figure over rows of a view; charts.toml explains the fields."""

    title: str
    views: Sequence[str]
    unit: str = ""
    rows: bool = False
    sum: Sequence[str] = ()
    over: Sequence[str] = ()
    mean: str = ""
    newest: str = ""
    per: int = 1


class BoardChart(Struct, frozen=True, forbid_unknown_fields=True):
    """A chart; charts.toml explains the fields."""

    title: str
    description: str
    view: str
    drawing: Literal["lines", "stacked", "bars", "table"]
    order: Sequence[str]
    when: str = ""
    time: str = ""
    groups: Sequence[str] = ()
    measures: Sequence[str] = ()
    columns: Sequence[str] = ()
    where: str = ""

    @property
    def dimensions(self) -> list[str]:
        """The columns that rows are grouped by."""
        return [*filter(None, [self.time]), *self.groups]


class Catalog(Struct, frozen=True, forbid_unknown_fields=True):
    """All of charts.toml."""

    measures: Mapping[str, Measure]
    charts: Mapping[str, BoardChart]


def read_catalog() -> Catalog:
    """Read charts.toml."""
    return convert(tomllib.loads(CATALOG.read_text(encoding="utf-8")), Catalog)
