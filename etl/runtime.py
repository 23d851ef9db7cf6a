"""Tune imports, garbage collection and the C heap, to save memory and start-up time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from warnings import catch_warnings, simplefilter


@contextmanager
def hide_package(name: str) -> Iterator[None]:
    """Hide the package `name` from libraries that are imported meanwhile; mute warnings."""
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


def relax_garbage_collection() -> None:
    """Run the garbage collector less often, and never on the objects that exist by now.

    We create almost no reference cycles. With Python's thresholds it takes a third of the time of
    storing a large pass, and a tenth of the time of fetching it.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 100)
    gc.enable()


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_TRIM_BYTES = 4 * 1_048_576


def tune_heap() -> None:
    """Use one malloc arena for all threads, and trim it rarely, where the C library is glibc.

    By default each thread has an arena, whose free memory no other thread can use: 10 to 20 MiB in
    a pass. One arena causes no contention, since Python's lock is held. The trim threshold keeps
    the memory of an answer (400 KB): returning it to the kernel, which clears it and gives it
    again, takes a third of the time of fetching. See mallopt(3). Call it before threads start.
    """
    try:
        import ctypes  # noqa: PLC0415  only who starts threads needs it, and not each Python has it

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):
        return  # another C library
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _TRIM_BYTES)
