"""The files of a published index, checked and read."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from rec import artifacts, copies
from rec.artifacts import Manifest, join
from rec.retrieval.effort import Effort
from rec.retrieval.history import KIND
from rec.retrieval.originals import VECTORS_FILE
from rec.retrieval.shards import EFFORT_FILE, Shard, shard_name

_log = logging.getLogger(__name__)


def load(
    uri: str, mmap: bool, model: str | None, manifest: Manifest | None
) -> tuple[list[Shard], Manifest]:
    """See `Index.open`."""
    manifest, folder = artifacts.open_artifact(uri, KIND, without=VECTORS_FILE, manifest=manifest)
    try:
        return _read(uri, mmap, model, manifest, folder), manifest
    finally:
        copies.done(uri, folder)


def _read(uri: str, mmap: bool, model: str | None, manifest: Manifest, folder: Path) -> list[Shard]:
    if model is not None and manifest.lineage.get("encoder") != model:
        raise artifacts.ArtifactError(
            f"{uri}: holds vectors of encoder {manifest.lineage.get('encoder')}, the queries "
            f"come from {model}; embed the items with that encoder and build again"
        )
    stated = {
        name: manifest.config.get(name)
        for name in ("dimension", "num_rows", "num_shards", "max_vectors_per_item")
    }
    for name, value in stated.items():
        if type(value) is not int or value < 1:
            raise artifacts.ArtifactError(
                f"{join(uri, artifacts.MANIFEST)}: {name} of version {manifest.version} is "
                f"{value!r}, expected a whole number above 0; restore it, or build the index again"
            )
    text = (folder / EFFORT_FILE).read_text()
    effort = Effort.from_json(text)
    shards = [
        Shard.read(folder / shard_name(number), effort, mmap)
        for number in range(manifest.config["num_shards"])
    ]
    if "rise" not in json.loads(text) and shards[0].ann.num_lists > 1:
        _log.warning(
            "%s: %s of version %s has no `rise`, as those of before: with a filter it looks less "
            "far and finds less than it might; build it again",
            uri,
            EFFORT_FILE,
            manifest.version,
        )
    rows = sum(shard.size for shard in shards)
    for shard in shards:
        found = stated | {"dimension": shard.ann.dim, "num_rows": rows}
        if found != stated:
            raise artifacts.ArtifactError(
                f"{uri}: the manifest states {stated}, the files have {found}; build the "
                f"index again"
            )
    return shards
