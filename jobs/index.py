"""Build a nearest-neighbour index from an embedding table.

    python -m jobs.index --embeddings runs/demo/embeddings --out runs/demo/index \\
        --set recall_target=0.98

Both places may be local or s3://. Up to 20,000 items the index is exact; beyond, it is tuned on
held-out rows to the recall asked for, and what it reached is in the manifest. No Ray needed.
"""

from __future__ import annotations

import argparse
import sys

from jobs.cli import add_overrides, parser, place
from rec.artifacts import ArtifactError, Manifest
from rec.config import ConfigError
from rec.retrieval.build import build_index
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.spec import IndexConfig


def arguments() -> argparse.ArgumentParser:
    places = parser("jobs.index", __doc__)
    places.add_argument(
        "--embeddings", type=place, required=True, help="an embedding-table artifact"
    )
    places.add_argument("--out", type=place, required=True, help="where to publish the index")
    add_overrides(places, IndexConfig())
    return places


def run(embeddings: str, out: str, config: IndexConfig | None = None) -> Manifest:
    """Build and publish; see rec.retrieval.build.build_index."""
    manifest = build_index(embeddings, out, config)
    built, found = manifest.config, manifest.metrics
    print(
        f"index: {built['num_items']:,} items of dimension {built['dimension']} at {out}, version "
        f"{manifest.version}; {built['factory']} in {built['num_shards']} shards, nprobe {built['nprobe']}, k_factor "
        f"{built['k_factor']:g}; recall@10 "
        f"{found['recall@10']:.4f}, recall@100 {found['recall@100']:.4f} on "
        f"{found['num_queries']} held-out queries; {found['seconds']:.1f} s",
        flush=True,
    )
    if found["recall@10"] < found["recall_target"]:
        print(
            f"index: recall@10 is below the target of {found['recall_target']}; for more, set "
            f"factory=auto, more memory_gb, or factory=Flat (exact)",
            flush=True,
        )
    return manifest


def main(argv: list[str] | None = None) -> int:
    given = arguments().parse_args(argv)
    try:
        run(given.embeddings, given.out, IndexConfig().override(given.set))
    except (ArtifactError, ConfigError, IndexBuildError) as error:
        print(f"index: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
