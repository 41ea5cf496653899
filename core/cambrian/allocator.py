"""How the C library hands out memory."""

from __future__ import annotations

import ctypes
import sys


def keep_memory() -> bool:
    """Have glibc keep freed memory instead of returning it to the kernel.

    A training step frees and takes the same large blocks; by default each is mapped and zeroed
    anew by the kernel, which costs 10 to 50 % of a step at GPT-2's width. Returns whether it
    took effect (glibc only). It holds for the whole process, so only the command line calls it.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1))
    except (OSError, AttributeError):
        return False
