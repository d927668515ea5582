from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rec.artifacts import join
from rec.data.cleaning import count_items, count_together, most_telling, read_profiles
from rec.data.events import LabelEvents, read_events
from rec.data.label_evidence import Model, clean, incidences, own_words
from rec.data.pairs import EVIDENCE, PAIRS, join_events, join_words
from rec.data.parquet import write_table
from rec.data.split import Split
from rec.data.tables import shard_file
from rec.features.evidence import Profiles
from rec.features.tags import normalise
from rec.schema import ITEMS
from rec.sources import SyntheticSource

SPLIT = Split(heldout_fraction=0.1)


def pairs_of(*rows: tuple[str, str, bool, bool]) -> pa.Table:
    """Rows of PAIRS from item, label, held out, tagged."""
    return pa.Table.from_pylist(
        [
            {
                "item_id": i,
                "shard": 0,
                "heldout": h,
                "label": x,
                "num_events": 1,
                "tagged": t,
                "clicked": False,
            }
            for i, x, h, t in rows
        ],
        schema=PAIRS,
    )


def words_of(*rows: tuple[str, str, bool]) -> pa.Table:
    """Rows of EVIDENCE from item, word, held out."""
    names = ("item_id", "word", "heldout")
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows],
        schema=EVIDENCE,
    )


def model_of(pairs: pa.Table, words: pa.Table) -> Model:
    """What the whole job counts, for data that is in one file."""
    counts = count_items(pairs, words).to_pylist()
    by_kind: dict[str, dict[str, int]] = defaultdict(dict)
    for row in counts:
        by_kind[row["kind"]][row["key"]] = row["num_items"]
    labels = {k: n for k, n in sorted(by_kind["label"].items()) if n >= 2}
    vocabulary = {k: n for k, n in sorted(by_kind["word"].items()) if n >= 2}
    label_array = pa.array(list(labels), pa.string())
    word_array = pa.array(list(vocabulary), pa.string())
    train = pairs.filter(pa.array([not h for h in pairs["heldout"].to_pylist()]))
    together = count_together(train, words, label_array, word_array)
    label, word, both = (column.to_numpy() for column in together.columns)
    key = label * len(vocabulary) + word
    order = np.argsort(key)
    profiles = Profiles(
        by_kind["item"][""],
        np.array(list(vocabulary.values())),
        np.array(list(labels.values())),
        key[order],
        both[order],
    )
    return Model(label_array, word_array, own_words(label_array, word_array), profiles)


def test_counts_agree_with_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    items = [f"i{n}" for n in range(30)]
    heldout = {item: n >= 25 for n, item in enumerate(items)}
    pairs = {(i, f"l{random.integers(4)}") for i in items for _ in range(2)}
    words = {(i, f"w{random.integers(6)}") for i in items for _ in range(3)}
    table = pairs_of(*((i, x, heldout[i], True) for i, x in sorted(pairs)))
    said = words_of(*((i, w, heldout[i]) for i, w in sorted(words)))
    found = {(r["kind"], r["key"]): r["num_items"] for r in count_items(table, said).to_pylist()}
    expected: dict[tuple[str, str], int] = defaultdict(int)
    for i, x in pairs:
        expected["label", x] += not heldout[i]
    for i, w in words:
        expected["word", w] += not heldout[i]
    assert found == {**expected, ("item", ""): 25}

    labels, vocabulary = pa.array(["l0", "l2"]), pa.array(["w1", "w5", "w3"])
    train = table.filter(pa.array([not h for h in table["heldout"].to_pylist()]))
    together = count_together(train, said, labels, vocabulary).to_pylist()
    assert {(r["label_index"], r["word_index"]): r["num_items"] for r in together} == {
        (x, w): n
        for x, label in enumerate(labels.to_pylist())
        for w, word in enumerate(vocabulary.to_pylist())
        if (n := sum((i, label) in pairs and (i, word) in words for i in items[:25]))
    }
    combinations = [
        (part.pair[k], part.word[k])
        for part in incidences(table, said, labels, vocabulary)
        for k in range(len(part.pair))
    ]
    assert sorted(combinations) == sorted(
        (row, w)
        for row, pair in enumerate(table.to_pylist())
        for w, word in enumerate(vocabulary.to_pylist())
        if pair["label"] in labels.to_pylist() and (pair["item_id"], word) in words
    )


def test_of_a_label_the_most_telling_words_are_kept() -> None:
    random = np.random.default_rng(0)
    label, word = random.integers(0, 5, 200), np.arange(200)
    value = random.integers(0, 12, 200).astype(float)
    kept = most_telling(label, word, value, 7)
    for one in range(5):
        own = [(-value[i], i) for i in np.flatnonzero(label == one) if value[i] >= 2]
        assert np.flatnonzero(kept & (label == one)).tolist() == sorted(
            i for _, i in sorted(own)[:7]
        )


def test_a_worker_reads_the_counts_once(tmp_path: Path) -> None:
    for kind in ("label", "word"):
        table = pa.table({"key": pa.array(["x", "y"]), "num_items": pa.array([2, 3], pa.int64())})
        write_table(join(str(tmp_path), f"{kind}s.parquet"), table)
    names = ("label_index", "word_index", "num_items")
    table = pa.table([[1, 0], [0, 1], [2, 1]], names=names)
    write_table(join(str(tmp_path), "together-0.parquet"), table)
    first = read_profiles(str(tmp_path), ("together-0.parquet",), 9)
    assert first.profiles.pair.tolist() == [1, 2]
    assert read_profiles(str(tmp_path), ("together-0.parquet",), 9) is first


def test_a_label_stays_where_its_words_are_and_what_cannot_be_judged_stays() -> None:
    wolves = [f"w{n}" for n in range(12)]
    boats = [f"b{n}" for n in range(12)]
    rows = [(i, "wolf", False, True) for i in wolves] + [(i, "boat", False, True) for i in boats]
    rows += [(i, "fyp", False, True) for i in (wolves + boats)[::2]]
    rows += [("b1", "wolf", False, True)]  # wrong
    rows += [("silent", "wolf", False, True), ("w1", "alone", False, True)]
    rows += [("late", "wolf", True, True), ("late", "boat", True, True)]
    said = [(i, "forest", False) for i in wolves] + [(i, "sea", False) for i in boats]
    said += [("late", "sea", True)]
    pairs, words = pairs_of(*rows), words_of(*said)
    kept, dropped = clean(pairs, words, model_of(pairs, words), 0.3)
    left = {(r["item_id"], r["label"]) for r in kept.to_pylist()}
    gone = {(r[0], r[1]) for r in rows} - left
    assert gone == {("b1", "wolf"), ("late", "wolf")} | {(i, "fyp") for i in (wolves + boats)[::2]}
    assert sum(dropped.values()) == len(gone)


def test_what_people_say_is_no_evidence_for_itself_but_for_a_tag() -> None:
    items = [f"i{n}" for n in range(40)]
    said = [(i, "~wolf", False) for i in items[:6]]
    said += [(i, f"other{n % 7}", False) for n, i in enumerate(items)]
    words = words_of(*said)
    for tagged, expected in ((True, items[:6]), (False, [])):
        pairs = pairs_of(*((i, "wolf", False, tagged) for i in items[:6]))
        kept, _ = clean(pairs, words, model_of(pairs, words), 0.5)
        assert kept["item_id"].to_pylist() == expected


@pytest.fixture(scope="module", params=[3, 4])
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items and searches of a simulated platform, in one shard; its seed is in the name."""
    folder = tmp_path_factory.mktemp(f"platform-{request.param}-")
    source = SyntheticSource(
        seed=request.param, num_items=1200, num_shards=1, frame_share=0, sound_share=0
    )
    pieces: dict[str, list[pa.Table]] = defaultdict(list)
    for name, piece in source.read(source.shards()[0]):
        pieces[name].append(piece)
    for name in ("items", "searches", "comments"):
        write_table(shard_file(str(folder), name, 0), pa.concat_tables(pieces[name]))
    (folder / "source.json").write_text(source.to_json())
    return folder


def test_cleaning_lifts_the_precision_of_hashtags_on_the_simulated_platform(platform: Path) -> None:
    source = SyntheticSource.from_json((platform / "source.json").read_text())
    config = LabelEvents(min_evidence=1.0)
    names = ("items", "searches")
    events = [read_events(str(platform), name, 0, SPLIT, config)[0] for name in names]
    block = pa.concat_tables(events)
    pairs, _ = join_events(block, SPLIT, config)
    pairs = pairs.filter(pairs["tagged"])
    words = join_words(block, SPLIT)
    model = model_of(pairs, words)
    clicks = pairs.set_column(
        pairs.column_names.index("clicked"), "clicked", pa.array([True] * pairs.num_rows)
    )
    assert clean(clicks, words, model, config.min_evidence)[0] == clicks
    kept, dropped = clean(pairs, words, model, config.min_evidence)
    assert pairs.num_rows == kept.num_rows + sum(dropped.values())
    truth = source.truth()

    @functools.cache
    def true_labels(item: str) -> list[str]:
        tags = truth.true_tags(truth.index_of(item))
        return normalise(pa.array(tags, pa.string())).to_pylist()

    def right(table: pa.Table) -> int:
        return sum(row["label"] in true_labels(row["item_id"]) for row in table.to_pylist())

    before, after = right(pairs), right(kept)
    assert before / pairs.num_rows < 0.6
    assert after / kept.num_rows > 0.89
    assert after / before > 0.8
    assert kept.schema == PAIRS


def test_words_of_comments_pass_filters_and_duplicates_count_once(platform: Path) -> None:
    source = SyntheticSource.from_json((platform / "source.json").read_text())
    config = LabelEvents(
        tag_coefficient=0, comment_coefficient=0.3, min_comments=1, min_evidence=1.0
    )
    events = [
        read_events(str(platform), name, 0, SPLIT, config)[0] for name in ("items", "comments")
    ]
    block = pa.concat_tables(events)
    pairs, ledger = join_events(block, SPLIT, config)
    dropped = ledger.stages["label events"].dropped
    assert dropped["the same comment again"] > 0
    words = join_words(block, SPLIT)
    kept, _ = clean(pairs, words, model_of(pairs, words), config.min_evidence)
    truth = source.truth()

    def precision(table: pa.Table) -> float:
        rows = table.select(["item_id", "label"]).to_pylist()
        terms = [truth.key_terms_of(truth.index_of(row["item_id"])) for row in rows]
        return float(np.mean([row["label"] in own for row, own in zip(rows, terms, strict=True)]))

    found = [precision(table) for table in (events[1], pairs, kept)]
    assert max(found[:2]) < 0.3
    assert found[2] > 0.85
    assert kept.num_rows > 200


def test_what_came_after_the_cutoff_is_no_evidence(tmp_path: Path) -> None:
    items = [{"item_id": "a", "domain": "v", "title": "The wolf & the BOAT"}]
    write_table(join(str(tmp_path), "items", "shard-00000.parquet"),
                pa.Table.from_pylist(items, schema=ITEMS))  # fmt: skip
    config = LabelEvents(min_evidence=1.0)
    item, _ = read_events(str(tmp_path), "items", 0, Split(heldout_fraction=1e-9), config)
    words = join_words(item, SPLIT)
    assert sorted(words["word"].to_pylist()) == ["boat", "wolf"]
