"""Item vectors that need no training of ours: words, colours, a frozen text encoder. What a
trained encoder has to beat, through the same figures.

Whatever is fitted here is fitted on training items only, which are the first rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from rec.artifacts import ArtifactError
from rec.metrics.content import cross_modal_ranks
from rec.metrics.ranking import mrr
from rec.metrics.ranks import TargetRanks
from rec.metrics.vectors import Vectors, unit_rows

Floats = NDArray[np.floating]
_HISTOGRAM = (8, 4, 4)  # bins of hue, saturation, value
_THUMBNAIL = 8  # pixels a side
NUM_PIXEL_FEATURES = 8 * 4 * 4 + _THUMBNAIL * _THUMBNAIL * 3


def tfidf_vectors(texts: Sequence[str], num_train: int) -> sparse.csr_array:
    """(N, V) unit rows: sublinear TF-IDF of words and word pairs, English stop words out.

    Words and their document frequencies come from the first `num_train` texts; words of fewer
    than two of those are left out.
    """
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=2, stop_words="english", ngram_range=(1, 2)
    )
    vectorizer.fit(texts[:num_train])
    return sparse.csr_array(vectorizer.transform(texts), dtype=np.float32)


def pixel_features(picture: bytes) -> Floats | None:
    """(NUM_PIXEL_FEATURES,) square roots of an HSV histogram's shares, then an 8 x 8 colour
    thumbnail in [0, 1]; None where the picture cannot be decoded."""
    image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return None
    small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(small, cv2.COLOR_BGR2HSV)
    limits = [0, 180, 0, 256, 0, 256]
    counts = cv2.calcHist([hsv], [0, 1, 2], None, list(_HISTOGRAM), limits).ravel()
    thumbnail = cv2.resize(small, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.concatenate(
        [np.sqrt(counts / counts.sum()), thumbnail.ravel().astype(np.float32) / 255]
    )


def pixel_vectors(features: Floats, num_train: int, *, num_components: int = 32) -> Floats:
    """(N, 128 + num_components) unit rows: colour histogram beside the thumbnail's principal
    components, equal in weight.

    Args:
        features: (N, NUM_PIXEL_FEATURES) rows of `pixel_features`; zeros for no picture.
        num_train: the components are fitted on pictures of the first so many items.
        num_components: of the thumbnails; fewer where there are fewer pictures.
    """
    has_picture = np.asarray(features.any(axis=1))
    bins = int(np.prod(_HISTOGRAM))
    fitted = features[:num_train][has_picture[:num_train], bins:]
    if len(fitted) < 2:
        return unit_rows(features[:, :bins])
    pca = PCA(min(num_components, *fitted.shape), random_state=0).fit(fitted)
    mean_colour = features[:num_train][has_picture[:num_train], :bins].mean(axis=0)
    colours = unit_rows(features[:, :bins] - mean_colour)
    vectors = np.hstack([colours, unit_rows(pca.transform(features[:, bins:]))])
    return unit_rows(np.where(has_picture[:, None], vectors, 0)).astype(np.float32)


def require_text_encoder(folder: Path) -> None:
    """Raise ArtifactError where `folder` lacks the files of a Hugging Face encoder."""
    names = ("config.json", "tokenizer.json", "model.safetensors")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder}: no text encoder there, it lacks {', '.join(missing)}")


def text_encoder_vectors(
    texts: Sequence[str], folder: Path, *, batch_size: int = 32, max_length: int = 128
) -> Floats:
    """(N, D) unit rows: mean over tokens of a local Hugging Face encoder's last layer.

    Texts without a character give rows of zeros.

    Raises:
        ArtifactError: as `require_text_encoder`.
    """
    from transformers import AutoModel, AutoTokenizer  # seconds, and few evaluations need it

    require_text_encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths, little padding
    vectors = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), batch_size):
        rows = [i for i in order[start : start + batch_size] if texts[i].strip()]
        if not rows:
            continue
        inputs = tokenizer(
            [texts[i] for i in rows],
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return unit_rows(vectors)


def concatenations(
    first: Vectors, second: Vectors, shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5)
) -> list[sparse.csr_array]:
    """Unit rows of both side by side, one matrix for each share of the cosine that `second` has;
    tuning chooses among them."""
    parts = [sparse.csr_array(first), sparse.csr_array(second)]
    joined = (
        sparse.hstack(
            [p * np.sqrt(w) for p, w in zip(parts, (1 - s, s), strict=True)], format="csr"
        )
        for s in shares
    )
    return [unit_rows(sparse.csr_array(m)) for m in joined]


def linear_cross_modal(
    text: sparse.csr_array,
    pictures: Floats,
    train_rows: NDArray[np.int64],
    query_rows: NDArray[np.int64],
) -> tuple[TargetRanks, TargetRanks]:
    """Text to picture and back by ridge regression between TF-IDF (256 singular vectors) and
    pixels; its strength is tuned on the latest 15 % of the training rows.

    Args:
        text: (N, V) unit rows.
        pictures: (N, P) unit rows.
        train_rows: items that have both, oldest first.
        query_rows: items that have both, whose ranks are returned.
    """
    size = min(256, len(train_rows) - 1, text.shape[1] - 1)
    svd = TruncatedSVD(size, random_state=0).fit(text[train_rows])
    words = unit_rows(svd.transform(text))
    cut = max(1, round(len(train_rows) * 0.85))

    def ranks(source: Floats, target: Floats) -> TargetRanks:
        centre = target[train_rows].mean(axis=0)

        def run(strength: float, fit: NDArray[np.int64], query: NDArray[np.int64]) -> TargetRanks:
            model = Ridge(alpha=strength).fit(source[fit], target[fit] - centre)
            wanted = unit_rows(np.asarray(model.predict(source[query])))
            return cross_modal_ranks(wanted, unit_rows(target[query] - centre))

        strengths = (0.1, 1.0, 10.0, 100.0)
        found = [mrr(run(s, train_rows[:cut], train_rows[cut:]), 100).mean() for s in strengths]
        return run(strengths[int(np.argmax(found))], train_rows, query_rows)

    return ranks(words, pictures), ranks(pictures, words)
