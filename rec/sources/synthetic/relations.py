"""Facts of the platform: entities, which are what key terms name, and what items are about."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rec.schema import check
from rec.sources.synthetic.behaviour import item_ids
from rec.sources.synthetic.catalogue import Catalogue, Ints
from rec.sources.synthetic.hashing import Purpose, uniform
from rec.sources.synthetic.language import NUM_TERMS, TOPICS_PER_BRANCH
from rec.sources.synthetic.text import focus

_ABOUT_RATE = 0.7  # of items that are linked to their main entity

Triple = tuple[str, str, str]


def _table(triples: list[Triple]) -> pa.Table:
    heads, relations, tails = zip(*triples, strict=True)
    columns = {"head": list(heads), "relation": list(relations), "tail": list(tails)}
    return check(pa.table(columns), "relations", place="synthetic relations")


def world(catalogue: Catalogue) -> pa.Table:
    """What holds whatever the items: entity belongs_to leaf, similar_to entity, and the tree."""
    language, triples = catalogue.language, list[Triple]()
    tree: dict[Triple, None] = {}  # ordered, each edge once
    for topic, (root, branch, leaf) in enumerate(language.categories):
        tree[f"category:{leaf}", "belongs_to", f"category:{branch}"] = None
        tree[f"category:{branch}", "belongs_to", f"category:{root}"] = None
        names = [f"entity:{term}" for term in language.terms[topic]]
        triples += [(name, "belongs_to", f"category:{leaf}") for name in names]
        triples += [(names[j], "similar_to", names[j + 1]) for j in range(NUM_TERMS - 1)]
        if topic % TOPICS_PER_BRANCH:  # a link to the topic before it in the same branch
            triples.append((names[0], "similar_to", f"entity:{language.terms[topic - 1][0]}"))
    return _table([*tree, *triples])


def of_items(catalogue: Catalogue, index: Ints) -> pa.Table:
    """(item, about, entity) of most items."""
    told = uniform(catalogue.config.seed, Purpose.RELATIONS, index) < _ABOUT_RATE
    index = index[told]
    words = catalogue.language.words.take(pa.array(focus(catalogue, index)[:, 0])).to_pylist()
    columns = {
        "head": item_ids(index),
        "relation": np.full(len(index), "about"),
        "tail": [f"entity:{word}" for word in words],
    }
    return check(pa.table(columns), "relations", place="synthetic relations")
