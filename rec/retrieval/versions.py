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
from threading import Event, Thread
from typing import Any

from pyarrow import fs as pafs

from rec import artifacts, leftovers
from rec.artifacts import ArtifactError, Manifest, join
from rec.retrieval import known_log, settings
from rec.retrieval.errors import IndexBuildError, LogError, StaleError, remedy
from rec.retrieval.history import FOLDER, KIND, ROOT, history, left_use, readable, to_keep

__all__ = [
    "KIND",
    "collect",
    "current",
    "discard",
    "history",
    "one_publisher",
    "publish",
    "rollback",
    "under_construction",
    "upload",
]

_MARKER, _MARK_S = "building.tmp", 300.0  # no manifest lists a .tmp


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
    if not re.fullmatch(ROOT, str(root)):  # it is removed where this fails
        raise ArtifactError(f"root is {root!r}, expected the name of a folder below {uri}: {ROOT}")
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


def rollback(uri: str, to: str | None = None) -> Manifest:
    """Put a kept version back in use, once all its files are found intact.

    Args:
        uri: the index's address.
        to: a version; None = the one that the one in use replaced.

    Raises:
        ArtifactError: there is no such version that can be read, a file of it is missing or
            altered, or the disk is full; the version in use stays.
    """
    intact: Manifest | None = None
    while True:
        with one_publisher(uri):
            found = _to_roll_back_to(uri, to)
            if found == intact:  # nothing was published or removed while it was verified
                try:
                    _use(uri, found)
                except OSError as error:
                    raise ArtifactError(
                        f"{error.filename or uri}: cannot be written: {error}; {remedy(error)}: "
                        f"version {current(uri)} is in use"
                    ) from error
                return found
        artifacts.verify(uri, found)  # others need not wait for this
        intact = found


def _to_roll_back_to(uri: str, to: str | None) -> Manifest:
    kept, _ = readable(uri)
    versions = [manifest.version for manifest in kept]
    if to is None:
        in_use = artifacts.read_manifest(uri, KIND)
        if (to := in_use.config.get("replaced")) not in versions:
            _check_readable(uri, to, versions)
            raise ArtifactError(
                f"{uri}: no version before {in_use.version} is kept; name one to use: {versions}"
            )
    if to not in versions:
        _check_readable(uri, to, versions)
        raise ArtifactError(f"{uri}: version {to} is not kept; name one that is: {versions}")
    return kept[versions.index(to)]


def _check_readable(uri: str, version: str | None, versions: list[str]) -> None:
    """Raises ArtifactError where this version, which is none of those read, has a manifest."""
    place = join(uri, FOLDER, f"{version}.json")
    if version is not None and re.fullmatch("[0-9a-f]{16}", version) and artifacts.exists(place):
        raise ArtifactError(
            f"{place}: damaged, so that version {version} cannot be used again; restore it, or "
            f"name another version: {versions}"
        )


def collect(uri: str, keep: int = 2, grace_s: float = 3600) -> list[str]:
    """Remove all but the `keep` newest versions, the one in use, and as many as `keep` with it
    that rollbacks lead to; returns the roots removed.

    What a publisher that died left behind goes too. Nothing written or last in use less than
    `grace_s` seconds ago is touched: it may be being built, or still be read. Of a manifest in the
    history that is damaged the log warns; the files that it names stay.

    Raises:
        SettingError: `keep` or `grace_s` is not as it should be.
        ArtifactError: the version in use, or the history, cannot be read.
    """
    settings.check_kept(keep, grace_s, 0)
    with one_publisher(uri):
        kept, named = readable(uri)
        in_use = artifacts.read_manifest(uri, KIND)
        held = {*named, *(manifest.root for manifest in to_keep(in_use, kept, keep))}
        files, path = artifacts.filesystem(uri)
        removed = leftovers.old_roots(uri, ROOT, held, grace_s, left_use(uri, kept))
        for name in removed:
            # the manifest first: a version that is listed must be whole
            for manifest in kept:
                if manifest.root == name:
                    files.delete_file(f"{path}/{FOLDER}/{manifest.version}.json")
            files.delete_dir(f"{path}/{name}")
        for place in (uri, join(uri, FOLDER)):
            leftovers.remove_asides(place, grace_s)
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


def _use(uri: str, manifest: Manifest) -> None:
    """Swap; what goes out of use is kept first, so that a publisher killed here or there leaves
    in the history only what has been in use."""
    if artifacts.exists(join(uri, artifacts.MANIFEST)):
        before = artifacts.read_manifest(uri, KIND)
        place = join(uri, FOLDER, f"{before.version}.json")
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
