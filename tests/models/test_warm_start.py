"""Training that begins where a published encoder ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from content_cases import NUM_LABELS

from rec.artifacts import ArtifactError, publish, read_manifest
from rec.config import ConfigError
from rec.features.text import save_tokenizer, train_wordpiece
from rec.models.content.pretrain import ContentPretrainer
from rec.models.content.warm_start import start_from
from rec.recipes.content import ContentRecipe, debug


def built(recipe: ContentRecipe, rows: str, seed: int) -> ContentPretrainer:
    torch.manual_seed(seed)
    return recipe.build(rows)


def other_rows(rows: str, folder: Path, labels: list[str], texts: list[str] | None = None) -> str:
    """The same rows with other labels, or another tokenizer."""
    import shutil

    staged = folder / "staged"
    shutil.copytree(Path(rows) / read_manifest(rows).root, staged)
    table = {"label": labels, "label_id": list(range(len(labels)))}
    pq.write_table(pa.table(table), staged / "labels.parquet")
    if texts is not None:
        save_tokenizer(train_wordpiece(texts, 80), staged / "tokenizer", 32)
    publish(staged, folder / "rows", "content-rows")
    return str(folder / "rows")


@pytest.fixture
def encoder(content_rows: str, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    model = built(debug(), content_rows, 1)
    debug().export(model, content_rows, str(tmp_path / "encoder"), {})
    return str(tmp_path / "encoder"), model.state_dict()


def test_all_weights_are_those_of_the_encoder(
    content_rows: str, encoder: tuple[str, dict[str, Any]]
) -> None:
    uri, weights = encoder
    found = built(debug().override([f"start={uri}"]), content_rows, 2).state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_labels_go_by_name(
    content_rows: str, encoder: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    uri, weights = encoder
    labels = ["tag3", "fresh", "tag0"]
    rows = other_rows(content_rows, tmp_path, labels)
    model = built(debug(), rows, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert start_from(model, labels, uri) == 2
    found = model.state_dict()
    for name in ("labels.weight", "labels.bias"):
        assert torch.equal(found[name][[0, 2]], weights[name][[3, 0]])
        assert torch.equal(found[name][1], before[name][1])
    assert torch.equal(found["text.backbone.embeddings.word_embeddings.weight"],
                       weights["text.backbone.embeddings.word_embeddings.weight"])  # fmt: skip
    assert len(labels) != NUM_LABELS


def test_what_does_not_fit_is_refused(
    content_rows: str, encoder: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    uri, _ = encoder
    wider = debug().override([f"start={uri}", "model.embedding_dim=16"])
    with pytest.raises(ArtifactError, match="of other sizes than the recipe"):
        wider.build(content_rows)
    texts = [f"quite other words {n}" for n in range(99)]
    rows = other_rows(content_rows, tmp_path, [f"tag{n}" for n in range(NUM_LABELS)], texts)
    with pytest.raises(ConfigError, match="another tokenizer"):
        debug().override([f"start={uri}"]).build(rows)
    with pytest.raises(ArtifactError, match="not found"):
        debug().override([f"start={tmp_path}/none"]).build(content_rows)
