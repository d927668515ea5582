"""The embedding job beside a bare loop that uses the same cores on the same files.

The bare loop is one process a core with one torch thread, each with its share of the files: read,
sort a file's rows by how much they hold as the job does, collate, encode, write. It verifies no
hash, keeps no ledger and cannot resume.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from bench.harness import Report, main
from bench.workload import cores, elsewhere, make_encoder, make_rows
from jobs import embed
from rec.features.content import ContentCollator
from rec.models.content.encoder import load_encoder
from rec.recipes.content import demo
from rec.runtime.embed import EmbedConfig, list_partitions
from rec.runtime.partition import SCHEMA as ROWS
from rec.runtime.partition import Partition
from rec.schema import EMBEDDINGS


def _ours(rank: int, encoder: str, rows: str, out: str, config: EmbedConfig) -> None:  # noqa: ARG001
    import ray

    embed.run(encoder, rows, out, config)
    ray.shutdown()


def _bare(rank: int, encoder_uri: str, rows: str, out: str, batch_size: int, world: int) -> None:
    torch.set_num_threads(1)
    encoder = load_encoder(encoder_uri)
    collate = ContentCollator(encoder.inputs)
    for partition in _share(list_partitions(rows)[1], rank, world):
        path = Path(partition.folder, partition.name)
        table = pq.read_table(path, columns=ROWS.names).select(ROWS.names).cast(ROWS)
        order = np.lexsort(
            [
                pc.list_value_length(table["token_ids"]).to_numpy(),
                pc.binary_length(table["log_mel"]).fill_null(0).to_numpy(),
                pc.list_value_length(table["frames"]).to_numpy(),
            ]
        )
        vectors = np.zeros((table.num_rows, encoder.dim), np.float32)
        for start in range(0, table.num_rows, batch_size):
            taken = order[start : start + batch_size]
            vectors[taken] = encoder.encode(collate(table.take(taken)))
        columns = {
            "id": table["item_id"],
            "interest": np.zeros(table.num_rows, np.int32),
            "weight": np.ones(table.num_rows, np.float32),
            "vector": list(vectors),
        }
        found = pa.table(columns, schema=EMBEDDINGS)
        place = Path(out, partition.part_name)
        pq.write_table(found, place, compression="none", use_dictionary=False)


def _share(partitions: list[Partition], rank: int, world: int) -> list[Partition]:
    """Those of `rank`: the largest file first, each to whoever has the least bytes."""
    shares: list[list[Partition]] = [[] for _ in range(world)]
    held = [0] * world
    sizes = {p.index: Path(p.folder, p.name).stat().st_size for p in partitions}
    for partition in sorted(partitions, key=lambda p: -sizes[p.index]):
        least = held.index(min(held))
        shares[least].append(partition)
        held[least] += sizes[partition.index]
    return shares[rank]


def _rate(out: Path) -> tuple[float, int]:
    """Rows a second after the first quarter of the parts was written, and rows in all."""
    parts = sorted(
        (path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in out.rglob("part-*")
    )
    warm = max(len(parts) // 4, 1)
    rows = sum(n for _, n in parts[warm:])
    return rows / (parts[-1][0] - parts[warm - 1][0]), sum(n for _, n in parts)


def measure(options: argparse.Namespace, report: Report) -> None:
    items, per_shard, rounds = (800, 50, 1) if options.quick else (12_000, 250, 5)
    config, processes = EmbedConfig(num_actors=cores()), cores()
    recipe = demo()
    warm: dict[str, list[float]] = {"job": [], "bare": []}
    whole: dict[str, list[float]] = {"job": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="raycall-embed-") as folder:
        rows = make_rows(recipe, f"{folder}/run", items, per_shard)
        encoder = make_encoder(recipe, rows, f"{folder}/run/encoder")
        for number in range(rounds):
            for name in list(warm)[:: -1 if number % 2 else 1]:  # the machine's speed drifts
                out = Path(folder, f"{name}-{number}")
                out.mkdir()
                arguments = (encoder, rows, str(out))
                if name == "job":
                    seconds = elsewhere(_ours, *arguments, config)
                else:
                    sizes = (config.batch_size, processes)
                    seconds = elsewhere(_bare, *arguments, *sizes, processes=processes)
                rate, num_rows = _rate(out)
                if num_rows != items:
                    raise RuntimeError(f"{out}: {num_rows} rows of {items}")
                warm[name].append(rate)
                whole[name].append(items / seconds)
                report.note(f"round {number + 1}, {name}: {rate:.1f} rows/s, {seconds:.1f} s")
    for values, when, bar in ((warm, "after warm-up", 0.85), (whole, "with start-up", None)):
        for name in values:
            report.add(f"rows/s, {name}, {when}", statistics.median(values[name]))
        pairs = zip(values["job"], values["bare"], strict=True)
        ratio = statistics.median(job / bare for job, bare in pairs)
        report.add(f"job / bare loop, {when}, median of the rounds' own", ratio, bar=bar)
    report.note(
        f"demo encoder, untrained; {items} synthetic items in files of {per_shard}, batches of "
        f"{config.batch_size} rows sorted by size on both sides; {processes} actors and processes "
        f"of one torch thread; medians of {rounds} rounds; warm-up is the first quarter of parts"
    )


if __name__ == "__main__":
    main("embed", __doc__, measure)
