"""What the pipeline refuses before it makes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import pipeline


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
