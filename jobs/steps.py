"""Which steps of a run are done: each leaves a stamp of its settings, of what it was made from and
of what it made. A step whose stamp still fits is not run again.

    OUT/steps/NAME.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rec.artifacts import (
    MANIFEST,
    exists,
    join,
    read_bytes,
    read_manifest,
    write_atomic,
)
from rec.config import Config, ConfigError
from rec.data.tables import changes
from rec.runtime.checkpoints import ALONE, last_saved
from rec.train.checkpoint import MAY_CHANGE, differing


class Stamp(Config):
    """What is known of a finished step."""

    settings: dict[str, Any]
    inputs: dict[str, str | None]  # step -> version of what it had made
    version: str  # of what this one made: a hash of its contents


def _never(changed: Sequence[str]) -> str:  # noqa: ARG001
    return ""


class Step(NamedTuple):
    """One step of a pipeline, to be run or to be looked at."""

    name: str
    settings: dict[str, Any]  # as JSON holds them
    inputs: Sequence[str]  # steps that come before and are read here
    version: Callable[[], str | None]  # of what stands at its place, None where nothing whole does
    run: Callable[[], bool]  # False: stopped on request, before its end
    progress: Callable[[], str] = str  # what an earlier run left unfinished, for people
    # given the settings and steps that are others now: why what stands there is not replaced, and
    # the way out; empty where it is
    refuses: Callable[[Sequence[str]], str] = _never
    always: bool = False  # is run even so: it looks for what is new and leaves what stands


class State(NamedTuple):
    """How a step stands."""

    done: bool
    why: str
    refused: str = ""  # why it will not run, and the way out


def state(step: Step, out: str, versions: Mapping[str, str | None]) -> State:
    """Whether `step` is done, and if not, why it is to be run.

    Args:
        out: the run's folder, local or s3://.
        versions: step -> version of what stands at its place.
    """
    there = versions[step.name]
    if there is None:
        return State(False, step.progress() or "nothing there yet")
    place = _place(out, step)
    if not exists(place):
        return State(False, f"version {there} is there without a stamp; looked at again")
    try:
        stamp = Stamp.from_json(read_bytes(place).decode())
    except ValueError:  # of another version of this program, or mended by hand
        return State(False, f"version {there} is there, {place} is no stamp; looked at again")
    if stamp.version != there:
        return State(False, f"version {there} is there, this pipeline made {stamp.version}")
    if differ := changes(stamp.settings, step.settings):
        refused = step.refuses(differing(stamp.settings, step.settings))
        return State(False, f"other settings ({differ})", refused)
    inputs = _inputs(step, versions)
    if differ := changes(stamp.inputs, inputs):
        refused = step.refuses(differing(stamp.inputs, inputs))
        return State(False, f"made from others ({differ})", refused)
    return State(True, f"version {there}")


def plan(steps: Sequence[Step], out: str) -> list[tuple[Step, State]]:
    """How all steps stand now; one that follows a step to be run depends on what that makes."""
    versions = {step.name: step.version() for step in steps}
    found: list[tuple[Step, State]] = []
    for step in steps:
        now = state(step, out, versions)
        before = [one.name for one, how in found if one.name in step.inputs and not how.done]
        if now.done and before:
            refused = step.refuses(before)
            otherwise = f", else {refused}" if refused else ""
            now = State(False, f"unless {' and '.join(before)} come out as before{otherwise}")
        found.append((step, now))
    return found


def run(steps: Sequence[Step], out: str) -> bool:
    """Run the steps that are not done, in order; False when one was stopped before its end.

    Raises:
        ConfigError: a step refuses to replace what stands; no step has run then.
    """
    for step, now in plan(steps, out):
        if now.refused:
            raise ConfigError(f"{step.name}: {now.why}; {now.refused}")
    versions: dict[str, str | None] = {}
    for step in steps:
        versions[step.name] = step.version()
        now = state(step, out, versions)
        if now.done and not step.always:
            print(f"{step.name}: done already, {now.why}", flush=True)
            continue
        if not step.run():
            return False
        made = versions[step.name] = step.version()
        if made is None:
            raise RuntimeError(f"step {step.name} ended and nothing stands at its place")
        stamp = Stamp(settings=step.settings, inputs=_inputs(step, versions), version=made)
        write_atomic(_place(out, step), stamp.to_json().encode())
    return True


def _inputs(step: Step, versions: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: versions[name] for name in step.inputs}


def _place(out: str, step: Step) -> str:
    return join(out, "steps", f"{step.name}.json")


def published(uri: str, kind: str) -> str | None:
    """Version of the artifact at `uri`, None where there is none."""
    return read_manifest(uri, kind).version if exists(join(uri, MANIFEST)) else None


def counted(number: int, what: str) -> str:
    """What an earlier run left, for people; empty where that is nothing."""
    return f"{number:,} {what}" if number else ""


def last_step(run: str) -> int:
    """Optimiser steps of the newest checkpoint of a training run, with workers or without; 0 where
    there is none."""
    return max(last_saved(run), last_saved(join(run, ALONE)))


def going_on(run: str) -> Callable[[Sequence[str]], str]:
    """`Step.refuses` of the training in the folder `run`, which goes on from its checkpoints."""

    def refuses(changed: Sequence[str]) -> str:
        if set(changed) <= MAY_CHANGE or not last_step(run):
            return ""
        return (
            f"refused: training goes on from {run}, which is of another recipe or other rows; give "
            "another --out, or remove that folder"
        )

    return refuses
