"""Two releases that are swapped under load, what each of them answers, and callers who check it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rec.client import Client, Found, RequestError
from rec.models.content.encoder import load_encoder

K = 4


class Side(NamedTuple):
    """A release, and what it answers."""

    encoder: str
    index: str
    model_version: str
    nearest: dict[str, list[str]]  # to each text
    to_vector: list[str]  # nearest to the query vector that the callers have


def side(
    encoder: str, index: str, texts: list[str], ids: list[str], vectors: np.ndarray, q: np.ndarray
) -> Side:
    model = load_encoder(encoder)
    scores = np.vstack([model.encode_texts(texts), q]) @ vectors.T
    *nearest, to_vector = [[ids[i] for i in np.argsort(-row)[:K]] for row in scores]
    by_text = dict(zip(texts, nearest, strict=True))
    return Side(encoder, index, model.version, by_text, to_vector)


def two_sides(
    served: Any,
    make_encoder: Callable[[Path, int], str],
    publish_index: Callable[..., str],
    folder: Path,
) -> tuple[Side, Side]:
    """What is served, and a release of the same items by another model; it is put into `folder`."""
    encoder = make_encoder(folder, 1)
    model = load_encoder(encoder)
    vectors = model.encode_items(served.texts, [[one] for one in served.pictures])
    index = publish_index(folder, served.ids, vectors, model.version)
    about, query = (served.texts, served.ids), served.vectors[3:4]
    first = side(served.encoder_uri, served.index_uri, *about, served.vectors, query)
    second = side(encoder, index, *about, vectors, query)
    assert first.nearest != second.nearest
    assert first.to_vector != second.to_vector
    return first, second


def questions(served: Any, sides: tuple[Side, Side]) -> list[Callable[[Client], None]]:
    """What callers ask: a text, a vector, and a text of the first side alone."""
    by_model = {one.model_version: one for one in sides}
    texts, first = served.texts, sides[0]

    def held(found: Found) -> None:
        """A text's neighbours come of an encoder and of an index, which must be of one release."""
        assert found.results[0].ids == by_model[found.model_version].nearest[texts[0]]

    def ask_text(client: Client) -> None:
        held(client.knn_content(texts[:1], k=K))

    def ask_vector(client: Client) -> None:
        found = client.knn(served.vectors[3:4], k=K)
        assert found.results[0].ids == by_model[found.model_version].to_vector

    def ask_pinned(client: Client) -> None:
        try:
            found = client.knn_content(texts[:1], k=K, model=first.model_version)
        except RequestError as error:
            if error.code == "model_mismatch":  # a typed 409, as it must be
                return
            raise
        assert found.model_version == first.model_version
        held(found)

    return [ask_text, ask_vector, ask_pinned]
