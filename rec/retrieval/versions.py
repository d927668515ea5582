"""Versions of an index below one address: publish, go back, clear away.

    manifest.json        the version in use; replacing it, in one rename or put, is the swap
    history/VERSION.json the manifest of every version that was in use before, and is kept
    log.json             which log has its live changes and since when, once there was one
    v-.../               the files of one version, never written again

A reader holds one version from its manifest on, so a swap or a step back under load mixes
nothing; files of a version in use locally may be removed under a reader that has them open or
mapped.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any

from pyarrow import fs as pafs

from rec import artifacts
from rec.artifacts import ArtifactError, Manifest, join
from rec.config import one_line
from rec.retrieval import known_log, settings
from rec.retrieval.errors import IndexBuildError, LogError, StaleError

KIND = "index"
_HISTORY = "history"
_ROOT_PREFIX = "v-"
_ROOT = f"{_ROOT_PREFIX}[A-Za-z0-9._-]+"
_MARKER, _MARK_S = "building.tmp", 300.0  # no manifest lists a .tmp
_NEVER = datetime.fromtimestamp(0, UTC)


def publish(uri: str, root: str, *, expect: str | None = None, **about: Any) -> Manifest:
    """Make the files below `uri`/`root` the version in use, and keep the one before.

    Args:
        uri: the index's address, local or s3://.
        root: folder of finished files below it.
        expect: publish only while this version is in use; None = whatever is.
        about: lineage, config and metrics of the manifest.

    Raises:
        StaleError: another version than `expect` is in use; the files are removed. On S3 a
            publisher that comes between the check and the put is not noticed: let one process
            publish there.
        IndexBuildError: the log of live changes has lost some that the files do not have; the
            files are removed.
        LogError: log.json is damaged; the files are removed.
        ArtifactError: the files or the manifest cannot be written, or another process has been
            publishing for long; the files are removed unless they may be in use.
    """
    if not re.fullmatch(_ROOT, str(root)):  # it is removed where this fails
        raise ArtifactError(f"root is {root!r}, expected the name of a folder below {uri}: {_ROOT}")
    with ExitStack() as held:
        try:
            manifest = artifacts.describe(uri, root, KIND, **about)  # others need not wait for this
            held.enter_context(one_publisher(uri))
            if expect is not None and (found := current(uri)) != expect:
                raise StaleError(f"{uri}: version {found} is in use, not {expect}: build on that")
            known_log.check_reaches(uri, manifest.config.get("log_seq"))
            manifest.config["replaced"] = _replaced(uri, manifest)
        except (OSError, ArtifactError, StaleError, IndexBuildError, LogError) as error:
            discard(uri, root)  # from here on it may be in use: then `collect` clears away
            if isinstance(error, OSError):
                raise _unpublished(uri, root, error) from error
            raise
        try:
            _use(uri, manifest)
        except OSError as error:
            raise _unpublished(uri, root, error) from error
    return manifest


def _replaced(uri: str, manifest: Manifest) -> str | None:
    """The version that goes out of use for this one; None where it is the first."""
    if not artifacts.exists(join(uri, artifacts.MANIFEST)):
        return None
    before = artifacts.read_manifest(uri, KIND)
    if before.version == manifest.version:  # the same again
        return before.config.get("replaced")
    return before.version


def _unpublished(uri: str, root: str, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{join(uri, root)}: cannot be published: {error}; free space there and build again"
    )


def current(uri: str) -> str:
    """The version in use. Raises ArtifactError where there is none."""
    return artifacts.read_manifest(uri, KIND).version


def history(uri: str) -> list[Manifest]:
    """Manifests of the version in use and of all that are kept, oldest first.

    Raises:
        ArtifactError: one of them cannot be read.
    """
    found: dict[str, Manifest] = {}
    files, path = artifacts.filesystem(join(uri, _HISTORY))
    for info in files.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        if not info.path.endswith(".json"):
            continue
        name = info.path.rsplit("/", 1)[-1]
        try:
            text = artifacts.read_bytes(join(uri, _HISTORY, name)).decode()
            manifest = Manifest.from_json(text)
        except OSError as error:
            raise ArtifactError(f"{info.path}: cannot be read: {error}") from error
        except ValueError as error:
            raise ArtifactError(
                f"{info.path}: not a manifest ({one_line(error)}); restore it, or remove it to "
                "give up that version"
            ) from error
        found[manifest.version] = manifest
    if artifacts.exists(join(uri, artifacts.MANIFEST)):
        in_use = artifacts.read_manifest(uri, KIND)
        found[in_use.version] = in_use
    return sorted(found.values(), key=lambda manifest: manifest.created_at)


def rollback(uri: str, to: str | None = None) -> Manifest:
    """Put a kept version back in use, once all its files are found intact.

    Args:
        uri: the index's address.
        to: a version; None = the one that the one in use replaced.

    Raises:
        ArtifactError: there is no such version, or a file of it is missing or altered; the
            version in use stays.
    """
    intact: Manifest | None = None
    while True:
        with one_publisher(uri):
            found = _to_roll_back_to(uri, to)
            if found == intact:  # nothing was published or removed while it was verified
                _use(uri, found)
                return found
        artifacts.verify(uri, found)  # others need not wait for this
        intact = found


def _to_roll_back_to(uri: str, to: str | None) -> Manifest:
    kept = history(uri)
    versions = [manifest.version for manifest in kept]
    if to is None:
        in_use = artifacts.read_manifest(uri, KIND)
        if (to := in_use.config.get("replaced")) not in versions:
            raise ArtifactError(
                f"{uri}: no version before {in_use.version} is kept; name one to use: {versions}"
            )
    if to not in versions:
        raise ArtifactError(f"{uri}: version {to} is not kept; name one that is: {versions}")
    return kept[versions.index(to)]


def collect(uri: str, keep: int = 2, grace_s: float = 3600) -> list[str]:
    """Remove all but the `keep` newest versions and the one in use; returns the roots removed.

    What a publisher that died left behind goes too. Nothing written or last in use less than
    `grace_s` seconds ago is touched: it may be being built, or still be read.

    Raises:
        SettingError: `keep` or `grace_s` is not as it should be.
        ArtifactError: as `history`.
    """
    settings.check_kept(keep, grace_s, 0)
    with one_publisher(uri):
        in_use = artifacts.read_manifest(uri, KIND)
        kept = history(uri)
        newest = kept[max(0, len(kept) - keep) :]
        held = {in_use.root, *(manifest.root for manifest in newest)}
        left_use = _left_use(uri, kept)
        young = datetime.now(UTC) - timedelta(seconds=grace_s)
        files, path = artifacts.filesystem(uri)
        removed = []
        for info in files.get_file_info(pafs.FileSelector(path)):
            name = info.path.rsplit("/", 1)[-1]
            is_root = info.type == pafs.FileType.Directory and name.startswith(_ROOT_PREFIX)
            if not is_root or name in held:
                continue
            if max(_last_change(files, info), left_use.get(name, _NEVER)) < young:
                # the manifest first: a version that is listed must be whole
                for manifest in kept:
                    if manifest.root == name:
                        files.delete_file(f"{path}/{_HISTORY}/{manifest.version}.json")
                files.delete_dir(info.path)
                removed.append(name)
        return removed


@contextmanager
def under_construction(uri: str, roots: Collection[str]) -> Iterator[None]:
    """Meanwhile `collect` takes none of these roots, however long it is: a marker in each is
    written again and again. More roots may be added."""
    done = Event()

    def mark() -> None:
        while not done.wait(_MARK_S):
            for root in list(roots):
                with suppress(OSError):  # then it is as old as its files
                    artifacts.write_atomic(join(uri, root, _MARKER), b"")

    marking = Thread(target=mark, name="under-construction", daemon=True)
    marking.start()
    try:
        yield
    finally:
        done.set()
        marking.join()
        for root in roots:
            files, path = artifacts.filesystem(join(uri, root, _MARKER))
            if files.get_file_info(path).type == pafs.FileType.File:
                files.delete_file(path)


def discard(uri: str, root: str) -> None:
    """Remove the files of a version that was not published."""
    files, path = artifacts.filesystem(join(uri, root))
    if files.get_file_info(path).type == pafs.FileType.Directory:
        files.delete_dir(path)


def _last_change(files: pafs.FileSystem, root: pafs.FileInfo) -> datetime:
    inside = files.get_file_info(pafs.FileSelector(root.path, recursive=True))
    times = [info.mtime for info in [root, *inside] if info.mtime is not None]
    return max(times, default=_NEVER)


def _left_use(uri: str, kept: list[Manifest]) -> dict[str, datetime]:
    """When each root went out of use: then its manifest was put in the history."""
    times: dict[str, datetime] = {}
    for manifest in kept:
        files, path = artifacts.filesystem(join(uri, _HISTORY, f"{manifest.version}.json"))
        times[manifest.root] = files.get_file_info(path).mtime or _NEVER
    return times


def _use(uri: str, manifest: Manifest) -> None:
    """Swap; what goes out of use is kept first, so that a publisher killed here or there leaves
    in the history only what has been in use."""
    if artifacts.exists(join(uri, artifacts.MANIFEST)):
        before = artifacts.read_manifest(uri, KIND)
        place = join(uri, _HISTORY, f"{before.version}.json")
        artifacts.write_atomic(place, before.to_json().encode())
    artifacts.write_atomic(join(uri, artifacts.MANIFEST), manifest.to_json().encode())


@contextmanager
def one_publisher(uri: str, wait_s: float = 30) -> Iterator[None]:
    """Only one process at a time changes which version is in use; nothing to hold on S3.

    The lock is the operating system's, so a publisher that dies lets go of it.
    """
    files, path = artifacts.filesystem(uri)
    if not isinstance(files, pafs.LocalFileSystem):
        yield
        return
    place = os.path.join(path, ".publisher")
    try:
        os.makedirs(path, exist_ok=True)
        lock = open(place, "w")  # noqa: SIM115
    except OSError as error:
        raise ArtifactError(f"{place}: cannot be written: {error}; make it so") from error
    with lock:
        deadline = time.monotonic() + wait_s
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline:
                raise ArtifactError(
                    f"{path}: another process has been publishing for {wait_s} s; try again once "
                    f"it is done"
                )
            time.sleep(0.02)
        yield


def upload(folder: str, uri: str) -> None:
    """Copy a local folder to `uri`. Raises ArtifactError where that fails (disk full)."""
    (files, path), local = artifacts.filesystem(uri), pafs.LocalFileSystem()
    try:
        files.create_dir(path, recursive=True)
        pafs.copy_files(folder, path, source_filesystem=local, destination_filesystem=files)
    except OSError as error:
        raise ArtifactError(
            f"{uri}: cannot be written: {error}; free space there and build again"
        ) from error
