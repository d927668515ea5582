"""Embed items with a published encoder, to an embedding table.

    python -m jobs.embed --encoder runs/demo/encoder --rows runs/demo/rows \\
        --out runs/demo/embeddings --set batch_size=32
    python -m jobs.embed --encoder runs/site/sasrec/encoder --out runs/site/sasrec/embeddings

A content encoder embeds the rows that it is given. An encoder of users (a sequence-encoder) holds
its items' vectors; they are written out as they are, and an index of them serves /v1/recommend.
Every place may be local or s3://. A run that was killed goes on where it was when the same
command is given again. On a cluster: `ray job submit -- python -m jobs.embed ...`.
"""

from __future__ import annotations

import argparse
import sys

from jobs.cli import add_overrides, alone_in, parser, place, start_ray, tell_errors
from rec.artifacts import ArtifactError, Manifest, read_manifest
from rec.config import ConfigError
from rec.models.sequence.encoder import KIND as USERS
from rec.runtime.embed import EmbedConfig, embed
from rec.runtime.item_vectors import publish_item_vectors
from rec.runtime.partition import EmbedError


def arguments() -> argparse.ArgumentParser:
    places = parser("jobs.embed", __doc__)
    places.add_argument(
        "--encoder",
        type=place,
        required=True,
        help="a content-encoder or a sequence-encoder",
    )
    places.add_argument(
        "--rows",
        type=place,
        help="for a content encoder: a content-rows artifact, or a folder of Parquet like it",
    )
    places.add_argument(
        "--out", type=place, required=True, help="where to publish the embedding table"
    )
    add_overrides(places, EmbedConfig())
    return places


def run(encoder: str, rows: str, out: str, config: EmbedConfig | None = None) -> Manifest:
    """Embed on the Ray that is running, else on one of this process; see rec.runtime.embed."""
    start_ray()
    manifest = embed(encoder, rows, out, config)
    metrics = manifest.metrics
    print(
        f"embed: {metrics['num_rows']:,} vectors at {out}, version {manifest.version}; "
        f"{metrics['num_failed']} rows failed; {metrics['seconds']:.1f} s, "
        f"{metrics['rows_per_s']:,.1f} rows/s with start-up",
        flush=True,
    )
    return manifest


def run_items(encoder: str, out: str) -> Manifest:
    """Write out the items' vectors of an encoder of users, in this process."""
    manifest = publish_item_vectors(encoder, out)
    num_rows = manifest.metrics["num_rows"]
    print(f"embed: {num_rows:,} vectors at {out}, version {manifest.version}", flush=True)
    return manifest


@tell_errors("embed", ArtifactError, ConfigError, EmbedError)
def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    config = EmbedConfig().override(given.set)
    if given.rows is None:  # works in this process, on any cluster
        if read_manifest(given.encoder).kind != USERS:
            raise ConfigError(f"give --rows, what {given.encoder} is to embed")
        if given.set:
            raise ConfigError(f"{given.encoder} holds its items' vectors: no --set")
        with alone_in(given.out):
            run_items(given.encoder, given.out)
        return 0
    start_ray(given)
    with alone_in(given.out):
        run(given.encoder, given.rows, given.out, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
