"""Source to tables: a Ray task a shard, in flat memory, resumable.

<uri>/<table>/shard-00000.parquet    item shard i and media shard i hold the same items
<uri>/media_index/shard-00000.parquet  where each medium is, its size and hashes
<uri>/problems/shard-00000.parquet   what was left out: place, row, reason
<uri>/ledger.json                    written last
<uri>/state/                         the source's config, and a marker for every finished shard
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import cv2
import pyarrow as pa
from pyarrow import fs as pafs

from rec.artifacts import FileEntry, exists, file_entry, filesystem, join, read_bytes, write_atomic
from rec.data.attempts import Attempt
from rec.data.budget import Budget
from rec.data.ledger import Ledger
from rec.data.media import MEDIA_INDEX, MediaConfig, index_rows, media_of_files
from rec.data.parquet import ParquetFile
from rec.data.tables import (
    LEDGER,
    IngestError,
    Tables,
    TableSize,
    changes,
    shard_file,
    shard_name,
)
from rec.data.tasks import Summary, finished_shards, with_markers
from rec.file_schemas import columns_of
from rec.schema import PROBLEMS, TABLES
from rec.sources import AnySource, Shard
from rec.sources.base import problem_table

BUDGET = Budget(memory_gb=1.0)  # of a shard's task: one file's pictures, and a row group
_LISTED = "listed in problems"
_SAMPLE = 20  # problems of each shard that reach the driver


def write_tables(
    source: AnySource,
    uri: str,
    *,
    media: MediaConfig | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tables:
    """Write all tables of `source` below `uri`; shards that are finished already stay.

    Args:
        source: where from; it must be readable from every node.
        uri: folder, local (shared by all nodes) or s3://.
        media: what is kept of files, for sources that give files.
        overwrite: replace tables of another source or config instead of refusing.
        progress: called with finished and all shards.

    Raises:
        IngestError: `uri` holds tables of another source or config, or lies in the source's folder.
        ShardError: the source met something else than it expects; its own message.
    """
    media = media or MediaConfig()
    config = source.model_dump(mode="json")
    if path := config.get("path"):
        _keep_apart(uri, path)
    if source.gives_files:  # of others media says nothing, and their tables stay what they were
        config["media"] = media.model_dump(mode="json")
    if contents := source.contents():
        config["contents"] = contents
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    _claim(uri, digest, config, overwrite)
    shards = source.shards()

    def work(index: int, attempt: Attempt) -> Summary:
        return write_shard(source, shards[index], uri, media, attempt)

    done: dict[int, Summary] = {}
    for summary in with_markers(work, join(uri, "state"), range(len(shards)), BUDGET, "tables"):
        done[summary["index"]] = summary
        if progress:
            progress(len(done), len(shards))
    tables = _total(source, config, digest, [done[index] for index in sorted(done)])
    write_atomic(join(uri, LEDGER), tables.to_json().encode())
    return tables


def _keep_apart(uri: str, path: str) -> None:
    """Refuse tables among the files that they are made from: the next run would read them."""
    (tables, below), (origin, top) = filesystem(uri), filesystem(path)
    if isinstance(tables, pafs.LocalFileSystem):
        below, top = os.path.realpath(below), os.path.realpath(top)
    if tables.type_name == origin.type_name and f"{below}/".startswith(f"{top.rstrip('/')}/"):
        raise IngestError(f"{uri}: lies in the source's folder {path}; choose one outside it")


def _claim(uri: str, digest: str, config: dict[str, Any], overwrite: bool) -> None:
    """Hold `uri` to one source and config."""
    place = join(uri, "state", "source.json")
    if exists(place):
        held = json.loads(read_bytes(place))
        if held["digest"] == digest:
            return
        # a run that failed before its first shard was finished has nothing to lose
        if not overwrite and finished_shards(join(uri, "state")):
            raise IngestError(
                f"{uri} holds tables of another config ({changes(held['config'], config)}); "
                "choose another folder or pass --overwrite"
            )
        files, path = filesystem(uri)
        if exists(join(uri, LEDGER)):  # the first to go: it speaks for the others
            files.delete_file(f"{path}/{LEDGER}")
        for name in [*TABLES, "media_index", "problems", "state"]:
            if exists(join(uri, name)):
                files.delete_dir(f"{path}/{name}")
    state = json.dumps({"digest": digest, "config": config}, indent=2)
    write_atomic(place, state.encode())


def write_shard(
    source: AnySource, shard: Shard, uri: str, media: MediaConfig, attempt: Attempt | None = None
) -> Summary:
    """Write one shard of every table the source has, empty ones too; sizes come back."""
    cv2.setNumThreads(1)  # tasks share the cores
    sample: list[str] = []
    alike = 0
    ledger, left = Ledger(), Counter[str]()
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(ParquetFile(shard_file(uri, name, shard.index), schema))
            for name, schema in _schemas(source).items()
        }

        def write(name: str, piece: pa.Table) -> None:
            if name == "media":
                index = index_rows(piece, shard.index, files["media"].num_rows)
                files["media_index"].write(index)
            files[name].write(piece)
            if name == "problems" and len(sample) < _SAMPLE:
                sample.extend(_sentence(row) for row in piece.slice(0, _SAMPLE).to_pylist())

        for name, piece in source.read(shard):
            if name != "files":
                kind, _, table = name.partition(":")
                write(kind, piece)
                left[table] += piece.num_rows
                continue
            lost = Counter[str]()
            for part in media_of_files(piece, media, attempt):
                write("media", part.rows)
                write("problems", problem_table(part.problems))
                alike += part.num_alike
                lost += part.lost
            ledger = ledger.record("files", piece.num_rows, piece.num_rows - lost.total(), lost)
    for name in [name for name in files if name != "problems"]:
        rows = files[name].num_rows
        ledger = ledger.record(name, rows + left[name], rows, {_LISTED: left[name]})
    written = {name: file_entry(shard_file(uri, name, shard.index)) for name in files}
    return {
        "index": shard.index,
        "sizes": {n: [file.num_rows, written[n].num_bytes] for n, file in files.items()},
        "sample": sample[:_SAMPLE],
        "alike": alike,
        "ledger": ledger.to_json(),
        "sha256": {name: entry.sha256 for name, entry in written.items()},
    }


def _schemas(source: AnySource) -> dict[str, pa.Schema]:
    """The tables that are written of a source, the problems last."""
    schemas: dict[str, pa.Schema] = {name: TABLES[name] for name in source.tables}
    if "media" in schemas:
        schemas["media_index"] = MEDIA_INDEX
    return {**schemas, "problems": PROBLEMS}


def _sentence(problem: dict[str, Any]) -> str:
    row = "" if problem["row"] is None else f", row {problem['row']}"
    return f"{problem['place']}{row}: {problem['reason']}"


def _total(
    source: AnySource, config: dict[str, Any], digest: str, summaries: list[Summary]
) -> Tables:
    sizes: dict[str, TableSize] = {}
    ledger = Ledger()
    files: dict[str, FileEntry] = {}
    # of some of the shards alone neither would be true
    for summary in summaries if all("ledger" in each for each in summaries) else ():
        ledger = ledger.merge(Ledger.from_json(summary["ledger"]))
        for name, digest_of_file in summary["sha256"].items():
            place = shard_name(name, summary["index"])
            num_bytes = summary["sizes"][name][1]
            files[place] = FileEntry(sha256=digest_of_file, num_bytes=num_bytes)
    for name in _schemas(source):
        if not all(name in summary["sizes"] for summary in summaries):
            continue  # a shard that was finished before there was such a table
        pairs = [summary["sizes"][name] for summary in summaries]
        sizes[name] = TableSize(
            num_rows=sum(p[0] for p in pairs), num_bytes=sum(p[1] for p in pairs)
        )
    problems = sizes.pop("problems").num_rows
    contents = json.dumps([digest, [summary["sizes"] for summary in summaries]])
    sample = [text for summary in summaries for text in summary["sample"]]
    return Tables(
        version=hashlib.sha256(contents.encode()).hexdigest()[:16],
        kind=source.kind,
        source=config,
        num_shards=len(summaries),
        tables=sizes,
        schemas={name: columns_of(schema) for name, schema in _schemas(source).items()},
        ledger=ledger,
        files=files,
        num_alike=sum(summary.get("alike", 0) for summary in summaries),
        num_problems=problems,
        problems=tuple(sample[:_SAMPLE]),
    )
