"""From raw items to an answered HTTP query and a report, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import pipeline
from rec.artifacts import file_entry, read_manifest, verify
from rec.config import ConfigError
from rec.data.ledger import Ledger
from rec.data.tables import read_tables
from rec.retrieval.filters import Range
from rec.retrieval.index import Index

_SMALL = [
    "--recipe",
    "rec.recipes.content:debug",
    "--set",
    "source.num_items=160",
    "source.num_shards=2",
    "recipe.train.steps=6",
    "recipe.train.checkpoint_every=3",
    "recipe.train.validate_every=3",
    "users.recipe.train.steps=6",
    "users.recipe.train.batch_size=16",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of one pipeline, run as a user runs it."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    command = [sys.executable, "-m", "jobs.pipeline", "--out", str(out), *_SMALL]
    done = subprocess.run(command, capture_output=True, text=True, env=_alone(), timeout=800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    # what Ray says of a wait as if it would never end, for an autoscaler without machines to start
    assert "infeasible" not in done.stdout + done.stderr
    return out, done.stdout


def _alone() -> dict[str, str]:
    # a Ray of its own: others on this machine are none of its business
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_raw_items_to_an_answered_query(finished: tuple[Path, str]) -> None:
    out, printed = finished
    assert "nearest to" in printed
    told = re.search(
        r"recommended to u\d+, by model \w+, from (\d+) of their (\d+) events:\n ", printed
    )
    assert told, printed
    assert 0 < int(told[1]) <= int(told[2])
    (command,) = re.findall(r"http://127.0.0.1:8000/ :\n  (.+)\n", printed)
    *pairs, access = shlex.split(command)[3:]
    assert access == "--no-keys"  # on this machine alone
    flags = dict(zip(*[iter(pairs)] * 2, strict=True))
    assert flags["--items"] == str(out / "tables")
    assert len(flags) == 6
    assert all(Path(place).is_dir() for place in flags.values())
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
    users = {
        kind: read_manifest(str(out / "users" / folder), kind)
        for folder, kind in (
            ("sequences", "sequence-rows"),
            ("encoder", "sequence-encoder"),
            ("index", "index"),
        )
    }
    made = users["sequence-rows"]
    assert (made.metrics["domain"], made.metrics["cutoff"]) == ("video", rows.metrics["cutoff"])
    assert users["sequence-encoder"].lineage["sequence-rows"] == made.version
    assert users["sequence-encoder"].metrics["cutoff"] == rows.metrics["cutoff"]
    assert users["index"].lineage["encoder"] == users["sequence-encoder"].version
    assert users["index"].config["num_items"] == made.metrics["num_items"]
    for folder in ("index", "users/index"):  # what is known of items can be filtered by
        index, late = Index.open(str(out / folder)), datetime(2100, 1, 1, tzinfo=UTC)
        for where, fits in (
            (Range(column="published_at", below=late), True),
            (Range(column="published_at", least=late), False),
        ):
            found = index.search(np.ones((1, index.dim), np.float32), 5, where=where)
            assert ((found.rows >= 0) == fits).all()

    figures = json.loads((out / "report" / "metrics.json").read_text())
    assert figures
    page = (out / "report" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")  # needs nothing from outside


def balances(ledger: Ledger) -> bool:
    stages = ledger.stages.values()
    return bool(stages) and all(s.rows_in == s.rows_out + sum(s.dropped.values()) for s in stages)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_output_has_ledger_schema_hashes_and_lineage(finished: tuple[Path, str]) -> None:
    run = finished[0]
    tables = read_tables(str(run / "tables"))
    assert balances(tables.ledger)
    assert {name: tables.ledger.stages[name].rows_out for name in tables.tables} == {
        name: size.num_rows for name, size in tables.tables.items()
    }
    assert tables.source["num_items"] == 160
    on_disk = run.glob("tables/*/*.parquet")
    assert set(tables.files) == {str(path.relative_to(run / "tables")) for path in on_disk}
    for name, entry in tables.files.items():
        assert file_entry(str(run / "tables" / name)) == entry
        found = pq.read_schema(run / "tables" / name)
        assert list(tables.schemas[name.split("/")[0]]) == found.names
    made_of = {
        "rows": {"tables"},
        "embeddings": {"encoder", "rows"},
        "users/behaviour": {"interactions"},
        "users/sequences": {"behaviour"},
    }
    for output, lineage in made_of.items():
        manifest = read_manifest(str(run / output))
        verify(str(run / output), manifest)
        assert set(manifest.lineage) == lineage
        assert manifest.ledger is not None
        text = (run / output / manifest.root / manifest.ledger).read_text()
        assert balances(Ledger.from_json(text))
        for file in manifest.files:
            is_told = re.sub(r"\d+", "*", file) in manifest.schemas
            assert is_told == file.endswith((".parquet", ".safetensors"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_local")
def test_given_again_it_runs_what_changed_and_says_so_before(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished[0]
    command = ["--out", str(out), "--no-serve", *_SMALL]
    stood = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    def said(*more: str) -> list[tuple[str, str]]:
        assert pipeline.main([*command, *more, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [(line.split()[0], line.split(maxsplit=1)[1][:7].strip()) for line in lines]

    names = ["tables", "rows", "encoder", "embeddings", "index", "report"]
    names += ["behaviour", "sequences", "users", "items", "item-index"]
    assert said() == [(name, "done") for name in names]
    todo = dict(said("index.recall_target=0.5"))
    assert [name for name in names if todo[name] == "to do"] == ["index", "report"]
    assert pipeline.main([*command, "source.seed=5", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "other settings (source.seed: 0 there, 5 now); refused without --overwrite" in told[0]
    assert "unless tables come out as before" in told[1]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == stood

    assert pipeline.main([*command, "index.recall_target=0.5"]) == 0
    printed = capsys.readouterr().out
    for name in (*names[1:4], *names[6:]):
        assert f"{name}: done already" in printed
    assert "index: 160 items" in printed


def test_a_wrong_source_recipe_or_override_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--source", "movielens"], "--source movielens needs a --path"),
        (["--recipe", "rec.recipes.content:nothing"], "nothing"),
        (["--recipe", "rec.recipes"], "expected MODULE:FUNCTION"),
        (["--set", "recipe.train.stepz=1"], "no field 'stepz'; there are: steps"),
        (["--set", "source.num_items=many"], "source"),
        (["--ask-user", "u1", "--set", "users=null"], "nothing is made of what users did"),
    ):
        assert pipeline.main(["--out", "unused", *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_a_wrong_path_is_told_before_anything_starts(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "items.csv").write_text("item_id\na")
    for path in (tmp_path / "none", tmp_path / "items.csv"):
        given = ["--source", "folder", "--path", str(path), "--out", str(tmp_path / "out"), *more]
        assert pipeline.main(given) == 1
        told = f"pipeline: {path}: not a folder; expected a folder with items.csv"
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_in_this_process_can_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.main(["--out", str(tmp_path), *_SMALL, "--workers", "0", "--dry-run"]) == 0
    assert "encoder" in capsys.readouterr().out


def test_settings_can_be_shown_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["--out", "unused", "--show", "--set", "recipe.train.steps=7"]) == 0
    config = pipeline.PipelineConfig.from_json(capsys.readouterr().out)
    assert config.recipe.train.steps == 7
    with pytest.raises(ConfigError, match="no section"):
        config.override(["nothing.here=1"])


def test_a_plan_sees_that_files_of_the_source_changed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    items = tmp_path / "mine" / "items.csv"
    flags = ["--source", "folder", "--path", str(tmp_path / "mine"), "--out", str(tmp_path / "run")]

    def settings() -> dict[str, object]:
        config = pipeline.configure(pipeline.arguments(flags).parse_args(flags))
        return pipeline.steps_of(config, str(tmp_path / "run"))[0].settings

    items.write_text("item_id\na")
    before = settings()
    assert settings() == before
    items.write_text("item_id\nb")
    assert settings() != before


def test_what_is_kept_of_files_can_be_set(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path), "--set", "media.max_frames=3"]
    config = pipeline.configure(pipeline.arguments(flags).parse_args(flags))
    media = pipeline.steps_of(config, str(tmp_path))[0].settings["media"]
    assert isinstance(media, dict)
    assert media["max_frames"] == 3


def test_training_is_gone_on_with_or_refused_but_not_replaced(tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path), *_SMALL]
    config = pipeline.configure(pipeline.arguments(flags).parse_args(flags))
    steps = pipeline.steps_of(config, str(tmp_path), overwrite=True)
    (training,) = [step for step in steps if step.name == "encoder"]
    assert training.refuses(["rows"]) == ""  # nothing is trained yet
    (tmp_path / "train" / "step-00000003").mkdir(parents=True)
    assert training.refuses(["train.steps", "train.log_every"]) == ""
    for changed in (["rows"], ["train.seed", "train.steps"], ["model.dim"]):
        assert "give another --out" in training.refuses(changed)
    tables, rows = steps[:2]
    assert tables.refuses(["source.seed"]) == rows.refuses(["tables"]) == ""
    tables, rows = pipeline.steps_of(config, str(tmp_path))[:2]
    assert tables.refuses(["source.seed"]) == "refused without --overwrite"
    assert rows.refuses(["tables"]) == "refused without --overwrite"
