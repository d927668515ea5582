"""Versions are swapped and go back under load: no request fails, no answer mixes two."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from under_load import asking, pids

from rec.client import Client, RequestError
from rec.models.content.encoder import load_encoder
from serve_apps.keys import new_key

ADMIN, ADMIN_LINE = new_key("keeper", "admin")
READ, READ_LINE = new_key("reader", rate_per_s=1e6)
K = 4


class Side(NamedTuple):
    """A release, and what it answers."""

    encoder: str
    index: str
    model_version: str
    nearest: dict[str, list[str]]  # to each text


def side(encoder: str, index: str, texts: list[str], ids: list[str], vectors: np.ndarray) -> Side:
    model = load_encoder(encoder)
    scores = model.encode_texts(texts) @ vectors.T
    nearest = [[ids[i] for i in np.argsort(-row)[:K]] for row in scores]
    return Side(encoder, index, model.version, dict(zip(texts, nearest, strict=True)))


@pytest.fixture(scope="module")
def sides(
    served: Any,
    make_encoder: Callable[[Path, int], str],
    publish_index: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Side, Side]:
    folder = tmp_path_factory.mktemp("next")
    encoder = make_encoder(folder, 1)
    model = load_encoder(encoder)
    vectors = model.encode_items(served.texts, [[one] for one in served.pictures])
    index = publish_index(folder, served.ids, vectors, model.version)
    about = served.texts, served.ids
    return (
        side(served.encoder_uri, served.index_uri, *about, served.vectors),
        side(encoder, index, *about, vectors),
    )


def refused(client: Client, path: str, body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as told:
        client.call(path, body)
    return told.value


@pytest.mark.ray
@pytest.mark.slow
def test_swaps_and_steps_back_under_load(
    ray_local: None,
    served: Any,
    sides: tuple[Side, Side],
    publish_index: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from serve_apps import app
    from serve_apps.guard import Access
    from serve_apps.launch import serving

    for name in ("Encoder", "Knn", "Gateway"):
        monkeypatch.setattr(app, name, getattr(app, name).options(num_replicas=2))
    first, second = sides
    assert first.nearest != second.nearest
    by_model = {one.model_version: one for one in sides}
    access = Access(keys=(ADMIN_LINE, READ_LINE))
    args = app.ServeArgs(encoder=first.encoder, index=first.index, access=access)
    torn = publish_index(tmp_path, served.ids[:6], served.vectors[:6], first.model_version)
    file = next(Path(torn).rglob("index.faiss"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    def ask(client: Client, text: str) -> None:
        """A text's neighbours come of an encoder and of an index, which must be of one release."""
        found = client.knn_content([text], k=K)
        assert found.results[0].ids == by_model[found.model_version].nearest[text]

    def ask_pinned(client: Client) -> None:
        text = served.texts[0]
        try:
            found = client.knn_content([text], k=K, model=first.model_version)
        except RequestError as error:
            if error.code == "model_mismatch":  # a typed 409, as it must be
                return
            raise
        assert found.model_version == first.model_version
        assert found.results[0].ids == first.nearest[text]

    asks = [lambda client, text=text: ask(client, text) for text in served.texts[:3]]
    with (
        serving(args, port=0) as url,
        Client(url, key=ADMIN, timeout_s=120) as admin,
        asking([*asks, ask_pinned], url, READ) as callers,
    ):
        with Client(url, key=READ) as reader:
            assert refused(reader, "/v1/admin/rollback", {}).status == 403
        callers.go_on(5)
        versions = admin.call("/v1/admin/versions")
        assert versions["current"]["model_version"] == first.model_version
        assert len(versions["replicas"]) == 6
        told = refused(admin, "/v1/admin/rollback", {})
        assert (told.status, told.code) == (409, "nothing_before")

        other = {"encoder": second.encoder, "index": second.index}
        for number in range(2):
            swapped = admin.call("/v1/admin/swap", other)
            assert swapped["current"]["model_version"] == second.model_version
            assert all(one["up_to_date"] for one in swapped["replicas"])
            found = admin.knn_content([served.texts[0]], k=K)
            assert found.model_version == second.model_version
            assert admin.call("/v1/version")["model_version"] == second.model_version
            callers.go_on(5)
            if number == 0:
                back = admin.call("/v1/admin/rollback", {})
                assert back["current"]["model_version"] == first.model_version
                callers.go_on(5)

        # a replica that starts later takes what is in use, not what was deployed
        victim = pids("ray::ServeReplica:content:Knn")[0]
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while victim in (new := pids("ray::ServeReplica:content:Knn")) or len(new) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        callers.go_on(20)

        back = admin.call("/v1/admin/rollback", {})
        assert back["current"]["model_version"] == first.model_version
        told = refused(admin, "/v1/admin/swap", {"index": torn})
        assert (told.status, told.code) == (409, "swap_failed")
        assert "Knn" in told.message
        assert str(file) in told.message
        told = refused(admin, "/v1/admin/swap", {"index": second.index})
        assert (told.status, told.code) == (422, "unusable_artifact")
        versions = admin.call("/v1/admin/versions")
        assert versions["current"]["model_version"] == first.model_version
        assert (versions["last"]["what"], versions["last"]["done"]) == ("swap", False)
        callers.go_on(5)
