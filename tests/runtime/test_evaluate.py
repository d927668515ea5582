"""A whole small run on disk, evaluated: structure is found, truth stays truth, gaps are told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.cli import alone_in
from jobs.evaluate import main
from rec import artifacts
from rec.features.content import ContentInputs
from rec.features.text import TextTokenizer, save_tokenizer, train_wordpiece
from rec.metrics.vectors import unit_rows
from rec.models.content.config import ContentModelConfig, TextConfig, VisionConfig
from rec.models.content.encoder import save_encoder
from rec.models.content.encoders import new_backbones
from rec.models.content.pretrain import ContentPretrainer
from rec.report.render import MAX_BYTES, render
from rec.runtime.content_report import gather
from rec.runtime.evaluate import METRICS, TABLE, evaluate, write_evaluation
from rec.runtime.evaluation_data import clean_label, open_parts, read_items, read_vectors
from rec.runtime.evaluation_likes import read_likes
from rec.runtime.evaluation_modes import encode_apart
from rec.runtime.evaluation_results import Evaluation, Figure
from rec.runtime.evaluation_tasks import EvaluationConfig
from rec.schema import EMBEDDINGS, INTERACTIONS, ITEMS

NUM_ITEMS, NUM_TRAIN, NUM_TOPICS = 160, 110, 4
WORDS = ["river boat water", "planet star rocket", "garden flower tree", "engine wheel road"]
DAY = timedelta(days=1)
START = datetime(2024, 1, 1, tzinfo=UTC)
TOPIC = np.random.default_rng(0).integers(NUM_TOPICS, size=NUM_ITEMS)


def picture(topic: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 80, (32, 32, 3), np.uint8)
    pixels[..., topic % 3] += 120
    return cv2.imencode(".png", pixels)[1].tobytes()


def write_tables(run: Path) -> None:
    items = [
        {
            "item_id": f"i{i}",
            "domain": "video",
            "title": f"<b>{WORDS[TOPIC[i]].split()[i % 3]}</b> {i}",
            "description": WORDS[TOPIC[i]] if i % 5 else None,
            "tags": [f"#{WORDS[TOPIC[i]].split()[0].title()}", f"only{i}"],
            "categories": [f"genre{TOPIC[i]}"],
            "published_at": START + i * DAY,
        }
        for i in range(NUM_ITEMS)
    ]
    generator = np.random.default_rng(1)
    events = [
        {
            "user_id": f"u{user}",
            "item_id": f"i{i}",
            "domain": "video",
            "event": "watch",
            "dwell_ms": 30_000 if TOPIC[i] == user % NUM_TOPICS else 100,
            "event_time": START + int(i + generator.integers(1, 40)) * DAY,
        }
        for user in range(80)
        for i in generator.choice(NUM_ITEMS, 80, replace=False)
    ]
    for name, rows, schema in (("items", items, ITEMS), ("interactions", events, INTERACTIONS)):
        (run / "tables" / name).mkdir(parents=True)
        for shard in range(2):
            table = pa.Table.from_pylist(rows[shard::2], schema=schema)
            pq.write_table(table, run / "tables" / name / f"shard-{shard:05d}.parquet")


def write_rows(run: Path, tokenizer: TextTokenizer) -> None:
    schema = pa.schema(
        [
            ("item_id", pa.string()),
            ("published_at", ITEMS.field("published_at").type),
            ("token_ids", pa.list_(pa.int32())),
            ("frames", pa.list_(pa.large_binary())),
            ("log_mel", pa.large_binary()),
        ]
    )
    tokens = tokenizer.encode([WORDS[t] for t in TOPIC]).token_ids
    rows = [
        {
            "item_id": f"i{i}",
            "published_at": START + i * DAY,
            "token_ids": tokens[i] if i % 5 else [],
            "frames": [picture(int(TOPIC[i]), i)] if i % 7 else [],
            "log_mel": None,
        }
        for i in range(NUM_ITEMS)
    ]
    for side, part in (("train", rows[:NUM_TRAIN]), ("heldout", rows[NUM_TRAIN:])):
        (run / "rows" / "v1" / side).mkdir(parents=True)
        for shard in range(2):
            place = run / "rows" / "v1" / side / f"shard-{shard:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(part[shard::2], schema=schema), place)
    cutoff = (START + NUM_TRAIN * DAY).isoformat()
    artifacts.seal(run / "rows", "v1", "content-rows", metrics={"cutoff": cutoff})


def write_embeddings(run: Path, vectors: np.ndarray) -> None:
    (run / "embeddings" / "v1").mkdir(parents=True, exist_ok=True)
    columns = [
        pa.array([f"i{i}" for i in range(NUM_ITEMS)]),
        pa.array(np.zeros(NUM_ITEMS, np.int32)),
        pa.array(np.ones(NUM_ITEMS, np.float32)),
        pa.array(vectors.tolist(), pa.list_(pa.float32())),
    ]
    table = pa.Table.from_arrays(columns, schema=EMBEDDINGS)
    pq.write_table(table, run / "embeddings" / "v1" / "part-00000.parquet")
    artifacts.seal(run / "embeddings", "v1", "embedding-table")


def topic_vectors(noise: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return unit_rows(np.eye(NUM_TOPICS, 12)[TOPIC] + noise * generator.normal(size=(NUM_ITEMS, 12)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that jobs.pipeline would leave, with planted topics as vectors."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_tokenizer(train_wordpiece(WORDS * 2, 200), folder / "tokenizer", 16)
    tokenizer = TextTokenizer(folder / "tokenizer", 16)
    write_tables(folder)
    write_rows(folder, tokenizer)
    write_embeddings(folder, topic_vectors(0.15, 2))
    inputs = ContentInputs(max_tokens=16, height=32, width=32)
    config = ContentModelConfig(
        vision=VisionConfig(hidden_size=32, num_layers=4, num_heads=2, patch_size=8),
        text=TextConfig(hidden_size=32, num_layers=4, num_heads=2),
        audio=None,
        fusion_dim=32,
        fusion_heads=2,
        num_queries=2,
        embedding_dim=16,
    )
    backbones = new_backbones(config, inputs, tokenizer.vocab_size)
    model = ContentPretrainer(config, inputs, 1, backbones)
    save_encoder(model, folder / "tokenizer", inputs, ["a"], str(folder / "encoder"))
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> Evaluation:
    return evaluate(EvaluationConfig(run=str(run)))


def value(evaluation: Evaluation, method: str, task: str, metric: str) -> Figure:
    (one,) = (
        f
        for f in evaluation.figures
        if (f.method, f.task, f.metric) == (method, task, metric) and f.run == evaluation.run
    )
    return one


def test_planted_topics_are_found_and_noise_is_not(found: Evaluation) -> None:
    assert (found.num_train, found.num_heldout) == (NUM_TRAIN, NUM_ITEMS - NUM_TRAIN)
    assert found.cutoff == (START + NUM_TRAIN * DAY).isoformat()
    genres = value(found, "model", "genres", "mAP")
    assert genres.value is not None
    assert genres.value > 0.95
    assert genres.num_queries == NUM_TOPICS
    for task, metric in (("keywords", "mAP"), ("genres", "mAP"), ("behaviour", "NDCG@10")):
        model, random = (value(found, m, task, metric).value for m in ("model", "random"))
        assert model is not None
        assert random is not None
        assert model > random + 0.2, task
    # "onlyN" tags are on no training item: nobody can find them, and they count
    assert value(found, "model", "keywords", "recall@10").value == pytest.approx(0.5, abs=0.01)
    assert value(found, "popularity", "genres", "mAP").value == 0


def test_every_method_answers_every_question_over_the_same_queries(found: Evaluation) -> None:
    methods = {f.method for f in found.figures}
    assert methods == {
        "model",
        "TF-IDF",
        "pixels",
        "TF-IDF + pixels",
        "TF-IDF to pixels",
        "popularity",
        "random",
    }
    for task, metric in {(f.task, f.metric) for f in found.figures}:
        rows = [f for f in found.figures if (f.task, f.metric) == (task, metric)]
        assert len({f.num_queries for f in rows}) == 1, (task, metric)
        for figure in rows:
            if figure.value is not None and figure.low is not None and figure.high is not None:
                assert figure.low <= figure.value <= figure.high
    assert any("text encoder: skipped" in note for note in found.notes)


def test_the_difference_is_to_the_best_baseline(found: Evaluation) -> None:
    assert found.differences
    for difference in found.differences:
        own = value(found, "model", difference.task, difference.metric).value
        best = value(found, difference.baseline, difference.task, difference.metric).value
        assert own is not None
        assert best is not None
        assert difference.value == pytest.approx(own - best)
        rest = [
            f.value
            for f in found.figures
            if (f.task, f.metric) == (difference.task, difference.metric) and f.method != "model"
        ]
        assert best == max(v for v in rest if v is not None)


def test_heldout_behaviour_never_reaches_a_method(run: Path, found: Evaluation) -> None:
    items = read_items(str(run), max_items=1000)
    likes = read_likes(str(run), items.item_ids, items.cutoff, like_rating=4, like_dwell_ms=10_000)
    assert likes is not None
    assert likes.before[:, NUM_TRAIN:].nnz == 0
    assert likes.matrix[:, NUM_TRAIN:].nnz > 0
    rows, columns = likes.matrix.toarray().nonzero()
    by_user: dict[int, set[int]] = {}
    for user, item in zip(rows, columns, strict=True):
        by_user.setdefault(int(user), set()).add(int(TOPIC[item]))
    assert all(len(topics) == 1 for topics in by_user.values())  # a short dwell is no like


def test_what_counts_as_a_like(tmp_path: Path) -> None:
    def event(item: str, kind: str, value: float | None, dwell_ms: int | None) -> dict[str, object]:
        made = {"user_id": "u", "item_id": item, "domain": "d", "event": kind, "value": value}
        return {**made, "dwell_ms": dwell_ms, "event_time": START}

    events = [
        event("good rating", "rating", 4.0, None),
        event("bad rating", "rating", 3.5, None),
        event("no rating", "rating", None, None),
        event("long watch", "watch", None, 10_000),
        event("short click", "click", 5.0, 9_999),
        event("untimed click", "click", None, None),
        event("quick buy", "buy", None, 5),
        event("long look", "impression", None, 60_000),
        event("long watch", "watch", None, 20_000),
    ]
    (tmp_path / "tables" / "interactions").mkdir(parents=True)
    table = pa.Table.from_pylist(events, schema=INTERACTIONS)
    pq.write_table(table, tmp_path / "tables" / "interactions" / "shard-00000.parquet")
    ids = [str(e["item_id"]) for e in events[:-1]]
    likes = read_likes(str(tmp_path), ids, None, like_rating=4, like_dwell_ms=10_000)
    assert likes is not None
    row = likes.matrix.toarray()[0]
    assert row.max() == 1
    liked = {name for name, value in zip(ids, row, strict=True) if value}
    assert liked == {"good rating", "long watch", "untimed click", "quick buy"}


def test_users_are_sampled_alike_whatever_the_order_of_shards(run: Path, tmp_path: Path) -> None:
    items = read_items(str(run), max_items=1000)
    other = tmp_path / "other"
    shutil.copytree(run / "tables", other / "tables")
    folder = other / "tables" / "interactions"
    (folder / "shard-00000.parquet").rename(folder / "shard-00009.parquet")
    found = [
        read_likes(
            str(place),
            items.item_ids,
            items.cutoff,
            like_rating=4,
            like_dwell_ms=10_000,
            max_likes=500,
        )
        for place in (run, other)
    ]
    one, two = found
    assert one is not None
    assert two is not None
    assert 0 < one.matrix.nnz <= 500
    assert (one.matrix.toarray() == two.matrix.toarray()).all()
    assert "sampled by a hash" in one.notes[0]


def test_beyond_max_items_a_sample_is_taken_and_told(run: Path) -> None:
    items = read_items(str(run), max_items=30)
    assert (items.num_train, len(items)) == (30, 60)
    assert items.notes == [
        "train: 30 of 110 items, sampled by a hash of their ids",
        "heldout: 30 of 50 items, sampled by a hash of their ids",
    ]
    times = [int(i[1:]) for i in items.item_ids]
    assert times[:30] == sorted(times[:30])
    assert max(times[:30]) < NUM_TRAIN <= min(times[30:])


def test_text_alone_is_what_the_item_would_be_without_its_picture(run: Path) -> None:
    ids = [f"i{i}" for i in range(NUM_TRAIN, NUM_ITEMS)]
    apart = encode_apart(str(run), ids)
    assert apart.item_ids == [i for i in ids if int(i[1:]) % 5 and int(i[1:]) % 7]
    # two items of one topic have the same words: the same text vector, whatever their pictures
    topic = np.array([TOPIC[int(i[1:])] for i in apart.item_ids])
    same = apart.texts @ apart.texts.T > 0.9999
    assert (same >= (topic[:, None] == topic[None, :])).all()
    np.testing.assert_allclose(np.linalg.norm(apart.pictures, axis=1), 1, rtol=1e-4)
    assert len(np.unique(apart.pictures.round(4), axis=0)) == len(apart.item_ids)


def test_runs_of_several_seeds_are_averaged(run: Path, tmp_path: Path) -> None:
    second = tmp_path / "seed1"
    shutil.copytree(run, second)
    write_embeddings(second, topic_vectors(0.6, 5))
    found = evaluate(EvaluationConfig(run=str(run), compare=(str(second),)))
    rows = {
        f.run: f
        for f in found.figures
        if (f.method, f.task, f.metric) == ("model", "genres", "mAP")
    }
    one, two, mean = rows[str(run)], rows[str(second)], rows["mean of 2 runs"]
    assert one.value is not None
    assert two.value is not None
    assert one.value > two.value
    assert mean.value == pytest.approx((one.value + two.value) / 2)
    assert {d.run for d in found.differences} == {"mean of 2 runs"}
    assert not any("other rows" in note for note in found.notes)


def test_a_run_that_holds_out_other_items_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    rows = other / "rows" / "v1"
    (rows / "heldout" / "shard-00001.parquet").rename(rows / "train" / "shard-00002.parquet")
    artifacts.seal(other / "rows", "v1", "content-rows")
    with pytest.raises(artifacts.ArtifactError, match="holds out other items"):
        evaluate(EvaluationConfig(run=str(run), compare=(str(other),)))


@pytest.mark.parametrize("name", ["encoder", "rows"])
def test_embeddings_of_another_encoder_or_other_rows_are_refused(
    run: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    now = {n: artifacts.read_manifest(copy / n).version for n in ("encoder", "rows")}
    artifacts.seal(copy / "embeddings", "v1", "embedding-table", lineage={**now, name: "0" * 16})
    told = rf"embeddings: made of {name} 0{{16}}, which are {now[name]} .* run jobs\.embed again"
    with pytest.raises(artifacts.ArtifactError, match=told):
        evaluate(EvaluationConfig(run=str(copy)))


def test_an_encoder_that_was_trained_on_other_rows_is_noted(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    root = artifacts.read_manifest(copy / "encoder").root
    artifacts.seal(copy / "encoder", root, "content-encoder", lineage={"content-rows": "0" * 16})
    found = evaluate(EvaluationConfig(run=str(copy), baselines=False))
    assert any(note.endswith("may know of what it is asked") for note in found.notes)


def test_a_missing_vector_is_named(run: Path) -> None:
    with pytest.raises(artifacts.ArtifactError, match="1 of 2 evaluated items, such as 'absent'"):
        read_vectors(str(run / "embeddings"), ["i3", "absent"])
    with pytest.raises(artifacts.ArtifactError, match="no Parquet files published"):
        open_parts(str(run / "rows"), "content-rows", "nowhere/")


@pytest.mark.parametrize("name", ["rows", "embeddings"])
def test_altered_files_are_named(run: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = max(copy.glob(f"{name}/*/**/*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(artifacts.ArtifactError, match=file.name):
        evaluate(EvaluationConfig(run=str(copy)))


def test_two_jobs_do_not_write_one_report(run: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with alone_in(str(copy / "report")):
        assert main(["--run", str(copy), "--set", "max_items=80"]) == 1
    assert "another job writes there" in capsys.readouterr().err


def test_what_is_written_can_be_read(found: Evaluation, tmp_path: Path) -> None:
    write_evaluation(found, str(tmp_path))
    text = (tmp_path / METRICS).read_text()
    assert Evaluation.from_json(text) == found
    first = json.loads(text)["figures"][0]
    keys = {"run", "method", "task", "metric", "value", "low", "high", "num_queries"}
    assert set(first) == keys
    table = (tmp_path / TABLE).read_text()
    assert "| TF-IDF |" in table
    assert "**genres**" in table


def test_labels_are_compared_clean() -> None:
    assert clean_label("  #Deep  Sea ") == "deep sea"


def test_the_report_shows_what_the_run_left(run: Path, found: Evaluation) -> None:
    items = read_items(str(run), max_items=1000)
    (run / "train" / "logs").mkdir(parents=True, exist_ok=True)
    records = [
        {"step": s, "train/total": 1 / s, "validation/total": 2 / s, "rows_per_s": 9.0}
        for s in (1, 2, 3)
    ]
    (run / "train" / "logs" / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records)
    )
    ledger = {"stages": {"tokenise": {"rows_in": 9, "rows_out": 8, "dropped": {"empty": 1}}}}
    (run / "rows" / "v1" / "ledger.json").write_text(json.dumps(ledger))
    report = gather(str(run), found, items)
    total = next(c for c in report.curves if c.name == "total")
    assert list(total.validation) == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    assert report.ledger[0].dropped == {"empty": 1}
    assert len(report.points) == NUM_ITEMS
    titles = {f"<b>{WORDS[TOPIC[i]].split()[i % 3]}</b> {i}": i for i in range(NUM_ITEMS)}
    assert len(report.neighbourhoods) == 8
    for group in report.neighbourhoods:
        query = titles[group.query.title]
        assert query >= NUM_TRAIN
        assert group.query.picture is not None
        assert len(group.neighbours) == 6
        shown = [titles[n.title] for n in group.neighbours]
        assert query not in shown
        assert all(TOPIC[i] == TOPIC[query] for i in shown)
    page = render(report)
    assert "&lt;b&gt;" in page
    assert "<b>river" not in page


def test_titles_that_are_whole_texts_fit_on_the_page(run: Path, found: Evaluation) -> None:
    items = read_items(str(run), max_items=1000)
    long = [f"{i} " + "river boat " * 4000 for i in range(NUM_ITEMS)]
    report = gather(str(run), found, replace(items, titles=long))
    assert len(render(report)) < MAX_BYTES
    assert report.points[7].title.startswith("7 river boat")
    assert report.points[7].title.endswith("…")
    assert {len(n.query.title) for n in report.neighbourhoods} == {120}


def test_the_job_writes_its_three_files_and_explains_itself(run: Path, capsys) -> None:
    assert main(["--run", str(run), "--set", "max_items=80"]) == 0
    assert {p.name for p in (run / "report").iterdir()} == {METRICS, TABLE, "report.html"}
    assert "80 of 110 items" in capsys.readouterr().out
    assert main(["--run", str(run / "nowhere")]) == 1
    assert "nowhere/rows/manifest.json: not found" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "like_rating = 4.0" in shown
    assert "--text-encoder" in shown


def test_a_question_nobody_can_be_asked_is_noted_and_has_no_figure(run: Path) -> None:
    found = evaluate(EvaluationConfig(run=str(run), min_label_positives=10_000))
    assert not [f for f in found.figures if f.metric == "mAP"]
    assert [f for f in found.figures if f.metric == "recall@10"]
    assert "genres, mAP: not asked, too few held-out items" in found.notes
