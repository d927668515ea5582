"""The index job's command line: it builds, says what it reached, and says what is wrong."""

from __future__ import annotations

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
    assert "Flat in 1 shards, nprobe 1, k_factor 1; recall@10 1.0000" in printed
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
