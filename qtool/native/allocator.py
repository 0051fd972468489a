"""Let the C library keep freed memory: a training step needs as much again in the next one.

glibc gives large blocks back to the kernel when they are freed; each new tensor then costs a
page fault for every 4 KiB, which took 5 % of a float step and 15 % of a quantized one
(`benchmarks/qat_step.py`).
"""

import ctypes
import sys

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Tell the allocator, for this process; False where it is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
