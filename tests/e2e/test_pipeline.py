"""From raw items to an answered HTTP query and a report, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import pipeline
from rec.artifacts import read_manifest
from rec.config import ConfigError

_SMALL = [
    "--recipe",
    "rec.recipes.content:debug",
    "--set",
    "source.num_items=160",
    "source.num_shards=2",
    "recipe.train.steps=6",
    "recipe.train.checkpoint_every=3",
    "recipe.train.validate_every=3",
]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_raw_items_to_an_answered_query(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "jobs.pipeline", "--out", str(out), *_SMALL]
    # a Ray of its own: others on this machine are none of its business
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "nearest to" in done.stdout

    versions = {
        kind: read_manifest(str(out / folder), kind)
        for folder, kind in (
            ("rows", "content-rows"),
            ("encoder", "content-encoder"),
            ("embeddings", "embedding-table"),
            ("index", "index"),
        )
    }
    # each artifact names the one that it was made from
    rows = versions["content-rows"]
    assert versions["content-encoder"].lineage["content-rows"] == rows.version
    assert versions["index"].lineage["encoder"] == versions["content-encoder"].version
    assert versions["index"].config["num_items"] == 160

    figures = json.loads((out / "report" / "metrics.json").read_text())
    assert figures
    page = (out / "report" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # needs nothing from outside


def test_a_wrong_source_recipe_or_override_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--source", "movielens"], "--source movielens needs a --path"),
        (["--recipe", "rec.recipes.content:nothing"], "nothing"),
        (["--recipe", "rec.recipes"], "expected MODULE:FUNCTION"),
        (["--set", "recipe.train.stepz=1"], "no field 'stepz'; there are: steps"),
        (["--set", "source.num_items=many"], "source"),
    ):
        assert pipeline.main(["--out", "unused", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_settings_can_be_shown_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["--out", "unused", "--show", "--set", "recipe.train.steps=7"]) == 0
    config = pipeline.PipelineConfig.from_json(capsys.readouterr().out)
    assert config.recipe.train.steps == 7
    with pytest.raises(ConfigError, match="no section"):
        config.override(["nothing.here=1"])
