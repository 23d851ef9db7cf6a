"""`--dask`: the option of commands that can work on a Dask cluster, and the connection to it."""

from typing import TYPE_CHECKING

from click import option

from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.ingest.dask_runner import DaskRunner

dask = option("--dask", metavar="ADDRESS", help="Do the work on a Dask cluster: tcp://HOST:8786.")


def connect_to_dask(address: str) -> "DaskRunner":
    """Return the runner of a cluster. Raises UsageError: it does not answer, or Dask is missing."""
    try:
        from etl.ingest.dask_runner import DaskRunner  # noqa: PLC0415  an extra, and slow to load
    except ImportError:
        raise UsageError(
            "--dask: the package distributed is missing",
            "run `pip install 'result-archiver[dask]'` here and on the cluster",
        ) from None
    return DaskRunner(address)
