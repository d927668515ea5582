from __future__ import annotations

from pathlib import Path

import pytest

from rec.features.text import (
    TextTokenizer,
    TokenizerError,
    copy_tokenizer,
    save_tokenizer,
    train_wordpiece,
)

TEXTS = ["The wolf hunts in the snow", "a wolf sleeps", "Snow falls on the hunters' camp"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_wordpiece(TEXTS, 120), path, 64)
    return path


def test_transformers_reads_the_folder_and_gives_the_same_ids(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ours = TextTokenizer(folder, 64)
    assert ours.encode(TEXTS[:3]).token_ids == theirs(TEXTS[:3])["input_ids"]
    assert ours.pad_id == theirs.pad_token_id
    assert ours.mask_id == theirs.mask_token_id
    assert ours.special_ids == sorted(theirs.all_special_ids)
    assert ours.vocab_size == len(theirs)


def test_words_are_numbered_and_special_tokens_are_not(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, 64)
    ids, words = tokenizer.encode(["snow zebra wolf"])
    assert words[0][0] == words[0][-1] == -1
    assert sorted(set(words[0])) == [-1, 0, 1, 2]
    inner = words[0][1:-1]
    assert inner == sorted(inner)
    assert len(ids[0]) == len(words[0])
    assert tokenizer.encode(["SNOW  zebra\nwölf"]).token_ids == ids


def test_empty_texts_have_no_tokens_and_long_ones_end_as_they_should(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, 6)
    ids, words = tokenizer.encode([None, "", " \n", "snow " * 50])
    assert ids[:3] == words[:3] == [[], [], []]
    assert len(ids[3]) == 6
    assert tokenizer.backend.id_to_token(ids[3][-1]) == "[SEP]"


def test_a_text_of_unknown_words_alone_is_told(folder: Path) -> None:
    tokenizer = TextTokenizer(folder, 64)
    tokens = tokenizer.encode(["wolf", "\U0001f937 wolf", "\U0001f937", "\U0001f937 \u0436", ""])
    assert [tokenizer.knows(tokens, i) for i in range(5)] == [True, True, False, False, False]


def test_training_is_repeatable() -> None:
    assert train_wordpiece(TEXTS, 100).to_str() == train_wordpiece(TEXTS, 100).to_str()


def test_a_checkpoints_tokenizer_is_copied_whole(folder: Path, tmp_path: Path) -> None:
    copy_tokenizer(folder, tmp_path / "copy")
    copied = TextTokenizer(tmp_path / "copy", 64)
    assert copied.encode(TEXTS) == TextTokenizer(folder, 64).encode(TEXTS)


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not found"):
        TextTokenizer(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        TextTokenizer(tmp_path, 8)
    with pytest.raises(TokenizerError, match="not a folder"):
        copy_tokenizer(tmp_path / "nowhere", tmp_path / "out")
