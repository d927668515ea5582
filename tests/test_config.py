"""Configuration: frozen, no unknown fields, JSON round trip, overrides that say what is wrong."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rec.config import Config, ConfigError


class Inner(Config):
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"


class Outer(Config):
    name: str = "x"
    steps: int = 10
    seed: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    extra: dict[str, float] = {"one": 1.0}


def test_overrides_change_only_what_they_name() -> None:
    config = Outer().override(
        ["steps=20", "inner.rate=1e-3", "inner.kind=b", "seed=3", "sizes=[4]", "extra.one=2"]
    )
    assert config == Outer(
        steps=20, seed=3, sizes=(4,), inner=Inner(rate=1e-3, kind="b"), extra={"one": 2.0}
    )
    assert Outer().steps == 10  # the original stands


def test_values_that_are_not_json_are_text() -> None:
    assert Outer().override(["name=two words = three"]).name == "two words = three"
    assert Outer(seed=1).override(["seed=null"]).seed is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "expected PATH=VALUE"),
        ("stepz=1", "no field 'stepz'; there are: name, steps"),
        ("inner.rat=1", "no field 'rat'; there are: rate, kind"),
        ("outer.rate=1", "no section 'outer'; there are: inner, extra"),
        ("steps.more=1", "no section 'steps'"),
        ("steps=many", r"steps: .*integer.* \(got 'many'\)"),
        ("steps=1.5", "steps: .*integer"),
        ("inner.kind=c", r"inner\.kind: .*'a' or 'b'"),
        ("inner=3", "inner: "),
        ("sizes=[1,x]", "sizes: "),
    ],
)
def test_bad_overrides_say_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer().override([assignment])


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"steps: .*; inner\.rate: "):
        Outer().override(["steps=x", "inner.rate=y"])


def test_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer().steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Outer.model_validate({"stepz": 1})


@given(
    name=st.text(),
    steps=st.integers(),
    seed=st.none() | st.integers(),
    sizes=st.lists(st.integers()).map(tuple),
    rate=st.floats(allow_nan=False, allow_infinity=False),
)
def test_json_round_trip(
    name: str, steps: int, seed: int | None, sizes: tuple[int, ...], rate: float
) -> None:
    config = Outer(name=name, steps=steps, seed=seed, sizes=sizes, inner=Inner(rate=rate))
    assert Outer.from_json(config.to_json()) == config


@given(steps=st.integers(), rate=st.floats(allow_nan=False, allow_infinity=False))
def test_overrides_with_own_values_change_nothing(steps: int, rate: float) -> None:
    config = Outer(steps=steps, inner=Inner(rate=rate))
    assert config.override([f"steps={steps}", f"inner.rate={rate!r}"]) == config
