"""Ingest, training and its continuation with all places on S3, as on a cluster."""

from __future__ import annotations

import importlib

import pytest

from rec.artifacts import filesystem, read_manifest
from rec.train.metrics import read_records

_RECIPE = ["--recipe", "rec.recipes.content:debug"]


def job(name: str, *arguments: str) -> int:
    return importlib.import_module(f"jobs.{name}").main([*_RECIPE, *arguments])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rows_training_and_its_continuation_on_s3(
    ray_local: None, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"{s3}/one"
    assert job("ingest", "--out", run, "--set", "source.num_items=80", "source.num_shards=2") == 0
    rows = read_manifest(f"{run}/rows", "content-rows")
    assert rows.metrics["train"]["rows"] + rows.metrics["heldout"]["rows"] == 80
    train = ["--rows", f"{run}/rows", "--out", run, "--set", "train.schedule=constant"]
    train += ["train.checkpoint_every=2", "train.validate_every=4"]
    assert job("train", *train, "train.steps=4") == 0
    first = read_manifest(f"{run}/encoder", "content-encoder")
    assert first.lineage["content-rows"] == rows.version
    assert job("train", *train, "train.steps=6") == 0
    assert "finished    6 steps" in capsys.readouterr().out
    assert read_manifest(f"{run}/encoder", "content-encoder").version != first.version
    logged = [record["step"] for record in read_records(f"{run}/train/logs")]
    assert logged == sorted(set(logged))
    assert logged[-1] == 6

    files, path = filesystem(f"{run}/rows/{rows.root}")  # an altered shard is refused there too
    shard = f"{path}/{next(name for name in rows.files if name.startswith('train/'))}"
    with files.open_input_file(shard) as stream:
        whole = stream.read()
    with files.open_output_stream(shard) as stream:
        stream.write(whole[:-1] + b"x")
    assert job("train", *train, "train.steps=9") == 1
    assert "publish again" in capsys.readouterr().err.splitlines()[-1]
