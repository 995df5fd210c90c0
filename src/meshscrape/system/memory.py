"""How much freed memory the C library keeps for the process."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory(most: int, largest: int) -> None:
    """Keep up to `most` freed bytes for the next allocations of up to `largest` bytes each.

    By default glibc gives large buffers back to the kernel at once. Each new one then costs a page fault for
    every 4 kB. A C library without mallopt (musl) stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, most)
        mallopt(_MMAP_THRESHOLD, largest)
