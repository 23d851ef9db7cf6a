"""Write views and tables as Parquet, typed, with the descriptions of the data dictionary.

The only module that imports pyarrow, which the extra `lake` installs.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Float,
    FromClause,
    select,
)

from etl.db.schema import Day, Timestamp, data_dictionary
from etl.export.tables import Parts, with_json_as_text

MADE_BY = (b"made_by", b"result-archiver")
ROWS_IN_A_GROUP = 20_000
"""The number of rows in memory, and in a row group of a file."""

Descriptions = Mapping[tuple[str, str], str]
"""The texts of the data dictionary by view and column."""


def read_descriptions(connection: Connection) -> Descriptions:
    """Return the texts of the data dictionary."""
    columns = data_dictionary.c
    query = select(columns.object_name, columns.column_name, columns.description)
    return {(view, name): text for view, name, text in connection.execute(query)}


def write_parquet(descriptions: Descriptions, file: Path, rows: FromClause, parts: Parts) -> int:
    """Write Parquet; days and moments are typed, and moments are in UTC. JSON is text."""
    name = file.stem
    fields = [_field(each, descriptions.get((name, each.name), "")) for each in rows.c]
    metadata = dict([MADE_BY, (b"description", descriptions.get((name, ""), "").encode())])
    schema = pa.schema(fields, metadata)
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in parts:
            columns = zip(*with_json_as_text(rows, part), strict=True)
            arrays = [
                pa.array(values, field.type) for values, field in zip(columns, fields, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(part)
    return count


def _field(column: ColumnElement[object], description: str) -> pa.Field:
    metadata = {"description": description} if description else None
    return pa.field(column.name, _type_of(column), metadata=metadata)


def _type_of(column: ColumnElement[object]) -> pa.DataType:
    match column.type:
        case Day() | Date():
            return pa.date32()
        case Timestamp() | DateTime():
            return pa.timestamp("ms", "UTC")
        case Boolean():
            return pa.bool_()
        case BigInteger():
            return pa.int64()
        case Float():
            return pa.float64()
        case _:
            return pa.string()


def is_parquet_of(columns: Collection[str], file: Path) -> bool:
    """Tell whether `file` is an earlier export of a table with `columns`."""
    key, value = MADE_BY
    try:
        found = pq.read_schema(file)
    except pa.ArrowInvalid:  # no Parquet
        return False
    return (found.metadata or {}).get(key) == value and set(found.names) <= set(columns)
