"""What retrieval refuses, by kind. Every message names the file or argument and the fix."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class IndexBuildError(ValueError):
    """The embedding table cannot be indexed. The message names partition, row and reason."""


class QueryError(ValueError):
    """A query that cannot be answered: wrong dimension, NaN, k out of range. Says which."""


class UnknownIdError(QueryError):
    """No item of this id is in the index."""


class FilterError(QueryError):
    """A filter that does not fit the index's attributes. Names the column and what it holds."""


class SettingError(ValueError):
    """What an index is opened with, or its versions are cleared away by. Names the argument and
    what it may be."""


class ChangeError(ValueError):
    """A live change that cannot be taken. Names the change, the field and the reason."""


class LogError(RuntimeError):
    """The log of changes cannot be read or written. Names file, offset and remedy."""


class StaleError(RuntimeError):
    """Another version was published meanwhile; what was about to replace it is out of date."""


def remedy(error: OSError) -> str:
    """What to do where something cannot be written."""
    return "free space" if error.errno in _FULL else "see to it that this can be written"
