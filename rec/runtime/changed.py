"""Only what changed is embedded: rows that differ from what a table of vectors was made of, and
that table with the new vectors in place of the old.

A vector of such a table stands beside the hash of all that an encoder reads of its item's row. As
long as the encoder and the tokenizer are the same, an equal hash means an equal vector.

    changed_rows   rows of a delivery, without those that the table knows -> content rows
    carry          the table, and the vectors of these rows               -> the next table
    no_vectors     where no row changed                                    -> theirs
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from rec import artifacts
from rec.artifacts import Manifest, filesystem, join, read_manifest
from rec.data.budget import Budget
from rec.data.carried import ids_of, parts_of, row_groups, together, write_without
from rec.data.content_stages import CONTENT_ROWS
from rec.data.parquet import ParquetFile
from rec.data.rows import KIND as ROWS
from rec.data.tasks import Summary, map_shards
from rec.runtime.embed import KIND, list_partitions
from rec.runtime.partition import SCHEMA, EmbedError, Partition
from rec.schema import EMBEDDINGS

HASH = "content"  # the column beside the vectors
TABLE = EMBEDDINGS.append(pa.field(HASH, pa.string(), nullable=False))
BUDGET = Budget(memory_gb=1.0)  # of a task: a row group, and the ids of a delivery
_CARRYING = 64  # tasks at most that carry vectors on: each reads all ids of the delivery
_READ = [name for name in SCHEMA.names if name != "item_id"]


def content_hashes(rows: pa.Table) -> pa.Array:
    """(n,) string: a hash of what an encoder reads of each row."""
    columns = [rows.column(name).to_pylist() for name in _READ]
    return pa.array([_hash(parts) for parts in zip(*columns, strict=True)], pa.string())


def _hash(parts: tuple[list[int] | list[bytes] | bytes | None, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        pieces = [part or b""] if isinstance(part, bytes | None) else [_bytes(one) for one in part]
        digest.update(len(pieces).to_bytes(8, "little"))  # so that no two rows run together
        for piece in pieces:
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def _bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.to_bytes(8, "little", signed=True)


def changed_rows(rows_uri: str, known_uri: str, out_uri: str) -> Manifest:
    """Publish the rows at `rows_uri` whose content the table at `known_uri` does not have.

    Returns:
        The manifest of a "content-rows" artifact; its metrics count "delivered", "new", "altered"
        and "unchanged" rows, and what of the table was "absent" from the rows. Without any new or
        altered it holds no file of rows.

    Raises:
        ArtifactError: rows or table are absent.
    """
    rows, known = read_manifest(rows_uri, ROWS), read_manifest(known_uri, KIND)
    _, partitions = list_partitions(rows_uri)
    root = f"c-{_digest(rows.version, known.version)}"
    place = join(out_uri, root)

    def work(index: int) -> Summary:
        return _write_changed(partitions[index], known_uri, known, place)

    total = {"delivered": 0, "new": 0, "altered": 0, "unchanged": 0}
    for summary in map_shards(work, range(len(partitions)), BUDGET, "changed rows"):
        total = {name: number + summary[name] for name, number in total.items()}
    absent = known.metrics["num_rows"] - total["altered"] - total["unchanged"]
    _copy_tokenizer(join(rows_uri, rows.root), place)
    return artifacts.seal(
        out_uri,
        root,
        ROWS,
        lineage={"rows": rows.version, "known": known.version},
        config=rows.config,
        metrics={**total, "absent": absent, "cutoff": rows.metrics.get("cutoff")},
    )


def _digest(*versions: str) -> str:
    return hashlib.sha256(" ".join(versions).encode()).hexdigest()[:16]


def _copy_tokenizer(source: str, target: str) -> None:
    """So that the rows are held to their tokenizer."""
    (files, path), (others, into) = filesystem(join(source, "tokenizer")), filesystem(target)
    others.create_dir(f"{into}/tokenizer", recursive=True)
    pafs.copy_files(
        path, f"{into}/tokenizer", source_filesystem=files, destination_filesystem=others
    )


def _write_changed(partition: Partition, known_uri: str, known: Manifest, place: str) -> Summary:
    uri = join(partition.folder, partition.name)
    ids = ids_of([uri], "item_id")
    before = _known(known_uri, known, ids)
    count = {"delivered": len(ids), "new": 0, "altered": 0, "unchanged": 0}
    with ExitStack() as stack:
        target: ParquetFile | None = None
        for piece in row_groups(uri, CONTENT_ROWS.names):
            at = pc.index_in(piece.column("item_id"), value_set=before.column("id"))
            same = pc.equal(before.column(HASH).take(at), content_hashes(piece)).fill_null(False)
            count["unchanged"] += pc.sum(same).as_py() or 0
            count["new"] += at.null_count
            changed = piece.filter(pc.invert(same))
            if changed.num_rows:
                if target is None:  # a file without rows would be a partition without vectors
                    place = join(place, partition.name)
                    target = stack.enter_context(ParquetFile(place, CONTENT_ROWS))
                target.write(changed)
    count["altered"] = count["delivered"] - count["new"] - count["unchanged"]
    return {"index": partition.index, **count}


def _known(uri: str, manifest: Manifest, ids: pa.Array) -> pa.Table:
    """id and hash of those rows of a table that are of these ids."""
    found = [pa.schema([TABLE.field("id"), TABLE.field(HASH)]).empty_table()]
    for place in parts_of(uri, manifest):
        for piece in row_groups(place, ["id", HASH]):
            found.append(piece.filter(pc.is_in(piece.column("id"), value_set=ids)))
    return pa.concat_tables(found).combine_chunks()


def any_rows(rows_uri: str) -> bool:
    """Whether changed rows have a file, which has rows then."""
    return bool(parts_of(rows_uri, read_manifest(rows_uri, ROWS)))


def no_vectors(rows_uri: str, known_uri: str, out_uri: str) -> Manifest:
    """Publish the vectors of changed rows of which there is none: an empty "embedding-table", of
    the encoder of the table at `known_uri`."""
    rows, known = read_manifest(rows_uri, ROWS), read_manifest(known_uri, KIND)
    root = f"n-{_digest(rows.version, known.version)}"
    with ParquetFile(join(out_uri, root, "part-00000.parquet"), EMBEDDINGS):
        pass
    return artifacts.seal(
        out_uri,
        root,
        KIND,
        lineage={**known.lineage, "rows": rows.version},
        config=known.config,
        metrics={"cutoff": known.metrics.get("cutoff"), "num_rows": 0},
    )


def carry(
    rows_uri: str,
    vectors_uri: str,
    out_uri: str,
    previous_uri: str | None,
    whole_uri: str | None = None,
) -> Manifest:
    """Publish the vectors at `vectors_uri`, and of the table at `previous_uri` those of all items
    that are not among them.

    Args:
        rows_uri: what the vectors were made of.
        previous_uri: None where there is none, or it is of another encoder.
        whole_uri: rows of all items that there are: vectors of others are not carried on.

    Returns:
        The manifest of an "embedding-table"; its metrics count "embedded", "replaced" and "carried"
        vectors, and with `whole_uri` those that have "left".

    Raises:
        EmbedError: the table before is of another encoder.
        ArtifactError: something is absent, or the table before is none of this module's.
    """
    vectors = read_manifest(vectors_uri, KIND)
    previous = None if previous_uri is None else read_manifest(previous_uri, KIND)
    encoder = vectors.lineage["encoder"]
    if previous is not None and (other := previous.lineage.get("encoder")) != encoder:
        raise EmbedError(
            f"{previous_uri}: vectors of encoder {other}, but {vectors_uri} of {encoder}; vectors "
            "of different encoders cannot stand in one table"
        )
    partitions = list_partitions(rows_uri)[1] if any_rows(rows_uri) else []
    versions = [vectors.version, previous.version if previous else ""]
    if whole_uri is not None:
        versions.append(read_manifest(whole_uri, ROWS).version)
    root = f"t-{_digest(*versions)}"
    place = join(out_uri, root)
    made = join(vectors_uri, vectors.root)
    parts = (join(place, f"part-{number:05d}.parquet") for number in itertools.count())
    tasks: list[Callable[[], dict[str, int]]] = [
        partial(_with_hashes, one, join(made, one.part_name), next(parts)) for one in partitions
    ]
    new = parts_of(vectors_uri, vectors)
    if previous_uri is not None and previous is not None:
        groups = list(zip(together(parts_of(previous_uri, previous)), parts, strict=False))
        for first in range(min(len(groups), _CARRYING)):
            tasks.append(partial(_carried, groups[first::_CARRYING], new, whole_uri))

    def work(index: int) -> Summary:
        return {"index": index, **tasks[index]()}

    total = {"embedded": 0, "carried": 0, "replaced": 0}
    if whole_uri is not None:
        total["left"] = 0
    for summary in map_shards(work, range(len(tasks)), BUDGET, "carry vectors"):
        total = {name: number + summary.get(name, 0) for name, number in total.items()}
    return artifacts.seal(
        out_uri,
        root,
        KIND,
        lineage=dict(vectors.lineage),
        config=vectors.config,
        metrics={
            "cutoff": vectors.metrics.get("cutoff"),
            "num_rows": total["embedded"] + total["carried"],
            **total,
        },
    )


def _with_hashes(partition: Partition, part: str, target: str) -> dict[str, int]:
    """Write a part of new vectors with the hashes of their rows beside them."""
    hashes: dict[str, str] = {}
    for piece in row_groups(join(partition.folder, partition.name), SCHEMA.names):
        ids = piece.column("item_id").to_pylist()
        hashes.update(zip(ids, content_hashes(piece).to_pylist(), strict=True))
    with ParquetFile(target, TABLE) as file:
        for piece in row_groups(part, EMBEDDINGS.names):
            column = pa.array([hashes[one] for one in piece.column("id").to_pylist()], pa.string())
            file.write(piece.append_column(TABLE.field(HASH), column))
    return {"embedded": file.num_rows}


def _carried(
    groups: list[tuple[list[str], str]], new: list[str], whole_uri: str | None
) -> dict[str, int]:
    """Write groups of files, each to its own, without what is new or has left."""
    again, among = ids_of(new, "id"), None
    if whole_uri is not None:
        parts = list_partitions(whole_uri)[1]
        among = ids_of([join(one.folder, one.name) for one in parts], "item_id")
    total: Counter[str] = Counter()
    for group, target in groups:
        total.update(write_without(group, "id", again, TABLE, target, among))
    return dict(total)
