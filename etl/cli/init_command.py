"""`init`: the settings file."""

from pathlib import Path

import click

import etl
from etl import display
from etl.cli import options
from etl.errors import UsageError


@click.command(epilog="Example: result-archiver init")
@options.pass_config_file
def init(path: Path | None) -> int:
    """Write a commented config.toml (or the file given by --config)."""
    from etl.config.loading import DEFAULT_PATH

    target = path or DEFAULT_PATH
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(example_config().read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(
            f"{target}: exists already, and was left as it is",
            "`result-archiver --config FILE init` writes another",
        ) from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    display.note(f"wrote {target}; next: set APPLITOOLS_API_KEY, then `result-archiver doctor`")
    return 0


def example_config() -> Path:
    """Return the path of the example: at the top of a checkout, inside `etl` in a wheel."""
    package = Path(etl.__file__).parent
    bundled = package / "_bundled" / "config.example.toml"
    return bundled if bundled.exists() else package.parent / "config.example.toml"
