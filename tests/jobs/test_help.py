"""What every command line says of itself: the settings of the source and recipe it is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import serve_apps.__main__ as serve
from jobs import (
    clusters,
    embed,
    evaluate,
    index,
    ingest,
    neighbours,
    nightly,
    pipeline,
    sequences,
    train,
)
from tune import recall

Main = Callable[[list[str]], int]


@pytest.mark.parametrize(
    ("main", "given", "lines"),
    [
        (ingest.main, [], ["source.num_items = 500  (int)", "rows.max_frames = 4"]),
        (ingest.main, ["--source", "movielens"], ["source.path = PATH  (str)"]),
        (ingest.main, ["--recipe", "rec.recipes.content:demo"], ["rows.max_frames = 2  (int)"]),
        (train.main, [], ["those of the recipe: add --recipe to --help"]),
        (train.main, ["--recipe", "rec.recipes.content:debug"], ["train.steps = 30  (int)"]),
        (recall.main, ["--recipe", "rec.recipes.matching:dssm"], ["model.temperature = 0.07"]),
        (pipeline.main, [], ["recipe.train.steps = 200", "source.num_items = 500", "index."]),
        (pipeline.main, ["--recipe", "rec.recipes.content:debug"], ["recipe.train.steps = 30"]),
        (pipeline.main, [], ["users.recipe.train.steps = 300", "users.domain = None"]),
        (nightly.main, [], ["train_every = 7  (int)", "canary.least_found = 0.95"]),
        (pipeline.main, ["--source", "exercises"], ["source.path = PATH", "users = None"]),
        (sequences.main, [], ["min_item_events = 1  (int)", "items.list_separator = |"]),
        (embed.main, [], ["batch_size = "]),
        (neighbours.main, [], ["k = 50  (int)  neighbours an item"]),
        (clusters.main, [], ["workers = 2  (int)  Ray tasks at once"]),
        (evaluate.main, [], ["max_items = "]),
        (evaluate.main, ["--rows", "ROWS"], ["tune_users = 5000  (int)", "index.factory = "]),
        (index.main, [], ["recall_target = "]),
        (serve.main, [], ["limits.max_k = 1000  (int)", "users.limits.max_history = 5000  (int)"]),
    ],
)
def test_help_lists_the_settings(
    main: Main, given: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*given, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for line in lines:
        assert f"  {line}" in printed
