"""Memory that a CPU training step frees is used again by the next step.

glibc gives large blocks back to the kernel as they are freed and takes new ones, whose pages the
kernel clears at first touch. A training step allocates the same tensors every time: with
DeepSpeed's flat gradient buffers (76 MB), these faults were a sixth of a step.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 2**31 - 1  # an int in C
# for the environment of processes that train in another thread than their main one, as Ray
# Train's workers do: such a thread's own arena takes no block above 64 MB
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, from now on. False where malloc is not glibc's.

    Its size stays at its peak, which the next step reaches again anyway.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))
