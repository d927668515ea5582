"""Two releases of each service, what each of them answers, and callers who hold every answer to the
release that it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rec.client import Client, Found, RequestError
from rec.models.content.encoder import load_encoder
from rec.models.sequence import encoder as sequence_encoder
from serve_apps.recommend import Places
from serve_apps.versions import match, match_users

K = 4
HISTORY = ["item3", "item11"]
Ask = Callable[[Client], None]


class Side(NamedTuple):
    """A release of the content service, and what it answers."""

    encoder: str
    index: str
    model_version: str
    index_version: str
    vectors: dict[str, np.ndarray]  # (D,) of each text
    nearest: dict[str, list[str]]  # to each text
    to_vector: list[str]  # nearest to the query vector that the callers have


class UsersSide(NamedTuple):
    """A release of recommendations, and what it answers."""

    encoder: str
    index: str
    model_version: str
    index_version: str
    best: list[str]  # for HISTORY


def side(
    encoder: str, index: str, texts: list[str], ids: list[str], vectors: np.ndarray, q: np.ndarray
) -> Side:
    model, told = load_encoder(encoder), match(encoder, index)
    encoded = model.encode_texts(texts)
    scores = np.vstack([encoded, q]) @ vectors.T
    *nearest, to_vector = [[ids[i] for i in np.argsort(-row)[:K]] for row in scores]
    by_text = dict(zip(texts, encoded, strict=True)), dict(zip(texts, nearest, strict=True))
    return Side(encoder, index, told.model_version, told.index_version, *by_text, to_vector)


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


def users_side(places: Places) -> UsersSide:
    told = match_users(places.encoder, places.index, places.rows)
    model = sequence_encoder.load_encoder(places.encoder)
    scores = model.item_vectors().numpy() @ model.encode_user([HISTORY]).vectors[0, 0].numpy()
    order = [model.item_ids[i] for i in np.argsort(-scores)]
    best = [one for one in order if one not in HISTORY][:K]
    return UsersSide(places.encoder, places.index, told.model_version, told.index_version, best)


def two_users_sides(recommendable: dict[str, Places]) -> tuple[UsersSide, UsersSide]:
    first, second = (users_side(recommendable[name]) for name in ("sasrec", "dssm"))
    assert first.best != second.best
    return first, second


def questions(
    served: Any, sides: tuple[Side, Side], users: tuple[UsersSide, UsersSide]
) -> list[Ask]:
    """What callers ask: a text's vector and neighbours, a vector's neighbours, neighbours of the
    first side alone, and recommendations."""
    by_model = {one.model_version: one for one in sides}
    by_users_model = {one.model_version: one for one in users}
    text, first = served.texts[0], sides[0]

    def held(found: Found) -> Side:
        """A text's neighbours come of an encoder and of an index, which must be of one release."""
        one = by_model[found.model_version]
        assert found.index_version == one.index_version
        return one

    def ask_embed(client: Client) -> None:
        vectors, version = client.embed([text])
        np.testing.assert_allclose(vectors[0], by_model[version].vectors[text], atol=1e-5)

    def ask_text(client: Client) -> None:
        found = client.knn_content([text], k=K)
        assert found.results[0].ids == held(found).nearest[text]

    def ask_vector(client: Client) -> None:
        found = client.knn(served.vectors[3:4], k=K)
        assert found.results[0].ids == held(found).to_vector

    def ask_pinned(client: Client) -> None:
        try:
            found = client.knn_content([text], k=K, model=first.model_version)
        except RequestError as error:
            if error.code == "model_mismatch":  # a typed 409, as it must be
                return
            raise
        assert found.model_version == first.model_version
        assert found.results[0].ids == held(found).nearest[text]

    def ask_users(client: Client) -> None:
        found = client.recommend(HISTORY, k=K)
        one = by_users_model[found.model_version]
        assert (found.index_version, found.ids) == (one.index_version, one.best)

    return [ask_embed, ask_text, ask_vector, ask_pinned, ask_users]
