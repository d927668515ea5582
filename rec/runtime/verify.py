"""Holds published files to their sha256 before long work starts, on as many machines as Ray has.

Training reads its rows a row group at a time, in an order of its own and again every epoch: an
altered shard would be found late, by one worker of many, or never. So all are read once before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from rec import artifacts

_TASK_BYTES = 1 << 28  # a fraction of a second's hashing or a few seconds' reading from S3
_THREADS = 8
_SILENT_S = 5  # no bar for what ends sooner


def verify(uri: str, manifest: artifacts.Manifest, *, on_ray: bool = False) -> None:
    """Read all files of the artifact at `uri` and hold them to their sha256.

    Args:
        manifest: the artifact's.
        on_ray: by tasks of one CPU each; otherwise by threads of this process.

    Raises:
        ArtifactError: the file that is missing or altered, the first by name.
    """
    parts = [manifest.model_copy(update={"files": part}) for part in _parts(manifest)]
    found = _by_tasks(uri, parts) if on_ray else _by_threads(uri, parts)
    bar = tqdm(found, "verify", len(parts), unit="part", leave=False, delay=_SILENT_S)
    if wrong := sorted(text for text in bar if text is not None):
        raise artifacts.ArtifactError(wrong[0])


def _parts(manifest: artifacts.Manifest) -> Iterator[dict[str, artifacts.FileEntry]]:
    """The files, in the order of names, cut after every _TASK_BYTES."""
    part: dict[str, artifacts.FileEntry] = {}
    size = 0
    for name, entry in sorted(manifest.files.items()):
        part[name] = entry
        size += entry.num_bytes
        if size >= _TASK_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _error(uri: str, part: artifacts.Manifest) -> str | None:
    try:
        artifacts.verify(uri, part)
    except artifacts.ArtifactError as error:
        return f"{error}"
    return None


def _by_threads(uri: str, parts: Sequence[artifacts.Manifest]) -> Iterable[str | None]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda part: _error(uri, part), parts)


def _by_tasks(uri: str, parts: Sequence[artifacts.Manifest]) -> Iterable[str | None]:
    import ray

    task = ray.remote(num_cpus=1)(_error)
    waiting = [task.remote(uri, part) for part in parts]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)
