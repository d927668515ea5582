"""Settings, words, hashing, random access and rendered media of the simulated platform."""

from __future__ import annotations

import io
import wave

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.sources import SyntheticSource
from rec.sources.base import media_problem
from rec.sources.synthetic import SyntheticConfig, frames, sound, text
from rec.sources.synthetic.catalogue import build_catalogue
from rec.sources.synthetic.hashing import Purpose, below, bits, normal, uniform
from rec.sources.synthetic.words import COMMON_WORDS, PRODUCT_WORDS, STOP_WORDS


def splitmix(seed: int, *keys: int) -> int:
    """The hash once more, in Python's unbounded integers."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def finalise(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    state = finalise((seed + golden) & mask)
    for key in keys:
        state = finalise(((state + golden) ^ (key * 0x94D049BB133111EB + golden)) & mask)
    return state


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(-5, 2**62), min_size=1, max_size=4))
def test_bits_agree_with_plain_integers(seed: int, keys: list[int]) -> None:
    assert int(bits(seed, Purpose.TAGS, *keys)[0]) == splitmix(seed, Purpose.TAGS, *keys)


def test_draws_are_uniform_and_normal_and_do_not_follow_their_keys() -> None:
    keys = np.arange(100_000)
    draws = uniform(0, Purpose.TAGS, keys)
    counts = np.bincount((draws * 50).astype(int), minlength=50)
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 100  # chi squared of 49, far tail
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(draws, uniform(0, Purpose.EVENT, keys))[0, 1]) < 0.015
    assert abs(np.corrcoef(draws, uniform(1, Purpose.TAGS, keys))[0, 1]) < 0.015
    deviates = normal(0, Purpose.TAGS, keys)
    assert abs(deviates.mean()) < 0.02
    assert abs(deviates.std() - 1.0) < 0.02
    assert np.bincount(below(3, 0, Purpose.TAGS, keys)).min() > 32_000


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(8, 60), st.integers(0, 10**9))
def test_positions_and_slots_are_inverse(seed: int, num_topics: int, block: int) -> None:
    catalogue = build_catalogue(SyntheticConfig(seed=seed, num_topics=num_topics))
    positions = np.arange(len(catalogue.slot_topic))
    blocks = np.full_like(positions, block)
    slots = catalogue._permute(blocks, positions)
    assert np.array_equal(np.sort(slots), positions)
    assert np.array_equal(catalogue._restore(blocks, slots), positions)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5_000), st.integers(0, 100), st.floats(0.0, 1.2))
def test_a_sampled_item_is_of_the_topic_and_out(num_items: int, seed: int, share: float) -> None:
    config = SyntheticConfig(num_items=num_items, seed=seed)
    catalogue = build_catalogue(config)
    topics = np.arange(300) % config.num_topics
    times = np.full(300, config.start_us + int(share * config.span_us))
    items = catalogue.sample(topics, times, Purpose.INTERACTIONS, np.arange(300))
    found = items[items >= 0]
    assert (found < num_items).all()
    assert (catalogue.topic(found) == topics[items >= 0]).all()
    assert (catalogue.published_us(found) <= times[items >= 0]).all()


def test_samples_reach_every_kind_of_item_and_miss_only_what_is_not_out() -> None:
    config = SyntheticConfig(num_items=3_000)
    catalogue = build_catalogue(config)
    topic = np.full(60_000, catalogue.topic(0)[0])
    end = np.full(60_000, config.start_us + config.span_us)
    items = catalogue.sample(topic, end, Purpose.INTERACTIONS, np.arange(60_000))
    assert (items >= 0).all()
    every = np.flatnonzero(catalogue.topic(np.arange(3_000)) == topic[0])
    assert np.isin(every, items).mean() > 0.97


def test_random_access_equals_streaming() -> None:
    catalogue = build_catalogue(SyntheticConfig(num_items=10_000, frame_size=16))
    stream = np.arange(4_000, 4_200)
    chosen = np.array([4_150, 4_003, 4_150])
    assert text.titles(catalogue, stream).take(chosen - 4_000) == text.titles(catalogue, chosen)
    told = text.descriptions(catalogue, stream)
    assert told.take(chosen - 4_000) == text.descriptions(catalogue, chosen)
    pictures, sounds = frames.render(catalogue, stream), sound.render(catalogue, stream)
    assert frames.render(catalogue, chosen) == [pictures[i - 4_000] for i in chosen]
    assert sound.render(catalogue, chosen) == [sounds[i - 4_000] for i in chosen]


def test_key_terms_belong_to_one_topic_and_to_no_other_words() -> None:
    truth = SyntheticSource(num_topics=900, num_items=1).truth()
    terms = [term for topic in range(900) for term in truth.key_terms(topic)]
    assert len(set(terms)) == len(terms)
    language = truth.catalogue.language
    words = language.words.to_pylist()
    assert len(set(words)) == len(words)
    assert not {*STOP_WORDS, *COMMON_WORDS, *PRODUCT_WORDS} & {*terms, *language.event_terms}


def test_settings_that_make_no_platform_are_refused() -> None:
    with pytest.raises(ValueError, match="end 2024-01-01 is not after start 2024-01-01"):
        SyntheticSource.model_validate({"end": "2024-01-01"})
    with pytest.raises(ValueError, match="greater than or equal to 8"):
        SyntheticSource(num_topics=3)


@pytest.fixture(scope="module")
def media() -> tuple[np.ndarray, list[list[bytes]], list[bytes | None]]:
    catalogue = build_catalogue(SyntheticConfig(num_items=10**6, sound_share=1.0))
    index = np.arange(1_200)
    return catalogue.topic(index), frames.render(catalogue, index), sound.render(catalogue, index)


def test_media_decode_and_are_small(media: tuple) -> None:
    _, pictures, sounds = media
    assert {len(shown) for shown in pictures} == {0, 1, 2, 3, 4}
    flat = [data for shown in pictures for data in shown][:200]
    assert all(media_problem(data, "frame") is None for data in flat)
    assert np.mean([len(data) for data in flat]) < 2_500
    heard = [data for data in sounds if data is not None]
    assert 0.8 < len(heard) / len(sounds) < 0.9  # all but products
    assert media_problem(heard[0], "audio") is None
    with wave.open(io.BytesIO(heard[0])) as file:
        shape = (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes())
    assert shape == (1, 2, 16_000, 16_000)


def accuracy(features: np.ndarray, topics: np.ndarray) -> float:
    """Share of the second half whose nearest mean of the first half is its topic's."""
    half = len(topics) // 2
    names = np.unique(topics[:half])
    means = np.stack([features[:half][topics[:half] == t].mean(axis=0) for t in names])
    distance = ((features[half:, None] - means) ** 2).sum(axis=-1)
    return float((names[distance.argmin(axis=1)] == topics[half:]).mean())


def test_pictures_and_sounds_tell_their_topic_but_not_surely(media: tuple) -> None:
    topics, pictures, sounds = media
    shown = np.array([bool(row) for row in pictures])
    decoded = [cv2.imdecode(np.frombuffer(r[0], np.uint8), 1) for r in pictures if r]
    colours = np.stack([cv2.resize(p, (4, 4), interpolation=cv2.INTER_AREA) for p in decoded])
    chance = np.bincount(topics).max() / len(topics)
    assert 2 * chance < accuracy(colours.reshape(len(colours), -1) / 255.0, topics[shown]) < 0.95
    heard = np.array([data is not None for data in sounds])
    waves = np.stack([np.frombuffer(d[44:], "<i2") for d in sounds if d is not None]) / 32_768.0
    spectra = np.log(np.abs(np.fft.rfft(waves))[:, :4_000].reshape(len(waves), 80, 50).mean(-1))
    assert 2 * chance < accuracy(spectra, topics[heard]) < 0.98


def test_frames_of_a_video_move_and_a_product_is_still(media: tuple) -> None:
    _, pictures, _ = media
    video = next(row for row in pictures if len(row) == 4)
    first, last = (
        cv2.imdecode(np.frombuffer(d, np.uint8), 1).astype(float) for d in (video[0], video[3])
    )
    changed = (np.abs(first - last).max(axis=-1) > 40).mean()
    assert 0.01 < changed < 0.5
