"""Texts to token ids, the same in training, embedding and serving.

A tokenizer is a Hugging Face folder with a tokenizer.json: a given checkpoint's, or WordPiece
(Schuster and Nakajima, 2012) trained on the platform's own texts.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

PAD, UNKNOWN, FIRST, LAST, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MAX_CHARACTERS = 1000  # rarer ones are unknown
_SPECIAL = [PAD, UNKNOWN, FIRST, LAST, MASK]


class TokenizerError(ValueError):
    """A tokenizer folder cannot be used. The message names the file and what was expected."""


class Tokens(NamedTuple):
    """Tokens of each text; the lists of a text are equally long, and empty where it is empty."""

    token_ids: list[list[int]]  # with special tokens
    word_ids: list[list[int]]  # which word of the text a token belongs to; -1 for special tokens


class TextTokenizer:
    """A tokenizer with a length limit. Not picklable across versions: open it where it is used."""

    def __init__(self, folder: str | os.PathLike[str], max_tokens: int) -> None:
        """Open the tokenizer in `folder`; texts are cut at `max_tokens`, special tokens included.

        Raises:
            TokenizerError: the folder has no tokenizer.json or it cannot be read.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path}: not found; expected a Hugging Face folder with a fast tokenizer "
                "(save a slow one with AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )
        try:
            self.backend = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
        self.backend.no_padding()
        self.backend.enable_truncation(max_tokens)
        self.max_tokens = max_tokens
        config = path.with_name("tokenizer_config.json")
        self.pad_id, self.mask_id = _special_ids(self.backend, config)
        unknown = getattr(self.backend.model, "unk_token", None)
        self.unknown_id = None if unknown is None else self.backend.token_to_id(unknown)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> list[int]:
        """Ids of padding, unknown, mask and the like, in order."""
        added = self.backend.get_added_tokens_decoder()
        return sorted(index for index, token in added.items() if token.special)

    def encode(self, texts: Sequence[str | None]) -> Tokens:
        """Tokens of many texts at once; None, and what holds nothing but space, has none."""
        encodings = self.backend.encode_batch([text or "" for text in texts])
        token_ids: list[list[int]] = []
        word_ids: list[list[int]] = []
        for encoding in encodings:
            words = [-1 if word is None else word for word in encoding.word_ids]
            empty = max(words, default=-1) < 0
            token_ids.append([] if empty else encoding.ids)
            word_ids.append([] if empty else words)
        return Tokens(token_ids, word_ids)

    def knows(self, tokens: Tokens, index: int) -> bool:
        """Whether a word of text `index` is in the vocabulary, whole or in pieces."""
        pairs = zip(tokens.token_ids[index], tokens.word_ids[index], strict=True)
        return any(word >= 0 and token != self.unknown_id for token, word in pairs)


def _special_ids(backend: Tokenizer, config_path: Path) -> tuple[int, int | None]:
    """Ids of padding (0 where there is none: it is masked anyway) and of the mask, if any."""
    config = json.loads(config_path.read_text()) if config_path.is_file() else {}
    found: list[int | None] = []
    for field, usual in (("pad_token", (PAD, "<pad>")), ("mask_token", (MASK, "<mask>"))):
        named = config.get(field)
        name = named.get("content") if isinstance(named, dict) else named
        ids = (backend.token_to_id(token) for token in ([name] if name else usual))
        found.append(next((index for index in ids if index is not None), None))
    return found[0] or 0, found[1]


def train_wordpiece(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A lower-casing WordPiece tokenizer with BERT's special tokens, fitted on `texts`.

    Accents are dropped and CJK characters stand alone, as in BERT's uncased models. Equal texts
    give an equal tokenizer.
    """
    tokenizer = _bert(models.WordPiece(unk_token=UNKNOWN))
    # The trainer numbers word-inner characters in the order of a hash map, and ties between
    # merges follow the numbers: naming them as special tokens fixes both.
    characters = _alphabet(texts)
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=_SPECIAL + [f"##{character}" for character in characters],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fitted = _bert(models.WordPiece(tokenizer.get_vocab(), unk_token=UNKNOWN))
    fitted.add_special_tokens(_SPECIAL)
    fitted.post_processor = processors.BertProcessing(
        (LAST, _SPECIAL.index(LAST)), (FIRST, _SPECIAL.index(FIRST))
    )
    return fitted


def _bert(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The most frequent characters of the normalised texts, in the order of code points."""
    normaliser = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normaliser.normalize_str(text))
    found = sorted((-count, character) for character, count in counts.items())
    return sorted(c for _, c in found[:MAX_CHARACTERS] if not c.isspace())


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str], max_tokens: int) -> None:
    """Write `tokenizer` with the special tokens of `train_wordpiece` as a Hugging Face folder."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        cls_token=FIRST,
        sep_token=LAST,
        mask_token=MASK,
        model_max_length=max_tokens,
    ).save_pretrained(os.fspath(folder))


def copy_tokenizer(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Write the tokenizer of a local checkpoint folder to `folder`, as a fast one.

    Raises:
        TokenizerError: there is no such folder, or no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    if not Path(source).is_dir():
        raise TokenizerError(f"tokenizer {source}: not a folder; expected a Hugging Face folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            os.fspath(source), local_files_only=True, use_fast=True
        )
    except (OSError, ValueError) as error:
        raise TokenizerError(f"tokenizer {source}: cannot be read: {error}") from error
    tokenizer.save_pretrained(os.fspath(folder))
