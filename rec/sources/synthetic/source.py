"""The simulated platform as a source: shards of items and of users, generated as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa

from rec.schema import TIMESTAMP, check
from rec.sources.base import Shard, ranges
from rec.sources.synthetic import behaviour, frames, relations, sound, speech, text
from rec.sources.synthetic.catalogue import Catalogue, Ints, build_catalogue
from rec.sources.synthetic.settings import SyntheticConfig
from rec.sources.synthetic.truth import Truth

_PLACE = "synthetic"


class SyntheticSource(SyntheticConfig):
    """A platform of any size with known truth; nothing is kept between pieces.

    Rows do not depend on the number of shards; shard i holds the i-th part of items and users.
    """

    tables: ClassVar[tuple[str, ...]] = (
        "items",
        "media",
        "interactions",
        "searches",
        "comments",
        "relations",
    )
    gives_files: ClassVar[bool] = False

    def truth(self) -> Truth:
        return Truth(self)

    def contents(self) -> str:
        return ""  # the config says all

    def shards(self) -> list[Shard]:
        return [Shard(i, self.num_shards) for i in range(self.num_shards)]

    def read(self, shard: Shard) -> Iterator[tuple[str, pa.Table]]:
        catalogue = build_catalogue(self)
        if shard.index == 0:
            yield "relations", relations.world(catalogue)
        for start, stop in ranges(*shard.bounds(self.num_items)):
            index = np.arange(start, stop)
            yield "items", check(_items(catalogue, index), "items", place=_PLACE)
            yield "media", check(_media(catalogue, index), "media", place=_PLACE)
            yield "relations", relations.of_items(catalogue, index)
        for start, stop in ranges(*shard.bounds(self.users)):
            watched = behaviour.interactions(catalogue, start, stop)
            yield "interactions", check(watched, "interactions", place=_PLACE)
            searched = speech.searches(catalogue, start, stop)
            yield "searches", check(searched, "searches", place=_PLACE)
            said = speech.comments(catalogue, start, stop)
            yield "comments", check(said, "comments", place=_PLACE)


def _items(catalogue: Catalogue, index: Ints) -> pa.Table:
    tags = text.draw_tags(catalogue, index)
    paths = pa.array(catalogue.language.categories, pa.list_(pa.string()))
    uploaders = np.char.zfill(catalogue.uploader(index).astype(str), 9)
    return pa.table(
        {
            "item_id": behaviour.item_ids(index),
            "domain": np.where(catalogue.is_product(index), "product", "video"),
            "title": text.titles(catalogue, index),
            "description": text.descriptions(catalogue, index),
            "tags": text.tag_lists(catalogue, tags.ids, tags.mask),
            "categories": paths.take(pa.array(catalogue.topic(index))),
            "uploader_id": np.char.add("p", uploaders),
            "published_at": pa.array(catalogue.published_us(index), TIMESTAMP),
        }
    )


def _media(catalogue: Catalogue, index: Ints) -> pa.Table:
    ids = behaviour.item_ids(index).to_pylist()
    pictures = frames.render(catalogue, index)
    sounds = sound.render(catalogue, index)
    rows: list[tuple[str, int, str, str, bytes]] = []
    for item, shown, heard in zip(ids, pictures, sounds, strict=True):
        rows += [
            (item, n, "frame", f"synthetic:{item}/{n}.jpg", data) for n, data in enumerate(shown)
        ]
        if heard is not None:
            rows.append((item, 0, "audio", f"synthetic:{item}/0.wav", heard))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    kinds = (pa.string(), pa.int32(), pa.string(), pa.string(), pa.large_binary())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(arrays, names=["item_id", "media_index", "kind", "uri", "data"])
