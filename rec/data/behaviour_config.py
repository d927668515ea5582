"""What behaviour is made of, and what a published version tells a later day."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from rec.config import Config
from rec.data.edges import EdgeConfig
from rec.data.log_rows import Filters
from rec.data.logs import LogFiles
from rec.data.sequences import SequenceConfig

MAX_BUCKETS = 4096


class BehaviourConfig(Config):
    """Which logs there are and what is made of them."""

    interactions: LogFiles = LogFiles()
    searches: LogFiles | None = None
    comments: LogFiles | None = None
    # for their tags, as they are now: read anew by every run; of items published by the cut-off
    items: LogFiles | None = None
    filters: Filters = Filters()
    sequences: SequenceConfig = SequenceConfig()
    edges: EdgeConfig | None = None  # None: sequences only
    # tasks of a phase, and what one of them holds; None: by the size of the logs, doubled when
    # they outgrow it. A number given is kept for good
    num_buckets: int | None = Field(default=None, ge=1, le=MAX_BUCKETS)

    def user_logs(self) -> dict[str, LogFiles]:
        """The logs of what users did, by table; without edges only what sequences are made of."""
        logs = {"interactions": self.interactions}
        if self.edges is not None:
            more = {"searches": self.searches, "comments": self.comments}
            logs |= {table: log for table, log in more.items() if log is not None}
        return logs

    def logs(self) -> dict[str, LogFiles]:
        """All logs that are read, by table."""
        logs = self.user_logs()
        if self.edges is not None and self.items is not None:
            logs["items"] = self.items
        return logs


class State(Config):
    """What a published version is made of: all that a later day needs to know."""

    num_buckets: int
    num_bytes: int  # of all log files of users so far
    cutoff: datetime
    timed: bool = True  # False: the log of interactions tells their order and no times
    days: dict[str, dict[str, str]]  # table -> day -> fingerprint of its files
