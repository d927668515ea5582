"""Labels from what people wrote: normalised tags and queries, and how much each is worth.

Weights follow TF-IDF with freshness: tf = log(1 + count), idf = log((1 + N) / (1 + df)) + 1,
fresh = 2^(-age / half-life) with a floor.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.config import Config

# a key of its own for what is written with symbols alone would be empty: those become null
_SEPARATORS = r"[\p{P}\p{S}\p{Z}\p{C}]+"


class LabelWeights(Config):
    """How a label's weight on an item is made from counts and times."""

    weighting: Literal["tfidf", "plain"] = "tfidf"  # plain: every weight is 1
    half_life_days: float = Field(default=365.0, gt=0)
    fresh_floor: float = Field(default=0.1, ge=0, le=1)  # so that the old still counts a little
    min_weight: float = Field(default=0.1, ge=0)  # in units of the mean weight
    max_weight: float = Field(default=10.0, gt=0)


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Tags and queries in one spelling: "#Sci-Fi", "sci_fi" and "ＳＣＩ　ＦＩ" are "sci fi".

    Compatibility forms are folded (NFKC: full width, ligatures), case is dropped, and every run
    of punctuation, symbols or space is one space. What holds no letter or digit becomes null.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    folded = pc.utf8_lower(pc.utf8_normalize(texts.cast(pa.string()), form="NFKC"))
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(folded, _SEPARATORS, " "))
    return pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)


def idf(df: np.ndarray, num_items: int) -> np.ndarray:
    """log((1 + N) / (1 + df)) + 1 as float32; df = in how many of the N items it occurs."""
    df = np.asarray(df, np.float64)
    return (np.log((1.0 + num_items) / (1.0 + df)) + 1.0).astype(np.float32)


def raw_weights(
    count: np.ndarray,
    idf: np.ndarray,
    age_days: np.ndarray,
    coefficient: np.ndarray,
    config: LabelWeights,
) -> np.ndarray:
    """tf * idf * fresh * coefficient as float32, before the mean is divided out.

    Args:
        count: (n,) how often the label was given to the item.
        idf: (n,) of the label.
        age_days: (n,) training reference time minus the label's last event; the future is 0.
        coefficient: (n,) how far the label's source is trusted.
        config: half-life and floor.
    """
    if config.weighting == "plain":
        return np.ones(len(count), np.float32)
    fresh = np.exp2(-np.maximum(age_days, 0.0) / config.half_life_days)
    fresh = np.maximum(fresh, config.fresh_floor)
    return (np.log1p(count) * idf * fresh * coefficient).astype(np.float32)


def final_weights(raw: np.ndarray, mean: float, config: LabelWeights) -> np.ndarray:
    """Raw weights over their mean on the training side, clipped; plain ones stay 1."""
    if config.weighting == "plain":
        return np.ones(len(raw), np.float32)
    return np.clip(raw / mean, config.min_weight, config.max_weight).astype(np.float32)
