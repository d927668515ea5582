"""Make the tiny recipe importable, in spawned processes and Ray workers too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "support"))
