"""RecTools' metrics of given lists, for bench.ranking; it imports nothing of this project.

    PYTHON bench/peers_metrics.py FOLDER

FOLDER holds trial-N.npz: lists (Q, k) item numbers, best first, targets (T, 2) query and item,
and vectors (N, D). Writes trial-N.json beside each: metric -> one value a query, or one number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

CUTOFFS = (1, 3, 10)


def measured(lists: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> dict[str, Any]:
    import pandas as pd  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    from rectools import metrics as rm  # pyright: ignore[reportMissingImports]

    class Cosine(rm.distances.PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, items_0: Any, items_1: Any) -> np.ndarray:
            return 1 - np.einsum("pd,pd->p", vectors[items_0], vectors[items_1])

    count, size = lists.shape
    shown = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(count), size),
            "item_id": lists.ravel(),
            "rank": np.tile(np.arange(1, size + 1), count),
        }
    )
    wanted = pd.DataFrame({"user_id": targets[:, 0], "item_id": targets[:, 1]})
    catalog = list(range(len(vectors)))
    found: dict[str, Any] = {}
    for k in CUTOFFS:
        for name, metric in {
            "hit rate": rm.HitRate(k=k),
            "recall": rm.Recall(k=k),
            "NDCG": rm.NDCG(k=k, divide_by_achievable=True),
            "MRR": rm.MRR(k=k),
        }.items():
            found[f"{name}@{k}"] = metric.calc_per_user(shown, wanted).sort_index().tolist()
        found[f"coverage@{k}"] = rm.CatalogCoverage(k=k, normalize=True).calc(shown, catalog)
        if k > 1:
            diversity = rm.IntraListDiversity(k=k, distance_calculator=Cosine())
            values = diversity.calc_per_user(shown).sort_index()
            found[f"intra-list diversity@{k}"] = values.tolist()
    return found


if __name__ == "__main__":
    for place in sorted(Path(sys.argv[1]).glob("trial-*.npz")):
        data = np.load(place)
        answer = measured(data["lists"], data["targets"], data["vectors"])
        place.with_suffix(".json").write_text(json.dumps(answer))
