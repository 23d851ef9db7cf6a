"""Spare memory, and the time it takes to start, where libraries and the C library waste them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from warnings import catch_warnings, simplefilter


@contextmanager
def without(name: str) -> Iterator[None]:
    """Have libraries imported meanwhile believe that the package `name` is not installed.

    What they have to say about that is not heard.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # how Python itself marks it as missing
    try:
        with catch_warnings():
            simplefilter("ignore")
            yield
    finally:
        del sys.modules[name]


_M_ARENA_MAX = -8


def share_one_heap() -> None:
    """Have all threads take memory from one heap, where the C library is glibc.

    It would give each of them a heap of its own (mallopt(3), M_ARENA_MAX), and what is free in
    one cannot be used in another: 10 to 20 MiB of a pass. Python's own lock keeps threads from
    having to wait for the one heap. To be called before there are threads.
    """
    try:
        import ctypes  # noqa: PLC0415  only who starts threads needs it, and not each Python has it

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):
        return  # another C library
    mallopt(_M_ARENA_MAX, 1)
