"""Tries at a shard. A file that kills the process that reads it (a crash in a codec, more memory
than there is) is known by the note that the try left behind, and the next one passes it by."""

from __future__ import annotations

import contextlib
import json

from rec.artifacts import exists, filesystem, join, read_bytes, write_atomic

MAX_TRIES = 6  # of a shard in one run


class AttemptError(ValueError):
    """A shard ends every process that works on it. Says which."""


class Attempt:
    """One try at a shard, noted in a file beside its marker until it is done.

    Args:
        folder: of the markers.
        index: of the shard.
        run: names the driver's run. What a run that was itself ended left behind blames nobody.

    Raises:
        AttemptError: this run has tried MAX_TRIES times.
    """

    def __init__(self, folder: str, index: int, run: str) -> None:
        self._place = join(folder, f"attempt-{index:05d}.json")
        found = json.loads(read_bytes(self._place)) if exists(self._place) else {}
        died = found.get("run") == run
        self._run, self._tries = run, found["tries"] + 1 if died else 1
        self.fatal: list[str] = found.get("fatal", [])  # what it is not to touch
        if died and found["at"] is not None:
            self.fatal.append(found["at"])
        self._note(None)
        if self._tries > MAX_TRIES:
            raise AttemptError(
                f"{folder}: shard {index} ended its worker process {MAX_TRIES} times; either a "
                "file of it crashes what reads it, or it needs more memory than the node has"
            )

    def at(self, name: str) -> None:
        """Note what is worked on from now; only where a try has died, since notes cost time."""
        if self._tries > 1:
            self._note(name)

    def done(self) -> None:
        """The shard's marker stands."""
        files, path = filesystem(self._place)
        with contextlib.suppress(FileNotFoundError):  # of a node that only seemed dead
            files.delete_file(path)

    def _note(self, name: str | None) -> None:
        about = {"run": self._run, "tries": self._tries, "at": name, "fatal": self.fatal}
        # it tells of a process that dies, not of a machine
        write_atomic(self._place, json.dumps(about).encode(), durable=False)
