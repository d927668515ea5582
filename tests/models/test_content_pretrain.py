"""What the content model reads, learns from and refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from content_cases import read_rows
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from rec.batch import ContentBatch
from rec.config import ConfigError
from rec.contract import GradCacheable, ItemEncoder, Trainable
from rec.features.content import ContentCollator
from rec.features.text import TextTokenizer, save_tokenizer, train_wordpiece
from rec.models.content.config import TextConfig, VisionConfig
from rec.models.content.encoders import CheckpointError, _depths
from rec.models.content.pretrain import ContentPretrainer, build_model, name_labels
from rec.recipes.content import base, debug, demo, large


@pytest.fixture
def batch(content_rows: str) -> ContentBatch:
    recipe = debug()
    return recipe.transform(
        recipe.collate(read_rows(content_rows)), torch.Generator().manual_seed(0)
    )


def small(**model: object) -> ContentPretrainer:
    recipe = debug()
    torch.manual_seed(0)
    config = recipe.model.model_copy(update=model)
    return build_model(config, recipe.inputs, vocab_size=80, num_labels=7)


def test_satisfies_the_protocols():
    model = small()
    assert isinstance(model, Trainable)
    assert isinstance(model, GradCacheable)
    assert isinstance(model, ItemEncoder)


def test_depths_are_quarters_rounded_up():
    assert _depths(12) == [3, 6, 9, 12]
    assert _depths(6) == [2, 3, 5, 6]
    assert _depths(2) == [1, 1, 2, 2]


def test_counts_are_of_what_is_there(batch: ContentBatch):
    losses = small()(batch)
    assert losses["infonce"].count == 2 * 8
    assert losses["key_terms"].count == (batch.token_targets != -100).sum()
    torch.testing.assert_close(losses["labels"].count, batch.label_weights.sum())


def test_pictures_help_to_predict_words_and_reach_the_label_loss(batch: ContentBatch):
    for term in ("key_terms", "labels"):
        model = small()
        model(batch)[term].total.backward()
        weight = model.vision.backbone.layers[0].mlp.fc1.weight  # type: ignore[union-attr, index]
        assert weight.grad.abs().sum() > 0, term
    model = small()
    model(batch)["infonce"].total.backward()
    words = model.text.backbone.get_input_embeddings().weight
    assert words.grad is None, "InfoNCE is between pictures"


def test_withheld_pictures_change_the_fused_item_and_not_infonce(batch: ContentBatch):
    model = small().eval()
    whole, without = model(batch), model(replace(batch, frame_mask=batch.frame_mask & False))
    torch.testing.assert_close(whole["infonce"].total, without["infonce"].total)
    assert whole["labels"].total != without["labels"].total


def test_an_item_without_anything_embeds_to_one_finite_vector(batch: ContentBatch):
    nothing = replace(
        batch,
        token_mask=batch.token_mask & False,
        frame_mask=batch.frame_mask & False,
        audio_mask=batch.audio_mask & False,
    )
    vectors = small().eval().encode_item(nothing)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(batch)))
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors))


@pytest.mark.parametrize("absent", ["frames", "tokens", "audio"])
def test_what_no_item_has_is_not_encoded_and_changes_nothing(batch: ContentBatch, absent: str):
    """Beside the same with gradients taken, where a dummy row is."""
    model, none = small().eval(), {"tokens": "token_mask", "frames": "frame_mask"}
    mask = none.get(absent, "audio_mask")
    without = replace(batch, **{mask: torch.zeros_like(getattr(batch, mask))})
    expected = model.encode_item(without).detach()
    encoder = {"frames": model.vision, "tokens": model.text, "audio": model.audio}[absent]
    assert encoder is not None
    called: list[int] = []
    encoder.backbone.register_forward_hook(lambda *_: called.append(1))
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_item(without), expected)
        assert called == []
        model.encode_item(batch)
        assert called == [1]


def test_time_is_read(batch: ContentBatch):
    model = small().eval()
    vectors = model.encode_item(batch)
    swapped = replace(batch, frames=batch.frames.flip(1), frame_mask=batch.frame_mask.flip(1))
    two = batch.frame_mask.all(1)
    assert two.any()
    assert not torch.allclose(vectors[two], model.encode_item(swapped)[two], atol=1e-5)


def test_an_untransformed_batch_is_refused_with_the_remedy(content_rows: str):
    raw = debug().collate(read_rows(content_rows))
    with pytest.raises(ValueError, match="training_inputs"):
        small()(raw)


def test_runs_wholly_in_bf16(batch: ContentBatch):
    model = small().bfloat16()
    losses = model(batch)
    assert all(term.total.dtype == torch.float32 for term in losses.values())
    assert all(term.total.isfinite() for term in losses.values())


def test_frozen_parts_get_no_gradient_and_the_rest_does(batch: ContentBatch):
    model = small(text=TextConfig(hidden_size=32, num_layers=2, num_heads=2, frozen_layers=1))
    sum(term.total for term in model(batch).values()).backward()  # type: ignore[union-attr]
    still = {name for name, p in model.named_parameters() if p.grad is None}
    prefixes = (
        "text.backbone.embeddings",
        "text.backbone.encoder.layer.0",
        "vision.backbone.embeddings.patch",
    )
    assert still == {n for n, _ in model.named_parameters() if n.startswith(prefixes)}


def test_starts_from_checkpoints_of_another_picture_size(tmp_path: Path, batch: ContentBatch):
    torch.manual_seed(1)
    text = BertModel(
        BertConfig(
            vocab_size=90,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    )
    vision = ViTModel(
        ViTConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=64,
            patch_size=16,
        )
    )
    text.save_pretrained(tmp_path / "text")
    vision.save_pretrained(tmp_path / "vision")
    model = small(
        text=TextConfig(checkpoint=str(tmp_path / "text")),
        vision=VisionConfig(checkpoint=str(tmp_path / "vision")),
    )
    torch.testing.assert_close(model.text.word_embeddings, text.embeddings.word_embeddings.weight)
    sum(term.total for term in model(batch).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    tokens, mask = batch.token_ids[:4], batch.token_mask[:4]
    reference = text.eval()(tokens, mask.long()).last_hidden_state
    pooled = torch.stack([reference[i][mask[i]].mean(0) for i in range(4)])
    torch.testing.assert_close(model.eval().text(tokens, mask).pooled, pooled, atol=1e-5, rtol=1e-4)


def test_labels_begin_at_what_the_model_says_of_their_names(tmp_path: Path):
    names = ["red river", "quiet planet", "river planet", "red", "quiet", "river", "planet"]
    save_tokenizer(train_wordpiece(names * 2, 80), tmp_path, 32)
    tokenizer = TextTokenizer(tmp_path, 32)
    model = small(dropout=0.5)
    name_labels(model, tokenizer, names, batch_size=3)
    assert model.training
    for number, name in enumerate(names):
        batch = ContentCollator(model.inputs).from_parts(tokenizer.encode([name]).token_ids)
        expected = model.eval().encode_item(batch)[0]
        torch.testing.assert_close(model.labels.weight[number], expected, atol=1e-5, rtol=1e-4)
    assert model.labels.weight.requires_grad


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        small(text=TextConfig(checkpoint=str(tmp_path)))
    size = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    for field, value, message in (
        ("vocab_size", 50, "50 word embeddings, the rows need 80"),
        ("max_position_embeddings", 16, "16 positions, the rows need 32"),
    ):
        BertModel(BertConfig(**size, **{"vocab_size": 100, field: value})).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=message):
            small(text=TextConfig(checkpoint=str(tmp_path)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("vision.hidden_size=30", "hidden_size 30 must be a multiple of num_heads 4"),
        ("fusion_heads=7", "fusion_dim 96 must be a multiple of fusion_heads 7"),
        ("text.frozen_layers=-1", "text.frozen_layers: .* greater than or equal to 0"),
        ("temperature=0", "temperature: .* greater than 0"),
        ("dropout=1", "dropout: .* less than 1"),
    ],
)
def test_sizes_that_make_no_model_are_refused_by_name(setting: str, message: str):
    with pytest.raises(ConfigError, match=message):
        demo().model.override([setting])


def test_pictures_smaller_than_a_patch_are_refused():
    recipe = demo()
    tiny = recipe.inputs.model_copy(update={"height": 8})
    with pytest.raises(ConfigError, match=r"8 x 64 hold no patch of 16; make inputs\.height"):
        build_model(recipe.model, tiny, vocab_size=80, num_labels=3)


def test_large_is_of_vit_l_class_and_base_of_vit_b():
    for recipe, least in ((base(), 80e6), (large(), 300e6)):
        with torch.device("meta"):
            model = build_model(recipe.model, recipe.inputs, vocab_size=30_000, num_labels=1000)
        for part in (model.vision, model.text):
            assert sum(p.numel() for p in part.parameters()) > least


def test_without_audio_there_are_no_audio_parameters(batch: ContentBatch):
    model = small(audio=None)
    assert model.audio is None
    sum(term.total for term in model(batch).values()).backward()  # type: ignore[union-attr]


def test_more_frames_than_the_model_was_made_for_are_refused(batch: ContentBatch):
    frames, mask = batch.frames.repeat(1, 2, 1, 1, 1), batch.frame_mask.repeat(1, 2)
    with pytest.raises(ValueError, match="4 frames or audio patches an item, made for at most 2"):
        small().encode_item(replace(batch, frames=frames, frame_mask=mask))
