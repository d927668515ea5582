"""Freed memory is used again, seen by the page faults of the kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PAGES = """
import resource
import numpy as np
from rec.train.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(16 << 20, np.float32)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
kept = keep_freed_memory()
faults()
print(kept, first, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_large_blocks_are_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PAGES], capture_output=True, text=True, check=True
    )
    kept, before, after = done.stdout.split()
    assert kept == "True"
    assert int(before) > 10 * int(after)
