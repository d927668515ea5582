"""A node is lost while it makes data: the rows are those of a run that nothing disturbed.

Training, embedding and serving lose theirs in `python -m bench.chaos`, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import ingest
from rec.artifacts import read_manifest
from rec.data.ledger import Ledger
from rec.data.tables import read_tables

_SMALL = ["--recipe", "rec.recipes.content:debug", "--set", "source.num_items=120"]
_SMALL += ["source.num_shards=6"]
# in a process of its own: nodes started beside a Ray that other tests use would take its address
_PROGRAM = """
import sys
from pathlib import Path
from bench.disturb import Nodes

place, out = Path(sys.argv[1]), Path(sys.argv[2])
with Nodes(place, [0, 2, 2]) as nodes:
    command = [sys.executable, "-m", "jobs.ingest", "--out", str(out), *sys.argv[3:]]
    nodes.run(command, nodes.kill_node(out / "tables"))
    print(len(nodes.raylets), "left")
"""


@pytest.mark.ray
@pytest.mark.slow
def test_rows_are_the_same_after_a_node_was_lost(ray_local: None, tmp_path: Path) -> None:
    place = tmp_path / "nodes"
    place.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(place), str(place / "run"), *_SMALL],
        cwd=Path(__file__).parents[2],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as nodes:
        assert ingest.main(["--out", str(tmp_path / "here"), *_SMALL]) == 0
        said = nodes.communicate(timeout=400)[0]
    assert nodes.returncode == 0, said[-4000:]
    assert said.splitlines()[-1] == "1 left"
    whole, broken = (read_tables(str(run / "tables")) for run in (tmp_path / "here", place / "run"))
    assert whole.files == broken.files
    assert whole.ledger == broken.ledger
    rows = [
        read_manifest(run / "rows", "content-rows") for run in (tmp_path / "here", place / "run")
    ]
    files = [{**one.files} for one in rows]
    for one in files:  # in it reasons and ids stand in the order in which shards were finished
        del one["ledger.json"]
    assert files[0] == files[1]
    ledgers = [
        Ledger.from_json((run / "rows" / one.root / "ledger.json").read_text()).stages
        for run, one in zip((tmp_path / "here", place / "run"), rows, strict=True)
    ]
    counts = [
        {name: (stage.rows_in, stage.rows_out, stage.dropped) for name, stage in one.items()}
        for one in ledgers
    ]
    assert counts[0] == counts[1]
