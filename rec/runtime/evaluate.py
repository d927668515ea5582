"""Held-out figures of a run beside its baselines: metrics.json and a Markdown table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rec import artifacts
from rec.metrics.baselines import (
    concatenations,
    linear_cross_modal,
    pixel_vectors,
    require_text_encoder,
    text_encoder_vectors,
    tfidf_vectors,
)
from rec.metrics.content import cross_modal_ranks
from rec.metrics.vectors import unit_rows
from rec.runtime.evaluation_data import (
    EvaluationItems,
    heldout_ids,
    read_items,
    read_vectors,
)
from rec.runtime.evaluation_modes import encode_apart
from rec.runtime.evaluation_results import (
    MODEL,
    Answers,
    Evaluation,
    differences,
    figure,
    markdown,
    over_runs,
)
from rec.runtime.evaluation_tasks import EvaluationConfig, Evaluator, cross_modal

METRICS = "metrics.json"
TABLE = "metrics.md"


def _strangers(run: str) -> list[str]:
    """A note where the run's encoder was trained on other rows than those it is asked about.

    Raises:
        ArtifactError: the embeddings were made by another encoder or of other rows than the run's.
    """
    encoder = artifacts.read_manifest(artifacts.join(run, "encoder"), "content-encoder")
    rows = artifacts.read_manifest(artifacts.join(run, "rows"), "content-rows")
    place = artifacts.join(run, "embeddings")
    made_of = artifacts.read_manifest(place, "embedding-table").lineage
    for name, now in (("encoder", encoder.version), ("rows", rows.version)):
        if (was := made_of.get(name, now)) != now:
            raise artifacts.ArtifactError(
                f"{place}: made of {name} {was}, which are {now} in this run now; run jobs.embed "
                "again"
            )
    if encoder.lineage.get("content-rows", rows.version) == rows.version:
        return []
    return [f"{run}: the encoder was trained on other rows, so it may know of what it is asked"]


def _model(evaluator: Evaluator, run: str) -> tuple[list[Answers], list[str]]:
    """The trained encoder's answers, and the items whose text and picture it was asked for."""
    items = evaluator.items
    vectors = read_vectors(artifacts.join(run, "embeddings"), items.item_ids)
    answers = evaluator.vectors(MODEL, [unit_rows(vectors)])
    apart = encode_apart(run, items.item_ids[items.num_train :], evaluator.config.device)
    if len(apart.item_ids) < 2:
        evaluator.notes.append("text and picture: not asked, fewer than 2 held-out items have both")
        return answers, []
    forth = cross_modal_ranks(apart.texts, apart.pictures)
    back = cross_modal_ranks(apart.pictures, apart.texts)
    return answers + cross_modal(MODEL, (forth, back)), apart.item_ids


def _baselines(evaluator: Evaluator, asked: list[str]) -> list[Answers]:
    """The answers of all that needs no training of ours; `asked` as `_model` returns it."""
    items, notes = evaluator.items, evaluator.notes
    answers: list[Answers] = []
    pixels = pixel_vectors(items.pixels, items.num_train)
    try:
        words = tfidf_vectors(items.texts, items.num_train)
    except ValueError as error:  # scikit-learn found no word to keep
        notes.append(f"TF-IDF: skipped, {error}")
        words = None
    if words is not None:
        answers += evaluator.vectors("TF-IDF", [words])
    if pixels.any():
        answers += evaluator.vectors("pixels", [pixels])
    else:
        notes.append("pixels: skipped, no item has a picture")
    position = {item_id: i for i, item_id in enumerate(items.item_ids)}
    queries = np.array([position[item_id] for item_id in asked], dtype=np.int64)
    if words is not None and pixels.any():
        answers += evaluator.vectors("TF-IDF + pixels", concatenations(words, pixels))
        both = np.array([bool(t) for t in items.texts[: items.num_train]])
        train = np.flatnonzero(both & pixels[: items.num_train].any(axis=1))
        if len(train) >= 20 and len(queries):
            ranks = linear_cross_modal(words, pixels, train, queries)
            answers += cross_modal("TF-IDF to pixels", ranks)
    if evaluator.config.text_encoder is None:
        notes.append("text encoder: skipped, none was given")
    else:
        frozen = text_encoder_vectors(items.texts, Path(evaluator.config.text_encoder))
        answers += evaluator.vectors("text encoder", [frozen])
    answers += evaluator.popularity()
    generator = np.random.default_rng(0)
    noise = unit_rows(generator.normal(size=(len(items), 16)))
    other = unit_rows(generator.normal(size=(len(items), 16)))
    answers += evaluator.vectors("random", [noise])
    if len(queries):
        ranks = (
            cross_modal_ranks(noise[queries], other[queries]),
            cross_modal_ranks(other[queries], noise[queries]),
        )
        answers += cross_modal("random", ranks)
    return answers


def _asked(evaluator: Evaluator, answers: list[Answers]) -> list[Answers]:
    """The answers that had a query; what had none is noted, it has no figure."""
    evaluator.notes += [
        f"{a.task}, {a.metric}: not asked, too few held-out items"
        for a in answers
        if not a.values.size
    ]
    return [a for a in answers if a.values.size]


def evaluate(
    config: EvaluationConfig,
    items: EvaluationItems | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """All figures of `config.run`, its baselines, and the runs it is compared with.

    Args:
        config: runs and settings.
        items: of `config.run`, where they were read already.
        tell: called with the name of each method before it is put to the questions.

    Raises:
        ArtifactError: the run lacks tables, rows, embeddings or encoder, or embeddings are not of
            the others, a compared run holds out other items, or there is no text encoder where one
            was said to be.
    """
    if config.text_encoder is not None:
        require_text_encoder(Path(config.text_encoder))  # now, not after minutes
    strangers = [note for run in (config.run, *config.compare) for note in _strangers(run)]
    held = heldout_ids(config.run)
    for other in config.compare:
        if heldout_ids(other) != held:
            raise artifacts.ArtifactError(
                f"{other}: holds out other items than {config.run}; figures over seeds need "
                f"runs on the same tables and cut-off"
            )
    if items is None:
        items = read_items(config.run, max_items=config.max_items)
    evaluator = Evaluator(config, items, tell)
    evaluator.notes += strangers
    found = {run: _model(evaluator, run) for run in (config.run, *config.compare)}
    runs = {run: _asked(evaluator, answers) for run, (answers, _) in found.items()}
    baselines = []
    if config.baselines:
        baselines = _asked(evaluator, _baselines(evaluator, found[config.run][1]))
    figures = [figure(run, a) for run, answers in runs.items() for a in answers]
    if len(runs) > 1:
        figures += over_runs(list(runs.values()))
    figures += [figure(config.run, a) for a in baselines]
    return Evaluation(
        run=config.run,
        figures=tuple(figures),
        differences=tuple(differences(runs, baselines)),
        settings=evaluator.settings,
        num_train=items.num_train,
        num_heldout=len(items) - items.num_train,
        cutoff=items.cutoff.isoformat() if items.cutoff else None,
        notes=tuple(dict.fromkeys(evaluator.notes)),
    )


def write_evaluation(evaluation: Evaluation, uri: str) -> None:
    """Write METRICS and TABLE below `uri`."""
    artifacts.write_atomic(artifacts.join(uri, METRICS), evaluation.to_json().encode())
    artifacts.write_atomic(artifacts.join(uri, TABLE), markdown(evaluation).encode())
