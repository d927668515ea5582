"""Artifacts: what all else reads of a run. Encoders, embedding tables, score tables, indexes.

An artifact is a folder, local or on S3:

    manifest.json             written last, in one rename (local) or one put (S3)
    <root>/...                the files; a new version goes to a new root, aside of the old

The manifest lists every file with its sha256, and tells its own, so a reader never sees half of a
version, and a truncated or altered file is refused by name. It tells the columns of tables, names
the ledger of their rows, and says what all was made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import pyarrow as pa
from pyarrow import fs as pafs
from pydantic import AfterValidator, Field

from rec import __version__, copies
from rec.config import Config, one_line
from rec.file_schemas import schemas_of

MANIFEST = "manifest.json"
_OWN = "sha256"  # of the manifest's other fields, as its file tells it
LEDGER = "ledger.json"  # of rows in, out and dropped by reason (rec.data.ledger)
_CHUNK = 1 << 20
_TRIES = 5  # to copy what others may drop meanwhile
# a manifest from elsewhere must not lead out of its folder, nor out of the cache
_PLAIN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} leads out of the artifact's folder")
    return path


RelativePath = Annotated[str, AfterValidator(_relative)]


class ArtifactError(ValueError):
    """An artifact is absent, incomplete, altered, or of another kind. Names file and remedy."""


class FileEntry(Config):
    sha256: str
    num_bytes: int


class Manifest(Config):
    """What a version of an artifact is made of and where it came from."""

    kind: str  # "content-encoder", "embedding-table", "index", "content-rows", "tables"
    # names this version; equal contents give an equal version
    version: str = Field(pattern="^[0-9a-f]{16}$")
    root: str = Field(pattern=_PLAIN)  # folder of the files, below the artifact's own
    files: dict[RelativePath, FileEntry]  # paths below root
    ledger: RelativePath | None = None  # the one of them that says what became of all rows
    schemas: dict[str, dict[str, str]] = {}  # file, numbers as * -> column or array -> type
    lineage: dict[str, str] = {}  # artifact it was made from -> its version
    config: dict[str, Any] = {}  # how it was made
    metrics: dict[str, Any] = {}  # what was measured of it
    created_at: str = ""
    raycall: str = __version__
    format: int = 1

    def to_json(self) -> str:
        """With the sha256 of all that it says: it stands for the files, and nothing for it."""
        told = json.loads(super().to_json())
        return json.dumps({**told, _OWN: _digest(told)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises ValueError where it is not as it was written; those of before told no sha256."""
        try:
            told = json.loads(text)
        except ValueError:
            return super().from_json(text)  # which says in other words what is wrong
        own = told.pop(_OWN, None) if isinstance(told, dict) else None
        manifest = super().from_json(json.dumps(told))
        if own is not None and own != _digest(told):
            raise ValueError("altered since it was written")
        return manifest


def _digest(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def filesystem(uri: str | os.PathLike[str]) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a local path or an s3:// URI, and the path within it.

    Raises:
        ArtifactError: there is no such kind of place.
    """
    text = _text(uri)
    if "://" in text:
        try:
            return pafs.FileSystem.from_uri(text)
        except pa.ArrowInvalid as error:
            raise ArtifactError(
                f"{text}: {error}; give a local path or s3://BUCKET/FOLDER"
            ) from error
    return pafs.LocalFileSystem(), os.path.abspath(text)


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """`uri` with path parts added."""
    return "/".join([_text(uri).rstrip("/"), *parts])


def _text(uri: str | os.PathLike[str]) -> str:
    text = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
    if not isinstance(text, str) or not text:  # with parts added "" would be the root, /
        raise ArtifactError(
            f"{uri!r} in place of an address; give a local path or s3://BUCKET/FOLDER"
        )
    return text


def exists(uri: str | os.PathLike[str]) -> bool:
    files, path = filesystem(uri)
    return files.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str | os.PathLike[str]) -> bytes:
    files, path = filesystem(uri)
    with files.open_input_stream(path) as stream:
        return stream.read()


def write_atomic(uri: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Write one file so that a reader sees all of it or none: rename locally, one put on S3.

    Where it need not outlive a power cut (`durable`), nobody waits for the disk.
    """
    files, path = filesystem(uri)
    files.create_dir(os.path.dirname(path), recursive=True)
    if not isinstance(files, pafs.LocalFileSystem):
        with files.open_output_stream(path) as stream:
            stream.write(data)
        return
    aside = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(aside, "wb") as stream:
            stream.write(data)
        (move_synced if durable else os.replace)(aside, path)
    except OSError as error:
        Path(aside).unlink(missing_ok=True)  # on a full disk it would take what little is left
        error.filename = error.filename or path  # a write names none
        raise


def move_synced(aside: str, path: str) -> None:
    """Give a finished local file its name; on disk, it and the name, when this returns.

    So what is written afterwards, a marker or a manifest, never stands beside an empty file.
    """
    _sync(aside)
    os.replace(aside, path)
    _sync(os.path.dirname(path))


def _sync(path: str) -> None:
    """Wait until a local file's contents, or a folder's names, are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sync_all(path: str) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)
    _sync(os.path.dirname(path))


def _entry(stream: BinaryIO) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return FileEntry(sha256=digest.hexdigest(), num_bytes=size)


def file_entry(uri: str) -> FileEntry:
    """What a manifest says of a file; reads it."""
    files, path = filesystem(uri)
    with files.open_input_stream(path) as stream:
        return _entry(stream)


def file_sizes(uri: str) -> dict[str, int]:
    """The names and bytes of the files below `uri`, in order; not what is being written aside."""
    files, path = filesystem(uri)
    found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    return {
        info.path[len(path) :].lstrip("/"): info.size
        for info in sorted(found, key=lambda info: info.path)
        if info.type == pafs.FileType.File and not info.path.endswith(".tmp")
    }


def describe(
    uri: str | os.PathLike[str],
    root: str,
    kind: str,
    *,
    lineage: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    hashed: Mapping[str, FileEntry] | None = None,
) -> Manifest:
    """The manifest of the files that stand below `uri`/`root`: hashes them, writes nothing.

    Local files are on disk when it returns: a manifest never outlives them in a crash.

    Args:
        hashed: entries of files that need not be read any more.
    """
    files, path = filesystem(join(uri, root))
    known = hashed or {}
    entries = {
        name: known[name] if name in known else file_entry(join(uri, root, name))
        for name in file_sizes(join(uri, root))
    }
    if not entries:
        raise ArtifactError(f"{join(uri, root)}: no files to publish as '{kind}'")
    if isinstance(files, pafs.LocalFileSystem):
        _sync_all(path)
    contents = "\n".join(f"{name} {entry.sha256}" for name, entry in entries.items())
    return Manifest(
        kind=kind,
        version=hashlib.sha256(f"{kind}\n{contents}".encode()).hexdigest()[:16],
        root=root,
        files=entries,
        ledger=LEDGER if LEDGER in entries else None,
        schemas=schemas_of(files, path, entries),
        lineage=dict(lineage or {}),
        config=dict(config or {}),
        metrics=dict(metrics or {}),
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def seal(uri: str | os.PathLike[str], root: str, kind: str, **about: Any) -> Manifest:
    """Publish the files that stand below `uri`/`root`: hash them, then write the manifest.

    For large artifacts whose parts were written in place, each atomically, by many workers.
    `about`: lineage, config, metrics and what is hashed already, as for `describe`.

    Raises:
        ArtifactError: there are no files, or an artifact of another kind stands at `uri`.
    """
    _check_kind(uri, kind)
    manifest = describe(uri, root, kind, **about)
    write_atomic(join(uri, MANIFEST), manifest.to_json().encode())
    return manifest


def _check_kind(uri: str | os.PathLike[str], kind: str) -> None:
    """Raises ArtifactError where another kind stands at `uri`: it would be lost, and what belongs
    to it (an index's history and log) would stand beside what replaced it."""
    if not exists(join(uri, MANIFEST)):
        return
    if (found := read_manifest(uri).kind) != kind:
        raise ArtifactError(
            f"{join(uri, MANIFEST)}: an artifact of kind '{found}', which one of kind '{kind}' "
            f"must not replace; give an address of its own, or remove what stands there"
        )


def publish(
    staged: str | os.PathLike[str], uri: str | os.PathLike[str], kind: str, **about: Any
) -> Manifest:
    """Publish a local folder as the artifact at `uri`, in a new root beside older versions.

    Args:
        staged: local folder with the finished files; it is left as it is.
        uri: the artifact's folder, local or s3://.
        kind: what it is; readers ask for it by this name.
        about: lineage, config and metrics, as for `seal`.

    Raises:
        ArtifactError: as `seal` does.
    """
    _check_kind(uri, kind)  # before anything is copied there
    root = f"v-{uuid.uuid4().hex[:12]}"
    pafs.copy_files(*_copy_arguments(os.fspath(staged), join(uri, root)))
    return seal(uri, root, kind, **about)


def _copy_arguments(source: str, target: str) -> tuple[str, str, pafs.FileSystem, pafs.FileSystem]:
    source_files, source_path = filesystem(source)
    target_files, target_path = filesystem(target)
    target_files.create_dir(target_path, recursive=True)
    return source_path, target_path, source_files, target_files


def read_manifest(uri: str | os.PathLike[str], kind: str | None = None) -> Manifest:
    """The manifest at `uri`, of an artifact of this kind; None: of any.

    Raises:
        ArtifactError: there is none, it cannot be read, or it is of another kind.
    """
    place = join(uri, MANIFEST)
    if not exists(place):
        what = f"'{kind}' artifact" if kind else "artifact"
        raise ArtifactError(f"{place}: not found; expected a published {what} there")
    try:
        manifest = Manifest.from_json(read_bytes(place).decode())
    except OSError as error:
        raise ArtifactError(f"{place}: cannot be read: {error}") from error
    except ValueError as error:
        raise ArtifactError(
            f"{place}: not a manifest ({one_line(error)}); restore it, or remove it and run the "
            "job that made it again"
        ) from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{place}: a '{manifest.kind}' artifact, expected '{kind}'")
    return manifest


def verify(uri: str | os.PathLike[str], manifest: Manifest) -> None:
    """Raise ArtifactError that names the first file that is absent or not as published."""
    files, path = filesystem(join(uri, manifest.root))
    again = (
        "publish again: run the job that made it, after removing "
        f"{os.fspath(uri)} where it finds nothing to do"
    )
    for name, expected in manifest.files.items():
        place = f"{path}/{name}"
        if files.get_file_info(place).type != pafs.FileType.File:
            raise ArtifactError(f"{place}: missing, though the manifest lists it; {again}")
        with files.open_input_stream(place) as stream:
            found = _entry(stream)
        if found != expected:
            raise ArtifactError(
                f"{place}: {found.num_bytes} bytes with sha256 {found.sha256[:12]}, published as "
                f"{expected.num_bytes} bytes with {expected.sha256[:12]}; {again}"
            )


def open_artifact(
    uri: str | os.PathLike[str],
    kind: str,
    *,
    without: str | None = None,
    manifest: Manifest | None = None,
) -> tuple[Manifest, Path]:
    """Verify the artifact at `uri` and return its manifest and a local folder of its files.

    An S3 artifact is copied below the system's temporary folder, where the copy stays until this
    process ends, or is `done` with it; see `rec.copies`.

    Args:
        uri: the artifact's folder, local or s3://.
        kind: what it is to be.
        without: files of this name, which this reader has no use for, are neither checked nor
            copied.
        manifest: of the version to open, which may have been replaced since; None = the one in use.

    Raises:
        ArtifactError: as `read_manifest` and `verify` do.
    """
    manifest = manifest or read_manifest(uri, kind)
    wanted = {n: e for n, e in manifest.files.items() if n.rsplit("/", 1)[-1] != without}
    needed = manifest.model_copy(update={"files": wanted})
    files, path = filesystem(join(uri, manifest.root))
    if isinstance(files, pafs.LocalFileSystem):
        verify(uri, needed)
        return manifest, Path(path)
    return manifest, _cached(uri, needed)


def fetch(uri: str | os.PathLike[str], names: Iterable[str], folder: Path) -> None:
    """Copy files below `uri` to a local folder, several at once."""
    files, path = filesystem(uri)

    def one(name: str) -> None:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.open_input_stream(f"{path}/{name}") as source, open(target, "wb") as into:
            shutil.copyfileobj(source, into, _CHUNK)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(one, names):
            continue


def _cached(uri: str | os.PathLike[str], manifest: Manifest) -> Path:
    """A verified local copy of the artifact at `uri`, held; one that was altered is fetched
    again."""
    copy = copies.place(manifest.version)
    for _ in range(_TRIES):
        if copies.hold(copy):
            try:
                verify(copy.parent, manifest.model_copy(update={"root": copy.name}))
                return copy
            except ArtifactError:  # cleaners of temporary folders take single files
                copies.let_go(copy)
                shutil.rmtree(copy, ignore_errors=True)
        if _fetched(uri, manifest, copy) and copies.hold(copy):
            return copy
    raise ArtifactError(f"{copy}: removed again and again; set TMPDIR to where nobody does")


def _fetched(uri: str | os.PathLike[str], manifest: Manifest, copy: Path) -> bool:
    """Make a verified copy; False where another process was first."""
    aside = copies.aside(manifest.version)
    try:
        try:
            fetch(join(uri, manifest.root), manifest.files, aside)
            verify(aside.parent, manifest.model_copy(update={"root": aside.name}))
        except (ArtifactError, FileNotFoundError):
            verify(uri, manifest)  # names the file at its source, where it is altered there
            raise
        try:
            os.replace(aside, copy)
        except OSError:
            return False
        return True
    finally:
        shutil.rmtree(aside, ignore_errors=True)
