"""What serves together, and which of it is in use. Knows nothing of Ray or HTTP.

A release tells its artifacts whole, manifests included: who loads it later loads just this,
whatever has been published at the same places since. Swapping from one to the next has two phases.
First a plan names the new one as being prepared, and every replica loads it beside the old. Once
all have said that they hold it, the next plan names it as current, and gateways ask for it from
then on; what was current is kept for a while, for requests under way and those that name it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from pydantic import Field

from rec.artifacts import Manifest
from rec.config import Config
from serve_apps.errors import ApiError

B = TypeVar("B", covariant=True)
V = TypeVar("V", bound="_Told", covariant=True)

_UNDER_WAY_S = 40.0  # what answers no longer is held for requests that began before


class Placed(Config):
    """A version of an artifact."""

    uri: str
    manifest: Manifest

    @property
    def version(self) -> str:
        return self.manifest.version


class Release(Config):
    """Artifacts that belong together."""

    encoder: Placed
    index: Placed
    rows: Placed | None = None  # of users' histories; the content service has none

    @property
    def name(self) -> str:
        parts = (self.encoder, self.index, self.rows)
        return "-".join(part.version for part in parts if part is not None)

    def __str__(self) -> str:
        rows = "" if self.rows is None else f", rows {self.rows.version}"
        return f"model {self.encoder.version}, index {self.index.version}{rows}"


class Deployed(Config):
    """What an application was deployed with."""

    first: Release
    # of this deployment: another one, of the same release too, knows nothing of its swaps
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)


class Plan(Config):
    """What is to be held and what answers; times are of time.time()."""

    epoch: int = 0  # counts changes
    current: Release
    previous: Release | None = None  # what a step back leads to
    previous_until: float = 0.0  # so long it is held and answers those that name it
    preparing: Release | None = None
    preparing_until: float = 0.0  # whoever prepares it has given up or died by then

    def answering(self, now: float) -> list[Release]:
        """What may be asked for, the one in use first."""
        kept = self.previous if now < self.previous_until else None
        return [self.current] if kept is None else [self.current, kept]

    def wanted(self, now: float) -> list[Release]:
        """What is to be held: what may be asked for, and what is being prepared."""
        found = self.answering(now - _UNDER_WAY_S)
        if self.preparing is not None and now < self.preparing_until:
            found.append(self.preparing)
        return found


class Pinned(NamedTuple, Generic[V, B]):
    """One release for the whole of a request."""

    version: V  # as it is told
    backend: B  # what answers with it and no other


class _Told(Protocol):
    @property
    def model_version(self) -> str: ...
    @property
    def index_version(self) -> str: ...


# (model version or None, index version or None) -> the release of these, the one in use where
# nothing is named; raises ApiError, 409, where none that answers is of these
Pin = Callable[[str | None, str | None], Pinned[V, B]]


def pin_among(served: Sequence[Pinned[V, B]], model: str | None, index: str | None) -> Pinned[V, B]:
    """The first of these that is of the versions asked for, as a Pin does it."""
    for one in served:
        if model in (None, one.version.model_version) and index in (
            None,
            one.version.index_version,
        ):
            return one
    raise _mismatch(model, index, [one.version for one in served])


def fixed(backend: B, version: V) -> Pin[V, B]:
    """The pin of a service of one release for ever."""
    only = [Pinned(version, backend)]
    return lambda model, index: pin_among(only, model, index)


def _mismatch(model: str | None, index: str | None, served: Sequence[_Told]) -> ApiError:
    models = [one.model_version for one in served]
    if model is not None and model not in models:
        answers = " and ".join(repr(one) for one in dict.fromkeys(models))
        return ApiError(
            409,
            "model_mismatch",
            f"model_version: {model!r} asked, {answers} is served; vectors of "
            "different models cannot be compared",
        )
    answers = " and ".join(repr(one.index_version) for one in served)
    return ApiError(409, "index_mismatch", f"index_version: {index!r} asked, {answers} is served")
