"""Make the tiny recipe of tests/train importable, in Ray's workers too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SUPPORT = str(Path(__file__).parents[1] / "train" / "support")
sys.path.insert(0, _SUPPORT)
# before Ray starts: its processes inherit it
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SUPPORT, os.environ.get("PYTHONPATH")]))
