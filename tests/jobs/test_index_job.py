"""The index job's command line: it builds, says what it reached, and says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import index as job
from rec import artifacts
from rec.retrieval.index import Index
from rec.retrieval.spec import IndexConfig
from rec.schema import EMBEDDINGS


@pytest.fixture
def table(tmp_path: Path) -> str:
    vectors = np.random.default_rng(0).standard_normal((2000, 8)).astype("f4")
    columns = [
        pa.array([f"i{n}" for n in range(2000)]),
        pa.array(np.zeros(2000, "i4")),
        pa.array(np.ones(2000, "f4")),
        pa.array(vectors.tolist(), pa.list_(pa.float32())),
    ]
    (tmp_path / "e" / "r").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_arrays(columns, schema=EMBEDDINGS), tmp_path / "e" / "r" / "part-0.parquet"
    )
    artifacts.seal(tmp_path / "e", "r", "embedding-table")
    return str(tmp_path / "e")


def test_builds_and_says_what_it_reached(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(["--embeddings", table, "--out", str(tmp_path / "i")]) == 0
    printed = capsys.readouterr().out
    assert "2,000 items of dimension 8" in printed
    assert "Flat, shards 1, nprobe 1, k_factor 1; recall@10 1.0000" in printed
    assert len(Index.open(str(tmp_path / "i"))) == 2000


def test_says_when_the_target_is_missed(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["factory=IVF8,PQ2", "recall_target=0.99"]
    assert job.main(["--embeddings", table, "--out", str(tmp_path / "i"), "--set", *settings]) == 0
    assert "recall@10 is below the target of 0.99" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["factory=Nonsense"], "FAISS factory 'Nonsense'"),
        (["recall_target=2"], "recall_target: Input should be less than or equal to 1"),
        (["recal=1"], "no field 'recal'; there are: factory, recall_target"),
    ],
)
def test_says_what_is_wrong(
    table: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: list[str],
    message: str,
) -> None:
    out = tmp_path / "i"
    assert job.main(["--embeddings", table, "--out", str(out), "--set", *settings]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        job.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m jobs.index --embeddings" in printed
    assert all(f"  {name} = " in printed for name in IndexConfig.model_fields)


def test_parquet_of_ones_own_is_told_how_to_become_a_table(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(table, "manifest.json").unlink()
    for place in (table, str(Path(table, "r", "part-0.parquet"))):
        assert job.main(["--embeddings", place, "--out", str(tmp_path / "i")]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"index: {place}/manifest.json: not found, though there is Parquet")
        assert "rec.retrieval.table.write_table" in told
    assert job.main(["--embeddings", str(tmp_path / "no"), "--out", str(tmp_path / "i")]) == 1
    assert "expected a published 'embedding-table'" in capsys.readouterr().err


def test_keep_works_alone_and_says_what_stays(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "i"
    for shards in (1, 2, 3):
        where = ["--embeddings", table, "--out", str(out)]
        assert job.main([*where, "--set", f"num_shards={shards}"]) == 0
    assert job.main(["--out", str(out), "--keep", "1"]) == 0
    assert "removed 0 versions that are no longer kept, 3 are left; what was written or in use" in (
        capsys.readouterr().out
    )
    for path in out.rglob("*"):
        os.utime(path, (0, 0))
    assert job.main(["--out", str(out), "--keep", "1"]) == 0
    assert "removed 2 versions that are no longer kept, 1 are left" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--keep", "--workers", "--log-seq"])
def test_numbers_below_zero_are_refused(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One below 0 versions to keep would have removed all but the one in use."""
    with pytest.raises(SystemExit) as stopped:
        job.main(["--out", str(tmp_path), "--rollback", flag, "-1"])
    assert stopped.value.code == 2
    assert f"{flag}: '-1': expected a whole number from 0 on" in capsys.readouterr().err


def test_rolls_back_and_clears_away(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "i")
    assert job.main(["--embeddings", table, "--out", out]) == 0
    first = Index.open(out).version
    assert job.main(["--embeddings", table, "--out", out, "--set", "factory=SQ8"]) == 0
    assert Index.open(out).version != first
    assert job.main(["--out", out, "--rollback"]) == 0
    assert f"uses version {first}" in capsys.readouterr().out
    assert job.main(["--out", out, "--rollback", "--keep", "1"]) == 1
    assert "no version before" in capsys.readouterr().err
    assert job.main(["--out", out]) == 1
    assert "give --embeddings" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_shards_filled_by_ray_equal_those_filled_here(table: str, tmp_path: Path) -> None:
    places = ["--embeddings", table, "--set", "num_shards=5", "factory=IVF8,Flat"]
    assert job.main(["--out", str(tmp_path / "here"), *places]) == 0
    assert job.main(["--out", str(tmp_path / "ray"), "--workers", "2", *places]) == 0
    here, ray = (artifacts.read_manifest(tmp_path / name, "index") for name in ("here", "ray"))
    shards = {name for name in here.files if name.startswith("shard-")}
    assert len(shards) == 10
    assert all(here.files[name] == ray.files[name] for name in shards)
