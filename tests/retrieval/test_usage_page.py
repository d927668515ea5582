"""The page on the library holds: its blocks run in order; and a table of one's own arrays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tables import DIM, clustered

from rec.artifacts import ArtifactError
from rec.retrieval.build import build_index
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.filters import Equal
from rec.retrieval.index import Index
from rec.retrieval.spec import IndexConfig
from rec.retrieval.table import write_table

PAGE = Path(__file__).parents[2] / "docs" / "retrieval.md"


def test_the_blocks_of_the_page_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text()
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) == text.count("```") // 2 >= 7
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)  # so errors name the line


def test_a_table_of_arrays(tmp_path: Path) -> None:
    vectors, kinds = clustered(40_000), np.array(["a", "b"])
    uri, ids = str(tmp_path / "e"), [f"i{n // 2}" for n in range(40_000)]  # two row groups and more
    write_table(
        uri,
        np.array(ids),  # type: ignore[arg-type]
        vectors.astype(np.float64),
        interests=np.arange(40_000) % 2,
        attributes={"kind": kinds[np.arange(40_000) % 2], "n": pa.array(range(40_000), pa.int32())},
        encoder="e-1",
    )
    manifest = build_index(
        uri, str(tmp_path / "i"), IndexConfig(factory="Flat", attributes=("kind", "n"))
    )
    assert manifest.lineage["encoder"] == "e-1"
    assert manifest.config["num_items"] == 20_000
    index = Index.open(str(tmp_path / "i"))
    np.testing.assert_array_equal(index.reconstruct(np.arange(40_000)), vectors)
    hits = index.search(vectors[1:2], 1, where=Equal(column="kind", value="b"))
    assert (hits.ids.tolist(), hits.interests.tolist()) == ([["i0"]], [[1]])
    assert index.attributes(hits.rows[0]) == [{"kind": "b", "n": 1}]


@pytest.mark.parametrize("ids", [pa.array(["a", "b"]), pa.chunked_array([["a"], ["b"]])])
def test_ids_in_arrow(tmp_path: Path, ids: Any) -> None:
    write_table(str(tmp_path / "e"), ids, clustered(2))
    build_index(str(tmp_path / "e"), str(tmp_path / "i"))
    assert Index.open(str(tmp_path / "i")).ids(np.arange(2)).tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("ids", "vectors", "how", "message"),
    [
        (["a", "b"], np.ones((3, DIM)), {}, r"vectors of shape \(3, 16\).*'id': 2"),
        (["a"], np.ones(DIM), {}, r"vectors of shape \(16,\)"),
        (["a"], [["x"]], {}, "not a table"),
        ("a", np.ones((1, DIM)), {}, "'a' in place of a list of ids"),
        ([None], np.ones((1, DIM)), {}, "id None is of type NoneType"),
        (["a"], np.ones((1, DIM)), {"interests": [0.5]}, "not a table"),
        (["a"], np.ones((1, DIM)), {"interests": [None]}, "an interest number is missing"),
        (["a"], np.ones((1, DIM)), {"attributes": {"n": [1, 2]}}, "'n': 2"),
        (["a"], np.ones((1, DIM)), {"attributes": {"n": [object()]}}, "not a table"),
        (["a"], np.ones((1, DIM)), {"attributes": {"id": ["x"]}}, r"\['id'\] have names of"),
        (["a"], np.ones((1, DIM)), {"attributes": 3}, "attributes are 3, expected columns by name"),
        (["a"], np.ones((1, DIM)), {"attributes": {3: [1]}}, "the attribute's name 3 is no text"),
        (["a"], np.ones((1, DIM)), {"encoder": 3}, "encoder is 3, expected a text"),
        (["a"], np.full((1, DIM), np.nan), {}, "vector 0 has NaN"),
        (pa.array(["a", None]), np.ones((2, DIM)), {}, "id None is of type NoneType"),
        (3, np.ones((1, DIM)), {}, "not a table"),
    ],
)
def test_what_is_no_table(
    tmp_path: Path, ids: Any, vectors: Any, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(IndexBuildError, match=message):
        write_table(str(tmp_path / "e"), ids, vectors, **how)
    assert not (tmp_path / "e").exists()


def test_a_table_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("a file")
    with pytest.raises(ArtifactError, match=r"e: cannot be written: .* see to it that"):
        write_table(str(tmp_path / "e"), ["a"], np.ones((1, DIM)))
