"""The stages that make content rows of items: text, key terms, labels, media. No Ray here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.data.stage import Staged
from rec.data.texts import item_texts
from rec.features.audio import decode, decode_patches, encode_patches, patches
from rec.features.media import MediaError, spread
from rec.features.terms import TermTable, WordFinder, flatten, score
from rec.features.text import TextTokenizer
from rec.schema import TIMESTAMP

if TYPE_CHECKING:
    from rec.features.attention import AttentionScorer

CONTENT_ROWS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        ("published_at", TIMESTAMP),
        ("token_ids", pa.list_(pa.int32())),  # with special tokens; empty = no text
        ("word_ids", pa.list_(pa.int32())),  # -1 for special tokens
        ("term_scores", pa.list_(pa.float32())),  # -inf where never masked
        ("label_ids", pa.list_(pa.int32())),
        ("label_weights", pa.list_(pa.float32())),
        ("frames", pa.list_(pa.large_binary())),  # compressed pictures
        ("log_mel", pa.large_binary()),  # float16, n x 96 x 64; empty = no sound
    ]
)


@dataclass(frozen=True)
class DropDuplicates:
    """Items go that look like another one."""

    duplicates: pa.Array  # item ids
    name: ClassVar[str] = "drop duplicates"
    inputs: ClassVar[tuple[str, ...]] = ("item_id",)
    outputs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, table: pa.Table) -> Staged:
        again = pc.is_in(table.column("item_id"), value_set=self.duplicates)
        gone = table.column("item_id").filter(again).combine_chunks()
        reason = "looks like another item"
        kept = table.filter(pc.invert(again))
        return Staged(kept, {reason: len(gone)}, dropped_ids={reason: gone})


@dataclass(frozen=True)
class Tokenise:
    """Title and description to tokens."""

    tokenizer: TextTokenizer
    name: ClassVar[str] = "tokenise"
    inputs: ClassVar[tuple[str, ...]] = ("title", "description")
    outputs: ClassVar[tuple[str, ...]] = ("token_ids", "word_ids")

    def __call__(self, table: pa.Table) -> Staged:
        tokens, words = self.tokenizer.encode(item_texts(table))
        kind = pa.list_(pa.int32())
        table = table.append_column("token_ids", pa.array(tokens, kind))
        return Staged(table.append_column("word_ids", pa.array(words, kind)))


@dataclass(frozen=True)
class ScoreTerms:
    """Tokens to key-term scores."""

    finder: WordFinder
    table: TermTable
    attention: AttentionScorer | None
    alpha: float
    name: ClassVar[str] = "score terms"
    inputs: ClassVar[tuple[str, ...]] = ("token_ids", "word_ids")
    outputs: ClassVar[tuple[str, ...]] = ("term_scores",)

    def __call__(self, table: pa.Table) -> Staged:
        token_ids = table.column("token_ids").to_pylist()
        tokens, words, rows = flatten(token_ids, table.column("word_ids").to_pylist())
        scores = score(
            self.finder.find(tokens, words, rows),
            len(tokens),
            self.table,
            attention=self.attention(token_ids) if self.attention else None,
            alpha=self.alpha,
        )
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in token_ids])])
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(scores))
        return Staged(table.append_column("term_scores", column))


@dataclass(frozen=True)
class AddLabels:
    """Labels by item id; an item without any has empty lists."""

    labels: pa.Table  # ITEM_LABELS of the items' shard
    name: ClassVar[str] = "add labels"
    inputs: ClassVar[tuple[str, ...]] = ("item_id",)
    outputs: ClassVar[tuple[str, ...]] = ("label_ids", "label_weights")

    def __call__(self, table: pa.Table) -> Staged:
        known = self.labels.column("item_id").combine_chunks()
        at = pc.index_in(table.column("item_id"), value_set=known)
        for name in self.outputs:
            column = self.labels.column(name).take(at).combine_chunks()
            empty = pa.scalar([], column.type)
            table = table.append_column(name, column.fill_null(empty))
        return Staged(table)


@dataclass(frozen=True)
class AddFrames:
    """An item's pictures, still compressed, evenly spread where there are more than the limit."""

    media: pa.Table  # MEDIA rows of the items' shard
    max_frames: int
    name: ClassVar[str] = "add frames"
    inputs: ClassVar[tuple[str, ...]] = ("item_id",)
    outputs: ClassVar[tuple[str, ...]] = ("frames",)

    def __call__(self, table: pa.Table) -> Staged:
        ids = table.column("item_id").combine_chunks()
        at, owner = _of_kind(self.media, "frame", ids)
        count = np.bincount(owner, minlength=len(ids))
        first = np.cumsum(count) - count
        place = np.arange(self.max_frames)[None, :]
        # as `spread` does for one item: the middles of equal stretches
        many = ((place + 0.5) * count[:, None] / self.max_frames).astype(np.int64)
        place = np.where(count[:, None] <= self.max_frames, place, many)
        kept = np.minimum(count, self.max_frames)
        chosen = (first[:, None] + place)[np.arange(self.max_frames)[None, :] < kept[:, None]]
        data = self.media.column("data").take(pa.array(at[chosen])).combine_chunks()
        offsets = pa.array(np.concatenate([[0], np.cumsum(kept)]), pa.int32())
        return Staged(table.append_column("frames", pa.ListArray.from_arrays(offsets, data)))


@dataclass(frozen=True)
class AddSound:
    """An item's first sound that can be decoded as log-mel patches; failures are problems.

    Patches that ingest has made of an item's files come before sounds that are still compressed.
    """

    media: pa.Table
    max_patches: int
    max_seconds: float
    name: ClassVar[str] = "add sound"
    inputs: ClassVar[tuple[str, ...]] = ("item_id",)
    outputs: ClassVar[tuple[str, ...]] = ("log_mel",)

    def __call__(self, table: pa.Table) -> Staged:
        ids = table.column("item_id").combine_chunks()
        found: dict[int, bytes] = {}
        problems: list[str] = []
        for row, item in zip(*_of_kind(self.media, "log_mel", ids), strict=True):
            if item not in found:
                found[item] = self._taken(self.media.column("data")[row].as_py())
        rows, items = _of_kind(self.media, "audio", ids)
        for row, item in zip(rows.tolist(), items.tolist(), strict=True):
            if item in found:
                continue
            try:
                found[item] = self._encode(self.media.column("data")[row].as_py())
            except MediaError as error:
                problems.append(f"{self.media.column('uri')[row].as_py()}: {error}")
        column = pa.array([found.get(i, b"") for i in range(len(ids))], pa.large_binary())
        return Staged(table.append_column("log_mel", column), problems=tuple(problems))

    def _taken(self, data: bytes) -> bytes:
        values = decode_patches(data)
        return encode_patches(values[spread(len(values), self.max_patches)])

    def _encode(self, data: bytes) -> bytes:
        values = patches(decode(data, self.max_seconds))
        return encode_patches(values[spread(len(values), self.max_patches)])


def _of_kind(media: pa.Table, kind: str, ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Media rows of one kind and their items' positions in `ids`, by item and media_index.

    Media of items that are not in `ids` are left out: the item was dropped before.
    """
    owner = pc.index_in(media.column("item_id"), value_set=ids)
    wanted = pc.and_(pc.equal(media.column("kind"), kind), pc.is_valid(owner))
    rows = np.flatnonzero(wanted.to_numpy())
    owners = owner.take(pa.array(rows)).to_numpy().astype(np.int64)
    order = np.lexsort((media.column("media_index").take(pa.array(rows)).to_numpy(), owners))
    return rows[order], owners[order]


@dataclass(frozen=True)
class DropEmpty:
    """Items with nothing to encode go, and those that have a few words and nothing else."""

    min_tokens: int = 0  # of an item that has neither frame nor sound

    name: ClassVar[str] = "drop empty"
    inputs: ClassVar[tuple[str, ...]] = ("item_id", "token_ids", "frames", "log_mel")
    outputs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, table: pa.Table) -> Staged:
        tokens = pc.list_value_length(table.column("token_ids"))
        media = pc.or_(
            pc.greater(pc.list_value_length(table.column("frames")), 0),
            pc.greater(pc.binary_length(table.column("log_mel")), 0),
        )
        full = pc.or_(media, pc.greater(tokens, 0))
        kept = pc.or_(media, pc.greater_equal(tokens, max(self.min_tokens, 1)))
        masks = {
            "no text, frame or sound": pc.invert(full),
            f"fewer than {self.min_tokens} tokens, no frame, no sound": pc.and_not(full, kept),
        }
        item_id = table.column("item_id")
        gone = {why: item_id.filter(mask).combine_chunks() for why, mask in masks.items()}
        dropped = {reason: len(ids) for reason, ids in gone.items()}
        return Staged(table.filter(kept), dropped, dropped_ids=gone)
