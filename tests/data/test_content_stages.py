from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.config import ConfigError
from rec.data.content_stages import AddFrames, AddLabels, AddSound, DropEmpty
from rec.data.labels import ITEM_LABELS
from rec.data.parquet import ROW_GROUP_BYTES, ParquetFile, read_table
from rec.data.split import Split, stable_uniform
from rec.data.stage import run_stages
from rec.data.texts import TextConfig, item_texts
from rec.features.media import spread
from rec.schema import ITEMS, MEDIA

ITEMS_ABC = pa.table({"item_id": ["a", "b", "c"]})


def media(*rows: tuple[str, int, str, bytes]) -> pa.Table:
    names = ["item_id", "media_index", "kind", "data", "uri"]
    return pa.Table.from_pylist(
        [dict(zip(names, (*row, f"{row[0]}/{row[1]}"), strict=True)) for row in rows], schema=MEDIA
    )


def wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * int(16_000 * seconds)))
    return buffer.getvalue()


@given(
    st.lists(st.tuples(st.sampled_from("abcz"), st.integers(0, 30)), unique=True, max_size=40),
    st.integers(1, 6),
)
def test_frames_agree_with_a_plain_loop(rows: list[tuple[str, int]], limit: int) -> None:
    table = media(*[(item, index, "frame", f"{item}{index}".encode()) for item, index in rows])
    result, _, _ = run_stages([AddFrames(table, limit)], ITEMS_ABC)
    expected = []
    for item in "abc":
        own = sorted(index for owner, index in rows if owner == item)
        expected.append([f"{item}{own[i]}".encode() for i in spread(len(own), limit)])
    assert result.column("frames").to_pylist() == expected


def test_sound_that_fails_is_a_problem_and_the_next_one_serves() -> None:
    table = media(
        ("a", 1, "audio", wav(3.0)),
        ("a", 0, "audio", b"broken"),
        ("b", 0, "audio", wav(0.01)),
        ("c", 0, "frame", b"picture"),
    )
    result, ledger, _ = run_stages([AddSound(table, 2, 60.0)], ITEMS_ABC)
    sizes = [len(value) for value in result.column("log_mel").to_pylist()]
    assert sizes == [2 * 96 * 64 * 2, 0, 0]
    assert ledger.num_problems == 2
    assert ledger.problems[0].startswith("a/0: sound of 6 bytes cannot be decoded")
    assert ledger.problems[1] == "b/0: sound of 0.010 s is too short, expected at least 0.1 s"


def test_items_with_nothing_to_encode_are_dropped_with_a_reason() -> None:
    table = pa.table(
        {
            "item_id": ["words", "picture", "sound", "nothing"],
            "token_ids": pa.array([[2, 3], [], [], []], pa.list_(pa.int32())),
            "frames": pa.array([[], [b"x"], [], []], pa.list_(pa.large_binary())),
            "log_mel": pa.array([b"", b"", b"x", b""], pa.large_binary()),
        }
    )
    kept, ledger, left_out = run_stages([DropEmpty()], table)
    assert kept.num_rows == 3
    assert ledger.stages["drop empty"].dropped == {"no text, frame or sound": 1}
    assert ledger.stages["drop empty"].dropped_ids == {"no text, frame or sound": ("nothing",)}
    assert left_out.to_pylist() == [{"item_id": "nothing", "reason": "no text, frame or sound"}]


def test_a_few_words_and_nothing_else_can_be_too_little() -> None:
    table = pa.table(
        {
            "item_id": list("abcd"),
            "token_ids": pa.array([[2, 3], [2, 3], [2, 7, 3], []], pa.list_(pa.int32())),
            "frames": pa.array([[], [b"x"], [], []], pa.list_(pa.large_binary())),
            "log_mel": pa.array([b"", b"", b"", b""], pa.large_binary()),
        }
    )
    kept, ledger, _ = run_stages([DropEmpty(min_tokens=3)], table)
    assert kept.column("token_ids").to_pylist() == [[2, 3], [2, 7, 3]]
    assert ledger.stages["drop empty"].dropped == {
        "no text, frame or sound": 1,
        "fewer than 3 tokens, no frame, no sound": 1,
    }
    assert ledger.stages["drop empty"].dropped_ids == {
        "no text, frame or sound": ("d",),
        "fewer than 3 tokens, no frame, no sound": ("a",),
    }


def test_items_without_labels_have_empty_lists() -> None:
    labels = pa.table([["c", "a"], [[4, 5], [1]], [[0.5, 2.0], [1.0]]], schema=ITEM_LABELS)
    for known, expected in ((labels, [[1], [], [4, 5]]), (labels.slice(0, 0), [[], [], []])):
        result, _, _ = run_stages([AddLabels(known)], ITEMS_ABC)
        assert result.column("label_ids").to_pylist() == expected


def test_texts_are_title_and_description_and_never_tags() -> None:
    rows = [
        {"title": " A title ", "description": None},
        {"title": None, "description": "words"},
        {"title": "T", "description": "D", "tags": ["secret"], "categories": ["secret"]},
        {"title": " ", "description": None},
    ]
    filled = [{"item_id": "x", "domain": "v", **row} for row in rows]
    texts = item_texts(pa.Table.from_pylist(filled, schema=ITEMS))
    assert texts == ["A title", "words", "T\nD", ""]


def test_hashes_are_stable_even_and_independent_by_salt() -> None:
    ids = [f"item-{i}" for i in range(4000)]
    values = stable_uniform(ids, "heldout")
    assert values[:2].tolist() == stable_uniform(ids[:2], "heldout").tolist()
    assert stable_uniform(["item-0"], "heldout")[0] == 0.028877073068237835
    assert abs(values.mean() - 0.5) < 0.02
    assert 0.0 <= values.min() < values.max() < 1.0
    assert abs(np.corrcoef(values, stable_uniform(ids, "order"))[0, 1]) < 0.05
    split = Split(heldout_fraction=0.2)
    untimed = pa.table({"item_id": ids, "published_at": pa.nulls(len(ids), ITEMS.field(7).type)})
    assert abs(split.heldout(untimed).mean() - 0.2) < 0.02


def test_a_file_is_whole_or_absent_and_its_row_groups_are_bounded(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    schema = pa.schema([("data", pa.large_binary())])
    place = tmp_path / "part.parquet"
    piece = pa.table({"data": pa.array([bytes(1 << 20)] * 20, pa.large_binary())})
    with pytest.raises(KeyError), ParquetFile(str(place), schema) as file:
        file.write(piece.rename_columns(["other"]))
    assert list(tmp_path.iterdir()) == []
    with ParquetFile(str(place), schema) as file:
        for _ in range(2):
            file.write(piece)
        assert not place.exists()
    assert read_table(str(place)).num_rows == 40
    found = pq.ParquetFile(place).metadata
    groups = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
    assert max(groups) <= 2 * ROW_GROUP_BYTES >> 20
    assert len(groups) >= 2


def test_attention_needs_the_tokenizer_that_it_was_trained_with() -> None:
    """A tokenizer fitted on the texts has other ids, and any id below the encoder's number fits."""
    with pytest.raises(ConfigError, match=r"attention_encoder knows .*; set tokenizer to the same"):
        TextConfig().override(["attention_encoder=/models/minilm"])
    given = ["attention_encoder=/models/minilm", "tokenizer=/models/minilm"]
    assert TextConfig().override(given).attention_encoder == "/models/minilm"
