"""Content rows to batches: the only place where it happens, for training, embedding and serving.

Rows are Parquet as `rec.data.rows` writes them; batches are `rec.batch.ContentBatch`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from rec.batch import ContentBatch
from rec.config import Config
from rec.features.frames import decode
from rec.features.media import MediaError, spread

logger = logging.getLogger(__name__)

PATCH_FRAMES = 96  # of 10 ms each
NUM_MEL_BANDS = 64
_PATCH_BYTES = PATCH_FRAMES * NUM_MEL_BANDS * 2  # float16


class ContentInputs(Config):
    """How much of an item a content encoder sees."""

    max_tokens: int = Field(default=128, ge=2)  # longer texts are cut, their last token kept
    height: int = Field(default=224, ge=1)  # pixels
    width: int = Field(default=224, ge=1)
    max_frames: int = Field(default=1, ge=1)  # spread evenly over the row's frames
    max_audio_patches: int = Field(default=1, ge=1)  # of 0.96 s, spread evenly over the row's


class ContentCollator:
    """Makes batches; holds what it could not decode in `problems` (reason -> how often)."""

    def __init__(self, inputs: ContentInputs) -> None:
        self.inputs = inputs
        self.problems: Counter[str] = Counter()

    def __call__(self, rows: pa.Table) -> ContentBatch:
        """A batch of the rows; a frame that cannot be decoded is left out and counted.

        Columns token_ids, frames and log_mel are needed. word_ids, term_scores, label_ids and
        label_weights are filled where the rows have them, else None.
        """
        missing = {"token_ids", "frames", "log_mel"} - set(rows.column_names)
        if missing:
            raise ValueError(f"content rows lack columns {sorted(missing)}: {rows.column_names}")
        return self._join(
            token_ids=rows.column("token_ids"),
            frames=self._decoded(rows),
            log_mel=[_patches(value) for value in rows.column("log_mel").to_pylist()],
            word_ids=_column(rows, "word_ids"),
            term_scores=_column(rows, "term_scores"),
            label_ids=_column(rows, "label_ids"),
            label_weights=_column(rows, "label_weights"),
        )

    def from_parts(
        self,
        token_ids: Sequence[Sequence[int]],
        frames: Sequence[Sequence[np.ndarray]] | None = None,
        log_mel: Sequence[np.ndarray | None] | None = None,
    ) -> ContentBatch:
        """A batch of items given in parts, for serving; all sequences are as long as the batch.

        Args:
            token_ids: with special tokens, as `TextTokenizer.encode` gives them; empty = no text.
            frames: decoded pictures of each item as `decode` gives them; empty = none.
            log_mel: (n, 96, 64) patches of each item, or None.
        """
        rows = len(token_ids)
        column = pa.chunked_array([pa.array(token_ids, pa.list_(pa.int32()))])
        return self._join(
            token_ids=column,
            frames=[list(f) for f in frames] if frames is not None else [[] for _ in range(rows)],
            log_mel=list(log_mel) if log_mel is not None else [None] * rows,
        )

    def decode(self, data: bytes) -> np.ndarray:
        """One compressed picture as (3, height, width) uint8; raises MediaError."""
        return decode(data, self.inputs.height, self.inputs.width)

    def _decoded(self, rows: pa.Table) -> list[list[np.ndarray]]:
        ids = rows.column("item_id").to_pylist() if "item_id" in rows.column_names else None
        items: list[list[np.ndarray]] = []
        problems: list[str] = []
        for row, pictures in enumerate(rows.column("frames")):
            kept: list[np.ndarray] = []
            count = len(pictures) if pictures.is_valid else 0
            for index in spread(count, self.inputs.max_frames):
                try:
                    kept.append(self.decode(pictures[index].as_py()))
                except MediaError as error:
                    problems.append(str(error))
                    logger.warning("item %s, frame %d: %s", ids[row] if ids else row, index, error)
            items.append(kept)
        self.problems.update(problems)
        return items

    def _join(
        self,
        token_ids: pa.ChunkedArray,
        frames: list[list[np.ndarray]],
        log_mel: list[np.ndarray | None],
        word_ids: pa.ChunkedArray | None = None,
        term_scores: pa.ChunkedArray | None = None,
        label_ids: pa.ChunkedArray | None = None,
        label_weights: pa.ChunkedArray | None = None,
    ) -> ContentBatch:
        size = self.inputs
        tokens, token_mask = _padded(token_ids, 0, np.int64, size.max_tokens)
        pictures, frame_mask = _stacked(frames, size.max_frames, (3, size.height, size.width))
        patches = [list(p) if p is not None else [] for p in log_mel]
        sound, audio_mask = _stacked(
            patches, size.max_audio_patches, (PATCH_FRAMES, NUM_MEL_BANDS), np.float32
        )
        return ContentBatch(
            token_ids=tokens,
            token_mask=token_mask,
            frames=pictures,
            frame_mask=frame_mask,
            log_mel=sound,
            audio_mask=audio_mask,
            word_ids=_optional(word_ids, -1, np.int64, size.max_tokens),
            term_scores=_optional(term_scores, -np.inf, np.float32, size.max_tokens),
            label_ids=_optional(label_ids, 0, np.int64, None),
            label_weights=_optional(label_weights, 0, np.float32, None),
        )


def _column(rows: pa.Table, name: str) -> pa.ChunkedArray | None:
    return rows.column(name) if name in rows.column_names else None


def _patches(data: bytes | None) -> np.ndarray | None:
    """Stored log-mel bytes as (n, 96, 64) float16."""
    if not data:
        return None
    if len(data) % _PATCH_BYTES:
        raise ValueError(
            f"log_mel of {len(data)} bytes: expected a multiple of {_PATCH_BYTES} (96x64 float16)"
        )
    return np.frombuffer(data, np.float16).reshape(-1, PATCH_FRAMES, NUM_MEL_BANDS)


def _optional(
    column: pa.ChunkedArray | None, fill: float, kind: type[np.generic], limit: int | None
) -> Tensor | None:
    return None if column is None else _padded(column, fill, kind, limit)[0]


def _padded(
    column: pa.ChunkedArray, fill: float, kind: type[np.generic], limit: int | None
) -> tuple[Tensor, Tensor]:
    """A list column as (B, P) and its mask; P is the longest, at least 1, at most `limit`.

    Of a list over the limit the first limit-1 and the last are kept: the closing special token
    stays.
    """
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # a column of no chunks or of several
        lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(kind)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    width = max(1, int(lengths.max(initial=0)))
    if limit is not None:
        width = min(width, limit)
    position = np.arange(width)[None, :]
    mask = position < np.minimum(lengths, width)[:, None]
    source = starts[:, None] + position
    long = lengths > width
    source[long, -1] = starts[long] + lengths[long] - 1
    padded = np.full(mask.shape, fill, kind)
    padded[mask] = values[source[mask]]
    return torch.from_numpy(padded), torch.from_numpy(mask)


def _stacked(
    items: list[list[np.ndarray]],
    limit: int,
    shape: tuple[int, ...],
    kind: type[np.generic] = np.uint8,
) -> tuple[Tensor, Tensor]:
    """Pieces of each item as (B, n, *shape) and mask (B, n), spread picks where over the limit."""
    picked = [[pieces[i] for i in spread(len(pieces), limit)] for pieces in items]
    width = max(1, max((len(pieces) for pieces in picked), default=1))
    stacked = np.zeros((len(items), width, *shape), kind)
    mask = np.zeros((len(items), width), bool)
    for row, pieces in enumerate(picked):
        for position, piece in enumerate(pieces):
            stacked[row, position] = piece
            mask[row, position] = True
    return torch.from_numpy(stacked), torch.from_numpy(mask)
