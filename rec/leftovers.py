"""What publishers leave behind below an artifact's address: folders of files, and files aside."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pyarrow import fs as pafs

from rec import artifacts

GRACE_S = 3600.0
_NEVER = datetime.fromtimestamp(0, UTC)


def old_roots(
    uri: str,
    pattern: str,
    held: Collection[str],
    grace_s: float = GRACE_S,
    last_used: Mapping[str, datetime] | None = None,
) -> list[str]:
    """The folders below `uri` whose names match `pattern`, but for those held and those in which
    something was written, or which were used, in the last `grace_s` seconds.

    Args:
        last_used: when some of them were; None = not known of any.
    """
    young, used = datetime.now(UTC) - timedelta(seconds=grace_s), last_used or {}
    files, path = artifacts.filesystem(uri)
    found = []
    for info in files.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        name = info.path.rsplit("/", 1)[-1]
        is_root = info.type == pafs.FileType.Directory and re.fullmatch(pattern, name)
        if not is_root or name in held:
            continue
        if max(_last_change(files, info), used.get(name, _NEVER)) < young:
            found.append(name)
    return found


def remove_asides(uri: str, grace_s: float = GRACE_S) -> None:
    """Remove files that `artifacts.write_atomic` was writing directly below `uri` as its process
    was killed, unless they are younger than `grace_s` seconds."""
    young = datetime.now(UTC) - timedelta(seconds=grace_s)
    files, path = artifacts.filesystem(uri)
    for info in files.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        is_aside = re.search(r"\.[0-9a-f]{32}\.tmp$", info.path)
        if info.type == pafs.FileType.File and is_aside and (info.mtime or _NEVER) < young:
            with suppress(FileNotFoundError):  # it has its name by now
                files.delete_file(info.path)


def root_in_use(uri: str, kind: str) -> str | None:
    """None where there is no artifact.

    Raises:
        ArtifactError: there is one of another kind, whose folders must not be cleared away, or
            its manifest cannot be read.
    """
    if not artifacts.exists(artifacts.join(uri, artifacts.MANIFEST)):
        return None
    return artifacts.read_manifest(uri, kind).root


def clear(uri: str, pattern: str, *held: str | None) -> list[str]:
    """Remove what `old_roots` finds, and files aside; the names of the folders.

    For artifacts of which a job publishes one version after the other.

    Args:
        held: what was published, and the `root_in_use` before: someone may be reading it.
    """
    remove_asides(uri)
    files, path = artifacts.filesystem(uri)
    removed = old_roots(uri, pattern, {root for root in held if root})
    for name in removed:
        files.delete_dir(f"{path}/{name}")
    return removed


def _last_change(files: pafs.FileSystem, root: pafs.FileInfo) -> datetime:
    inside = files.get_file_info(pafs.FileSelector(root.path, recursive=True))
    times = [info.mtime for info in [root, *inside] if info.mtime is not None]
    return max(times, default=_NEVER)
