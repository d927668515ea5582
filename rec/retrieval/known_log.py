"""log.json beside an index: which log its live changes are in, from which change to which file."""

from __future__ import annotations

from pydantic import Field

from rec import artifacts
from rec.artifacts import join
from rec.config import Config
from rec.retrieval.errors import IndexBuildError, LogError

LOG_FILE = "log.json"


class KnownLog(Config):
    """The log of an index, as one who publishes there without it needs to know it."""

    log: str  # its identity
    forgotten: int = Field(default=0, ge=0)  # changes up to this number are no longer in it
    newest: int = Field(default=0, ge=0)  # change that its newest segment begins with; 0 = unknown
    last: int | None = Field(default=None, ge=0)  # change that it ends with; None = it goes on


def read(uri: str) -> KnownLog | None:
    """None where the index never had a log.

    Raises:
        LogError: the file is damaged, or cannot be read.
    """
    place = join(uri, LOG_FILE)
    if not artifacts.exists(place):
        return None
    try:
        return KnownLog.from_json(artifacts.read_bytes(place).decode())
    except OSError as error:
        raise LogError(f"{place}: cannot be read: {error}") from error
    except ValueError as error:
        raise LogError(
            f"{place}: damaged, it does not say which log has the changes of this index; restore "
            f"it, or remove it and open the index with the folder of its log, which writes it again"
        ) from error


def write(uri: str, known: KnownLog) -> None:
    """Raises LogError where the file cannot be written."""
    place = join(uri, LOG_FILE)
    try:
        artifacts.write_atomic(place, known.to_json().encode())
    except OSError as error:
        raise LogError(f"{place}: cannot be written: {error}; free space there") from error


def check_reaches(uri: str, log_seq: int | None) -> None:
    """That the log at `uri` still has every change after `log_seq`, so that a version which goes
    up to there can be searched with the rest; None = it has none of them.

    Raises:
        IndexBuildError: some were cleared away, once versions that include them were published; or
            the log was closed and ends before `log_seq`: the next changes would pass for made.
        LogError: see `read`.
    """
    known = read(uri)
    if known is None:
        return
    if known.last is not None and (log_seq or 0) > known.last:
        raise IndexBuildError(
            f"{uri}: its log ({LOG_FILE}) ends with change {known.last}, and the new version says "
            f"it has those up to {log_seq} (jobs.index --log-seq: number of the last change that "
            f"the table includes)"
        )
    if (log_seq or 0) >= known.forgotten:
        return
    says = "does not say which it has" if log_seq is None else f"has those up to {log_seq}"
    raise IndexBuildError(
        f"{uri}: its log ({LOG_FILE}) holds live changes after {known.forgotten}, and the new "
        f"version {says}: the rest would be lost. Build from a table that includes them and say so "
        f"(jobs.index --log-seq: number of the last change that the table includes), or remove "
        f"{join(uri, LOG_FILE)} to give the changes up and open the index with a new log folder"
    )
