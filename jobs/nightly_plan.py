"""Which nights there are in a folder, and what the next one does.

OUT/2026-01-31/tables       what was delivered that day
OUT/2026-01-31/catalogue    all deliveries till then as one; where the encoder is trained again
OUT/2026-01-31/rows         content rows: of the delivery, or of all where the encoder is trained
OUT/2026-01-31/encoder      where it is trained; else the newest one before is used
OUT/2026-01-31/changed      the rows whose content is not in the table of the night before
OUT/2026-01-31/vectors      theirs
OUT/2026-01-31/embeddings   all items' vectors
OUT/2026-01-31/night.json   what was done; written last
OUT/index                   of all nights
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any, NamedTuple

from pyarrow import fs as pafs

from rec.artifacts import MANIFEST, exists, filesystem, join, read_manifest, write_atomic
from rec.config import Config, ConfigError
from rec.data.tables import LEDGER

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
RECORD = "night.json"
LEFT = "left"  # count of vectors, in the manifest of embeddings of a whole delivery


class Record(Config):
    """What a night came to."""

    day: date
    trained: bool
    counts: dict[str, int]  # rows delivered, new, altered, unchanged; vectors embedded, carried...
    model_version: str
    index_version: str | None  # None: nothing had changed
    canary: dict[str, float] = {}
    swapped: bool = False


class Night(NamedTuple):
    """What is to be done with one day's delivery."""

    day: date
    folder: str
    trains: bool
    deliveries: tuple[str, ...]  # tables that the encoder is trained on, oldest first, its own last
    encoder: str  # the one that embeds
    start: str | None  # the one whose weights training begins with
    previous: str | None  # table of vectors that is carried on
    facts: str | None  # facts of items that are
    whole: bool = False  # the delivery holds all items: what is not in it leaves
    last: str | None = None  # table of vectors of the night before, carried on or not

    def told(self) -> str:
        """For people: what becomes of the model, and so of the vectors."""
        leaving = "; items that were not delivered leave" if self.whole else ""
        if not self.trains:
            kept = f"the encoder stays ({self.encoder}): only items that changed are embedded"
            return kept + leaving
        how = f"from {self.start}" if self.start else "from the beginning"
        return (
            f"the encoder is trained {how}, on {len(self.deliveries)} deliveries: it changes, "
            f"so all items are embedded{leaving}"
        )


def plan_night(out: str, day: date, train_every: int, *, whole: bool = False) -> Night:
    """What the night of `day` does, by the nights that are in the folder `out` already.

    Args:
        train_every: days from one training of the encoder to the next; 0: never after the first.
        whole: the delivery holds all items that there are.

    Raises:
        ConfigError: nights of later days are there, or one before has not been finished.
    """
    nights = _nights(out)
    folder = join(out, day.isoformat())
    if later := [one for one in nights if one > day and _embedded(out, one)]:
        raise ConfigError(
            f"{out}: holds the night of {later[-1]}, so that of {day} cannot follow; each goes on "
            "from the one before"
        )
    before = [one for one in nights if one < day]
    for one in before:
        if not _embedded(out, one) and not exists(join(out, one.isoformat(), RECORD)):
            raise ConfigError(
                f"{join(out, one.isoformat())}: this night was begun and not finished; run it "
                f"first (--day {one}), or remove the folder if its delivery is not to count"
            )
    encoder, table = (_newest(out, before, name) for name in ("encoder", "embeddings"))
    last = None if encoder is None else date.fromisoformat(encoder.split("/")[-2])
    if encoder is None or last is None or (train_every and (day - last).days >= train_every):
        since = [] if whole else [one for one in before if last is None or one >= last]
        places = _all_of(out, since)
        deliveries = (*places, join(folder, "tables"))
        own = join(folder, "encoder")
        return Night(day, folder, True, deliveries, own, encoder, None, None, whole, table)
    facts = None if whole else _newest(out, before, "facts")
    return Night(day, folder, False, (), encoder, None, table, facts, whole, table)


def _newest(out: str, nights: list[date], name: str) -> str | None:
    """The artifact of that name of the last of these nights that has one."""
    places = (join(out, one.isoformat(), name) for one in reversed(nights))
    return next((place for place in places if exists(join(place, MANIFEST))), None)


def _nights(out: str) -> list[date]:
    files, path = filesystem(out)
    found = files.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = (one.base_name for one in found if one.type == pafs.FileType.Directory)
    return sorted(date.fromisoformat(name) for name in names if _DAY.fullmatch(name))


def _embedded(out: str, night: date) -> bool:
    return exists(join(out, night.isoformat(), "embeddings", MANIFEST))


def _all_of(out: str, nights: list[date]) -> list[str]:
    """Tables that together hold all items there were by the last of these nights, of which the
    first had all that were delivered till then."""
    wholes = [number for number, one in enumerate(nights) if _was_whole(out, one)]
    nights = nights[wholes[-1] if wholes else 0 :]
    places = [_base(out, one) for one in nights[:1]]
    return places + [join(out, one.isoformat(), "tables") for one in nights[1:]]


def _was_whole(out: str, night: date) -> bool:
    """Whether items left that night, or could have. One on which nothing changed says nothing, and
    makes no difference."""
    place = join(out, night.isoformat(), "embeddings")
    return exists(join(place, MANIFEST)) and LEFT in read_manifest(place).metrics


def _base(out: str, night: date) -> str:
    """All items there were by a night on which the encoder was trained, or all were delivered."""
    catalogue = join(out, night.isoformat(), "catalogue")
    return catalogue if exists(join(catalogue, LEDGER)) else join(out, night.isoformat(), "tables")


def forget_catalogue(night: Night) -> None:
    """Remove what an earlier try of the night made of several deliveries, where now its own is all
    there is: later nights would go on from it."""
    place = join(night.folder, "catalogue")
    if len(night.deliveries) <= 1 and exists(place):
        files, path = filesystem(place)
        files.delete_dir(path)


def prune(out: str, keep: int) -> list[str]:
    """Remove what no later night needs of all but the `keep` newest; returns the folders removed.

    What was delivered stays until a training has put it together with the rest.
    """
    nights = _nights(out)
    models = [one for one in nights if exists(join(out, one.isoformat(), "encoder", MANIFEST))]
    removed: list[str] = []
    for night in nights[: -max(keep, 1)]:
        names = ["rows", "changed", "facts", "vectors", "embeddings", "train"]
        if models and night < models[-1]:
            names += ["tables", "catalogue"]
        for name in names:
            place = join(out, night.isoformat(), name)
            if exists(place):
                files, path = filesystem(place)
                files.delete_dir(path)
                removed.append(place)
    return removed


def record(night: Night, **about: Any) -> Record:
    """Note that a night is done."""
    done = Record(day=night.day, trained=night.trains, **about)
    write_atomic(join(night.folder, RECORD), done.to_json().encode())
    return done
