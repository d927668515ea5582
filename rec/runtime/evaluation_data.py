"""What evaluation reads of a run: items with labels, vectors and pictures, shard by shard.

Only the evaluated items are held: with `max_items` of 20,000 on each side of the cut-off, 256
dimensions and their texts about 300 MB. Everything else streams past in Arrow batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from numpy.typing import NDArray

from rec.artifacts import ArtifactError, filesystem, join, read_manifest
from rec.metrics.baselines import NUM_PIXEL_FEATURES, pixel_features
from rec.runtime.verify import verify

_BATCH_ROWS = 512

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class EvaluationItems:
    """The evaluated items, oldest first; training items, then held-out ones."""

    item_ids: list[str]
    num_train: int
    cutoff: datetime | None  # of the rows; None where they were split by hash
    titles: list[str]
    texts: list[str]  # title and description
    tags: list[list[str]]
    categories: list[list[str]]
    pixels: Floats  # (N, NUM_PIXEL_FEATURES) of the first frame; zeros without one
    notes: list[str] = field(default_factory=list)  # what was sampled or could not be read

    def __len__(self) -> int:
        return len(self.item_ids)


def open_parts(uri: str, kind: str, prefix: str = "") -> pads.Dataset:
    """The Parquet files below `prefix` of the artifact at `uri` as one dataset, not yet read.

    Raises:
        ArtifactError: the artifact is absent, of another kind, or has no such files.
    """
    manifest = read_manifest(uri, kind)
    files, path = filesystem(join(uri, manifest.root))
    names = [n for n in manifest.files if n.startswith(prefix) and n.endswith(".parquet")]
    if not names:
        raise ArtifactError(f"{join(uri, manifest.root, prefix)}: no Parquet files published")
    return pads.dataset([f"{path}/{n}" for n in names], filesystem=files, format="parquet")


def open_table(run: str, name: str) -> pads.Dataset | None:
    """Table `name` of the run as a dataset, None where the source had no such table."""
    files, path = filesystem(join(run, "tables", name))
    found = [i.path for i in _listed(files, path) if i.path.endswith(".parquet")]
    return pads.dataset(sorted(found), filesystem=files, format="parquet") if found else None


def _listed(files: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    return files.get_file_info(pafs.FileSelector(path, allow_not_found=True))


def _batches(data: pads.Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    yield from data.to_batches(
        columns=columns, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1
    )


def _side(rows: str, side: str, limit: int) -> tuple[list[tuple[datetime, str]], str | None]:
    """(published_at, item_id) of one side of the cut-off, in order, and a note if sampled."""
    data = open_parts(rows, "content-rows", f"{side}/")
    found: list[tuple[datetime, str]] = []
    for batch in _batches(data, ["item_id", "published_at"]):
        times = batch.column("published_at").to_pylist()
        ids = batch.column("item_id").to_pylist()
        found += [(t or datetime.min, i) for t, i in zip(times, ids, strict=True)]
    total = len(found)
    if total > limit:  # by a hash of the id: the same items in every run
        found = sorted(found, key=lambda row: (zlib.crc32(row[1].encode()), row[1]))[:limit]
    note = f"{side}: {limit} of {total} items, sampled by a hash of their ids"
    found.sort(key=lambda row: (row[0].replace(tzinfo=None), row[1]))
    return found, note if total > limit else None


def heldout_ids(run: str) -> frozenset[str]:
    """Ids of the run's held-out items."""
    data = open_parts(join(run, "rows"), "content-rows", "heldout/")
    return frozenset(i for b in _batches(data, ["item_id"]) for i in b.column(0).to_pylist())


def clean_label(label: str) -> str:
    """A tag or category in the form in which evaluation compares it."""
    return " ".join(label.strip().lstrip("#").casefold().split())


def _clean(labels: list[str] | None) -> list[str]:
    return sorted({clean for label in labels or [] if label and (clean := clean_label(label))})


def read_items(run: str, *, max_items: int) -> EvaluationItems:
    """The items of the run's content rows, at most `max_items` on each side of the cut-off.

    Raises:
        ArtifactError: the run has no rows, altered ones, no item table, or no item on one side.
    """
    rows = join(run, "rows")
    verify(rows, read_manifest(rows, "content-rows"))
    train, train_note = _side(rows, "train", max_items)
    heldout, heldout_note = _side(rows, "heldout", max_items)
    if not train or not heldout:
        raise ArtifactError(
            f"{rows}: {len(train)} training and {len(heldout)} held-out items; evaluation "
            f"needs both, so choose a cut-off time that leaves some on each side"
        )
    item_ids = [item_id for _, item_id in train + heldout]
    position = {item_id: i for i, item_id in enumerate(item_ids)}
    notes = [note for note in (train_note, heldout_note) if note]

    table = open_table(run, "items")
    if table is None:
        raise ArtifactError(f"{join(run, 'tables', 'items')}: no Parquet files; run jobs.ingest")
    titles, texts = [""] * len(item_ids), [""] * len(item_ids)
    tags: list[list[str]] = [[] for _ in item_ids]
    categories: list[list[str]] = [[] for _ in item_ids]
    for batch in _batches(table, ["item_id", "title", "description", "tags", "categories"]):
        for row in batch.to_pylist():
            at = position.get(row["item_id"])
            if at is None:
                continue
            titles[at] = row["title"] or ""
            texts[at] = f"{row['title'] or ''} {row['description'] or ''}".strip()
            tags[at], categories[at] = _clean(row["tags"]), _clean(row["categories"])

    pixels, num_broken = _pixels(rows, position)
    if num_broken:
        notes.append(f"{num_broken} first frames could not be decoded for the pixel baseline")
    told = read_manifest(rows, "content-rows").metrics.get("cutoff")
    cutoff = datetime.fromisoformat(told) if told else None
    return EvaluationItems(
        item_ids, len(train), cutoff, titles, texts, tags, categories, pixels, notes
    )


def _pixels(rows: str, position: dict[str, int]) -> tuple[Floats, int]:
    features = np.zeros((len(position), NUM_PIXEL_FEATURES), np.float32)
    num_broken = 0
    for item_id, frames in read_frames(rows, position):
        if not frames:
            continue
        found = pixel_features(frames[0])
        if found is None:
            num_broken += 1
        else:
            features[position[item_id]] = found
    return features, num_broken


def read_frames(
    rows: str, wanted: Sequence[str] | dict[str, int]
) -> Iterator[tuple[str, list[bytes]]]:
    """(item_id, compressed pictures) of the wanted items, in no order."""
    keep = frozenset(wanted)
    for batch in _batches(open_parts(rows, "content-rows"), ["item_id", "frames"]):
        for item_id, frames in zip(batch.column("item_id"), batch.column("frames"), strict=True):
            name = item_id.as_py()
            if name in keep:
                yield name, frames.as_py() or []


def read_vectors(uri: str, item_ids: Sequence[str]) -> Floats:
    """(N, D) float32 vectors (interest 0) of these items from an embedding table.

    Raises:
        ArtifactError: there is no table, it was altered, or an item is not in it.
    """
    verify(uri, read_manifest(uri, "embedding-table"))
    position = {item_id: i for i, item_id in enumerate(item_ids)}
    vectors: Floats | None = None
    seen = np.zeros(len(item_ids), bool)
    data = open_parts(uri, "embedding-table")
    for batch in data.to_batches(
        columns=["id", "vector"], filter=pc.field("interest") == 0, batch_size=_BATCH_ROWS
    ):
        rows = np.array([position.get(i, -1) for i in batch.column("id").to_pylist()], np.int64)
        if not (rows >= 0).any():
            continue
        values = cast(pa.ListArray, batch.column("vector"))
        flat = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)
        if vectors is None:
            vectors = np.zeros((len(item_ids), flat.shape[1]), np.float32)
        vectors[rows[rows >= 0]] = flat[rows >= 0]
        seen[rows[rows >= 0]] = True
    if vectors is None or not seen.all():
        raise ArtifactError(
            f"{uri}: no vector of {int((~seen).sum())} of {len(seen)} evaluated items, such as "
            f"{item_ids[int(np.argmin(seen))]!r}; run jobs.embed on these rows again"
        )
    return vectors
