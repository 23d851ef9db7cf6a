"""Print the bytes per test row of each table of an archive on PostgreSQL: -m bench.sizes URL."""

import sys

import psycopg

QUERY = """
SELECT relname, pg_table_size(oid), pg_indexes_size(oid)
  FROM pg_class
 WHERE relkind = 'r' AND relnamespace = current_schema::regnamespace
 ORDER BY pg_total_relation_size(oid) DESC
"""


def main() -> None:
    """Print a line for each table that has at least a byte per test row, and the sum of all."""
    with psycopg.connect(sys.argv[1].replace("+psycopg", "")) as connection:
        [tests] = connection.execute("SELECT count(*) FROM tests").fetchone() or (0,)
        sizes = connection.execute(QUERY).fetchall()
    total = ("all tables", sum(size[1] for size in sizes), sum(size[2] for size in sizes))
    print(f"{tests:,} test rows; bytes per test row:")
    for name, rows, indexes in [*sizes, total]:
        if rows + indexes >= tests:
            print(f"{name:22} {rows / tests:8.1f} in rows {indexes / tests:8.1f} in indexes")


if __name__ == "__main__":
    main()
