"""Multi-interest recall against a plain loop: one budget, quotas, each item once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import DIM, clustered, index_of

from rec.retrieval.errors import QueryError
from rec.retrieval.filters import In
from rec.retrieval.index import Index
from rec.retrieval.interests import UserInterests, quotas, recall_interests


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_of(tmp_path_factory.mktemp("i"), clustered(300))


def user(num_interests: int, seed: int) -> UserInterests:
    rng = np.random.default_rng(seed)
    weights = rng.random(num_interests)
    weights[rng.random(num_interests) < 0.2] = 0
    return UserInterests(clustered(num_interests, seed=seed), weights.astype("f4"))


def by_hand(
    who: UserInterests, budget: int, shares: list[int] | None, out: set[str]
) -> list[tuple[str, int]]:
    """The plain reading: score everything, give each item to its best interest, fill the shares."""
    vectors = clustered(300)
    best = {}
    for item in range(300):
        if f"item-{item}" in out:
            continue
        options = [
            (float(vectors[item] @ who.vectors[k]), -k)
            for k in range(len(who.weights))
            if who.weights[k] > 0
        ]
        if options:
            score, minus = max(options)
            best[f"item-{item}"] = score, -minus
    ranked = sorted(best, key=lambda i: -best[i][0])
    chosen = []
    for k in range(len(who.weights)):
        mine = [i for i in ranked if best[i][1] == k]
        # an interest knows no more than its own nearest `budget`
        own = sorted(
            (i for i in (f"item-{n}" for n in range(300)) if i not in out),
            key=lambda i: -float(vectors[int(i.split("-")[1])] @ who.vectors[k]),
        )[:budget]
        chosen += [i for i in mine if i in own][: shares[k] if shares else 0]
    for i in ranked:
        if len(chosen) < budget and i not in chosen:
            chosen.append(i)
    return sorted(((i, best[i][1]) for i in chosen), key=lambda entry: -best[entry[0]][0])


@pytest.mark.parametrize("by", ["score", "quota", "equal"])
def test_against_a_plain_loop(index: Index, by: str) -> None:
    users = [user(num_interests, seed) for seed, num_interests in enumerate((1, 2, 4, 7))]
    exclude = [[f"item-{i}" for i in range(number * 20)] for number in range(4)]
    for budget in (1, 7, 40):
        answers = recall_interests(index, users, budget, by=by, exclude=exclude)  # type: ignore[arg-type]
        for who, out, answer in zip(users, exclude, answers, strict=True):
            weights = who.weights if by == "quota" else (who.weights > 0)
            shares = None if by == "score" else quotas(weights, budget).tolist()
            expected = by_hand(who, budget, shares, set(out))
            assert list(zip(answer.ids, answer.interests, strict=True)) == expected
            assert len(answer.ids) == budget
            assert (np.diff(answer.scores) <= 0).all()


def test_equal_budget_whatever_the_number_of_interests(index: Index) -> None:
    users = [UserInterests(clustered(k, seed=k), np.ones(k)) for k in (1, 2, 8)]
    assert [len(r.ids) for r in recall_interests(index, users, 30)] == [30, 30, 30]
    same = UserInterests(np.repeat(clustered(1, seed=5), 3, axis=0), np.ones(3))
    (answer,) = recall_interests(index, [same], 30)
    assert len(set(answer.ids)) == 30  # interests that agree do not cost places


def test_users_without_interests_and_items(index: Index) -> None:
    nobody = UserInterests(np.zeros((2, DIM), "f4"), np.zeros(2))
    nothing = UserInterests(np.zeros((0, DIM), "f4"), np.zeros(0))
    for who in (nobody, nothing):
        (answer,) = recall_interests(index, [who], 5)
        assert answer.ids.shape == answer.scores.shape == answer.interests.shape == (0,)
    assert recall_interests(index, [], 5) == []


def test_what_is_refused(index: Index) -> None:
    who = UserInterests(clustered(2), np.array([1.0, -1.0]))
    with pytest.raises(QueryError, match="not negative"):
        recall_interests(index, [who], 5)
    with pytest.raises(QueryError, match="2 vectors and 1 weights"):
        recall_interests(index, [who._replace(weights=np.ones(1))], 5)
    with pytest.raises(QueryError, match="budget is 0"):
        recall_interests(index, [who], 0)
    with pytest.raises(QueryError, match="1 lists of excluded ids for 0 users"):
        recall_interests(index, [], 5, exclude=[[]])
    with pytest.raises(QueryError, match="no attribute 'x'"):
        recall_interests(index, [user(2, 0)], 5, where=In(column="x", values=("a",)))


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=12), st.integers(1, 500)
)
def test_quotas_sum_and_stay_near_the_exact_share(weights: list[float], budget: int) -> None:
    shares = quotas(np.array(weights), budget)
    if not sum(weights):
        assert not shares.any()
        return
    assert shares.sum() == budget
    exact = np.array(weights) / sum(weights) * budget
    assert (np.abs(shares - exact) < 1 + 1e-6).all()
    for i, a in enumerate(weights):
        for j, b in enumerate(weights):
            assert a <= b or shares[i] >= shares[j] or i == j
