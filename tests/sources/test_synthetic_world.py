"""The simulated platform's truth, measured on its own tables."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from rec.schema import TABLES
from rec.sources import Shard, SyntheticSource
from rec.sources.synthetic import Quality, Truth
from rec.sources.synthetic.words import SPAM_TAGS

SOURCE = SyntheticSource(num_items=2_000, num_users=400, frame_size=32)


def read(source: SyntheticSource) -> dict[str, pa.Table]:
    pieces: dict[str, list[pa.Table]] = {name: [] for name in source.tables}
    for shard in source.shards():
        for name, piece in source.read(shard):
            assert piece.schema == TABLES[name]
            pieces[name].append(piece)
    return {name: pa.concat_tables(found) for name, found in pieces.items()}


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return read(SOURCE)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return SOURCE.truth()


def indices(truth: Truth, ids: list[str]) -> np.ndarray:
    return np.array([truth.index_of(item) for item in ids])


def pairs(table: pa.Table, first: str, second: str) -> list[tuple[str, str]]:
    columns = (table.column(name).to_pylist() for name in (first, second))
    return list(zip(*columns, strict=True))


def plain(tag: str) -> str:
    return tag.lower().strip("_")


def test_rows_do_not_depend_on_the_number_of_shards() -> None:
    small = SyntheticSource(num_items=300, frame_size=16, sound_share=0.05)
    one, four = (read(small.model_copy(update={"num_shards": n})) for n in (1, 4))
    assert one == four
    assert min(table.num_rows for table in one.values()) > 0


def test_another_seed_gives_another_platform() -> None:
    first, second = (
        read(SyntheticSource(num_items=50, frame_size=16, seed=seed)) for seed in (0, 1)
    )
    assert all(first[name] != second[name] for name in first)


def test_a_shard_far_into_a_huge_platform_is_read_alone() -> None:
    source = SyntheticSource(num_items=3_000_000_000, num_users=10**9, num_shards=10**8)
    pieces = dict(source.read(Shard(10**8 - 1, 10**8)))
    assert pieces["items"].column("item_id").to_pylist()[-1] == "v2999999999"
    assert pieces["interactions"].num_rows > 0
    assert pieces["items"].column("published_at")[0].as_py() < datetime(2024, 7, 1, tzinfo=UTC)


def test_items_and_media_of_a_shard_are_the_same_items() -> None:
    source = SyntheticSource(num_items=90, num_shards=4, frame_size=16)
    for shard in source.shards():
        items, media = set[str](), set[str]()
        for name, piece in source.read(shard):
            if name in ("items", "media"):
                (items if name == "items" else media).update(piece.column("item_id").to_pylist())
        assert media <= items
        assert len(items) in (22, 23)


def test_topics_are_zipf_like_and_categories_are_their_paths(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    topics = truth.topic_of(np.arange(SOURCE.num_items))
    counts = np.sort(np.bincount(topics, minlength=SOURCE.num_topics))[::-1]
    assert counts[-1] >= SOURCE.num_items // 300
    assert counts[0] > 4 * np.median(counts) > 0
    paths = tables["items"].column("categories").to_pylist()
    assert len({path[2] for path in paths}) == SOURCE.num_topics
    leaf = {path[2]: int(topic) for path, topic in zip(paths, topics, strict=True)}
    assert all(leaf[path[2]] == topic for path, topic in zip(paths, topics, strict=True))
    parents = {(path[1], path[0]) for path in paths}
    assert len(parents) == len({branch for branch, _ in parents}) == SOURCE.num_topics // 3


def test_texts_hold_key_terms_of_their_topic_only(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    every = {t for topic in range(SOURCE.num_topics) for t in truth.key_terms(topic)}
    every |= set(truth.catalogue.language.event_terms)
    planted = words = texts_without = 0
    for index, text in enumerate(tables["items"].column("description").to_pylist()):
        if text is None:
            texts_without += 1
            continue
        found = re.findall(r"\w+", text)
        terms = [word for word in found if word in every]
        assert terms
        assert set(terms) <= truth.key_terms_of(index)
        planted, words = planted + len(terms), words + len(found)
    assert 0.10 < planted / words < 0.25
    assert 0.10 < texts_without / SOURCE.num_items < 0.20


def test_about_a_third_of_topic_hashtags_are_wrong(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    topics = truth.topic_of(np.arange(SOURCE.num_items)).tolist()
    spam, wrong, right, spammed = set(SPAM_TAGS), 0, 0, 0
    for index, tags in enumerate(tables["items"].column("tags").to_pylist()):
        event = int(truth.event_of(index)[0])
        own = {*truth.hashtags(topics[index])} | ({truth.event_tag(event)} if event >= 0 else set())
        is_right = [tag for tag in tags if plain(tag) in own]
        assert sorted(is_right) == sorted(truth.true_tags(index))
        num_spam = sum(plain(tag) in spam for tag in tags)
        spammed += num_spam > 0
        topical_right = len(is_right) - (event >= 0)
        right += topical_right
        wrong += len(tags) - len(is_right) - num_spam
    assert 0.28 < wrong / (wrong + right) < 0.38
    assert 0.45 < spammed / SOURCE.num_items < 0.55


def test_event_hashtags_are_rare_and_fresh(tables: dict[str, pa.Table], truth: Truth) -> None:
    events = truth.event_of(np.arange(SOURCE.num_items))
    counts = Counter(events[events >= 0].tolist())
    assert max(counts.values()) < 0.02 * SOURCE.num_items
    assert len(counts) > 0.8 * SOURCE.num_events
    times = tables["items"].column("published_at").to_pylist()
    lists = tables["items"].column("tags").to_pylist()
    start = datetime(2024, 1, 1, tzinfo=UTC)
    for index in np.flatnonzero(events >= 0).tolist():
        age = times[index] - start - timedelta(days=SOURCE.event_days * int(events[index]))
        assert timedelta(0) <= age < timedelta(days=3 * SOURCE.event_days)
        assert truth.event_tag(int(events[index])) in {plain(tag) for tag in lists[index]}


def off_interest(truth: Truth, table: pa.Table) -> np.ndarray:
    topics = truth.topic_of(indices(truth, table.column("item_id").to_pylist()))
    users = table.column("user_id").to_pylist()
    times = table.column("event_time").to_pylist()
    liked = [truth.interests(truth.index_of(u), t) for u, t in zip(users, times, strict=True)]
    return np.array([topic not in row for topic, row in zip(topics, liked, strict=True)])


def test_two_fifths_of_interactions_are_off_interest_and_short(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    off = off_interest(truth, tables["interactions"])
    assert 0.36 < off.mean() < 0.44
    dwell = np.array(tables["interactions"].column("dwell_ms"))
    assert np.median(dwell[off]) < 5_000 < 15_000 < np.median(dwell[~off])


def test_two_fifths_of_clicks_on_results_are_off_interest(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    searches = tables["searches"]
    clicks = searches.filter(searches.column("clicked"))
    assert 0.36 < off_interest(truth, clicks).mean() < 0.44
    others = searches.filter(pa.compute.invert(searches.column("clicked")))
    assert others.column("dwell_ms").null_count == others.num_rows
    assert clicks.column("dwell_ms").null_count == clicks.column("returned").null_count == 0
    assert clicks.num_rows == len(
        set(zip(*(clicks[c].to_pylist() for c in ("user_id", "event_time")), strict=True))
    )
    short = np.array(clicks.column("dwell_ms")) < 5_000
    returned = np.array(clicks.column("returned").to_pylist())
    assert not returned[~short].any()
    assert 0.7 < returned[short].mean() < 0.9


def test_nothing_is_seen_before_it_is_published(tables: dict[str, pa.Table], truth: Truth) -> None:
    published = np.array(tables["items"].column("published_at").cast(pa.int64()))
    assert (np.diff(published) >= 0).all()
    for name in ("interactions", "searches", "comments"):
        table = tables[name]
        index = indices(truth, table.column("item_id").to_pylist())
        assert (np.array(table.column("event_time").cast(pa.int64())) > published[index]).all()


def test_popularity_is_uneven_and_some_items_are_cold(tables: dict[str, pa.Table]) -> None:
    counts = Counter(tables["interactions"].column("item_id").to_pylist())
    seen = np.sort([counts[i] for i in tables["items"].column("item_id").to_pylist()])[::-1]
    assert seen[: len(seen) // 10].sum() > 0.35 * seen.sum()
    assert 0.01 < (seen == 0).mean() < 0.5
    default = SyntheticSource()
    table = read(default)["interactions"]
    assert 0 < default.num_items - len(set(table.column("item_id").to_pylist())) < 200


def test_users_have_two_to_five_interests_that_drift(truth: Truth) -> None:
    early, late = datetime(2024, 1, 5, tzinfo=UTC), datetime(2024, 6, 25, tzinfo=UTC)
    rows = [(truth.interests(u, early), truth.interests(u, late)) for u in range(400)]
    sizes = Counter(len(row) for pair in rows for row in pair)
    assert set(sizes) == {2, 3, 4, 5}
    assert all(len(set(row)) == len(row) for pair in rows for row in pair)
    kept = [len({*first} & {*second}) / len(first) for first, second in rows]
    assert 0.05 < np.mean(kept) < 0.7
    day = [truth.interests(u, early + timedelta(days=1)) for u in range(400)]
    same = [first == later for (first, _), later in zip(rows, day, strict=True)]
    assert np.mean(same) > 0.9


def test_uploaders_publish_topics_they_like(tables: dict[str, pa.Table], truth: Truth) -> None:
    topics = truth.topic_of(np.arange(SOURCE.num_items)).tolist()
    uploaders = tables["items"].column("uploader_id").to_pylist()
    liked = {u: truth.uploader_topics(truth.index_of(u)) for u in set(uploaders)}
    assert {len(row) for row in liked.values()} == {1, 2, 3}
    assert all(t in liked[u] for u, t in zip(uploaders, topics, strict=True))
    published = {(u, t) for u, t in zip(uploaders, topics, strict=True)}
    assert len(published) > 1.1 * len(liked)


def test_comments_are_of_the_quality_the_truth_tells(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    texts: dict[Quality, list[tuple[str, str]]] = {quality: [] for quality in Quality}
    with_terms = 0
    for row in tables["comments"].to_pylist():
        quality = truth.comment_quality(row["comment_id"])
        texts[quality].append((row["item_id"], row["text"]))
        topic = int(truth.topic_of(truth.index_of(row["item_id"]))[0])
        has = any(term in row["text"] for term in truth.key_terms(topic))
        assert has == (quality in (Quality.TERMS, Quality.DUPLICATE))
        with_terms += has
    assert 0.4 < with_terms / tables["comments"].num_rows < 0.6
    copies = texts[Quality.DUPLICATE]
    assert len(set(copies)) == len({item for item, _ in copies}) < len(copies)
    assert len(set(tables["comments"].column("comment_id").to_pylist())) == with_terms + len(
        texts[Quality.PRAISE]
    ) + len(texts[Quality.SPAM])


def test_products_stand_beside_videos(tables: dict[str, pa.Table]) -> None:
    domains = dict(
        zip(*(tables["items"][c].to_pylist() for c in ("item_id", "domain")), strict=True)
    )
    share = Counter(domains.values())["product"] / SOURCE.num_items
    assert abs(share - SOURCE.product_share) < 0.03
    media = Counter(
        (domains[item], kind)
        for item, kind in zip(
            *(tables["media"][c].to_pylist() for c in ("item_id", "kind")), strict=True
        )
    )
    assert ("product", "audio") not in media
    assert media["product", "frame"] <= Counter(domains.values())["product"]
    events = Counter(pairs(tables["interactions"], "domain", "event"))
    assert set(events) == {
        ("video", "click"),
        ("video", "watch"),
        ("product", "click"),
        ("product", "buy"),
    }


def test_relations_link_items_entities_and_the_tree(
    tables: dict[str, pa.Table], truth: Truth
) -> None:
    triples = [tuple(row.values()) for row in tables["relations"].to_pylist()]
    assert len(set(triples)) == len(triples)
    entities = {f"entity:{t}" for topic in range(24) for t in truth.key_terms(topic)}
    relations = Counter(relation for _, relation, _ in triples)
    assert set(relations) == {"belongs_to", "similar_to", "about"}
    assert 0.6 < relations["about"] / SOURCE.num_items < 0.8
    for head, relation, tail in triples:
        if relation == "about":
            topic = int(truth.topic_of(truth.index_of(head))[0])
            assert tail.removeprefix("entity:") in truth.key_terms(topic)
        elif relation == "similar_to":
            assert {head, tail} <= entities
        else:
            assert tail.startswith("category:")
