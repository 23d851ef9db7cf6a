"""Memory that threads would waste, and Pythons that cannot be asked to spare it."""

import subprocess
import sys

HEAPS_OF_THREADS = """
import ctypes, sys, threading
from etl.runtime import tune_heap

if "shared" in sys.argv:
    tune_heap()
barrier = threading.Barrier(9)

def take() -> None:
    kept = [bytes(1000) for _ in range(1000)]
    barrier.wait()

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fflush(ctypes.c_void_p(out))
"""


def heaps(*arguments: str) -> int:
    """Return how many heaps glibc has after eight threads were busy."""
    command = [sys.executable, "-c", HEAPS_OF_THREADS, *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return told.count("<heap ")


def test_all_threads_tune_heap() -> None:
    assert heaps() > 1
    assert heaps("shared") == 1


def test_a_python_without_ctypes_goes_without() -> None:
    code = "import sys; sys.modules['_ctypes'] = None; from etl import runtime; runtime.tune_heap()"
    subprocess.run([sys.executable, "-c", code], check=True)
