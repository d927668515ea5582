"""Recommenders on real sequence rows: figures equal plain loops, and every doubt is settled."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from jobs.evaluate import main, model_names
from rec.artifacts import ArtifactError, join, read_manifest, seal, write_atomic
from rec.batch import SequenceBatch
from rec.config import ConfigError
from rec.contract import Interests
from rec.data import behaviour
from rec.data.behaviour_config import State
from rec.data.ledger import Ledger
from rec.data.logs import LogFiles
from rec.data.parquet import write_table
from rec.data.sequence_rows import CONTENT, KIND, SequenceRowsConfig, build_sequence_rows
from rec.data.tables import shard_file
from rec.metrics.ranks import TargetRanks
from rec.models.sequence.encoder import save_encoder
from rec.nn.users import PooledConfig, build_body
from rec.report.render import render
from rec.runtime import ranking_judge
from rec.runtime.ranking import METRICS, TABLE, RankingConfig, evaluate_ranking, write_ranking
from rec.runtime.ranking_data import read_ranked_items
from rec.runtime.ranking_encoder import EncoderScorer
from rec.runtime.ranking_judge import Judge
from rec.runtime.ranking_results import ALL, RankingEvaluation, ranking_markdown, ranking_report
from rec.schema import EMBEDDINGS, SEQUENCES

START = datetime(2026, 1, 1, tzinfo=UTC)
CUT, TEST_CUT, END = (START + timedelta(days=day) for day in (30, 40, 50))
NUM_ITEMS, NUM_USERS = 40, 60
Users = dict[str, list[tuple[str, int]]]  # user -> (item, day), in order
FAST = RankingConfig(rows="", baselines=("popularity", "Markov"), cutoffs=(3, 10), tune_users=0)


def in_a_loop(work: object, indices: Sequence[int], *_: object) -> Iterator[dict[str, object]]:
    assert callable(work)
    return (work(index) for index in indices)


def walks() -> Users:
    """Most users go from an item to the next one in a circle; the rest wander."""
    users: Users = {}
    for number in range(NUM_USERS):
        draws = np.random.default_rng(number)
        item, events = int(draws.integers(NUM_ITEMS)), []
        for day in range(int(draws.integers(4, 12))):
            events.append((f"i{item:02d}", day))
            jump = draws.random() < 0.3
            item = int(draws.integers(NUM_ITEMS)) if jump else (item + 1) % NUM_ITEMS
        users[f"u{number}"] = events
    return users


def publish(folder: Path, users: Users, config: SequenceRowsConfig, content: str | None) -> str:
    """Sequence rows of these users, made as jobs.sequences makes them, without Ray."""
    source, out = str(folder / "behaviour"), str(folder / "rows")
    rows = [
        {
            "user_id": user,
            "domain": "",
            "item_ids": [item for item, _ in events],
            "event_times": [START + timedelta(days=day) for _, day in events],
            "weights": [1.0] * len(events),
        }
        for user, events in sorted(users.items())
    ]
    table = pa.Table.from_pylist(rows, schema=SEQUENCES)
    write_table(shard_file(join(source, "v"), "sequences", 0), table)
    write_atomic(join(source, "v", "ledger.json"), Ledger().to_json().encode())
    state = State(num_buckets=1, num_bytes=1, cutoff=END, timed=True, days={})
    seal(source, "v", behaviour.KIND, metrics={"state": state.model_dump(mode="json")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rec.data.tasks.map_shards", in_a_loop)
        build_sequence_rows(source, out, config, content_uri=content)
    return out


def write_items(folder: Path) -> LogFiles:
    """Two categories: the first half of the circle and the second; one item has none."""
    ids = [f"i{n:02d}" for n in range(NUM_ITEMS)]
    kinds = [None if n == 5 else ["early" if n < NUM_ITEMS // 2 else "late"] for n in range(40)]
    (folder / "items").mkdir()
    table = pa.table({"item_id": ids, "categories": pa.array(kinds, pa.list_(pa.string()))})
    pq.write_table(table, folder / "items" / "items.parquet")
    return LogFiles(path=str(folder / "items"))


def circle_vectors() -> np.ndarray:
    angle = 2 * np.pi * np.arange(NUM_ITEMS) / NUM_ITEMS
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def write_content(folder: Path) -> str:
    (folder / "content" / "v1").mkdir(parents=True)
    columns = [
        pa.array([f"i{n:02d}" for n in range(NUM_ITEMS)]),
        pa.array(np.zeros(NUM_ITEMS, np.int32)),
        pa.array(np.ones(NUM_ITEMS, np.float32)),
        pa.array(circle_vectors().tolist(), pa.list_(pa.float32())),
    ]
    table = pa.Table.from_arrays(columns, schema=EMBEDDINGS)
    pq.write_table(table, folder / "content" / "v1" / "part-0.parquet")
    seal(folder / "content", "v1", CONTENT, metrics={"cutoff": START.isoformat()})
    return str(folder / "content")


@pytest.fixture(scope="module")
def left_out(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("left-out")
    config = SequenceRowsConfig(items=write_items(folder))
    return publish(folder, walks(), config, write_content(folder))


@pytest.fixture(scope="module")
def by_time(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four users before the cut-off, then a cold item, a repeat, a seen target and a new user."""
    users: Users = {f"old{n}": [("a", 1), ("b", 2), ("c", 3), ("a", 4)] for n in range(3)}
    users["old0"] += [("d", 41), ("cold", 42), ("cold", 43)]
    users["old1"] += [("b", 41), ("d", 42)]
    users["tail"] = [("d", 5), ("a", 6), ("b", 31)]
    users["new"] = [("a", 45), ("cold", 46)]
    config = SequenceRowsConfig(cutoff=CUT, test_cutoff=TEST_CUT)
    return publish(tmp_path_factory.mktemp("by-time"), users, config, None)


class Table:
    """An encoder of given vectors: the user is the vector of the latest item it knows."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.item_ids = list(vectors)
        self._vectors = torch.tensor(list(vectors.values()))
        self._row = {item_id: row for row, item_id in enumerate(vectors)}

    def item_vectors(self) -> Tensor:
        return self._vectors

    def encode_user(self, histories: Sequence[Sequence[str]]) -> Interests:
        known = [[self._row[i] for i in h if i in self._row] for h in histories]
        has_any = torch.tensor([bool(rows) for rows in known])
        last = torch.tensor([rows[-1] if rows else 0 for rows in known])
        return Interests(
            (self._vectors[last] * has_any[:, None])[:, None], has_any[:, None].float()
        )


def turned(ids: Sequence[int] = range(NUM_ITEMS)) -> Table:
    """Users look a little ahead on the circle: the next item, for the most part."""
    vectors = circle_vectors()
    noise = np.random.default_rng(0).normal(size=vectors.shape) * 0.01
    return Table({f"i{n:02d}": (vectors[n] + noise[n]).tolist() for n in ids})


def leave_one_out(users: Users) -> list[tuple[list[str], list[str], str]]:
    """(what is trained on, history, target) of users of whom one is left out."""
    lists = [[item for item, _ in events] for events in users.values()]
    return [(items[:-2], items[:-1], items[-1]) for items in lists]


def worst_rank(scores: dict[str, float], history: list[str], target: str) -> float:
    if target in history:
        return math.inf
    left = {item: s for item, s in scores.items() if item not in history}
    if len(set(left.values())) == 1:
        return math.inf
    return sum(s >= left[target] for s in left.values())


def test_markov_and_popularity_equal_plain_loops(left_out: str) -> None:
    asked = leave_one_out(walks())
    popular = Counter(item for train, _, _ in asked for item in train)
    follows = Counter(p for train, _, _ in asked for p in pairwise(train))
    ids = [f"i{n:02d}" for n in range(NUM_ITEMS)]  # the items table has them all
    expected: dict[str, list[float]] = {"popularity": [], "Markov": []}
    for _, history, target in asked:
        counts = {i: float(popular[i]) for i in ids}
        chain = {i: follows[history[-1], i] + 1e-6 * popular[i] for i in ids}
        expected["popularity"].append(worst_rank(counts, history, target))
        expected["Markov"].append(worst_rank(chain, history, target))
    found = evaluate_ranking(FAST.model_copy(update={"rows": left_out}))
    for method, ranks in expected.items():
        for k in (3, 10):
            hits = [r <= k for r in ranks]
            gains = [1 / math.log2(1 + r) if r <= k else 0.0 for r in ranks]
            first = [1 / r if r <= k else 0.0 for r in ranks]
            assert found.figure(method, f"hit rate@{k}").value == pytest.approx(np.mean(hits))
            assert found.figure(method, f"recall@{k}").value == pytest.approx(np.mean(hits))
            assert found.figure(method, f"NDCG@{k}").value == pytest.approx(np.mean(gains))
            assert found.figure(method, f"MRR@{k}").value == pytest.approx(np.mean(first))
    seen = sum(target in history for _, history, target in asked)
    assert found.counts["targets that the user has seen before"] == seen > 0
    assert (found.counts["users"], found.counts["targets"]) == (NUM_USERS, NUM_USERS)
    shown = {(s.method, s.k): s for s in found.shown}
    assert shown["Markov", 3].unique_items > shown["popularity", 3].unique_items
    assert 0 < (shown["Markov", 10].category_entropy or 0) <= 1
    assert 0 < (shown["Markov", 10].intra_list_diversity or 0) < 2


def test_chunks_of_users_change_nothing(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAST.model_copy(update={"rows": left_out})
    whole = evaluate_ranking(config, {"circle": turned()})
    monkeypatch.setattr(ranking_judge, "_MAX_USERS", 7)
    parts = evaluate_ranking(config, {"circle": turned()})
    assert parts.figures == whole.figures
    for one, two in zip(parts.shown, whole.shown, strict=True):
        assert one.model_dump() == pytest.approx(two.model_dump())


def test_the_served_path_stands_beside_the_exact_one(left_out: str) -> None:
    found = evaluate_ranking(FAST.model_copy(update={"rows": left_out}), {"circle": turned()})
    assert found.models == ("circle", "circle, served")
    for metric in ("hit rate@3", "NDCG@10", "MRR@10"):
        exact = found.figure("circle", metric)
        assert found.figure("circle, served", metric).value == pytest.approx(exact.value)
    assert found.figure("circle", "hit rate@3").value > 0.4
    gain = next(d for d in found.differences if (d.run, d.metric) == ("circle", "hit rate@3"))
    assert gain.task == ALL
    assert gain.baseline == "Markov"
    markov = found.figure("Markov", "hit rate@3").value or 0
    assert gain.value == pytest.approx((found.figure("circle", "hit rate@3").value or 0) - markov)
    assert gain.low <= gain.value <= gain.high
    lists = {s.method: s for s in found.shown if s.k == 10}
    served = lists["circle, served"].model_dump(exclude={"method"})
    assert served == pytest.approx(lists["circle"].model_dump(exclude={"method"}))


@pytest.mark.parametrize("num_kinds", [1, 2, 8])
def test_ties_are_lost_as_served_as_they_are_exactly(left_out: str, num_kinds: int) -> None:
    """Items of a kind have one vector, and a user wants the kind of the latest item."""
    kinds = np.eye(8, dtype=np.float32)[np.arange(NUM_ITEMS) * num_kinds // NUM_ITEMS]
    alike = Table({f"i{n:02d}": kinds[n].tolist() for n in range(NUM_ITEMS)})
    config = FAST.model_copy(update={"rows": left_out, "cutoffs": (1, 3, 10)})
    found = evaluate_ranking(config, {"alike": alike})
    for name in ("hit rate", "NDCG"):
        for k in config.cutoffs:
            exact = found.figure("alike", f"{name}@{k}").value
            assert found.figure("alike, served", f"{name}@{k}").value == pytest.approx(exact)
    assert (found.figure("alike", "hit rate@10").value == 0) == (num_kinds == 1)


def test_items_that_an_encoder_does_not_know_come_last_and_are_told(left_out: str) -> None:
    config = FAST.model_copy(update={"rows": left_out, "baselines": ()})
    half = evaluate_ranking(config, {"half": turned(range(0, NUM_ITEMS, 2))})
    note = next(n for n in half.notes if n.startswith("half: does not know 20 of the items"))
    odd = sum(int(i[1:]) % 2 for items in walks().values() for i, _ in items[:-1])
    assert f"; {odd} events" in note
    assert half.figure("half", "hit rate@10").num_queries == NUM_USERS
    whole = evaluate_ranking(config, {"circle": turned()})
    wanted, found = (e.figure(m, "hit rate@10") for e, m in ((whole, "circle"), (half, "half")))
    assert 0 < (found.value or 0) < (wanted.value or 0)
    assert half.differences == ()


def test_a_user_of_whom_nothing_is_known_has_one_score_for_all_items(left_out: str) -> None:
    """Also where the encoder does not know some items: those it knows would lead for nothing."""
    scorer = EncoderScorer(turned(range(3)), read_ranked_items(left_out))
    position = {item_id: at for at, item_id in enumerate(scorer.ids)}
    one = torch.tensor([position[item] for item in ("i01", "i20", "i21")])
    batch = SequenceBatch(
        lengths=torch.tensor([1, 2]),
        item_index=one,
        weights=torch.ones(3),
        times=torch.arange(3),
        target_mask=torch.zeros(3, dtype=torch.bool),
    )
    known, unknown = scorer.score(batch)
    assert len(known.unique()) == 4
    assert len(unknown.unique()) == 1


class Several(Table):
    """Three interests a user, of which the last is active in every other one alone."""

    def encode_user(self, histories: Sequence[Sequence[str]]) -> Interests:
        last = super().encode_user(histories).vectors[:, 0]
        vectors = torch.stack([last, last.flip(1), -last], dim=1)
        weights = torch.ones(len(last), 3)
        weights[::2, 2] = 0
        return Interests(vectors, weights)


def test_the_best_active_interest_scores(left_out: str) -> None:
    several = Several({f"i{n:02d}": row.tolist() for n, row in enumerate(circle_vectors())})
    scorer = EncoderScorer(several, read_ranked_items(left_out))
    batch = SequenceBatch(
        lengths=torch.full((4,), 2),
        item_index=torch.arange(8),
        weights=torch.ones(8),
        times=torch.arange(8),
        target_mask=torch.zeros(8, dtype=torch.bool),
    )
    interests = scorer.encode(batch)
    expected = torch.full((4, NUM_ITEMS), -math.inf)
    for user in range(4):
        for vector, weight in zip(interests.vectors[user], interests.weights[user], strict=True):
            if weight > 0:
                products = several.item_vectors() @ vector
                expected[user] = torch.maximum(expected[user], products)
    by_index = torch.tensor([int(item[1:]) for item in scorer.ids])
    torch.testing.assert_close(scorer.score(batch), expected[:, by_index])


class Constant:
    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, batch: SequenceBatch) -> Tensor:
        return torch.full((len(batch), NUM_ITEMS), self.value)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_constant_and_nan_scorers_find_and_show_nothing(left_out: str, value: float) -> None:
    judge = Judge.of(left_out, "test", read_ranked_items(left_out), (3, 100))
    judged = judge.judge("bad", judge.exact(Constant(value)))
    for part in judge.slices(judged.ranks):
        assert not part.values.any()
    assert [s.unique_items for s in judged.shown] == [0, 0]


def test_an_encoder_of_nan_finds_nothing_and_is_not_served(left_out: str) -> None:
    nothing = Table({f"i{n:02d}": [math.nan] for n in range(NUM_ITEMS)})
    config = FAST.model_copy(update={"rows": left_out})
    found = evaluate_ranking(config, {"broken": nothing})
    assert found.models == ("broken",)
    assert all(f.value == 0 for f in found.figures if f.method == "broken")
    assert any("broken, served: not asked" in note for note in found.notes)


def test_cold_repeated_and_seen_targets_and_new_users_are_counted(by_time: str) -> None:
    items = read_ranked_items(by_time)
    ids = items.item_ids.to_pylist()
    assert items.num_events[ids.index("cold")] == 0
    found = evaluate_ranking(
        RankingConfig(rows=by_time, baselines=("popularity",), cutoffs=(2,), tune_users=0)
    )
    assert found.counts == {
        "users": 3,
        "users without history": 1,
        "targets": 7,
        "targets that repeat another of the same user": 1,
        "targets that the user has seen before": 1,
        "cold targets": 2,
    }
    assert (found.split, found.cutoff) == ("time", CUT.isoformat())
    # popularity: a 7, b 3, c 3, d 1, cold 0, less what each has seen; ties are lost
    # old0 wants d and cold, has d at 1, cold at 2; old1 wants b (seen) and d, has d at 1;
    # new wants a and cold, has a at 1 and cold beyond 2
    figure = found.figure("popularity", "recall@2")
    assert figure.value == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    cold = found.figure("popularity", "recall@2", "cold items")
    assert (cold.value, cold.num_queries) == (0.5, 2)
    assert found.figure("popularity", "hit rate@2", "tail items").num_queries == 2
    new = found.figure("popularity", "hit rate@2", "new users")
    assert (new.value, new.num_queries) == (1.0, 3)
    kept = evaluate_ranking(
        RankingConfig(
            rows=by_time, baselines=("popularity",), cutoffs=(2,), tune_users=0, exclude_seen=False
        )
    )
    assert kept.figure("popularity", "recall@2").value == pytest.approx((0 + 0 + 1 / 2) / 3)


def test_all_baselines_are_tuned_and_fitted_on_the_training_side_alone(left_out: str) -> None:
    found = evaluate_ranking(RankingConfig(rows=left_out, cutoffs=(5,), tune_users=30))
    methods = {f.method for f in found.figures}
    assert methods == set(RankingConfig(rows="").baselines)
    assert found.settings.keys() == methods - {"popularity", "Markov"}
    assert found.seconds.keys() == methods
    assert found.differences == ()
    assert any("up to 30 validation rows" in note for note in found.notes)


@pytest.mark.parametrize("chunk", [40 * 7, 40 * 100])
def test_a_sample_has_as_many_rows_as_asked_for(
    left_out: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking_judge, "CHUNK_SCORES", chunk)
    items = read_ranked_items(left_out)
    whole = Judge.of(left_out, "test", items, (3,))
    judge = Judge.of(left_out, "test", items, (3,), max_users=30)
    assert judge.aims.counts["users"] == judge.aims.counts["targets"] == 30
    assert judge.aims.relevant.toarray().tolist() == whole.aims.relevant[:30].toarray().tolist()
    assert len(judge.ranks(Constant(0.0))) == 30


def test_what_models_are_compared_with_must_be_there(left_out: str) -> None:
    config = FAST.model_copy(update={"rows": left_out, "against": "EASE"})
    with pytest.raises(ConfigError, match="against 'EASE': not evaluated; there are: popularity"):
        evaluate_ranking(config)
    with pytest.raises(ArtifactError, match="not found"):
        evaluate_ranking(FAST.model_copy(update={"rows": left_out + "-absent"}))


def test_a_baseline_that_is_skipped_cannot_be_compared_with(
    left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec.runtime.ranking.MAX_ITEMS", NUM_ITEMS - 1)
    config = FAST.model_copy(update={"rows": left_out, "baselines": ("popularity", "EASE")})
    found = evaluate_ranking(config, {"circle": turned()})
    assert "EASE: skipped, 40 items are over 39" in found.notes
    assert {d.baseline for d in found.differences} == {"popularity"}
    with pytest.raises(ConfigError, match="against 'EASE': not evaluated; there are: popularity"):
        evaluate_ranking(config.model_copy(update={"against": "EASE"}), {"circle": turned()})


def test_methods_have_names_of_their_own(left_out: str) -> None:
    config = FAST.model_copy(update={"rows": left_out})
    with pytest.raises(ConfigError, match="model 'Markov' is called as a baseline is"):
        evaluate_ranking(config, {"Markov": turned()})
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate_ranking(config.model_copy(update={"baselines": ()}))


def test_tables_and_page_say_what_was_found(left_out: str, tmp_path: Path) -> None:
    found = evaluate_ranking(FAST.model_copy(update={"rows": left_out}), {"circle": turned()})
    write_ranking(found, str(tmp_path))
    assert RankingEvaluation.from_json((tmp_path / METRICS).read_text()) == found
    table = (tmp_path / TABLE).read_text()
    assert table == ranking_markdown(found)
    assert "| method | hit rate@3 | NDCG@3 | MRR@3 |" in table  # one target a user: no recall
    assert "**lists of 10**" in table
    assert "against Markov" in table
    page = render(ranking_report(found))
    for text in ("All targets, first 3", "Lists of 10", "circle, served", "against Markov"):
        assert text in page


def test_recall_is_told_where_users_have_several_targets(by_time: str) -> None:
    config = RankingConfig(rows=by_time, baselines=("popularity",), cutoffs=(2,), tune_users=0)
    assert "| hit rate@2 | recall@2 |" in ranking_markdown(evaluate_ranking(config))


def test_ranks_say_where_each_target_came(left_out: str) -> None:
    judge = Judge.of(left_out, "test", read_ranked_items(left_out), (3,))
    ranks = judge.ranks(Constant(0.0))
    assert isinstance(ranks, TargetRanks)
    assert len(ranks) == NUM_USERS
    assert np.isinf(ranks.rank).all()


def test_the_job_writes_figures_table_and_page(
    left_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    settings = ['baselines=["popularity", "Markov"]', "cutoffs=[5]", "tune_users=0"]
    assert main(["--rows", left_out, "--out", str(out), "--set", *settings]) == 0
    found = RankingEvaluation.from_json((out / METRICS).read_text())
    assert [s.method for s in found.shown] == ["popularity", "Markov"]
    assert found.rows == left_out
    assert "<!doctype html>" in (out / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "report at" in printed
    assert "| Markov |" in printed


class Trained(nn.Module):
    """What save_encoder publishes: a body with new weights, and vectors of its items."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = build_body(PooledConfig(dim=8, hidden_dim=8))
        self._vectors = torch.randn(NUM_ITEMS, 8)

    def input_vectors(self) -> Tensor:
        return self._vectors

    def item_vectors(self) -> Tensor:
        return self._vectors


@pytest.mark.parametrize("own", [True, False])
def test_the_job_asks_published_encoders(left_out: str, tmp_path: Path, own: bool) -> None:
    ids = read_ranked_items(left_out).item_ids
    place, out = tmp_path / "pooled" / "encoder", tmp_path / "report"
    version = read_manifest(left_out, KIND).version if own else "another"
    save_encoder(Trained(), ids, place, lineage={KIND: version})
    flags = ["--rows", left_out, "--out", str(out), "--models", str(place)]
    settings = ['baselines=["Markov"]', "cutoffs=[5]", "tune_users=0"]
    assert main([*flags, "--set", *settings]) == 0
    found = RankingEvaluation.from_json((out / METRICS).read_text())
    assert found.models == ("pooled", "pooled, served")
    strange = "pooled: was not trained on these rows, so it may know of what it is asked"
    assert (strange in found.notes) != own
    exact = found.figure("pooled", "hit rate@5").value
    assert found.figure("pooled, served", "hit rate@5").value == pytest.approx(exact)
    assert {d.run for d in found.differences} == set(found.models)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "R"], "--rows needs --out"),
        (["--run", "R", "--models", "M"], "--models goes with --rows"),
        (["--rows", "R", "--out", "O", "--compare", "S"], "--compare goes with --run"),
        (["--rows", "R", "--out", "O", "--set", 'baselines=["knn"]'], "Input should be 'pop"),
        (["--rows", "R", "--out", "O", "--set", "cutoffs=[10,0]"], "greater than 0"),
        (["--rows", "R", "--out", "O", "--models", "/a", "/b", "/a"], "is given twice"),
        (["--rows", "R", "--out", "O", "--set", "cutoffs=[10000]"], "less than 10000"),
        (["--rows", "R", "--out", "O", "--set", "device=warp"], "evaluate: device 'warp': "),
        (["--run", "R", "--set", "device=cuda:99"], "evaluate: device 'cuda:99': "),
        (["--rows", "/absent", "--out", "O"], "/absent/manifest.json: not found"),
        (["--rows", "R", "--out", "O", "--models", "/absent"], "'sequence-encoder'"),
    ],
)
def test_the_job_says_what_is_wrong(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 1
    assert message in capsys.readouterr().err


def test_models_are_called_by_their_folders() -> None:
    assert model_names(["runs/a/encoder", "s3://b/runs/c"]) == ["a", "c"]
    assert model_names(["one/a/encoder", "two/a"]) == ["one/a/encoder", "two/a"]


def test_rows_that_were_altered_are_refused(left_out: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(left_out, rows)
    shard = next(rows.rglob("train/*.parquet"))
    whole = bytearray(shard.read_bytes())
    whole[6] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(ArtifactError, match=f"{shard.name}: .*publish again"):
        evaluate_ranking(FAST.model_copy(update={"rows": str(rows)}))
