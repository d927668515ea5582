"""The items' vectors of an encoder of users become an embedding table, and that an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from jobs.embed import main
from rec.artifacts import ArtifactError, open_artifact, read_manifest
from rec.models.sequence.encoder import save_encoder
from rec.nn.users import PooledConfig, build_body
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.runtime import item_vectors
from rec.runtime.embed import embed
from rec.schema import EMBEDDINGS

IDS = [f"i{n}" for n in range(7)]


class Trained:
    """What can be exported: seven items of four numbers each."""

    training = False

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.body = build_body(PooledConfig(dim=4, hidden_dim=4, max_length=5))
        self.vectors = torch.randn(len(IDS), 4)

    def train(self, mode: bool = True) -> None: ...

    def input_vectors(self) -> Tensor:
        return torch.zeros(len(IDS), 4)  # are not what users are compared with

    def item_vectors(self) -> Tensor:
        return self.vectors


def test_item_vectors_are_written_indexed_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(item_vectors, "_BATCH_ROWS", 3)
    encoder, out, index = (str(tmp_path / name) for name in ("encoder", "items", "index"))
    trained, told = Trained(0), {"cutoff": "2026-01-01T00:00:00+00:00"}
    lineage = {"sequence-rows": "r1"}
    version = save_encoder(trained, pa.array(IDS), encoder, lineage=lineage, metrics=told)
    places = ["--encoder", encoder, "--out", out]
    assert main(places) == 0
    assert f"7 vectors at {out}" in capsys.readouterr().out
    manifest, folder = open_artifact(out, "embedding-table")
    assert manifest.lineage == {"sequence-rows": "r1", "encoder": version}
    assert manifest.metrics == {**told, "num_rows": 7}
    table = pq.read_table(next(folder.glob("*.parquet")))
    assert table.schema.equals(EMBEDDINGS)
    assert table.column("id").to_pylist() == IDS
    assert set(table.column("weight").to_pylist()) == {1.0}
    np.testing.assert_array_equal(table.column("vector").to_pylist(), trained.vectors.numpy())

    assert main(places) == 0  # the same again
    assert read_manifest(out) == manifest
    next(folder.glob("*.parquet")).write_bytes(b"cut")
    assert main(places) == 0
    assert "writing the table again" in capsys.readouterr().out
    assert read_manifest(out).files == manifest.files

    build_index(out, index)
    found = Index.open(index, model=version)  # refuses another encoder's
    np.testing.assert_array_equal(found.vectors(IDS), trained.vectors.numpy())

    newer = save_encoder(Trained(1), pa.array(IDS), encoder)
    assert main(places) == 0
    assert read_manifest(out).lineage["encoder"] == newer


def test_rows_go_with_the_other_kind_of_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(tmp_path / "encoder")
    save_encoder(Trained(0), pa.array(IDS), encoder)
    places = ["--encoder", encoder, "--out", str(tmp_path / "items")]
    assert main([*places, "--set", "batch_size=3"]) == 1
    assert "holds its items' vectors: no --set" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="content-encoder"):
        embed(encoder, str(tmp_path), str(tmp_path / "items"))
    assert main(["--encoder", str(tmp_path), "--out", "x"]) == 1
    assert "not found; expected a published artifact" in capsys.readouterr().err
    other = read_manifest(encoder).model_copy(update={"kind": "content-encoder"})
    Path(encoder, "manifest.json").write_text(other.to_json())
    assert main(places) == 1
    assert "give --rows" in capsys.readouterr().err
