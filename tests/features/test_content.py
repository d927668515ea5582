from __future__ import annotations

import math

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rec.features.content import ContentCollator, ContentInputs
from rec.features.media import spread

INPUTS = ContentInputs(max_tokens=4, height=8, width=8, max_frames=2, max_audio_patches=2)
PATCH = 96 * 64


def frame(value: int) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def rows(**columns: list[object]) -> pa.Table:
    kinds = {
        "item_id": pa.string(),
        "token_ids": pa.list_(pa.int32()),
        "word_ids": pa.list_(pa.int32()),
        "term_scores": pa.list_(pa.float32()),
        "label_ids": pa.list_(pa.int32()),
        "label_weights": pa.list_(pa.float32()),
        "frames": pa.list_(pa.large_binary()),
        "log_mel": pa.large_binary(),
    }
    count = len(next(iter(columns.values())))
    absent = {"token_ids": [[]] * count, "frames": [[]] * count, "log_mel": [b""] * count}
    filled = {**absent, **columns}
    return pa.table({name: pa.array(value, kinds[name]) for name, value in filled.items()})


@given(
    st.lists(st.one_of(st.none(), st.lists(st.integers(1, 99), max_size=9)), min_size=1, max_size=6)
)
def test_pads_and_cuts_as_a_plain_loop_does(texts: list[list[int] | None]) -> None:
    batch = ContentCollator(INPUTS)(rows(token_ids=texts))  # type: ignore[arg-type]
    expected = []
    for text in texts:
        text = text or []
        expected.append(text if len(text) <= 4 else [*text[:3], text[-1]])
    width = (
        max(1, *(len(text) for text in expected)) if len(expected) > 1 else max(1, len(expected[0]))
    )
    assert batch.token_ids.tolist() == [t + [0] * (width - len(t)) for t in expected]
    mask = [[True] * len(t) + [False] * (width - len(t)) for t in expected]
    assert batch.token_mask.tolist() == mask


def test_training_columns_are_padded_with_their_own_fills() -> None:
    batch = ContentCollator(INPUTS)(
        rows(
            token_ids=[[2, 5, 3], [2, 3]],
            word_ids=[[-1, 0, -1], [-1, -1]],
            term_scores=[[-math.inf, 0.5, -math.inf], [-math.inf, -math.inf]],
            label_ids=[[7, 8], []],
            label_weights=[[0.5, 2.0], []],
        )
    )
    assert batch.word_ids is not None
    assert batch.word_ids.tolist() == [[-1, 0, -1], [-1, -1, -1]]
    assert batch.term_scores is not None
    assert batch.term_scores[1].tolist() == [-math.inf] * 3
    assert batch.label_weights is not None
    assert batch.label_weights.tolist() == [[0.5, 2.0], [0.0, 0.0]]
    assert batch.label_ids is not None
    assert batch.label_ids.dtype == torch.int64


def test_absent_modalities_are_masks_of_one_place() -> None:
    batch = ContentCollator(INPUTS)(rows(token_ids=[[], []], item_id=["a", "b"]))
    assert batch.frames.shape == (2, 1, 3, 8, 8)
    assert batch.log_mel.shape == (2, 1, 96, 64)
    assert not batch.token_mask.any()
    assert not batch.frame_mask.any()
    assert not batch.audio_mask.any()
    assert batch.label_ids is None
    assert len(batch) == 2


def test_frames_and_sound_are_picked_evenly() -> None:
    sound = np.arange(5, dtype=np.float16).repeat(PATCH)
    batch = ContentCollator(INPUTS)(
        rows(frames=[[frame(10 * i) for i in range(7)]], log_mel=[sound.tobytes()])
    )
    assert (batch.frames[0, :, 0, 0, 0] / 10).tolist() == spread(7, 2)
    assert batch.log_mel[0, :, 3, 3].tolist() == spread(5, 2)
    assert batch.log_mel.dtype == torch.float32


def test_an_undecodable_frame_is_left_out_counted_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    collate = ContentCollator(INPUTS)
    table = rows(item_id=["a", "b"], frames=[[b"broken", frame(9)], [b"broken"]])
    batch = collate(table)
    assert batch.frame_mask.tolist() == [[True], [False]]
    assert batch.frames[0, 0, 0, 0, 0] == 9
    assert sum(collate.problems.values()) == 2
    assert "item b, frame 0: not a picture" in caplog.text


def test_parts_and_rows_make_the_same_batch() -> None:
    collate = ContentCollator(INPUTS)
    mel = np.random.default_rng(0).normal(size=(2, 96, 64)).astype(np.float16)
    from_rows = collate(
        rows(token_ids=[[2, 3], []], frames=[[], [frame(5)]], log_mel=[b"", mel.tobytes()])
    )
    from_parts = collate.from_parts(
        [[2, 3], []], frames=[[], [collate.decode(frame(5))]], log_mel=[None, mel]
    )
    for name in ("token_ids", "token_mask", "frames", "frame_mask", "log_mel", "audio_mask"):
        assert torch.equal(getattr(from_rows, name), getattr(from_parts, name)), name


def test_says_which_column_is_missing_and_what_is_wrong_with_sound() -> None:
    with pytest.raises(ValueError, match=r"lack columns \['log_mel'\]"):
        ContentCollator(INPUTS)(rows(token_ids=[[1]]).drop_columns(["log_mel"]))
    with pytest.raises(ValueError, match="log_mel of 10 bytes"):
        ContentCollator(INPUTS)(rows(log_mel=[b"0" * 10]))
