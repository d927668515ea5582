"""An index that takes changes while it answers: base, delta, tombstones, log, compaction.

A change is in the log on disk and visible to every search that begins after `apply` returns.
The base never changes; replaced and deleted rows are marked dead, new ones stand in a flat delta.
Compaction publishes a new version of what is live, in the background; its manifest says up to
which change of the log it goes (`log_seq`), so that opening it replays exactly the rest, wherever
a crash happened.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO

import numpy as np

from rec import artifacts
from rec.artifacts import Manifest, join
from rec.retrieval import known_log, settings, staging, versions
from rec.retrieval.build import Continued, build_index
from rec.retrieval.changes import Change, check, decode, encode
from rec.retrieval.delta import Overlay
from rec.retrieval.errors import ChangeError, LogError, StaleError
from rec.retrieval.export import export
from rec.retrieval.history import reached_by_all
from rec.retrieval.index import Index
from rec.retrieval.known_log import LOG_FILE, KnownLog
from rec.retrieval.log import ChangeLog
from rec.retrieval.shards import QUERIES_FILE, TRAINED_FILE
from rec.retrieval.spec import IndexConfig

_RETRAIN_AT = 0.2  # rows added and removed since the quantiser was trained, as a share of all
_log = logging.getLogger(__name__)


class LiveIndex:
    """One writer's index. `index` is what to search: it never changes, a change makes a new one.

    Args:
        uri: of a published index; compactions are published there.
        log_folder: on local disk, of this index alone.
        compact_at: share of rows changed at which a compaction starts by itself; None = never.
        compact_least: nor before so many rows have changed: to search them costs next to nothing.
        keep: versions that a compaction leaves to roll back to, itself among them, and so many of
            the newest; the rest goes, and what only that needs of the log.
        grace_s: not before so long after they were last in use: readers may still be in them.
        mmap, pool, model: as for `Index.open`.

    Raises:
        SettingError: an argument is not as it should be.
        ArtifactError: as `Index.open`.
        LogError: the log is damaged, another's, or lacks changes that the index needs; or the
            index has its changes in another log.
    """

    def __init__(
        self,
        uri: str,
        log_folder: str | os.PathLike[str],
        *,
        compact_at: float | None = 0.03,
        compact_least: int = 1000,
        keep: int = 2,
        grace_s: float = 3600,
        mmap: bool = False,
        pool: ThreadPoolExecutor | None = None,
        model: str | None = None,
    ) -> None:
        settings.check(log_folder, compact_at, compact_least, keep, grace_s, pool)
        self._uri, self._compact_at, self._compact_least = uri, compact_at, compact_least
        self._keep, self._grace_s = keep, grace_s
        self._mmap, self._pool, self._model = mmap, pool, model
        self._lock = threading.Lock()  # of changes; searches take none
        self._compacting = threading.Lock()
        self._worker: threading.Thread | None = None
        self._in_vain = 0  # rows changed when a compaction last came to nothing
        base = self._open()
        self._about = _about(base)
        start = base.manifest.config["log_seq"] or 0
        self._is_told = False  # whether the index knows the newest segment of the log
        with versions.one_publisher(uri):  # of two that open it first one finds the other's log
            known = known_log.read(uri)
            held = (known.log, known.newest, known.last) if known else (None, 0, None)
            self._log = ChangeLog(log_folder, self._about, start, *held)
            try:
                self._make_known()
            except BaseException:
                self._log.close()
                raise
        try:
            self._state = self._replayed(base)
        except BaseException:
            self._log.close()
            raise

    @property
    def index(self) -> Index:
        """As it is now; hold on to one to see one state throughout."""
        return self._state.index

    @property
    def last_change(self) -> int:
        """Number of the newest change."""
        return self._log.last

    def apply(self, changes: Sequence[Change]) -> int:
        """Make changes, all or none; returns the number that they have in the log.

        Each call waits for the disk and copies a byte a row: hand many changes over at once.

        Raises:
            ChangeError: one of them does not fit; nothing was changed.
            LogError: the log cannot be written; nothing was changed.
        """
        with self._lock:
            if not self._is_told:
                self._make_known()
            base = self._state.base
            checked = check(changes, base.dim, base.parts[0].attributes.schema)
            number = self._log.append(encode(checked))
            self._state.apply(checked)
        if self._compact_at is not None:
            due = max(self._compact_at * self._state.base.num_rows, self._compact_least)
            if self._state.num_changed >= due + self._in_vain:
                self._start_worker()
        return number

    @property
    def changed_share(self) -> float:
        """Rows added or removed since the base was built, as a share of its rows."""
        state = self._state
        return state.num_changed / max(1, state.base.num_rows)

    def _open(self) -> Index:
        return Index.open(self._uri, mmap=self._mmap, pool=self._pool, model=self._model)

    def _replayed(self, base: Index) -> Overlay:
        """`base` with the rest of the log on it."""
        overlay = Overlay(base)
        for record in self._log.replay(base.manifest.config["log_seq"]):
            try:
                overlay.mark(decode(record.payload, base.dim))
            except ChangeError as error:
                raise LogError(
                    f"{self._log.segment_of(record.number)}: change {record.number} does not fit "
                    f"version {base.version} of {self._uri}: {error}. Build it again with the "
                    f"attributes that changes have, or go back to the version before (jobs.index "
                    f"--out {self._uri} --rollback)"
                ) from error
        overlay.show()
        return overlay

    def _make_known(self, through: int = 0, last: int | None = None) -> None:
        """Say beside the manifest which log this is, its newest segment, from where on it has
        changes once it forgets so far, and where it ends, if it does. Raises LogError where the
        index has its changes in another log by now."""
        forgotten = self._log.first_kept(through) - 1
        known = KnownLog(
            log=self._log.identity, forgotten=forgotten, newest=self._log.newest, last=last
        )
        before = known_log.read(self._uri)
        if before is not None and before.log != known.log:
            raise LogError(
                f"{join(self._uri, LOG_FILE)}: the changes of this index are in log {before.log}, "
                f"not in {self._log.place}: another process writes it; open it with that log's "
                f"folder, once it is closed there"
            )
        if known != before:
            known_log.write(self._uri, known)
        self._is_told = True

    def _start_worker(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._work, name="compaction", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        try:
            self.compact(num_threads=1)
        except Exception:  # tried again once as much has changed; meanwhile everything answers
            version = self._state.base.version
            _log.exception("%s: compaction failed; version %s answers on", self._uri, version)

    def compact(self, num_threads: int | None = None) -> Manifest | None:
        """Publish what is live now as a new version and go on from it; None where nothing is
        live or another compaction runs.

        The quantiser is kept until rows added and removed since it was trained come to a fifth of
        all, or the recall with it would be two points below what it was then; then it is trained
        anew.

        Raises:
            ArtifactError: a file of the new version cannot be written; the one in use stays.
            LogError: as on opening; or log.json cannot be written: the new version is in use, and
                the log keeps all that it has.
        """
        if not self._compacting.acquire(blocking=False):
            return None
        try:
            with self._lock:
                snapshot, base = self._state.index, self._state.base
                self._in_vain = self._state.num_changed
                number = self._log.last
                self._is_told = False  # no change is made before it is
                self._log.roll()
                self._make_known()
            if not len(snapshot):
                return None
            try:
                manifest = self._publish(snapshot, base, number, num_threads)
            except OSError as error:
                raise artifacts.ArtifactError(
                    f"{self._uri}: cannot be compacted: {error}"
                ) from error
            except StaleError:  # a new version was published meanwhile: go on from that one
                manifest = artifacts.read_manifest(self._uri, versions.KIND)
            self.refresh()
            self._in_vain = 0
            self._clear_away(manifest)
            return manifest
        finally:
            self._compacting.release()

    def _clear_away(self, manifest: Manifest) -> None:
        """What a compaction leaves behind: versions no longer kept, and their part of the log."""
        try:
            versions.collect(self._uri, self._keep, self._grace_s)
            with versions.one_publisher(self._uri):  # who publishes sees what is forgotten
                through = reached_by_all(self._uri)
                self._make_known(through)
            self._log.forget(through)
        except (artifacts.ArtifactError, OSError) as error:
            told = f"version {manifest.version} is in use, but those before it cannot be"
            _log.warning("%s: %s cleared away: %s", self._uri, told, error)

    def _publish(
        self, snapshot: Index, base: Index, number: int, num_threads: int | None
    ) -> Manifest:
        built = base.manifest.config
        added, dead = snapshot.num_rows - base.num_rows, snapshot.num_rows - len(snapshot)
        changed = built["num_changed"] + added + dead
        queries = None
        if QUERIES_FILE in base.manifest.files:
            queries = np.load(BytesIO(self._read(base, QUERIES_FILE)))
        continued = Continued(base.version, queries=queries)
        if changed < _RETRAIN_AT * len(snapshot):
            continued = Continued(
                base.version,
                built["factory"],
                self._read(base, TRAINED_FILE),
                changed,
                built["recall_at_training"],
                queries,
            )
        with staging.folder() as folder:
            export(snapshot, self._uri, folder)
            return build_index(
                folder,
                self._uri,
                IndexConfig.model_validate(built["build"]),
                log_seq=number,
                continued=continued,
                num_threads=num_threads,
            )

    def _read(self, base: Index, name: str) -> bytes:
        files = {name: base.manifest.files[name]}
        artifacts.verify(self._uri, base.manifest.model_copy(update={"files": files}))
        return artifacts.read_bytes(join(self._uri, base.manifest.root, name))

    def refresh(self) -> None:
        """Go on from the version in use, where another process published or rolled back.

        Raises:
            ArtifactError, LogError: as on opening; what was searched stays.
        """
        # not the versions: contents that come out the same may be of another point of the log
        in_use = artifacts.read_manifest(self._uri, versions.KIND)
        if in_use.root == self._state.base.manifest.root:
            return
        base = self._open()
        if (found := _about(base)) != self._about:
            raise LogError(
                f"{self._uri}: version {base.version} is of {found}, the log of {self._about}: its "
                f"changes are of other vectors. Roll the index back, or open the new version with "
                f"a log folder of its own (and remove {LOG_FILE} beside its manifest)"
            )
        with self._lock:
            self._state = self._replayed(base)

    def close(self) -> None:
        """Wait for a compaction that runs, whoever began it, and let go of the log."""
        if self._worker is not None:
            self._worker.join()
        with self._compacting, self._lock:
            if not self._log.is_closed:
                with suppress(LogError, OSError):  # then it is not known where the log ends
                    if known_log.read(self._uri) is not None:  # else the index was removed
                        self._make_known(last=self._log.last)
            self._log.close()


def _about(base: Index) -> dict[str, object]:
    """What vectors changes are of."""
    return {"format": 1, "dimension": base.dim, "encoder": base.encoder_version}
