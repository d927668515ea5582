"""Content embeddings of films: the full model beside baselines, and each part left out.

The films recipe on MovieLens with posters and plots: the full model with three seeds, every
ablation with two, all with one budget. A table of held-out figures (films from 2010 on): mean and
95 % interval over seeds of the full model, the mean of each ablation and its difference from the
full model at the same seeds. Runs are kept in --out and are not done again, so that the table can
be made in several sittings.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import ray
import ray.data

from bench.harness import Report, main
from jobs import ingest
from rec.artifacts import exists, join
from rec.metrics.bootstrap import over_seeds
from rec.recipes.content import ContentRecipe, films, minilm_folder
from rec.runtime.embed import EmbedConfig, embed
from rec.runtime.evaluate import METRICS, evaluate, write_evaluation
from rec.runtime.evaluation_data import EvaluationItems, read_items
from rec.runtime.evaluation_results import MODEL, Evaluation
from rec.runtime.evaluation_tasks import EvaluationConfig
from rec.runtime.train import train
from rec.sources import MovieLensSource

FULL = "full"
ABLATIONS: dict[str, list[str]] = {
    "no InfoNCE": ["weights.infonce=0"],
    "no key terms": ["weights.key_terms=0"],
    "no labels": ["weights.labels=0"],
    "random mask": ["masking.kind=uniform"],
    "plain label weights": ["rows.labels.weights.weighting=plain"],
    "top layer": ["model.fusion=top_layer"],
    "early fusion": ["model.fusion=early"],
    "late fusion": ["model.fusion=late"],
}
# what the table shows, of all that evaluation computes
COLUMNS = (
    ("keywords", "mAP"),
    ("keywords", "recall@10"),
    ("genres", "mAP"),
    ("behaviour", "recall@50"),
    ("text to picture", "recall@10"),
    ("picture to text", "recall@10"),
)
_PLAIN = "plain label weights"


def _recipe(variant: str, seed: int, steps: int) -> ContentRecipe:
    return films().override(
        [
            *ABLATIONS.get(variant, []),
            f"train.seed={seed}",
            f"train.steps={steps}",
            f"train.warmup_steps={max(steps // 10, 1)}",
            # one validation at the end: the budget is spent, not chosen on held-out films
            f"train.validate_every={steps}",
            f"train.checkpoint_every={max(steps // 2, 1)}",
        ]
    )


def _shared(options: argparse.Namespace, variant: str) -> str:
    """Folder of the tables and rows that the variant's runs share, made when it is not there."""
    kind = "plain" if variant == _PLAIN else "tfidf"
    place = join(options.out, f"data-{kind}")
    if not exists(join(place, "rows", "manifest.json")):
        source = MovieLensSource(path=options.data)
        config = ingest.IngestConfig(source=source, rows=_recipe(variant, 0, 1).rows)
        ingest.run(config, place)
    return place


def _run(options: argparse.Namespace, variant: str, seed: int) -> Evaluation:
    """One variant with one seed: train, embed, evaluate; what is done already is read."""
    place = Path(options.out) / f"{variant.replace(' ', '-')}-{seed}"
    metrics = place / "report" / METRICS
    if metrics.exists():
        return Evaluation.from_json(metrics.read_text())
    shared = _shared(options, variant)
    place.mkdir(parents=True, exist_ok=True)
    for name in ("tables", "rows"):
        if not (place / name).exists():
            os.symlink(join(shared, name), place / name)
    print(f"== {variant}, seed {seed}", flush=True)
    rows, encoder, embeddings = (str(place / n) for n in ("rows", "encoder", "embeddings"))
    if not exists(join(encoder, "manifest.json")):
        recipe = _recipe(variant, seed, options.steps)
        train(recipe, rows, str(place), num_workers=0, encoder=encoder)
    embed(encoder, rows, embeddings, EmbedConfig(precision="bf16"))
    first = variant == FULL and seed == 0
    config = EvaluationConfig(
        run=str(place), baselines=first, text_encoder=minilm_folder() if first else None
    )
    evaluation = evaluate(config, _items(shared, config.max_items))
    write_evaluation(evaluation, str(place / "report"))
    return evaluation


@cache
def _items(shared: str, max_items: int) -> EvaluationItems:
    return read_items(shared, max_items=max_items)


def _value(evaluation: Evaluation, method: str, task: str, metric: str) -> float:
    for figure in evaluation.figures:
        if (figure.method, figure.task, figure.metric) == (method, task, metric):
            return float("nan") if figure.value is None else figure.value
    return float("nan")


def _lines(title: str, cell: Callable[[str, str], str]) -> str:
    return f"| {title} | " + " | ".join(cell(task, metric) for task, metric in COLUMNS) + " |"


def _table(runs: dict[str, list[Evaluation]]) -> list[str]:
    """Baselines, the full model with its interval over seeds, every ablation with its loss."""
    heads = " | ".join(f"{task}, {metric}" for task, metric in COLUMNS)
    lines = [f"| method | {heads} |", "| --- |" + " ---: |" * len(COLUMNS)]
    full = runs[FULL]
    for method in dict.fromkeys(f.method for f in full[0].figures if f.method != MODEL):

        def baseline(task: str, metric: str, method: str = method) -> str:
            value = _value(full[0], method, task, metric)
            return "-" if np.isnan(value) else f"{value:.3f}"

        lines.append(_lines(method, baseline))

    def whole(task: str, metric: str) -> str:
        values = [_value(e, MODEL, task, metric) for e in full]
        mean, low, high = over_seeds(values)
        return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    lines.append(_lines(f"**full model**, {len(full)} seeds", whole))
    for variant, evaluations in runs.items():
        if variant == FULL:
            continue

        def part(task: str, metric: str, evaluations: list[Evaluation] = evaluations) -> str:
            values = [_value(e, MODEL, task, metric) for e in evaluations]
            same = [_value(e, MODEL, task, metric) for e in full[: len(values)]]
            gap = float(np.mean(np.subtract(values, same)))
            return f"{np.mean(values):.3f} ({gap:+.3f})"

        lines.append(_lines(f"{variant}, {len(evaluations)} seeds", part))
    return lines


def measure(options: argparse.Namespace, report: Report) -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    full_seeds, other_seeds = (1, 1) if options.quick else (3, 2)
    wanted = [(FULL, s) for s in range(full_seeds)]
    wanted += [(v, s) for s in range(other_seeds) for v in options.only or ABLATIONS]
    runs: dict[str, list[Evaluation]] = {}
    for variant, seed in wanted:
        runs.setdefault(variant, []).append(_run(options, variant, seed))
    report.table += _table(runs)
    print("\n".join(["", *report.table, ""]), flush=True)
    report.note(f"{options.steps} steps of {films().train.batch_size} rows a run, on the CPU")
    for task, metric in COLUMNS:
        mean = float(np.mean([_value(e, MODEL, task, metric) for e in runs[FULL]]))
        others = {
            f.method: f.value
            for f in runs[FULL][0].figures
            if (f.task, f.metric) == (task, metric) and f.method != MODEL and f.value is not None
        }
        if others:
            best = max(others, key=lambda name: others[name])
            report.add(f"{task}, {metric}: model over {best}", mean / max(others[best], 1e-9))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="the MovieLens folder")
    parser.add_argument("--out", default="runs/bench-content", help="where runs are kept")
    parser.add_argument("--steps", type=int, default=150, help="optimiser steps a run")
    parser.add_argument("--only", nargs="*", choices=list(ABLATIONS), help="these ablations alone")


if __name__ == "__main__":
    main("content", __doc__, measure, arguments)
