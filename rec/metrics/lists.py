"""The best items of each query by score, as lists."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor


def top_lists(scores: Tensor, excluded: sparse.csr_array | None, k: int) -> NDArray[np.int64]:
    """(B, k) columns of the highest scores, best first; -1 where a list is shorter.

    As in `rec.metrics.ranking`, what has no order is not shown: a score of NaN or -inf is in no
    list, and a query whose candidates all have one score has an empty one. Other equal scores
    come in no particular order.

    Args:
        scores: (B, N) floating, on any device; left as they are.
        excluded: (B, N), non-zero where the column is no candidate.
        k: at least 1.
    """
    values = torch.nan_to_num(scores, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    if excluded is not None and excluded.nnz:
        rows = np.repeat(np.arange(len(scores)), np.diff(excluded.indptr))
        cells = (torch.from_numpy(rows), torch.from_numpy(excluded.indices.astype(np.int64)))
        values[tuple(cell.to(values.device) for cell in cells)] = -torch.inf
    found = values.topk(min(k, values.shape[1]), dim=1)
    lists = torch.where(found.values > -torch.inf, found.indices, -1)
    lowest = found.values.masked_fill(lists < 0, torch.inf).amin(dim=1)
    level = (found.values[:, 0] == lowest).nonzero().squeeze(1)
    for row in level.tolist():  # few: the whole list has one score
        candidates = values[row][values[row] > -torch.inf]
        if len(candidates) and (candidates == candidates[0]).all():
            lists[row] = -1
    shorter = lists.cpu().numpy()
    if shorter.shape[1] < k:
        shorter = np.pad(shorter, ((0, 0), (0, k - shorter.shape[1])), constant_values=-1)
    return shorter
