"""The files for each BI tool, written whole or not at all, never over a file that is not ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from etl.bi import for_datasette, for_dbt, for_grafana, for_powerbi, for_sql, for_superset
from etl.bi.view_columns import MADE_BY, BiSource
from etl.errors import UsageError
from etl.files import ForeignFileError, write_whole

SEARCHED_BYTES = 65_536

MARK = MADE_BY.encode()

Files = Mapping[str, bytes]
"""Contents by path within a folder; a single file has the path ""."""


class BiTool(NamedTuple):
    """A tool: a description of its files, and the function that makes them."""

    makes: str
    make: Callable[[BiSource], Files]


TOOLS = {
    "superset": BiTool("a ZIP file for superset import-dashboards", for_superset.make),
    "grafana": BiTool("a dashboard in JSON, on PostgreSQL", for_grafana.make),
    "datasette": BiTool("metadata in JSON, with queries and a board", for_datasette.make),
    "sql": BiTool("a folder with a query of each chart for each database", for_sql.make),
    "powerbi": BiTool("a folder with a connection file and measures", for_powerbi.make),
    "dbt": BiTool("a folder with a package of sources, models and metrics", for_dbt.make),
}


def find_tool(name: str) -> BiTool:
    """Return the tool called `name`. Raises UsageError for an unknown name."""
    if name not in TOOLS:
        raise UsageError(f"bi {name}: there is no such tool; there are {', '.join(TOOLS)}")
    return TOOLS[name]


def write_bundle(tool: str, source: BiSource, output: Path) -> list[Path]:
    """Write the files for a tool to `output`, and return their paths.

    Raises:
        UsageError: there is no such tool, a file cannot be written, or one that exists is not ours.
    """
    made = find_tool(tool).make(source)
    files = {output / path if path else output: content for path, content in made.items()}
    try:
        for folder in {file.parent for file in files if file != output}:
            folder.mkdir(parents=True, exist_ok=True)
        with write_whole(dict.fromkeys(files, is_ours)) as drafts:
            for draft, content in zip(drafts, files.values(), strict=True):
                draft.write_bytes(content)
    except ForeignFileError as error:
        raise UsageError(f"--output {error}") from None
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error.strerror}") from None
    return list(files)


def is_ours(file: Path) -> bool:
    """Tell whether `bi` wrote the file."""
    with file.open("rb") as opened:
        start = opened.read(SEARCHED_BYTES)
        opened.seek(max(0, file.stat().st_size - SEARCHED_BYTES))
        end = opened.read()
    return start.startswith(for_powerbi.CONNECTION) or any(MARK in each for each in (start, end))
