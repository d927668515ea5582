"""Content rows to an embedding table: one Parquet file in, one partition out, on an actor pool.

Vectors never pass through the object store: the actor that computes a partition writes it, at
once and whole, and only its row counts come back. A partition that stands is not computed again,
so a killed run goes on where it was; the folder of the parts is named by encoder and rows, so
parts of two encoders never mix.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import cv2
import pyarrow as pa
import ray
import ray.data
import torch
from pyarrow import fs as pafs
from pydantic import Field
from tqdm import tqdm

from rec import artifacts
from rec.config import Config
from rec.data.ledger import Ledger, StageCounts
from rec.data.parquet import ParquetError
from rec.data.tasks import stream
from rec.models.content.encoder import KIND as ENCODER_KIND
from rec.models.content.encoder import load_encoder
from rec.runtime.partition import EmbedError, Partition, PartReport, embed_partition, read_report
from rec.runtime.same_tokenizer import refuse_other_tokenizer

KIND = "embedding-table"
logger = logging.getLogger(__name__)


class EmbedConfig(Config):
    """How to run."""

    batch_size: int = Field(default=64, ge=1)  # rows a forward pass
    num_actors: int | None = Field(default=None, ge=1)  # None: as many as the cluster holds
    cpus_per_actor: int = Field(default=1, ge=1)  # and threads of torch and OpenCV
    gpus_per_actor: float = Field(default=0.0, ge=0)  # above 0 the model runs on CUDA
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: half the memory, the vectors stay float32
    max_failed_share: float = Field(
        default=0.01, ge=0, le=1
    )  # of rows; past it nothing is published


class _Embedder:
    """An actor: holds one encoder and embeds one partition a call."""

    def __init__(
        self, encoder_uri: str, encoder_version: str, folder: str, config: EmbedConfig
    ) -> None:
        torch.set_num_threads(config.cpus_per_actor)
        cv2.setNumThreads(config.cpus_per_actor)
        self._encoder = load_encoder(encoder_uri, "cuda" if config.gpus_per_actor else "cpu")
        self._expected, self._folder, self._config = encoder_version, folder, config

    def __call__(self, batch: pa.Table) -> pa.Table:
        reports, errors = [], []
        for text in batch["partition"].to_pylist():
            try:
                reports.append(self._embed(Partition.from_json(text)).to_json())
                errors.append(None)
            except (EmbedError, ParquetError, artifacts.ArtifactError) as error:
                # Ray loses the type and cause of what an actor raises
                reports.append(None)
                errors.append(str(error))
        columns = [pa.array(reports, pa.string()), pa.array(errors, pa.string())]
        return pa.table(columns, names=["report", "error"])

    def _embed(self, partition: Partition) -> PartReport:
        if self._encoder.version != self._expected:
            raise EmbedError(
                f"the encoder was published again while the run began: version "
                f"{self._encoder.version} now, {self._expected} then; start the run again"
            )
        half = self._config.precision == "bf16"
        with torch.autocast(self._encoder.device.type, torch.bfloat16, enabled=half):
            return embed_partition(self._encoder, partition, self._folder, self._config.batch_size)


def list_partitions(rows_uri: str) -> tuple[str, list[Partition]]:
    """The version of the rows at `rows_uri` and their files, in the order of names.

    Args:
        rows_uri: a published "content-rows" artifact (its train and heldout rows), or any folder
            of Parquet files with the model's columns.

    Raises:
        EmbedError: there is no such folder, or no Parquet file in it.
    """
    if artifacts.exists(artifacts.join(rows_uri, artifacts.MANIFEST)):
        manifest = artifacts.read_manifest(rows_uri, "content-rows")
        version, place = manifest.version, artifacts.join(rows_uri, manifest.root)
        names = {
            name: entry
            for name, entry in sorted(manifest.files.items())
            if name.endswith(".parquet") and name.startswith(("train/", "heldout/"))
        }
    else:
        files, path = artifacts.filesystem(rows_uri)
        if files.get_file_info(path).type != pafs.FileType.Directory:
            raise EmbedError(f"{rows_uri}: no such folder; expected content rows there")
        infos = files.get_file_info(pafs.FileSelector(path, recursive=True))
        found = sorted((i for i in infos if i.path.endswith(".parquet")), key=lambda i: i.path)
        names = {info.path[len(path) :].lstrip("/"): None for info in found}
        listing = "\n".join(f"{i.path[len(path) :]} {i.size} {i.mtime_ns}" for i in found)
        version, place = hashlib.sha256(listing.encode()).hexdigest()[:16], rows_uri
    if not names:
        raise EmbedError(f"{rows_uri}: no Parquet file with content rows")
    return version, [
        Partition(index=index, folder=place, name=name, entry=entry)
        for index, (name, entry) in enumerate(names.items())
    ]


def embed(
    encoder_uri: str, rows_uri: str, out_uri: str, config: EmbedConfig | None = None
) -> artifacts.Manifest:
    """Embed every row and publish the embedding table at `out_uri`; all may be local or s3://.

    A run that was killed is gone on with by calling this again with the same encoder and rows;
    where the table is published already, its manifest is returned at once.

    Returns:
        The manifest; lineage names the versions of encoder and rows. Beside the parts stand
        ledger.json (rows in, out, left out by reason) and, where rows failed, failed.json.

    Raises:
        EmbedError: there are no rows, of another tokenizer, or with columns missing, or more rows
            failed than `max_failed_share`.
        ArtifactError: encoder or rows are absent or not as published.
    """
    config = config or EmbedConfig()
    started = time.monotonic()
    encoder = artifacts.read_manifest(encoder_uri, ENCODER_KIND)
    artifacts.verify(encoder_uri, encoder)  # named here in a line, not by every worker
    refuse_other_tokenizer(encoder_uri, encoder, rows_uri)
    encoder_version = encoder.version
    rows_version, partitions = list_partitions(rows_uri)
    made_of = f"{encoder_version} {rows_version} {config.precision}"
    root = f"e-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    if published := _published(out_uri, root):
        print(f"embed: {out_uri} is published already, version {published.version}", flush=True)
        return published
    folder = artifacts.join(out_uri, root)
    done = _standing(folder, partitions)
    total, new_rows = PartReport(), 0
    for report in done.values():
        total += report
    print(f"embed: {len(partitions)} partitions, {len(done)} of them standing already", flush=True)
    rest = [partition for partition in partitions if partition.index not in done]
    reports = _run(encoder_uri, encoder_version, rest, folder, config)
    with tqdm(total=len(rest), desc="embed", unit="partition", mininterval=2) as bar:
        for report in reports:
            total += report
            new_rows += report.counts.rows_out
            rate = new_rows / (time.monotonic() - started)
            bar.set_postfix_str(f"{new_rows:,} items, {rate:,.1f} items/s", refresh=False)
            bar.update()
    _check_and_note(total, folder, config.max_failed_share)
    seconds = time.monotonic() - started
    return artifacts.seal(
        out_uri,
        root,
        KIND,
        lineage={"encoder": encoder_version, "rows": rows_version},
        config={**config.model_dump(), "encoder_uri": encoder_uri, "rows_uri": rows_uri},
        metrics={
            "cutoff": encoder.metrics.get("cutoff"),  # the encoder knows of nothing later
            "num_rows": total.counts.rows_out,
            "num_failed": sum(total.counts.dropped.values()),
            "num_partitions": len(partitions),
            "num_resumed": len(done),
            "seconds": round(seconds, 3),
            "rows_per_s": round(new_rows / seconds, 2),
        },
    )


def _published(out_uri: str, root: str) -> artifacts.Manifest | None:
    """The manifest where this very table is published and intact; altered parts are deleted."""
    if not artifacts.exists(artifacts.join(out_uri, artifacts.MANIFEST)):
        return None
    manifest = artifacts.read_manifest(out_uri, KIND)
    if manifest.root != root:
        return None
    intact = True
    for name, entry in manifest.files.items():
        try:
            artifacts.verify(out_uri, manifest.model_copy(update={"files": {name: entry}}))
        except artifacts.ArtifactError as error:
            print(f"embed: computing a part again: {error}", flush=True)
            files, path = artifacts.filesystem(artifacts.join(out_uri, root, name))
            if artifacts.exists(artifacts.join(out_uri, root, name)):
                files.delete_file(path)
            intact = False
    return manifest if intact else None


def _standing(folder: str, partitions: list[Partition]) -> dict[int, PartReport]:
    """Reports of the partitions that stand whole in `folder` already."""
    files, path = artifacts.filesystem(folder)
    infos = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    there = {info.path.rsplit("/", 1)[-1] for info in infos}
    done = [partition for partition in partitions if partition.part_name in there]
    with ThreadPoolExecutor(16) as pool:
        reports = pool.map(lambda p: _report(artifacts.join(folder, p.part_name)), done)
        return {p.index: report for p, report in zip(done, reports, strict=True) if report}


def _report(part: str) -> PartReport | None:
    try:
        return read_report(part)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:  # cut short, or of somebody else
        print(f"embed: computing a part again: {part}: {error}", flush=True)
        return None


def _run(
    encoder_uri: str,
    encoder_version: str,
    partitions: list[Partition],
    folder: str,
    config: EmbedConfig,
) -> Iterator[PartReport]:
    """Embed partitions on an actor pool; their reports as they finish."""
    if not partitions:
        return
    work = ray.data.from_items(
        [{"partition": partition.to_json()} for partition in partitions],
        override_num_blocks=len(partitions),
    )
    num_actors = min(config.num_actors or _room(config), len(partitions))
    reports = work.map_batches(
        _Embedder,
        fn_constructor_args=(encoder_uri, encoder_version, folder, config),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
    )
    reports.context.enable_progress_bars = False  # this job prints its own
    reports.context.print_on_execution_start = False
    for batch in stream(reports):
        for row in batch.to_pylist():
            if row["error"] is not None:
                raise EmbedError(row["error"])
            yield PartReport.from_json(row["report"])


def _room(config: EmbedConfig) -> int:
    """How many actors the cluster holds at once."""
    resources = ray.cluster_resources()
    cpus = resources.get("CPU", 1.0)
    if len(ray.nodes()) == 1:  # a local Ray may count more CPUs than the machine has
        cpus = min(cpus, len(os.sched_getaffinity(0)))
    room = cpus // config.cpus_per_actor
    if config.gpus_per_actor:
        room = min(room, resources.get("GPU", 0.0) // config.gpus_per_actor)
        if not room:
            raise EmbedError(
                f"gpus_per_actor is {config.gpus_per_actor}, the cluster has "
                f"{resources.get('GPU', 0.0):g} GPUs; set it to 0 to run on CPUs"
            )
    return max(1, int(room))


def _check_and_note(total: PartReport, folder: str, max_failed_share: float) -> None:
    """Write ledger.json and failed.json; raise EmbedError where too many rows failed."""
    counts = StageCounts(
        rows_in=total.counts.rows_in,
        rows_out=total.counts.rows_out,
        dropped=dict(sorted(total.counts.dropped.items())),
    )
    ledger = Ledger(num_problems=total.num_problems, problems=total.problems).record(
        "embed", counts.rows_in, counts.rows_out, counts.dropped
    )
    artifacts.write_atomic(artifacts.join(folder, "ledger.json"), ledger.to_json().encode())
    num_failed = sum(counts.dropped.values())
    if num_failed:
        text = json.dumps(total.failed, indent=2)
        artifacts.write_atomic(artifacts.join(folder, "failed.json"), text.encode())
        logger.warning("%d of %d rows failed: %s", num_failed, counts.rows_in, counts.dropped)
    if not counts.rows_out or num_failed > max_failed_share * counts.rows_in:
        raise EmbedError(
            f"{folder}: {num_failed} of {counts.rows_in} rows failed ({counts.dropped}), allowed "
            f"is a share of {max_failed_share}; the first: {list(total.failed[:3])}; correct the "
            f"rows, or raise max_failed_share"
        )
