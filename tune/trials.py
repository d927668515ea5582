"""What is known of each trial, on disk: all that a search goes on from.

<out>/trials/003/trial.json      TrialRecord
<out>/trials/003/checkpoints/    the last step's
<out>/trials/003/logs/           metrics.jsonl, tensorboard/
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from rec.artifacts import write_atomic
from rec.config import Config, ConfigError

_RECORD = "trial.json"


class TrialRecord(Config):
    """What trial.json holds."""

    number: int  # 0 is the recipe as it is
    values: dict[str, Any]  # path of a setting -> value, on top of the recipe
    # finished: ran all steps; stopped: by ASHA; failed: with an error that would come again;
    # running: also one whose process was lost
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    figures: tuple[tuple[int, float], ...] = ()  # (step, NDCG@10 on validation rows), ascending
    error: str = ""

    @property
    def figure(self) -> float | None:
        """The last one; None before there is any."""
        return self.figures[-1][1] if self.figures else None

    @property
    def step(self) -> int:
        """Of the last figure."""
        return self.figures[-1][0] if self.figures else 0


class Trials:
    """The records below one folder. Of a trial one process writes at a time: first the driver,
    then the trial's own, then the driver again, once it has stopped the trial."""

    def __init__(self, out: str) -> None:
        self._folder = Path(out) / "trials"

    def folder(self, number: int) -> Path:
        return self._folder / f"{number:03d}"

    def read(self, number: int) -> TrialRecord:
        """Raises ConfigError where the file is not a record, of another release perhaps."""
        place = self.folder(number) / _RECORD
        try:
            return TrialRecord.from_json(place.read_text())
        except ValueError as error:
            raise ConfigError(f"{place}: not a record of a trial: {error}") from error

    def write(self, record: TrialRecord) -> None:
        write_atomic(self.folder(record.number) / _RECORD, record.to_json().encode())

    def update(self, number: int, **fields: Any) -> TrialRecord:
        """Change some fields of a record; returns the new one."""
        record = self.read(number).model_copy(update=fields)
        self.write(record)
        return record

    def all(self) -> list[TrialRecord]:
        """In order of number."""
        if not self._folder.exists():
            return []
        numbers = sorted(int(name) for name in os.listdir(self._folder) if name.isdecimal())
        return [self.read(n) for n in numbers if (self.folder(n) / _RECORD).exists()]


def best(records: list[TrialRecord]) -> TrialRecord | None:
    """The highest last figure of those that ran all steps, of equal ones the first."""
    finished = [one for one in records if one.state == "finished"]
    return max(finished, key=lambda one: one.figure or 0.0, default=None)
