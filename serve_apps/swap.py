"""Leads a swap: has every replica load a release, then has all use it.

Knows nothing of Ray or HTTP. All of it blocks: it runs in a thread of the gateway that was asked.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping

from rec.config import Config
from serve_apps.board import Board
from serve_apps.errors import ApiError
from serve_apps.follower import MEMBERS, PLAN, Status
from serve_apps.releases import Plan, Release

_LOCK, _LAST = "lock", "last"
_LIVE_S = 12.0  # a replica that has said nothing for so long is gone
_ACK_S = 15.0
_STEP_S = 0.1


class Outcome(Config):
    """How the last swap ended."""

    at: float  # time.time()
    what: str
    done: bool
    message: str = ""


class Swaps:
    """Leads swaps, one at a time over all gateways.

    Args:
        board: of the application.
        first: the release in use while there is no plan.
        prepare_s: how long replicas may take to load.
        keep_s: how long what was in use is held and answers afterwards.
    """

    def __init__(
        self, board: Board, first: Release, *, prepare_s: float = 300.0, keep_s: float = 60.0
    ) -> None:
        self._board, self._first = board, first
        self._prepare_s, self._keep_s = prepare_s, keep_s

    def plan(self) -> Plan:
        data = self._board.get(PLAN)
        return Plan(current=self._first) if data is None else Plan.model_validate_json(data)

    def last(self) -> Outcome | None:
        data = self._board.get(_LAST)
        return None if data is None else Outcome.model_validate_json(data)

    def members(self) -> dict[str, Status]:
        """Replicas that are there, by name; what is left of others is cleared away."""
        found: dict[str, Status] = {}
        for key in sorted(self._board.keys(MEMBERS)):
            data = self._board.get(key)
            if data is None:
                continue
            status = Status.model_validate_json(data)
            if time.time() - status.at > _LIVE_S:
                self._board.delete(key)
            else:
                found[key.removeprefix(MEMBERS)] = status
        return found

    def swap(self, what: str, choose: Callable[[Plan], Release]) -> Plan:
        """Have the release that `choose` makes of the plan in use, or leave all as it is.

        Raises:
            ApiError: 409, another swap is under way, or a replica cannot load it (which, and why);
                what `choose` raises.
        """
        token = self._claim()
        try:
            plan = self.plan()
            release = choose(plan)
            if release.name != plan.current.name:
                plan = self._carry_out(plan, release)
        except ApiError as error:
            self._note(what, error.message)
            raise
        finally:
            if self._board.get(_LOCK) == token:
                self._board.delete(_LOCK)
        self._note(what, None)
        return plan

    def _carry_out(self, plan: Plan, release: Release) -> Plan:
        until = time.time() + self._prepare_s
        # replicas let go of it later than this gives up, or it would call all of them late
        changed = {
            "epoch": plan.epoch + 1,
            "preparing": release,
            "preparing_until": until + _ACK_S,
        }
        preparing = self._publish(plan, changed)
        try:
            self._await_ready(preparing, release, until)
        except BaseException:
            self._publish(preparing, {"preparing": None, "epoch": preparing.epoch + 1})
            raise
        flipped = self._publish(
            preparing,
            {
                "epoch": preparing.epoch + 1,
                "current": release,
                "previous": plan.current,
                "previous_until": time.time() + self._keep_s,
                "preparing": None,
            },
        )
        self._await_epoch(flipped.epoch)
        return flipped

    def _publish(self, plan: Plan, changed: Mapping[str, object]) -> Plan:
        found = plan.model_copy(update=dict(changed))
        self._board.put(PLAN, found.model_dump_json().encode())
        return found

    def _await_ready(self, plan: Plan, release: Release, until: float) -> None:
        while True:
            members = self.members()
            failed = {
                name: one.failed[release.name]
                for name, one in members.items()
                if one.epoch >= plan.epoch and release.name in one.failed
            }
            if failed:
                reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
                raise ApiError(
                    409, "swap_failed", f"{reasons}. Nothing has changed: {plan.current} answers"
                )
            waiting = [
                name
                for name, one in members.items()
                if one.epoch < plan.epoch or release.name not in one.ready
            ]
            if members and not waiting:
                return
            if time.time() > until:
                raise ApiError(
                    409,
                    "swap_failed",
                    f"not ready within {self._prepare_s:g} s: {', '.join(waiting) or 'nobody'}. "
                    f"Nothing has changed: {plan.current} answers",
                )
            time.sleep(_STEP_S)

    def _await_epoch(self, epoch: int) -> None:
        """Until all have taken the plan up, so that no answer after this is of what was before.
        One that is too slow follows later; it mixes nothing."""
        deadline = time.time() + _ACK_S
        while any(one.epoch < epoch for one in self.members().values()):
            if time.time() > deadline:
                return
            time.sleep(_STEP_S)

    def _claim(self) -> bytes:
        expires = time.time() + self._prepare_s + _ACK_S + _LIVE_S
        token = f"{expires} {uuid.uuid4().hex}".encode()
        for _ in range(2):
            if self._board.claim(_LOCK, token):
                return token
            held = self._board.get(_LOCK)
            if held is not None and float(held.split()[0]) > time.time():
                break
            self._board.delete(_LOCK)  # of a gateway that died meanwhile
        raise ApiError(
            409, "swap_in_progress", "another swap is under way: wait for it", retry_after_s=5
        )

    def _note(self, what: str, failure: str | None) -> None:
        outcome = Outcome(at=time.time(), what=what, done=failure is None, message=failure or "")
        self._board.put(_LAST, outcome.model_dump_json().encode())


def step_back(plan: Plan) -> Release:
    """What was in use before; raises ApiError, 409, where nothing was."""
    if plan.previous is None:
        raise ApiError(
            409, "nothing_before", f"{plan.current} is the first that this deployment serves"
        )
    return plan.previous
