"""What the tests serve."""

from __future__ import annotations

import sys
from pathlib import Path

from serving import catalogued, make_encoder, publish_index, recommendable, served, tables

sys.path.insert(0, str(Path(__file__).parent / "support"))

__all__ = ["catalogued", "make_encoder", "publish_index", "recommendable", "served", "tables"]
