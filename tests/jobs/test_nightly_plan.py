"""Which deliveries a night is made of."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs.nightly_plan import Night, forget_catalogue, plan_night
from rec import artifacts
from rec.data.tables import LEDGER


class Out:
    """A folder of nights as they leave it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, day: int, *kinds: str, **metrics: Any) -> None:
        for kind in kinds:
            place = self._folder / f"2026-01-{day:02d}" / kind
            (place / "r").mkdir(parents=True)
            (place / "r" / "file").write_text("x")
            artifacts.seal(place, "r", kind, metrics=metrics if kind == "embeddings" else {})

    def plan(self, day: int, **how: Any) -> Night:
        return plan_night(str(self._folder), date(2026, 1, day), 7, **how)

    def days(self, night: Night) -> list[str]:
        """Of the deliveries, as the folders are called."""
        return [place.removeprefix(f"{self._folder}/2026-01-") for place in night.deliveries]


@pytest.fixture
def out(tmp_path: Path) -> Out:
    out = Out(tmp_path / "out")
    out.add(1, "encoder", "embeddings", "facts")
    out.add(2, "embeddings", "facts")
    return out


def test_a_training_is_on_all_deliveries_since_one_that_held_all(out: Out) -> None:
    assert out.days(out.plan(8)) == ["01/tables", "02/tables", "08/tables"]
    out.add(3, "embeddings", left=0)
    out.add(4, "embeddings")
    assert out.days(out.plan(8)) == ["03/tables", "04/tables", "08/tables"]
    alone = out.plan(8, whole=True)
    assert out.days(alone) == ["08/tables"]
    assert "items that were not delivered leave" in alone.told()


def test_what_a_whole_delivery_lacks_is_not_carried_on(out: Out, tmp_path: Path) -> None:
    table = f"{tmp_path}/out/2026-01-02/embeddings"
    night = out.plan(3)
    assert (night.previous, night.last) == (table, table)
    assert night.facts == f"{tmp_path}/out/2026-01-02/facts"
    whole = out.plan(3, whole=True)
    assert (whole.previous, whole.last, whole.facts) == (table, table, None)
    assert out.plan(8).last == table  # of another encoder: not carried on, but counted
    assert out.plan(8).previous is None


def test_a_catalogue_of_an_earlier_try_does_not_outlive_a_whole_delivery(out: Out) -> None:
    """Or what left that night would come back with the next training."""
    out.add(8, "encoder", "embeddings", "tables", "catalogue")
    tables, catalogue = (Path(out.plan(8).folder) / name for name in ("tables", "catalogue"))
    (catalogue / LEDGER).write_text("{}")
    assert out.days(out.plan(15)) == ["08/catalogue", "15/tables"]
    forget_catalogue(out.plan(8))  # which is of several deliveries
    assert catalogue.exists()
    forget_catalogue(out.plan(8, whole=True))
    assert not catalogue.exists()
    assert tables.exists()
    assert out.days(out.plan(15)) == ["08/tables", "15/tables"]
    forget_catalogue(out.plan(8, whole=True))
