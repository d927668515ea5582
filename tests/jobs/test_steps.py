"""Steps are run once: until their settings, what they read, or what stands there changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from jobs.steps import Step, plan, run
from rec.config import ConfigError


class Kitchen:
    """Two steps, the second reads the first; each writes its settings and what it read."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran = out, []
        self.first, self.second = {"a": 1}, {"b": {"c": 2}}
        self.stops = False
        self.may_change = {"b.c", "first"}  # and the second is made all the same

    def _version(self, name: str) -> Callable[[], str | None]:
        place = self.out / name
        return lambda: place.read_text() if place.exists() else None

    def _write(self, name: str, text: Callable[[], str]) -> Callable[[], bool]:
        def work() -> bool:
            if self.stops and name == "second":
                return False
            self.ran.append(name)
            (self.out / name).write_text(text())
            return True

        return work

    def _refuses(self, changed: Sequence[str]) -> str:
        return "" if set(changed) <= self.may_change else f"refused: {', '.join(changed)}"

    def steps(self, *, always: bool = False) -> list[Step]:
        return [
            Step(
                "first",
                self.first,
                (),
                self._version("first"),
                self._write("first", lambda: f"f{self.first['a'] % 10}"),
                always=always,
            ),
            Step(
                "second",
                self.second,
                ("first",),
                self._version("second"),
                self._write("second", lambda: f"s{self.second['b']['c']}"),
                lambda: "half done" if self.stops else "",
                self._refuses,
            ),
        ]

    def run(self, *, always: bool = False) -> list[str]:
        self.ran.clear()
        self.finished = run(self.steps(always=always), str(self.out))
        return list(self.ran)

    def why(self) -> list[tuple[bool, str]]:
        return [(now.done, now.why) for _, now in plan(self.steps(), str(self.out))]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_a_finished_step_is_not_run_again(kitchen: Kitchen) -> None:
    assert kitchen.why() == [(False, "nothing there yet")] * 2
    assert not list(kitchen.out.iterdir())  # looking writes nothing
    assert kitchen.run() == ["first", "second"]
    assert kitchen.why() == [(True, "version f1"), (True, "version s2")]
    assert kitchen.run() == []


def test_other_settings_run_the_step_and_what_reads_it(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.second["b"]["c"] = 3
    assert kitchen.why() == [(True, "version f1"), (False, "other settings (b.c: 2 there, 3 now)")]
    assert kitchen.run() == ["second"]
    kitchen.first["a"] = 2
    assert kitchen.why() == [
        (False, "other settings (a: 1 there, 2 now)"),
        (False, "unless first come out as before"),
    ]
    assert kitchen.run() == ["first", "second"]


def test_a_step_that_comes_out_as_before_spares_the_next(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.first["a"] = 11  # its contents are the same
    assert kitchen.run() == ["first"]
    assert kitchen.run(always=True) == ["first"]  # and one that always looks, too


def test_what_something_else_put_there_is_not_taken_for_its_own(kitchen: Kitchen) -> None:
    kitchen.run()
    (kitchen.out / "second").write_text("foreign")
    assert kitchen.why()[1] == (False, "version foreign is there, this pipeline made s2")
    (kitchen.out / "first").write_text("f9")
    assert kitchen.why()[0] == (False, "version f9 is there, this pipeline made f1")
    (kitchen.out / "steps" / "second.json").unlink()
    assert "without a stamp" in kitchen.why()[1][1]
    assert kitchen.run() == ["first", "second"]
    (kitchen.out / "second").unlink()
    assert kitchen.why()[1] == (False, "nothing there yet")


def test_a_step_that_refuses_stops_all_before_anything_is_replaced(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.may_change = set()
    kitchen.first["a"], kitchen.second["b"]["c"] = 2, 3
    (_, _), (second, now) = plan(kitchen.steps(), str(kitchen.out))
    assert (second.name, now.refused) == ("second", "refused: b.c")
    with pytest.raises(ConfigError, match=r"second: other settings \(b.c: 2 .*; refused: b.c"):
        kitchen.run()
    assert kitchen.ran == []
    assert (kitchen.out / "first").read_text() == "f1"
    kitchen.second["b"]["c"] = 2  # now it hangs on how the first comes out
    assert kitchen.why()[1] == (
        False,
        "unless first come out as before, else refused: first",
    )


def test_a_stamp_that_cannot_be_read_is_none(kitchen: Kitchen) -> None:
    kitchen.run()
    stamp = kitchen.out / "steps" / "second.json"
    stamp.write_text('{"settings": {}, "of": "another program"}')
    done, why = kitchen.why()[1]
    assert not done
    assert f"{stamp} is no stamp" in why
    assert kitchen.run() == ["second"]
    assert kitchen.why()[1] == (True, "version s2")


def test_a_step_that_was_stopped_is_no_finished_one(kitchen: Kitchen) -> None:
    kitchen.stops = True
    assert kitchen.run() == ["first"]
    assert not kitchen.finished
    assert kitchen.why()[1] == (False, "half done")
    kitchen.stops = False
    assert kitchen.run() == ["second"]
    assert kitchen.finished


def test_a_step_that_made_nothing_is_an_error(kitchen: Kitchen) -> None:
    broken = kitchen.steps()[0]._replace(run=lambda: True)
    with pytest.raises(RuntimeError, match="step first ended and nothing stands"):
        run([broken], str(kitchen.out))
