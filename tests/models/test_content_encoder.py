"""The published encoder: every way of asking it, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from content_cases import NUM_LABELS, picture_of, read_rows, text_of

from rec.artifacts import ArtifactError
from rec.features.media import MediaError
from rec.models.content.encoder import ContentEncoder, load_encoder, save_encoder
from rec.recipes.content import debug


@pytest.fixture(scope="module")
def published(content_rows: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = debug()
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("published") / "encoder"
    recipe.export(recipe.build(content_rows), content_rows, str(folder), {})
    return folder


@pytest.fixture(scope="module")
def encoder(published: Path) -> ContentEncoder:
    return load_encoder(published)


def test_texts_pictures_and_both_are_the_parts_of_a_row(encoder: ContentEncoder, content_rows: str):
    table = read_rows(content_rows).slice(0, 1)
    silent = table.set_column(
        table.schema.get_field_index("log_mel"), "log_mel", pa.nulls(1, pa.large_binary())
    )
    both = encoder.encode_items([text_of(0)], [[picture_of(0, 0)]])
    np.testing.assert_allclose(both, encoder.encode_rows(silent), atol=1e-6)
    text, picture = encoder.encode_texts([text_of(0)]), encoder.encode_images([picture_of(0, 0)])
    for vectors in (both, text, picture):
        assert vectors.shape == (1, encoder.dim)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(text - picture).max() > 1e-3
    assert np.abs(text - both).max() > 1e-3


def test_a_long_text_is_cut_and_an_empty_one_is_an_item_without_text(encoder: ContentEncoder):
    long = " ".join(["redfox"] * 500)
    vectors = encoder.encode_texts([long, "", "redfox"])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[1], encoder.encode_items([None], [[]])[0], atol=1e-6)


def test_labels_come_best_first_with_their_probabilities(encoder: ContentEncoder):
    batch = encoder.collate([text_of(0), text_of(1)], [[], []])
    for item in encoder.predict_labels(batch, 3):
        assert len(item) == 3
        probabilities = [p for _, p in item]
        assert probabilities == sorted(probabilities, reverse=True)
        assert all(0 < p < 1 for p in probabilities)
        assert {label for label, _ in item} <= set(encoder.labels)
    assert len(encoder.predict_labels(batch, 100)[0]) == NUM_LABELS


def test_refusals_name_what_is_wrong(encoder: ContentEncoder, published: Path, tmp_path: Path):
    with pytest.raises(MediaError):
        encoder.encode_images([b"not a picture"])
    with pytest.raises(ValueError, match="2 texts and pictures of 1 items"):
        encoder.encode_items(["a", "b"], [[]])
    with pytest.raises(ArtifactError, match="not found"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="2 labels given, the model predicts 7"):
        save_encoder(encoder.model, tmp_path, encoder.inputs, ["a", "b"], tmp_path / "out")


def test_an_altered_weights_file_is_refused(content_rows: str, tmp_path: Path):
    recipe = debug()
    recipe.export(recipe.build(content_rows), content_rows, str(tmp_path / "encoder"), {})
    file = next(tmp_path.glob("encoder/v-*/model.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_encoder(tmp_path / "encoder")


def test_loading_needs_no_checkpoint_that_training_started_from(content_rows: str, tmp_path: Path):
    from transformers import BertConfig, BertModel

    size = BertConfig(
        vocab_size=100,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    folder = tmp_path / "checkpoint"
    BertModel(size).save_pretrained(folder)
    recipe = debug().override([f"model.text.checkpoint={folder}"])
    model = recipe.build(content_rows)
    recipe.export(model, content_rows, str(tmp_path / "encoder"), {})
    for file in folder.iterdir():
        file.unlink()
    raw = recipe.collate(read_rows(content_rows))
    with torch.no_grad():
        expected = model.eval().encode_item(raw).numpy()
    np.testing.assert_allclose(load_encoder(tmp_path / "encoder").encode(raw), expected, atol=1e-6)
