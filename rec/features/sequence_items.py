"""SEQUENCE_ITEMS to the columns that models take."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rec.nn.items import Bags, ItemColumns


def item_columns(
    items: pa.Table,
    *,
    num_tags: int,
    num_categories: int,
    num_uploaders: int,
    content: NDArray[np.float32] | None = None,
) -> ItemColumns:
    """The items' columns as tensors.

    Args:
        items: SEQUENCE_ITEMS of N items in order of item_index.
        num_tags, num_categories, num_uploaders: sizes of their vocabularies.
        content: (N, C), zeros for an item without.
    """
    return ItemColumns(
        num_events=_numbers(items, "num_events"),
        tags=_bags(items, "tag_index", num_tags),
        categories=_bags(items, "category_index", num_categories),
        uploader=_numbers(items, "uploader_index"),
        num_uploaders=num_uploaders,
        content=None if content is None else torch.from_numpy(content),
    )


def _numbers(items: pa.Table, name: str) -> Tensor:
    return torch.from_numpy(items.column(name).to_numpy().astype(np.int64))


def _bags(items: pa.Table, name: str, num_labels: int) -> Bags:
    column = items.column(name).combine_chunks()
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    index = column.flatten().to_numpy().astype(np.int64)
    return Bags(torch.from_numpy(lengths), torch.from_numpy(index), num_labels)
