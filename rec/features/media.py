"""What pictures and sound have in common: how a bad file is named, which pieces are picked."""

from __future__ import annotations

import numpy as np


class MediaError(ValueError):
    """Bytes that cannot be read as a picture or as sound. The message says why."""


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the positions 0 to count-1, evenly spread, in order.

    All of them where they fit; else the middles of `limit` equal stretches, so that one of many
    is the middle one.
    """
    if count <= limit:
        return list(range(count))
    middles = (np.arange(limit) + 0.5) * count / limit
    return middles.astype(int).tolist()
