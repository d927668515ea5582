"""What would wait too long is refused at once; what is taken is answered within its time."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from serve_apps.admission import Admission, Patience


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulate(rate: float, seconds: float, patience: Patience, *, servers: int = 2) -> np.ndarray:
    """(requests,) seconds that each took, NaN where refused; each needs 10 ms of one of some
    servers, first come first served."""
    clock, rng = Clock(), np.random.default_rng(0)
    admission = Admission(patience, clock)
    free = [clock.now] * servers
    ends: list[tuple[float, float]] = []
    took: list[float] = []
    due = clock.now
    while due < 100.0 + seconds:
        due += rng.exponential(1 / rate)
        while ends and ends[0][0] <= due:
            clock.now, came = heapq.heappop(ends)
            admission.leave(came)
        clock.now = due
        came = admission.enter()
        if came is None:
            took.append(np.nan)
            continue
        end = max(due, heapq.heappop(free)) + rng.uniform(0.005, 0.015)
        heapq.heappush(free, end)
        heapq.heappush(ends, (end, came))
        took.append(end - due)
    return np.array(took)


def test_nothing_is_refused_while_there_is_room() -> None:
    took = simulate(rate=100.0, seconds=20, patience=Patience(0.1))
    assert not np.isnan(took).any()


def test_what_waits_briefly_at_half_of_what_can_be_done_is_taken() -> None:
    """Requests that come seldom are done seldom, which says nothing of how many could be done."""
    took = simulate(rate=100.0, seconds=60, patience=Patience(0.0, 4.0))
    assert np.isnan(took).mean() < 0.001


def test_batches_are_counted_whole() -> None:
    """Sixteen that are done at once in 60 ms: as many may come again, not five times as many."""
    clock = Clock()
    admission = Admission(Patience(0.15), clock)
    taken: list[int] = []
    for number in [16] * 20 + [100]:
        came = [one for _ in range(number) if (one := admission.enter()) is not None]
        taken.append(len(came))
        clock.now += 0.06
        for one in came:
            admission.leave(one)
    assert taken[:20] == [16] * 20
    assert 20 <= taken[20] <= 40  # 0.15 s is enough for 40


@pytest.mark.parametrize("rate", [130.0, 200.0])
def test_who_begins_under_steady_traffic_takes_it(rate: float) -> None:
    """Batches of at most sixteen, each 60 ms: 266 a second could be done."""
    clock, rng = Clock(), np.random.default_rng(0)
    admission = Admission(Patience(0.02, 4.0), clock)
    waiting: list[float] = []
    running: list[float] = []
    due, end, refused, total = clock.now, math.inf, 0, 0
    while clock.now < 160.0:
        if end <= due:
            clock.now = end
            for came in running:
                admission.leave(came)
            running = []
        else:
            clock.now, due, total = due, due + rng.exponential(1 / rate), total + 1
            came = admission.enter()
            if came is None:
                refused += 1
            else:
                waiting.append(came)
        if not running:
            running, waiting = waiting[:16], waiting[16:]
            end = clock.now + 0.06 if running else math.inf
    assert refused / total < 0.01


@pytest.mark.parametrize("times", [3, 10])
def test_an_overload_is_answered_within_its_time_and_at_full_rate(times: int) -> None:
    took = simulate(rate=200.0 * times, seconds=20, patience=Patience(0.1))
    taken = took[~np.isnan(took)]
    assert np.quantile(taken, 0.99) < 0.15
    assert len(taken) / 20 == pytest.approx(200, rel=0.05)  # all that two servers can do


def test_times_are_of_what_one_takes_alone() -> None:
    """A calm time teaches how long that is, 10 ms; 200 a second are all that two servers can do."""
    calm = simulate(rate=5.0, seconds=60, patience=Patience(0.0, 5.0))
    assert not np.isnan(calm).any()
    clock = Clock()
    admission = Admission(Patience(0.0, 5.0), clock)
    for _ in range(50):
        came = admission.enter()
        assert came is not None
        clock.now += 0.01
        admission.leave(came)
    taken: list[float] = []
    for _ in range(400):  # one done every 10 ms, and five come in that time
        taken += [came for _ in range(5) if (came := admission.enter()) is not None]
        clock.now += 0.01
        admission.leave(taken.pop(0))
    assert len(taken) == 4  # beside the one that is done: the last waits five times as long


def test_a_few_are_always_taken() -> None:
    clock = Clock()
    admission = Admission(Patience(0.001), clock)
    for _ in range(3):
        came = [admission.enter() for _ in range(4)]
        for one in came:
            assert one is not None
            clock.now += 1.0
            admission.leave(one)
    taken = [admission.enter() is not None for _ in range(6)]
    assert taken == [True] * 4 + [False] * 2


def test_after_a_pause_it_begins_anew() -> None:
    clock = Clock()
    admission = Admission(Patience(0.1), clock)
    for one in [admission.enter() for _ in range(4)]:
        assert one is not None
        clock.now += 5.0
        admission.leave(one)
    clock.now += 2.0
    assert all(admission.enter() is not None for _ in range(20))
