"""Spare memory, and the time it takes to start, where libraries and the C library waste them."""

import gc
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


def look_for_cycles_seldom() -> None:
    """Have Python look for cycles less often: ours hold hardly any.

    It would take a third of the time of storing a large pass, and a tenth of that of fetching it.
    """
    gc.set_threshold(20_000, 10, 100)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 4 * 1_048_576


def tune_heap() -> None:
    """Have threads share one heap that keeps what large answers need, where there is glibc.

    It would give each thread a heap of its own, and what is free in one cannot be used in
    another: 10 to 20 MiB of a pass. Python's own lock keeps threads from having to wait for the
    one heap. And what an answer of 400 KB took it would give back to the kernel after each, only
    to have it cleared and given again: a third of the time of fetching it. See mallopt(3). To be
    called before there are threads.
    """
    try:
        import ctypes  # noqa: PLC0415  only who starts threads needs it, and not each Python has it

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):
        return  # another C library
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
