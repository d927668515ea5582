"""What the pipeline refuses before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import pipeline
from rec.train.engine import TrainError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("index.factory=Foo", r"index\.factory: FAISS factory 'Foo' of dimension 64"),
        ("users.index.factory=IVF8,PQ7", r"users\.index\.factory: FAISS factory 'IVF8,PQ7'"),
    ],
)
def test_an_index_that_faiss_cannot_make_is_told_first(
    setting: str, message: str, tmp_path: Path
) -> None:
    flags = pipeline.arguments(["--out", str(tmp_path)])
    for given in ("index.factory=IVF8,PQ16x4fs", "users=null"):
        pipeline.configure(flags.parse_args(["--out", str(tmp_path), "--set", given]))
    with pytest.raises(pipeline.ConfigError, match=message):
        pipeline.configure(flags.parse_args(["--out", str(tmp_path), "--set", setting]))


@pytest.mark.parametrize("name", ["recipe", "users.recipe"])
def test_a_batch_that_the_workers_cannot_share_is_told_first(name: str, tmp_path: Path) -> None:
    flags = pipeline.arguments(["--out", str(tmp_path)])
    given = ["--workers", "2", "--set", "recipe.train.engine=ddp", "users.recipe.train.engine=ddp"]
    given += [f"{name}.train.batch_size=63"]
    with pytest.raises(TrainError, match="batch_size 63 must be a multiple of workers x"):
        pipeline.configure(flags.parse_args(["--out", str(tmp_path), *given]))
