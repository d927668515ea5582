"""A simulated platform with known truth, of any size, deterministic by seed."""

from __future__ import annotations

from rec.sources.synthetic.settings import SyntheticConfig
from rec.sources.synthetic.source import SyntheticSource
from rec.sources.synthetic.speech import Quality
from rec.sources.synthetic.truth import Truth

__all__ = ["Quality", "SyntheticConfig", "SyntheticSource", "Truth"]
