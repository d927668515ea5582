"""The versions of an index that are kept: their manifests, and which led to which."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime

from pyarrow import fs as pafs

from rec import artifacts
from rec.artifacts import ArtifactError, Manifest, join
from rec.config import one_line

KIND = "index"
FOLDER = "history"
ROOT = r"v-[A-Za-z0-9._-]+"
NEVER = datetime.fromtimestamp(0, UTC)
_log = logging.getLogger(__name__)


def history(uri: str) -> list[Manifest]:
    """Manifests of the version in use and of all that are kept, oldest first.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    kept, damaged = _read(uri)
    for error in damaged.values():
        raise error
    return kept


def readable(uri: str) -> tuple[list[Manifest], set[str]]:
    """As `history`, without those that are damaged, of which the log warns; and the roots that
    their text names: whoever restores one finds its files.

    Raises:
        ArtifactError: the version in use, or the folder, cannot be read.
    """
    kept, damaged = _read(uri)
    roots: set[str] = set()
    for name, error in damaged.items():
        _log.warning("%s", error)
        text = artifacts.read_bytes(join(uri, FOLDER, name)).decode(errors="replace")
        roots |= set(re.findall(rf'"({ROOT})"', text))
    return kept, roots


def to_keep(in_use: Manifest, kept: list[Manifest], keep: int) -> list[Manifest]:
    """The one in use, those that rollbacks from it would lead to, and the newest: `keep` of each.

    What a rollback led away from is newer than what is in use, and may be no good.
    """
    by_version = {manifest.version: manifest for manifest in kept}
    chain = {in_use.version: in_use}
    last = in_use
    while len(chain) < keep:
        before = by_version.get(str(last.config.get("replaced")))
        if before is None or before.version in chain:
            break
        chain[before.version] = last = before
    return [*chain.values(), *kept[max(0, len(kept) - keep) :]]


def reached_by_all(uri: str) -> int:
    """The live change that all versions that can be read go up to, at least; one that does not
    know needs all of the log."""
    return min(int(manifest.config.get("log_seq") or 0) for manifest in readable(uri)[0])


def left_use(uri: str, kept: list[Manifest]) -> dict[str, datetime]:
    """When each root went out of use: then its manifest was put in the history."""
    times: dict[str, datetime] = {}
    for manifest in kept:
        files, path = artifacts.filesystem(join(uri, FOLDER, f"{manifest.version}.json"))
        times[manifest.root] = files.get_file_info(path).mtime or NEVER
    return times


def _read(uri: str) -> tuple[list[Manifest], dict[str, ArtifactError]]:
    """The manifests, oldest first; and by name of file what is wrong with the others."""
    found: dict[str, Manifest] = {}
    damaged: dict[str, ArtifactError] = {}
    files, path = artifacts.filesystem(join(uri, FOLDER))
    for info in files.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        if not info.path.endswith(".json"):
            continue
        name = info.path.rsplit("/", 1)[-1]
        try:
            manifest = Manifest.from_json(artifacts.read_bytes(join(uri, FOLDER, name)).decode())
        except OSError as error:
            raise ArtifactError(f"{info.path}: cannot be read: {error}") from error
        except ValueError as error:
            damaged[name] = ArtifactError(
                f"{info.path}: not a manifest ({one_line(error)}); restore it, or remove it to "
                "give up that version"
            )
            continue
        found[manifest.version] = manifest
    if artifacts.exists(join(uri, artifacts.MANIFEST)):
        in_use = artifacts.read_manifest(uri, KIND)
        found[in_use.version] = in_use
    return sorted(found.values(), key=lambda manifest: manifest.created_at), damaged
