"""Import libraries without what they would take along for the sake of features we do not use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(name: str) -> Iterator[None]:
    """Have libraries imported meanwhile believe that the package `name` is not installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python itself marks it as missing
    try:
        yield
    finally:
        del sys.modules[name]
