"""Text and pictures of items encoded apart, by the run's own encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rec.artifacts import join
from rec.models.content.encoder import load_encoder
from rec.runtime.evaluation_data import open_parts

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Apart:
    """Items that have both, in the order asked; row i of texts and of pictures are item i's."""

    item_ids: list[str]
    texts: NDArray[np.floating]  # (Q, D) unit rows, from text alone
    pictures: NDArray[np.floating]  # (Q, D) unit rows, from frames alone


def encode_apart(run: str, item_ids: Sequence[str], device: str = "cpu") -> Apart:
    """Encode each held-out item of `item_ids` with text and frames twice, by each of them alone.

    What is left out is masked as an item without it would be; sound is left out of both.
    """
    encoder = load_encoder(join(run, "encoder"), device)
    data = open_parts(join(run, "rows"), "content-rows", "heldout/")
    wanted, ids = frozenset(item_ids), list[str]()
    texts, pictures = (
        [np.empty((0, encoder.dim), np.float32)],
        [np.empty((0, encoder.dim), np.float32)],
    )
    columns = ["item_id", "token_ids", "frames", "log_mel"]
    for part in data.to_batches(
        columns=columns, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1
    ):
        mask = pa.array([i in wanted for i in part.column("item_id").to_pylist()], pa.bool_())
        rows = pa.Table.from_batches([part]).filter(mask)
        if not rows.num_rows:
            continue
        batch = encoder.collator(rows)
        both = batch.token_mask.any(dim=1) & batch.frame_mask.any(dim=1)
        if not both.any():
            continue
        batch = batch.take(torch.nonzero(both).ravel())
        silent = torch.zeros_like(batch.audio_mask)
        blind = torch.zeros_like(batch.frame_mask)
        mute = torch.zeros_like(batch.token_mask)
        texts.append(encoder.encode(replace(batch, frame_mask=blind, audio_mask=silent)))
        pictures.append(encoder.encode(replace(batch, token_mask=mute, audio_mask=silent)))
        names = rows.column("item_id").to_pylist()
        ids += [name for name, keep in zip(names, both.tolist(), strict=True) if keep]
    place = {item_id: i for i, item_id in enumerate(item_ids)}
    order = np.array(sorted(range(len(ids)), key=lambda i: place[ids[i]]), dtype=np.int64)
    return Apart(
        [ids[i] for i in order], np.concatenate(texts)[order], np.concatenate(pictures)[order]
    )
