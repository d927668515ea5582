"""What the service under load serves."""

from __future__ import annotations

import sys
from pathlib import Path

from serving import make_encoder, publish_index, recommendable, served

sys.path.insert(0, str(Path(__file__).parent / "support"))

__all__ = ["make_encoder", "publish_index", "recommendable", "served"]
