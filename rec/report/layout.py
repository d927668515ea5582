"""Item vectors to two dimensions, to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

Floats = NDArray[np.floating]


def layout(vectors: Floats, seed: int = 0) -> Floats:
    """(N, 2) positions by t-SNE (van der Maaten and Hinton, 2008) started from principal
    components; by principal components alone for fewer than 30 items.

    Near items are alike; distances between far groups mean little.
    """
    if len(vectors) < 2 or not np.ptp(vectors, axis=0).any():  # a collapsed model is one dot
        return np.zeros((len(vectors), 2))
    start = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
    if len(vectors) < 30:
        return np.pad(start, ((0, 0), (0, max(0, 2 - start.shape[1]))))[:, :2]
    return TSNE(perplexity=min(30, len(vectors) // 3), init="pca", random_state=seed).fit_transform(
        start
    )
