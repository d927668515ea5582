"""The jobs that pass over all vectors: neighbours of every item, and clusters."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from jobs import clusters, neighbours
from jobs.neighbours import NeighboursConfig
from rec import artifacts
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.retrieval.spec import IndexConfig
from rec.schema import EMBEDDINGS


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three tight clusters of a hundred items."""
    folder = tmp_path_factory.mktemp("t") / "e"
    rng = np.random.default_rng(0)
    vectors = np.eye(3, 8)[np.arange(300) % 3] + 0.05 * rng.standard_normal((300, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = [
        pa.array([f"i{n}" for n in range(300)]),
        pa.array(np.zeros(300, "i4")),
        pa.array(np.ones(300, "f4")),
        pa.array(vectors.astype("f4").tolist(), pa.list_(pa.float32())),
    ]
    (folder / "r").mkdir(parents=True)
    pq.write_table(pa.Table.from_arrays(columns, schema=EMBEDDINGS), folder / "r" / "p.parquet")
    artifacts.seal(folder, "r", "embedding-table", lineage={"encoder": "e1"})
    return str(folder)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_neighbours_of_every_item(table: str, tmp_path: Path) -> None:
    build_index(table, str(tmp_path / "i"))
    out = str(tmp_path / "n")
    places = ["--index", str(tmp_path / "i"), "--out", out]
    assert neighbours.main([*places, "--set", "k=4", "rows_per_part=70", "num_actors=1"]) == 0
    manifest, folder = artifacts.open_artifact(out, "score-table")
    index = Index.open(str(tmp_path / "i"))
    assert manifest.lineage["index"] == index.version
    assert (len(manifest.files), manifest.metrics["num_rows"]) == (5, 1200)
    rows = pads.dataset(folder).to_table().to_pylist()
    expected = index.search_ids([f"i{n}" for n in range(300)], 4)
    for n in range(300):
        mine = [row["item_id"] for row in rows if row["query_id"] == f"i{n}"]
        assert mine == expected.ids[n].tolist()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_neighbours_of_the_version_that_the_job_began_with(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is published meanwhile; and the tables before the last do not stay for good."""
    uri, out = str(tmp_path / "i"), tmp_path / "n"
    first = build_index(table, uri)
    real = artifacts.verify

    def published_again(place: str, manifest: artifacts.Manifest) -> None:
        real(place, manifest)
        monkeypatch.setattr(artifacts, "verify", real)
        build_index(table, uri, IndexConfig(num_shards=2))

    roots = []
    for number in range(3):
        if not number:
            monkeypatch.setattr(artifacts, "verify", published_again)
        made = neighbours.run(uri, str(out), NeighboursConfig(k=3, num_actors=1))
        roots.append(made.root)
        assert (made.lineage["index"] == first.version) == (not number)
        assert made.metrics["num_rows"] == 900
        for path in [out, *out.rglob("*")]:
            os.utime(path, (0, 0))
    (out / f"manifest.json.{'0' * 32}.tmp").write_text("{")
    os.utime(out / f"manifest.json.{'0' * 32}.tmp", (0, 0))
    assert sorted(path.name for path in out.glob("n-*")) == sorted(roots[1:])
    neighbours.run(uri, str(out), NeighboursConfig(k=2, num_actors=1))
    assert not list(out.glob("*.tmp"))
    assert roots[1] not in [path.name for path in out.glob("n-*")]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_neighbours_of_a_damaged_index_are_refused_in_a_line(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_index(table, str(tmp_path / "i"))
    file = next((tmp_path / "i").rglob("index.faiss"))
    file.write_bytes(file.read_bytes()[:-1])
    assert neighbours.main(["--index", str(tmp_path / "i"), "--out", str(tmp_path / "n")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"neighbours: {file}: ")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_what_another_job_published_is_not_written_over(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    build_index(table, index)
    before = sorted(path.name for path in Path(index).iterdir())
    for job, flag, source in ((clusters, "--embeddings", table), (neighbours, "--index", index)):
        for out in (table, index):
            assert job.main([flag, source, "--out", out]) == 1
            (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
            assert out in line
            assert "give another --out" in line or "artifact, expected" in line
    assert sorted(path.name for path in Path(index).iterdir()) == before


def test_clusters_do_not_replace_what_they_are_of(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clusters.main(["--embeddings", table, "--out", f"{table}/", "--set", "rounds=1"]) == 1
    assert "give another --out" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_planted_clusters_are_found(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "c")
    places = ["--embeddings", table, "--out", out, "--set", "rows_per_task=110"]
    assert clusters.main([*places, "num_clusters=3"]) == 0
    _, folder = artifacts.open_artifact(artifacts.join(out, "assignments"), "clusters")
    rows = pads.dataset(folder).to_table().to_pylist()
    assert sorted(row["id"] for row in rows) == sorted(f"i{n}" for n in range(300))
    found = [{row["cluster"] for row in rows if int(row["id"][1:]) % 3 == n} for n in range(3)]
    assert [len(labels) for labels in found] == [1, 1, 1]
    assert len(set.union(*found)) == 3
    # the centres are an embedding table: they can be indexed and searched
    build_index(out, str(tmp_path / "i"))
    hit = Index.open(str(tmp_path / "i")).search(np.eye(1, 8, dtype="f4"), 1)
    assert {int(hit.ids[0, 0])} == found[0]
    assert clusters.main([*places, "num_clusters=1000"]) == 1
    assert "300 vectors for 1000 clusters" in capsys.readouterr().err
    assert clusters.main([*places, "num_clusters=3", "seed=-1"]) == 1
    assert "seed: Input should be greater" in capsys.readouterr().err
    Path(out, "assignments", "manifest.json").unlink()  # as if killed in between
    for _ in range(2):
        for path in Path(out).rglob("*"):
            os.utime(path, (0, 0))
        assert clusters.main([*places, "num_clusters=3"]) == 0
    for folder in (Path(out).glob("v-*"), Path(out, "assignments").glob("k-*")):
        assert len(list(folder)) == 2
