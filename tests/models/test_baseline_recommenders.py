"""Baselines against plain loops, and what they share: determinism, batches, new users."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from history_cases import NUM_ITEMS, batch_of, histories_of, in_parts, popularity
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.contract import Scorer
from rec.features.histories import BACK_OFF
from rec.models.estimators.ease import EASE, MAX_ITEMS
from rec.models.estimators.item2vec import Item2Vec, skip_gram_loss
from rec.models.estimators.item_cf import ItemCF
from rec.models.estimators.markov import Markov
from rec.models.estimators.popularity import Popularity, RecentPopularity
from rec.models.estimators.swing import Swing

Histories = list[list[int]]
DAY = 86_400_000_000

MODELS: dict[str, Callable[[], Scorer]] = {
    "popularity": lambda: Popularity(NUM_ITEMS),
    "recent": lambda: RecentPopularity(NUM_ITEMS, half_life=2, by="position"),
    "markov": lambda: Markov(NUM_ITEMS),
    "item-cf": lambda: ItemCF(NUM_ITEMS, half_life=2),
    "swing": lambda: Swing(NUM_ITEMS, half_life=2),
    "ease": lambda: EASE(NUM_ITEMS, strength=1.0),
    "item2vec": lambda: Item2Vec(NUM_ITEMS, dim=4, epochs=2),
}


def scores(model: Scorer, known: Histories) -> np.ndarray:
    found = model.score(batch_of(known))
    assert found.dtype == torch.float32
    assert found.shape == (len(known), NUM_ITEMS)
    return found.numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def recency(history: Sequence[int], half_life: float) -> list[tuple[int, float]]:
    """Items of a history with the weight of each event."""
    last = len(history) - 1
    return [(item, 2 ** (-(last - place) / half_life)) for place, item in enumerate(history)]


@settings(max_examples=50)
@given(histories_of(), histories_of())
def test_popularity_counts_events(train: Histories, known: Histories) -> None:
    counts = popularity(train)
    close(
        scores(Popularity(NUM_ITEMS).fit(in_parts(train)), known), np.tile(counts, (len(known), 1))
    )


@settings(max_examples=50)
@given(histories_of(), histories_of(), st.sampled_from([0.5, 3.0]))
def test_recent_popularity_by_position(train: Histories, known: Histories, half: float) -> None:
    expected = BACK_OFF * popularity(train)
    for history in train:
        for item, weight in recency(history, half):
            expected[item] += weight
    model = RecentPopularity(NUM_ITEMS, half_life=half, by="position").fit(in_parts(train))
    close(scores(model, known), np.tile(expected, (len(known), 1)))


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(st.integers(0, NUM_ITEMS - 1), st.integers(0, 50)), max_size=5)))
def test_recent_popularity_by_time_is_as_of_the_latest_event_of_all(
    train: list[list[tuple[int, int]]],
) -> None:
    train = [sorted(user, key=lambda event: event[1]) for user in train]
    latest = max((day for user in train for _, day in user), default=0)
    expected = np.zeros(NUM_ITEMS)
    for user in train:
        for item, day in user:
            expected[item] += 2 ** (-(latest - day) / 10) + BACK_OFF
    model = RecentPopularity(NUM_ITEMS, half_life=10)
    parts = [
        batch_of([[item for item, _ in user]], [[2**50 + day * DAY for _, day in user]])
        for user in train
    ]
    close(scores(model.fit(parts), [[]]), expected[None])


@settings(max_examples=50)
@given(histories_of(), histories_of())
def test_markov_counts_what_follows(train: Histories, known: Histories) -> None:
    follows = Counter((a, b) for h in train for a, b in pairwise(h))
    expected = np.tile(BACK_OFF * popularity(train), (len(known), 1))
    for row, history in enumerate(known):
        for item in range(NUM_ITEMS):
            expected[row, item] += follows[history[-1], item] if history else 0
    close(scores(Markov(NUM_ITEMS).fit(in_parts(train)), known), expected)


def test_markov_puts_a_transition_before_any_popularity() -> None:
    model = Markov(NUM_ITEMS).fit([batch_of([[0] * 2_000_000, [1, 2]])])
    found = scores(model, [[1], []])
    assert found[0].argmax() == 2
    assert found[1].argmax() == 0


def by_similarity(
    similar: np.ndarray, train: Histories, known: Histories, half_life: float
) -> np.ndarray:
    """Weighted sum over the history, and popularity over users as back-off."""
    users = np.array([sum(i in h for h in train) for i in range(NUM_ITEMS)])
    expected = np.tile(BACK_OFF * users / max(1, users.max()), (len(known), 1))
    for row, history in enumerate(known):
        for item, weight in recency(history, half_life):
            expected[row] += weight * similar[item]
    return expected


@settings(max_examples=50)
@given(histories_of(), histories_of(), st.sampled_from([1.5, math.inf]))
def test_item_cf_is_the_cosine_of_users(train: Histories, known: Histories, half: float) -> None:
    has = [{u for u, h in enumerate(train) if i in h} for i in range(NUM_ITEMS)]
    cosine = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for i in range(NUM_ITEMS):
        for j in range(NUM_ITEMS):
            if i != j and has[i] and has[j]:
                cosine[i, j] = len(has[i] & has[j]) / math.sqrt(len(has[i]) * len(has[j]))
    model = ItemCF(NUM_ITEMS, half_life=half).fit(in_parts(train))
    close(scores(model, known), by_similarity(cosine, train, known, half))


def swing_loop(train: Histories, alpha: float) -> np.ndarray:
    items = [set(h) for h in train]
    similar = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for one, two in combinations(items, 2):
        common = one & two
        for i in common:
            for j in common - {i}:
                similar[i, j] += 1 / math.sqrt(len(one) * len(two)) / (alpha + len(common))
    return similar


@settings(max_examples=50)
@given(histories_of(), histories_of(), st.sampled_from([0.5, 2.0]))
def test_swing_sums_over_pairs_of_users(train: Histories, known: Histories, alpha: float) -> None:
    model = Swing(NUM_ITEMS, alpha=alpha, half_life=2).fit(in_parts(train))
    close(scores(model, known), by_similarity(swing_loop(train, alpha), train, known, 2))


def test_swing_of_a_sample_of_users_is_right_on_average() -> None:
    draws = np.random.default_rng(0)
    train = [draws.choice(NUM_ITEMS, 4, replace=False).tolist() for _ in range(30)]
    found = [
        Swing(NUM_ITEMS, max_users=12, seed=seed).fit(in_parts(train, 30)) for seed in range(40)
    ]
    mean = np.mean([scores(model, [[0]]) for model in found], axis=0)
    expected = by_similarity(swing_loop(train, 1.0), train, [[0]], math.inf)
    np.testing.assert_allclose(mean[0, 1:], expected[0, 1:], rtol=0.1)


@settings(max_examples=50)
@given(histories_of(), histories_of(), st.sampled_from([0.5, 10.0]))
def test_ease_is_the_ridge_without_each_item_itself(
    train: Histories, known: Histories, strength: float
) -> None:
    """Each column of B is the ridge regression of that item on all others."""
    x = np.array([[float(i in h) for i in range(NUM_ITEMS)] for h in train])
    weights = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for j in range(NUM_ITEMS):
        rest = [i for i in range(NUM_ITEMS) if i != j]
        gram = x[:, rest].T @ x[:, rest] + strength * np.eye(len(rest))
        weights[rest, j] = np.linalg.solve(gram, x[:, rest].T @ x[:, j])
    seen = np.array([[float(i in h) for i in range(NUM_ITEMS)] for h in known])
    model = EASE(NUM_ITEMS, strength=strength).fit(in_parts(train))
    found = scores(model, known)
    users = x.sum(axis=0)
    back_off = BACK_OFF * users / max(1, users.max())
    np.testing.assert_allclose(found, seen @ weights + back_off, rtol=1e-4, atol=2e-7)


def test_ease_says_how_large_it_would_be() -> None:
    with pytest.raises(ValueError, match=r"100000 items, EASE takes at most \d+.* 40 GB"):
        EASE(100_000)
    assert MAX_ITEMS < 100_000


def test_skip_gram_loss_and_its_gradient_equal_a_loop() -> None:
    draws = torch.Generator().manual_seed(0)
    centres, contexts = (torch.randn(3, 4, generator=draws, dtype=torch.float64) for _ in range(2))
    negatives = torch.randn(3, 2, 4, generator=draws, dtype=torch.float64)
    centres.requires_grad_()
    loss = skip_gram_loss(centres, contexts, negatives)
    expected = 0.0
    gradient = torch.zeros(3, 4, dtype=torch.float64)
    for p in range(3):
        c = centres[p].detach()
        up = 1 / (1 + math.exp(-float(c @ contexts[p])))
        expected -= math.log(up)
        gradient[p] -= (1 - up) * contexts[p]
        for n in negatives[p]:
            down = 1 / (1 + math.exp(float(c @ n)))
            expected -= math.log(down)
            gradient[p] += (1 - down) * n
    assert loss.item() == pytest.approx(expected)
    (found,) = torch.autograd.grad(loss, centres)
    torch.testing.assert_close(found, gradient)


def test_item2vec_places_items_of_one_kind_together() -> None:
    draws = np.random.default_rng(0)
    train = [draws.choice([0, 1, 2] if u % 2 else [3, 4, 5], 12).tolist() for u in range(200)]
    model = Item2Vec(NUM_ITEMS, dim=8, epochs=8, learning_rate=0.05).fit(in_parts(train, 50))
    np.testing.assert_allclose(np.linalg.norm(model.vectors, axis=1), 1, rtol=1e-5)
    found = scores(model, [[0, 1], [5]])
    assert found[0, 2] > found[0, 3:].max() + 0.5
    assert found[1, 3:5].min() > found[1, :3].max() + 0.5


def test_item2vec_pairs_are_near_and_of_one_user() -> None:
    model = Item2Vec(NUM_ITEMS, window=2)
    items, users = np.array([0, 1, 2, 3, 4, 5], np.int32), np.array([0, 0, 0, 0, 1, 1], np.int32)
    seen = Counter[tuple[int, int]]()
    for seed in range(200):
        for centres, contexts in model._pairs(items, users, np.random.default_rng(seed)):
            seen.update(zip(centres.tolist(), contexts.tolist(), strict=True))
    near = {(0, 1), (1, 2), (2, 3), (4, 5)}
    assert {pair for pair, n in seen.items() if n == 200} == near | {(b, a) for a, b in near}
    far = {(0, 2), (1, 3), (2, 0), (3, 1)}
    assert {pair for pair, n in seen.items() if n < 200} == far
    assert all(60 < seen[pair] < 140 for pair in far)


@pytest.mark.parametrize("name", MODELS)
def test_new_users_get_popularity(name: str) -> None:
    train = [[0, 1, 2, 0], [1, 2, 3], [0, 3], [0, 1]]
    model = MODELS[name]().fit(in_parts(train))  # type: ignore[attr-defined]
    known = scores(model, [[], [1, 2], []])
    assert known[0, 0] == known[0].max() > 0
    np.testing.assert_array_equal(known[0], known[2])
    assert isinstance(model, Scorer)


@pytest.mark.parametrize("name", MODELS)
def test_fitting_twice_gives_the_same_bits(name: str) -> None:
    draws = np.random.default_rng(1)
    train = [draws.integers(NUM_ITEMS, size=draws.integers(1, 9)).tolist() for _ in range(40)]
    model = MODELS[name]()
    one, again, two = (
        scores(each.fit(in_parts(train, 8)), train[:5])  # type: ignore[attr-defined]
        for each in (model, model, MODELS[name]())
    )
    np.testing.assert_array_equal(one, again)  # what was fitted before is forgotten
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_to_fit_on_scores_nothing(name: str) -> None:
    model = MODELS[name]().fit([])  # type: ignore[attr-defined]
    assert not scores(model, [[0, 1]]).any()
