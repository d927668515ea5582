"""What is fitted on texts, on the training side only: the tokenizer and the words' idf."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from pyarrow import fs as pafs
from pydantic import Field, model_validator
from ray.data.aggregate import Sum

from rec.artifacts import filesystem
from rec.config import Config
from rec.data.duplicates import duplicate_ids
from rec.data.parquet import read_table
from rec.data.split import Split, stable_uniform
from rec.data.tables import Tables, shard_file
from rec.data.tasks import num_partitions, stream
from rec.features.terms import WordFinder, document_frequencies, flatten
from rec.features.text import TextTokenizer, copy_tokenizer, save_tokenizer, train_wordpiece

TERMS = pa.schema(
    [("term", pa.large_string()), ("term_key", pa.int64()), ("num_items", pa.int64())]
)
_TEXT_COLUMNS = ["item_id", "title", "description", "published_at"]
_TEXTS_KEY = ""  # counts texts among word counts; no word is empty


class TextConfig(Config):
    """How texts become tokens and key-term scores."""

    # a Hugging Face folder, local or s3://; None trains one on the texts
    tokenizer: str | None = None
    vocab_size: int = Field(default=16_000, ge=100)  # of a trained tokenizer
    num_sample_texts: int = Field(default=200_000, ge=1)  # that a tokenizer is trained on
    max_tokens: int = Field(default=128, ge=4)
    min_texts: int = Field(default=2, ge=1)  # training texts a word must be in to have its own idf
    max_terms: int = Field(default=500_000, ge=1)  # words with an idf, the most frequent ones
    attention_encoder: str | None = None  # local Hugging Face folder of the same tokenizer
    attention_layers: int = Field(default=4, ge=1)  # the last ones, averaged
    alpha: float = Field(default=0.7, ge=0, le=1)  # tf-idf beside attention; 1 without an encoder

    @model_validator(mode="after")
    def _same_tokens(self) -> Self:
        if self.attention_encoder is not None and self.tokenizer is None:
            raise ValueError(
                "attention_encoder knows the token ids of its own tokenizer alone; set tokenizer "
                "to the same folder"
            )
        return self


def item_texts(items: pa.Table) -> list[str | None]:
    """Title and description of each item as one text; never tags or queries: those are labels."""
    columns = [items.column(name).fill_null("") for name in ("title", "description")]
    parts = [pc.utf8_trim_whitespace(column) for column in columns]
    joined = pc.binary_join_element_wise(*parts, pa.scalar("\n", pa.large_string()))
    return pc.utf8_trim_whitespace(joined).to_pylist()


def fit_tokenizer(
    tables_uri: str,
    tables: Tables,
    split: Split,
    config: TextConfig,
    folder: str,
    duplicates_uri: str | None = None,
) -> None:
    """Write the tokenizer to `folder`: the given one, or one trained on a sample of the texts."""
    with tempfile.TemporaryDirectory() as local:
        if config.tokenizer is not None:
            copy_tokenizer(local_folder(config.tokenizer), local)
        else:
            size = config.num_sample_texts
            texts = _sample(tables_uri, tables, split, size, duplicates_uri)
            tokenizer = train_wordpiece(texts, config.vocab_size)
            save_tokenizer(tokenizer, local, config.max_tokens)
        files, path = filesystem(folder)
        files.create_dir(path, recursive=True)
        pafs.copy_files(local, path, destination_filesystem=files)


def training_items(
    tables_uri: str, shard: int, split: Split, duplicates_uri: str | None
) -> pa.Table:
    """Items of a shard, with their texts, that become training rows: no duplicates of others."""
    items = read_table(shard_file(tables_uri, "items", shard), _TEXT_COLUMNS)
    again = pc.is_in(items.column("item_id"), value_set=duplicate_ids(duplicates_uri, shard))
    return items.filter(pa.array(~split.heldout(items) & ~np.asarray(again)))


def _sample(
    tables_uri: str, tables: Tables, split: Split, size: int, duplicates_uri: str | None
) -> list[str]:
    """About `size` training texts, the same ones in the same order in every run."""
    fraction = min(1.0, size / max(tables.tables["items"].num_rows, 1))

    def read(batch: pa.Table) -> pa.Table:
        index = batch["item"].to_pylist()[0]
        items = training_items(tables_uri, index, split, duplicates_uri)
        chosen = stable_uniform(items.column("item_id").to_pylist(), "tokenizer") < fraction
        texts = item_texts(items.filter(pa.array(chosen)))
        return pa.table({"text": pa.array(texts, pa.large_string())})

    shards = ray.data.from_items(
        list(range(tables.num_shards)), override_num_blocks=tables.num_shards
    )
    texts: list[str] = []  # bounded by num_sample_texts
    for batch in stream(shards.map_batches(read, batch_size=1, batch_format="pyarrow")):
        texts.extend(text for text in batch.column("text").to_pylist() if text)
    return sorted(texts)


def fit_terms(
    tables_uri: str,
    tables: Tables,
    split: Split,
    config: TextConfig,
    tokenizer: str,
    duplicates_uri: str | None = None,
) -> tuple[pa.Table, int]:
    """Words with the number of training texts they are in, and how many texts there are.

    Each shard's counts are merged by a distributed aggregation; of them the driver holds
    max_terms, the most frequent, and a block at a time.

    Args:
        tokenizer: folder of the fitted tokenizer.
        duplicates_uri: where `find_duplicates` listed items that are passed over.
    """

    def count(batch: pa.Table) -> pa.Table:
        index = batch["item"].to_pylist()[0]
        items = training_items(tables_uri, index, split, duplicates_uri)
        text = TextTokenizer(local_folder(tokenizer), config.max_tokens)
        finder = WordFinder(text)
        tokens, words, rows = flatten(*text.encode(item_texts(items)))
        found = finder.find(tokens, words, rows)
        keys, counts, at = document_frequencies(found)
        spelled = [
            finder.spell(tokens[found.start[i] : found.start[i] + found.length[i]]) for i in at
        ]
        return pa.table(
            [
                pa.array([*spelled, _TEXTS_KEY], pa.large_string()),
                np.append(keys, 0),
                np.append(counts, len(np.unique(rows))),
            ],
            schema=TERMS,
        )

    shards = ray.data.from_items(
        list(range(tables.num_shards)), override_num_blocks=tables.num_shards
    )
    counted = shards.map_batches(count, batch_size=1, batch_format="pyarrow")
    keys = ["term", "term_key"]
    partitions = num_partitions(tables.num_shards)
    total = counted.groupby(keys, num_partitions=partitions).aggregate(
        Sum("num_items", alias_name="num_items")
    )
    num_texts = 0
    best = TERMS.empty_table()
    for batch in stream(total):
        batch = batch.select(TERMS.names).cast(TERMS)
        whole = pc.equal(batch.column("term"), _TEXTS_KEY)
        num_texts += pc.sum(batch.filter(whole).column("num_items")).as_py() or 0
        frequent = pc.greater_equal(batch.column("num_items"), config.min_texts)
        best = pa.concat_tables([best, batch.filter(pc.and_(frequent, pc.invert(whole)))])
        best = best.sort_by([("num_items", "descending"), ("term_key", "ascending")])
        best = best.slice(0, config.max_terms).combine_chunks()
    return best, num_texts


def local_folder(uri: str) -> str:
    """A local folder with the files of `uri`: itself, or a copy made once of what is on S3."""
    files, path = filesystem(uri)
    if isinstance(files, pafs.LocalFileSystem):
        return path
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    copy = Path(tempfile.gettempdir()) / "raycall" / "folders" / name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        aside = tempfile.mkdtemp(dir=copy.parent)
        pafs.copy_files(path, aside, source_filesystem=files)
        try:
            Path(aside).rename(copy)
        except OSError:
            return aside  # another process was first; both copies are whole
    return str(copy)
