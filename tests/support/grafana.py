"""Hold a dashboard against Grafana's published models of it (the package grafana-foundation-sdk).

Its models know all fields of dashboards, variables, panels and their options, but no query of a
data source of type PostgreSQL: `SqlQuery` has the fields of `SQLQuery` in Grafana's packages/
grafana-sql/src/types.ts.
"""

import json
from collections.abc import Iterator
from enum import Enum
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from msgspec import Struct, convert

OF_ONE_TYPE = (bool, int, str, type(None))


class DataSource(Struct, forbid_unknown_fields=True):
    type: Literal["grafana-postgresql-datasource"]
    uid: str


class SqlQuery(Struct, forbid_unknown_fields=True):
    """A query of a panel; we leave out the fields of the query builder."""

    refId: str  # noqa: N815  Grafana's name
    datasource: DataSource
    editorMode: Literal["code", "builder"]  # noqa: N815
    rawQuery: bool  # noqa: N815
    rawSql: str  # noqa: N815
    format: Literal["time_series", "table"]


def list_faults(dashboard: dict[str, Any]) -> list[str]:
    """Return the places of unknown fields and wrong types. A query that is wrong is an error."""
    register_default_plugins()
    read = Dashboard.from_json(dashboard)
    written = json.loads(JSONEncoder().encode(read))
    for panel in dashboard["panels"]:
        convert(panel["targets"], list[SqlQuery])
    return [*_list_lost(dashboard, written, ""), *_list_wrong(read, "")]


def _list_lost(given: Any, written: Any, place: str) -> Iterator[str]:
    """Yield the fields that the models do not have: they do not write them again."""
    if isinstance(given, dict) and isinstance(written, dict):
        for name, value in given.items():
            if name in written:
                yield from _list_lost(value, written[name], f"{place}.{name}")
            else:
                yield f"{place}.{name}: unknown"
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for number, pair in enumerate(zip(given, written, strict=True)):
            yield from _list_lost(*pair, f"{place}[{number}]")
    elif given != written:
        yield f"{place}: {given!r} became {written!r}"


def _list_wrong(model: Any, place: str) -> Iterator[str]:
    """Yield the fields of a model, and of those in it, whose value has another type."""
    for name, hint in get_type_hints(type(model)).items():
        value, here = getattr(model, name), f"{place}.{name}"
        if not _fits(value, hint):
            yield f"{here}: {value!r} is not of {hint}"
        for number, each in enumerate(value if isinstance(value, list) else [value]):
            if hasattr(each, "from_json"):
                yield from _list_wrong(each, f"{here}[{number}]")


def _fits(value: Any, hint: Any) -> bool:
    """Tell if a value is of a type; the values of models themselves are not looked at."""
    if get_origin(hint) in {Union, UnionType}:
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(each, *get_args(hint)) for each in value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in {each.value for each in hint}
    if hint is float:  # JSON has one kind of number
        return type(value) in {int, float}
    return type(value) is hint if hint in OF_ONE_TYPE or hasattr(hint, "from_json") else True
