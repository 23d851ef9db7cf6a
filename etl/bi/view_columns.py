"""The views of an archive as its data dictionary describes them, and how tools reach them."""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import URL, Connection, select

from etl.bi.chart_catalog import Catalog
from etl.config.settings import DEFAULT_TO_STORE
from etl.db.archive_settings import read_reporting_schema
from etl.db.ownership import quote_name
from etl.db.schema import data_dictionary

MADE_BY = "Made by `result-archiver bi"
"""Each file has these words near its beginning or its end, by which it is known as ours."""
FILTERS = ("source", "application", "plan", "branch")
"""The columns that dashboards filter by, where a view has them."""


class ViewColumn(NamedTuple):
    """A column: meaning, type on PostgreSQL, kind and unit."""

    description: str
    type: str
    kind: str
    unit: str | None


class DescribedView(NamedTuple):
    """A view: its meaning, and its columns by name."""

    description: str
    columns: Mapping[str, ViewColumn]

    @property
    def filters(self) -> list[str]:
        """The columns that dashboards filter by."""
        return [name for name in FILTERS if name in self.columns]


class BiSource(NamedTuple):
    """All that dashboards are made from.

    `schema` is that of the views on this database, `quoted_schema` its name in PostgreSQL's SQL;
    `url` is how the tool reaches the database. `prefix` tells the dashboards of several archives
    apart in one tool.
    """

    catalog: Catalog
    views: Mapping[str, DescribedView]
    dialect: str
    schema: str
    quoted_schema: str
    url: URL
    prefix: str

    def quoted_view(self, name: str) -> str:
        """Return a view's name in the SQL of this database."""
        return f"{self.quoted_schema}.{name}" if self.dialect == "postgresql" else name

    def name(self, text: str) -> str:
        """Return a name or slug that is unique in the tool."""
        return f"{self.prefix}-{text}" if self.prefix else text

    def title(self, text: str) -> str:
        """Return a title that people can tell from that of another archive."""
        return f"{self.prefix}: {text}" if self.prefix else text


def read_views(connection: Connection) -> Mapping[str, DescribedView]:
    """Return the views by name."""
    columns = data_dictionary.c
    query = select(data_dictionary).order_by(columns.object_name, columns.column_name)
    views: dict[str, tuple[str, dict[str, ViewColumn]]] = {}
    for view, name, *facts in connection.execute(query):
        if name:
            views[view][1][name] = ViewColumn(*facts)
        else:
            views[view] = (facts[0], {})
    return {name: DescribedView(*facts) for name, facts in views.items()}


def read_schema(connection: Connection) -> str:
    """Return the schema of the views: on SQLite the one that all tools name `main`."""
    return read_reporting_schema(connection) or "main"


def quote_schema(connection: Connection) -> str:
    """Return the schema of the views as PostgreSQL's SQL has it."""
    schema = read_reporting_schema(connection)
    return quote_name(connection, schema) if schema else DEFAULT_TO_STORE.reporting_schema
